"""Evaluation from outside: lm-evaluation-harness, the command line, studies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import BATCH, QUESTIONS, TIME, by_hand, small

import kzoo
from kzoo import evaluation
from kzoo.cli import main
from kzoo.errors import InputError
from kzoo.studies import metrics
from kzoo.studies.written import pairs_of
from kzoo.vocabulary import BYTES

SHOTS = [
    {"question": "0 + 0 =", "choices": ["0", "1"], "answer": 0},
    {"question": "1 + 1 =", "choices": ["one", "2"], "answer": 1},
]
PROSE = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail."


@pytest.fixture(scope="module")
def gpt():
    return small("gpt")


@pytest.fixture(scope="module")
def t5():
    return small("t5")


# lm-evaluation-harness ----------------------------------------------------------------------------


def task(name, docs, **fields):
    """A task over rows that are here."""
    datasets = pytest.importorskip("datasets")

    def rows(**_):
        held = {"test": docs, "train": SHOTS}
        return {split: datasets.Dataset.from_list(of) for split, of in held.items()}

    return {
        "task": name,
        "custom_dataset": rows,
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **fields,
    }


def run(model, tasks):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from kzoo.evaluation.harness import KzooLM

    found = lm_eval.simple_evaluate(
        KzooLM(model, batch_size=BATCH),
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),  # thousands of files
        bootstrap_iters=2,  # 0 would leave out all standard errors
    )
    return found["results"], found["samples"]


def indexed(questions):
    given = evaluation.examples(questions)
    return [{"question": q.question, "choices": list(q.choices), "answer": q.gold} for q in given]


NORMS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


@pytest.mark.parametrize("family, num_fewshot", [("gpt", 2), ("t5", 0)])
def test_the_harness_finds_what_evaluate_choices_finds(family, num_fewshot, request):
    model = request.getfixturevalue(family)
    fields = {"output_type": "multiple_choice", "doc_to_choice": "choices"}
    fields |= {"doc_to_target": "answer", "metric_list": [{"metric": name} for name in NORMS]}
    fields |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    fields["num_fewshot"] = num_fewshot
    results, samples = run(model, [task("choices", indexed(QUESTIONS), **fields)])
    ours = kzoo.evaluate_choices(
        model,
        QUESTIONS,
        num_fewshot=num_fewshot,
        fewshot=SHOTS,
        metrics=NORMS,
        batch_size=BATCH,
    )
    for name in NORMS:
        assert results["choices"][f"{name},none"] == ours[name], name
    assert results["choices"]["acc_stderr,none"] == pytest.approx(ours["acc_stderr"])
    for sample, question, log_p in zip(
        samples["choices"], indexed(QUESTIONS), ours["loglikelihoods"], strict=True
    ):
        theirs = [float(answer[0][0]) for answer in sample["resps"]][: len(log_p)]
        np.testing.assert_allclose(theirs, log_p, rtol=1e-6)
        if not num_fewshot:
            pairs = [(question["question"], choice) for choice in question["choices"]]
            expected = [p for p, _ in by_hand(model, pairs)]
            np.testing.assert_allclose(theirs, expected, rtol=1e-5)


def test_rolling_log_p_scores_each_byte_once(gpt):
    docs = [{"question": "", "text": text} for text in ("to be", PROSE)]
    assert len(PROSE) > TIME
    fields = {"output_type": "loglikelihood_rolling", "doc_to_target": "{{text}}"}
    results, samples = run(gpt, [task("prose", docs, **fields)])
    short, long = (float(sample["resps"][0][0]) for sample in samples["prose"])
    assert short == pytest.approx(by_hand(gpt, [("", "to be")])[0][0], rel=1e-5)
    # By the harness's rule, in sequences of 64 that begin with BOS: the first scores 63 bytes, and
    # the last has 63 bytes, of which it scores those that are left.
    left = len(PROSE) - (TIME - 1)
    parts = [("", PROSE[: TIME - 1]), (PROSE[len(PROSE) - TIME : -left], PROSE[-left:])]
    assert long == pytest.approx(sum(p for p, _ in by_hand(gpt, parts)), rel=1e-5)
    bits = -(short + long) / (math.log(2) * (5 + len(PROSE)))
    assert results["prose"]["bits_per_byte,none"] == pytest.approx(bits)


def test_the_harness_generates(gpt):
    docs = [{"question": text, "text": "x"} for text in ("to", "or not")]
    settings = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    fields = {"output_type": "generate_until", "doc_to_target": "{{text}}"}
    fields |= {"generation_kwargs": settings, "metric_list": [{"metric": "exact_match"}]}
    _, samples = run(gpt, [task("answers", docs, **fields)])
    expected = evaluation.answers(
        gpt, ["to", "or not"], max_tokens=5, until=("\n",), batch_size=BATCH
    )
    assert [sample["resps"][0][0] for sample in samples["answers"]] == expected


def test_the_harness_is_refused_what_kzoo_cannot_answer(gpt):
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    from kzoo.evaluation.harness import KzooLM

    assert get_model("kzoo") is KzooLM
    with pytest.raises(InputError, match="predicts hidden ones"):
        KzooLM(small("bert"))
    with pytest.raises(InputError, match="kzoo answers the harness greedily"):
        KzooLM(gpt)._settings({"do_sample": True, "temperature": 0.7})
    assert KzooLM(gpt)._settings({"until": "a", "max_new_tokens": 3}) == (("a",), 3)


# The command line -------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return str(path)


BAD = [
    (
        ["gpt_nan", "--task", "Q"],
        "unknown preset, and no folder of that name; did you mean 'gpt_nano'",
    ),
    (["bert_nano", "--task", "Q"], "this model predicts hidden ones"),
    (["gpt_nano", "--task", "none.jsonl"], "none.jsonl"),
    (["gpt_nano", "--task", "Q", "--metric", "blue"], "unknown metric; did you mean 'bleu'"),
    (["gpt_nano", "--task", "Q", "--metric", '{"chrf": {"a": 1}}'], "unknown field of the metric"),
    (["gpt_nano", "--task", "Q", "--shots", "3"], "num_fewshot=3, and 2 to show"),
    (["gpt_nano", "--task", "Q", "--valid", "0.5"], "--valid splits pairs"),
    (["gpt_nano", "--task", "synthetic:copy", "--metric", "acc"], "from 2 to 100 different ones"),
    (["gpt_nano", "--task", "T"], "Received: text alone, --task"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_bad_commands_are_told_in_a_line_before_a_model_is_made(
    arguments, message, questions, capsys, monkeypatch
):
    monkeypatch.setattr(kzoo.presets, "load", lambda *_, **__: pytest.fail("a model is made"))
    text = Path(questions).with_suffix(".txt")
    text.write_text(PROSE)
    names = {"Q": questions, "T": str(text)}
    arguments = [names.get(argument, argument) for argument in arguments]
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_command_prints_what_python_finds(gpt, questions, capsys, tmp_path):
    kzoo.presets.save(gpt, tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), "--shots", "1", "--batch-size", str(BATCH)]
    assert main([*command, "--task", questions, "--metric", "acc_norm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ours = kzoo.evaluate_choices(
        gpt, QUESTIONS, num_fewshot=1, metrics=["acc_norm"], batch_size=BATCH
    )
    assert found["acc_norm"] == ours["acc_norm"] and found["num_fewshot"] == 1
    assert found["acc_norm_stderr"] == ours["acc_norm_stderr"] and found["examples"] == 3
    pairs = ["--task", "synthetic:copy", "--valid", "0.1", "--limit", "4"]
    assert main([*command[:2], *pairs, "--batch-size", str(BATCH), "--max-tokens", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["exact_match", "0", "±", "0"]
    assert printed[1].startswith("bits_per_byte")


def test_a_classifier_is_measured_by_its_labels_unless_said(tmp_path, capsys):
    labels = ["0", "1"]
    rows = [(f"owl {i} is here", i % 3 % 2) for i in range(12)]
    model = kzoo.presets.load(
        "bert_nano", num_layers=1, objective={"classification": {"labels": labels}}
    )
    kzoo.presets.save(model, tmp_path / "model")
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    command = ["evaluate", str(tmp_path / "model"), "--task", f"table:{table}:text:label"]
    assert main([*command, "--json", "--batch-size", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = model.predict([text for text, _ in rows], batch_size=12, verbose=0).argmax(-1)
    by_hand = np.mean([labels[i] == str(label) for i, (_, label) in zip(chosen, rows, strict=True)])
    assert found["acc"] == by_hand and "bits_per_byte" not in found
    pairs = [(text, str(label)) for text, label in rows]
    assert kzoo.evaluate_choices(model, pairs, batch_size=12)["acc"] == by_hand


def test_a_task_may_be_json(capsys, monkeypatch):
    def stop(name):
        raise InputError("the task is read")

    monkeypatch.setattr(kzoo.presets, "load", stop)
    task = json.dumps({"synthetic": {"task": {"copy": {"length": 4, "count": 60}}}})
    assert main(["evaluate", "gpt_nano", "--task", task]) == 2
    assert "the task is read" in capsys.readouterr().err


# Studies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, objective", [("gpt", "causal_lm"), ("t5", "prefix_lm")])
def test_held_out_pairs_are_read_from_batches(family, objective):
    config = kzoo.presets.config(f"{family}_nano", objective=objective)
    pairs = [(f"question {i}", f"answer {i * i}") for i in range(20)]
    splits = kzoo.data.load(pairs, config, batch_size=4, valid=0.3)
    found = [pair for batch in splits.valid for pair in pairs_of(batch, BYTES)]
    texts = [tuple(bytes(part.tolist()).decode() for part in pair) for pair in found]
    assert len(texts) == splits.facts["valid_rows"] and set(texts) < set(pairs)


def test_packed_pairs_are_read():
    ids = [257, 97, 260, 98, 258, 257, 99, 260, 100, 101, 256]
    y = [97, 260, 98, 258, 256, 99, 260, 100, 101, 258, 256]
    weight = [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0]
    mask = [1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0]
    x = {"token_ids": np.array([ids]), "padding_mask": np.array([mask])}
    found = pairs_of((x, np.array([y]), np.array([weight])), BYTES)
    assert [[part.tolist() for part in pair] for pair in found] == [
        [[97], [98]],
        [[99], [100, 101]],
    ]


def test_a_study_measures_what_models_write(gpt):
    pairs = [(f"question {i}", f"answer {i * i}") for i in range(20)]
    splits = kzoo.data.load(pairs, gpt, batch_size=4, valid=0.2)
    asked = [metrics.METRICS.get(spec) for spec in ("accuracy", {"chrf": {"word_order": 2}})]
    asked.append(metrics.METRICS.get("exact_match"))
    found = metrics.measure(asked, gpt, splits.valid)
    assert list(found["metrics"]) == ["accuracy", "chrf", "exact_match"]
    assert found["metrics"]["exact_match"] == 0 <= found["metrics"]["chrf"] < 100
    assert found["written"] == {"pairs": 4, "of": 4}
    json.dumps(found)
    record = {"metrics": found["metrics"]}
    assert asked[1].value(record) == found["metrics"]["chrf"]


def test_studies_refuse_texts_that_no_model_writes():
    chrf = metrics.METRICS.get("chrf")
    pairs, text = ({"source": "s", "split": split} for split in ({"sources_on_both_sides": 0}, {}))
    chrf.check(kzoo.presets.config("gpt_nano"), pairs)
    chrf.check(kzoo.presets.config("t5_nano"), pairs)
    for preset, facts, message in [
        ("bert_nano", pairs, "predicts hidden ones"),
        ("gpt_nano", text, "the data are pairs"),
    ]:
        with pytest.raises(InputError, match=message):
            chrf.check(kzoo.presets.config(preset), facts)
    with pytest.raises(InputError, match="the data are pairs"):
        chrf.check(kzoo.presets.config("t5_nano", objective="span_corruption"), pairs)
