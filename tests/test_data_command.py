"""kzoo data: what a source holds, and what a model is given of it; and the pipeline's speed."""

import json
import re

import numpy as np
import pytest

import kzoo
from kzoo import presets
from kzoo.cli import main
from kzoo.data import pipeline, showing, statistics
from kzoo.errors import InputError

LINES = [f"owl {i} sat down in the old tree" for i in range(40)]
PAIRS = [(f"{i} plus {i}", f"{2 * i}") for i in range(40)]


def examples(data, preset, count=3, **overrides):
    config = presets.config(preset, max_sequence_length=48, **overrides)
    splits = kzoo.data.load(data, config, batch_size=1)
    encoder = pipeline.encoder_of(config, config)
    return [showing.shown(splits.train[i], config, encoder)[0] for i in range(count)]


def text_of(runs, kind):
    return "".join(run["text"] for run in runs if run["kind"] == kind)


def test_a_language_model_reads_and_is_scored_on_all():
    for one in examples(LINES, "gpt_nano"):
        assert one["source"] is None and one["target"] in LINES
        assert one["scored"] == [one["target"] + "[EOS]"]
        ((views,),) = [one["sees"]["decoder"]]
        for query in views["queries"]:
            assert query["keys"] == "1" * (query["position"] + 1) + "0" * (
                one["tokens"] - 1 - query["position"]
            )


@pytest.mark.parametrize("preset", ["gpt_nano", "unilm_nano", "t5_nano"])
def test_source_and_target_are_those_of_the_pairs(preset):
    for one in examples(PAIRS, preset, objective="prefix_lm"):
        assert (one["source"], one["target"]) in PAIRS
        assert one["scored"] == [one["target"] + "[EOS]"]
    if preset == "t5_nano":
        assert text_of(one["reads"]["encoder"], "source") == one["source"]
        (view,) = one["sees"]["encoder"]
        assert {query["keys"] for query in view["queries"]} == {
            "1" * len(view["queries"][0]["keys"])
        }
    if preset == "unilm_nano":
        source = len(one["source"]) + 2  # BOS, SEP
        assert one["sees"]["decoder"][0]["queries"][0]["keys"].startswith("1" * source + "0")


def test_hidden_tokens_are_shown_with_what_stood_there():
    for one in examples(LINES, "bert_mixed_heads_nano"):
        assert one["target"] in LINES and sum(map(len, one["scored"])) == one["scored_tokens"] > 0
        whole = "".join(run.get("label", run["text"]) for run in one["reads"]["decoder"])
        assert whole == f"[BOS]{one['target']}[EOS]"
        causal, reverse = one["sees"]["decoder"]
        assert causal["heads"] == [0, 2] and reverse["heads"] == [1, 3]
        assert causal["queries"][-1]["keys"][0] == "1" and reverse["queries"][-1]["keys"][0] == "0"


@pytest.mark.parametrize(
    ("preset", "objective"),
    [
        ("t5_nano", "span_corruption"),
        ("unilm_nano", "ul2"),
        ("unilm_nano", "unilm"),
        ("t5_nano", "ul2"),
    ],
)
def test_every_objective_is_shown(preset, objective):
    for one in examples(LINES, preset, objective=objective):
        assert one["scored_tokens"] > 0 and one["scored"] and one["target"]
        if objective == "span_corruption":
            assert "<extra_id_0>" in "".join(run["text"] for run in one["reads"]["encoder"])
            spans = re.split(r"<extra_id_\d+>", one["scored"][0].removesuffix("[EOS]"))
            assert "".join(spans) == one["target"]


def test_a_classifier_is_shown_a_text_and_its_label():
    labelled = [(f"owl number {i}", "odd" if i % 2 else "even") for i in range(40)]
    objective = {"classification": {"labels": ["even", "odd"]}}
    for one in examples(labelled, "bert_nano", objective=objective):
        assert (one["source"], one["target"]) in labelled and one["scored"] == [one["target"]]
        assert text_of(one["reads"]["decoder"], "source") == one["source"]


def test_packed_examples_are_taken_apart():
    config = presets.config("gpt_nano", max_sequence_length=16)
    encoder = pipeline.encoder_of(config, config)
    x, y, weight = encoder.batch(None, encoder.tokens(["abc", "de"]), 4)
    joined = {"token_ids": x["token_ids"].reshape(1, -1)}
    joined["padding_mask"] = (x["padding_mask"] * [[1], [2]]).reshape(1, -1)
    first, second = showing.shown(
        (joined, y.reshape(1, -1), weight.reshape(1, -1)), config, encoder
    )
    assert (first["target"], second["target"]) == ("abc", "de")
    assert second["sees"]["decoder"][0]["queries"][0]["keys"] == "1000"


def test_statistics_by_hand():
    config = presets.config("gpt_nano", objective="prefix_lm", max_sequence_length=512)
    encoder = pipeline.encoder_of(config, config)
    pairs = [("a" * n, "b" * (2 * n)) for n in range(1, 101)] + [("a", "bb")]
    found = statistics.statistics(kzoo.data.sources.read(pairs), encoder)
    assert (found["documents"], found["duplicates"], found["kind"]) == (100, 1, "pairs")
    assert found["bytes"] == found["tokens"] == 3 * 5050 and found["bytes_per_token"] == 1
    least, quarter, median, *rest = found["lengths"]["source"]
    assert (least, quarter, rest) == (1, 26, [75, 90, 99, 100]) and median in (50, 51)
    # BOS source SEP target EOS, less the last, which is only a label.
    row = np.array([3 * n + 2 for n in range(1, 101)])
    assert found["lengths"]["example"][-1] == row[-1] == 302
    cut = {each["length"]: each for each in found["cut"]}
    assert [*cut] == [64, 128, 256, 512] and cut[512]["examples"] == 0
    assert cut[128]["examples"] == pytest.approx((row > 128).mean())
    lost = np.maximum(row - 128, 0).sum() / row.sum()
    assert cut[128]["tokens"] == pytest.approx(lost, abs=1e-4)


def test_a_long_document_is_measured_by_its_beginning(monkeypatch):
    monkeypatch.setattr(statistics, "LONGEST", 100)
    config = presets.config("gpt_nano")
    encoder = pipeline.encoder_of(config, config)
    corpus = kzoo.data.sources.Corpus("x", "", text=b"a" * 1000 + b"\n\nbb", sizes=(1000, 2))
    found = statistics.statistics(corpus, encoder)
    assert found["lengths"]["target"][-1] == 1000 and found["lengths"]["target"][0] == 2
    assert (found["bytes"], found["tokens"], found["bytes_per_token"]) == (1002, 102, 1)


def test_documents_of_a_folder_are_counted(tmp_path):
    for name, text in {"a": "Ä first.\n", "b": "A second\n\none.", "c": "Ä first.\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    config = presets.config("gpt_nano")
    encoder = pipeline.encoder_of(config, config)
    found = statistics.statistics(kzoo.data.sources.read(tmp_path), encoder)
    assert (found["documents"], found["duplicates"]) == (2, 1)
    assert found["bytes"] == len("Ä first.\nA second\n\none.".encode())
    assert sorted(found["lengths"]["target"]) == found["lengths"]["target"]
    assert all(each["tokens"] == 0 for each in found["cut"])


def test_a_source_in_json_is_read_as_in_python(capsys):
    source = {"synthetic": {"task": {"copy": {"length": 4, "count": 60}}}}
    assert main(["data", json.dumps(source), "--objective", "prefix_lm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["facts"]
    config = presets.config("unilm_nano", objective="prefix_lm")
    ours = kzoo.data.load(source, config, batch_size=1).facts
    assert found["sha256"] == ours["sha256"] and found["train_rows"] == ours["train_rows"]
    for text, words in (
        ('{"synthetic": {"task": "copy"', "a source in JSON"),
        ('{"synthetics": {"task": "copy"}}', "did you mean 'synthetic'"),
    ):
        assert main(["data", text]) == 2
        assert words in capsys.readouterr().err


def test_a_run_is_trained_on_a_source_in_json(tmp_path, capsys, monkeypatch):
    def stop(source, *_, **__):
        raise InputError(f"the source is {kzoo.data.sources.read(source).name}")

    monkeypatch.setattr(kzoo.data, "load", stop)
    source = json.dumps({"synthetic": {"task": {"copy": {"count": 60, "length": 4}}}})
    command = ["train", "gpt_nano", "--text", source, "--steps", "1", "--out", str(tmp_path / "r")]
    assert main(command) == 2
    assert f"the source is {source}" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"{a}\t{b}\n" for a, b in [("prompt", "response"), *PAIRS]))
    assert main(["data", str(table), "--show", "2", "--stats", "--objective", "prefix_lm"]) == 0
    printed = capsys.readouterr().out
    assert "example 0: " in printed and "plus" in printed and "[SEP]" in printed
    assert re.search(r"40 examples \(0 duplicates left out\)", printed)
    assert "bytes per token" in printed and "what rows of a length would cut" in printed
    command = ["data", str(table), "--json", "--show", "1", "--tokenizer", "bpe:370"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["examples"]) == 1 and "statistics" not in result
    assert result["facts"]["tokenizer_size"] <= 370
    assert main(["data", str(table), "--json", "--stats", "--packing", "first_fit"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert packed["facts"]["packing"]["kind"] == "first_fit"
    assert packed["fill"]["row"] > 0.8 and packed["facts"]["packing"]["rows"] < 36


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nowhere.txt", "no such file"),
        ("pydoc --preset gpt_nani", "did you mean 'gpt_nano'"),
        ("pydoc --objective masked_ln", "unknown objective"),
        ("pydoc --tokenizer bpe:9", "364 ids or more"),
        ("pydoc --tokenizer bpe:abc", "is an integer"),
        ("pydoc --preset nodir", "unknown preset, and no folder of that name"),
        ("pydoc --show 0", "a positive integer"),
        ("pydoc --objective ul2 --set objective=ul2", "--objective or --set"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    assert main(["data", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
