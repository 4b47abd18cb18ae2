"""Data: every source, the split that never leaks, and batches that a seed decides."""

import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kzoo import data
from kzoo.data import sources, tasks, text
from kzoo.data.tasks.copying import SYMBOLS
from kzoo.errors import InputError
from kzoo.studies.folder import check_data
from kzoo.vocabulary import BOS, EOS, MASK, NUM_BYTES, PAD, SEP

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SHAKESPEARE = SHARED / "data" / "tfds_manual" / "input.txt"
needs_shakespeare = pytest.mark.skipif(
    not SHAKESPEARE.exists(), reason="tiny Shakespeare is not beside the project"
)

OBJECTIVES = ["causal_lm", "prefix_lm", {"prefix_lm": {"score": "all"}}, "masked_lm"]


def config(objective="causal_lm", mask="causal", length=64, **fields):
    return {"max_sequence_length": length, "mask": mask, "objective": objective, **fields}


def load(source, *args, batch_size=8, **kwargs):
    fields = {k: kwargs.pop(k) for k in ("mask", "length") if k in kwargs}
    return data.load(source, config(*args, **fields), batch_size=batch_size, **kwargs)


def same(a, b):
    (x, *a), (z, *b) = a, b
    return (
        x.keys() == z.keys()
        and all((x[k] == z[k]).all() for k in x)
        and all((i == j).all() for i, j in zip(a, b, strict=True))
    )


@pytest.fixture
def prose(tmp_path):
    """A file of 60 kB in which no run of 64 bytes comes twice."""
    words = [f"{n:x}" for n in np.random.default_rng(0).integers(1 << 32, size=7000)]
    lines = [" ".join(words[i : i + 9]) for i in range(0, len(words), 9)]
    path = tmp_path / "prose.txt"
    path.write_text("\n".join(lines))
    return path


def rows_of(dataset):
    """The bytes of every row of a causal_lm data set of whole windows, in its order."""
    return [
        bytes(row.tolist()) for i in range(len(dataset)) for row in dataset[i][1] if row[0] < 256
    ]


# Batches


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("source", ["prose", "synthetic:copy"])
def test_a_batch_follows_from_seed_epoch_and_position(prose, source, objective):
    source = prose if source == "prose" else source
    mask = "bidirectional" if objective == "masked_lm" else "prefix"
    train, valid = load(source, objective, mask=mask, seed=5)
    again, valid_again = load(source, objective, mask=mask, seed=5)
    other, valid_other = load(source, objective, mask=mask, seed=6)
    for k in (0, 3, len(train) - 1):
        assert same(train[k], again[k])
        assert not same(train[k], other[k])
    assert len(valid) == len(valid_other)
    assert all(same(valid[k], valid_other[k]) and same(valid[k], valid_again[k]) for k in range(3))

    steps = len(train)
    epochs = train.repeat()
    assert same(epochs[1], train[1])
    assert not same(epochs[steps], train[0])
    assert same(train.repeat()[steps + 2 :][0], epochs[steps + 2])
    resumed = iter(train.repeat()[steps - 1 :])
    assert all(same(next(resumed), epochs[steps - 1 + k]) for k in range(3))


def test_no_batch_writes_out_the_examples():
    """As Grain does with what it is given to call, unless that is a plain function."""

    def never(array):
        raise AssertionError(f"an array of {array.shape} is written out")

    train, _ = load("synthetic:copy")
    with np.printoptions(override_repr=never):
        assert train[0] and train[:3].repeat()[4] and next(iter(train))


def test_an_epoch_reads_each_row_at_most_once(prose):
    train, _ = load(prose)
    first, second = (rows_of(train.repeat()[i * len(train) : (i + 1) * len(train)]) for i in (0, 1))
    assert len(set(first)) == len(first) == 8 * len(train)
    assert first != second
    assert len(set(first) ^ set(second)) <= 2 * 7  # only the remainder of a batch may differ


def test_masks_are_drawn_anew_each_epoch(prose):
    train, _ = load(prose, "masked_lm", mask="bidirectional")
    seen = {}
    epochs = train.repeat()
    for k in range(2 * len(train)):
        _, y, weight = epochs[k]
        for row, chosen in zip(y, weight, strict=True):
            seen.setdefault(row.tobytes(), []).append(chosen.tobytes())
    twice = [chosen for chosen in seen.values() if len(chosen) == 2]
    assert len(twice) > 0.9 * len(seen)
    assert all(a != b for a, b in twice)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_arms_get_the_same_batches_but_for_the_source_mask(prose, objective):
    masks = [
        "prefix",
        "causal",
        {"heads": ["prefix", "causal"]},
        {"layers": ["causal", "reversed"]},
    ]
    arms = [load(prose, objective, mask=mask) for mask in masks]
    for split in range(2):
        batches = [tuple(arm)[split][1] for arm in arms]
        with_source = ["source_mask" in x for x, _, _ in batches]
        assert with_source == [True, False, True, False]
        for x, _, _ in batches:
            x.pop("source_mask", None)
        assert all(same(batches[0], batch) for batch in batches[1:])


def test_arms_that_train_on_all_tokens_are_measured_on_the_targets(prose):
    targets = load(prose, "prefix_lm", mask="prefix")
    everything = load(prose, {"prefix_lm": {"score": "all"}}, mask="prefix")
    assert all(same(targets.valid[k], everything.valid[k]) for k in range(len(targets.valid)))
    (x, y, some), (x_all, y_all, more) = targets.train[0], everything.train[0]
    assert same((x, y), (x_all, y_all)) and (more >= some).all() and more.sum() > some.sum()


def test_the_objective_argument_wins(prose):
    train, _ = load(prose, "causal_lm", mask="bidirectional", objective="masked_lm")
    assert (train[0][0]["token_ids"] == MASK).any()


def test_a_model_is_as_good_as_its_config(prose):
    class Model:
        config = config()

    assert same(data.load(prose, Model, batch_size=8).train[0], load(prose).train[0])


def test_every_batch_has_one_shape_and_the_last_is_filled_with_nothing(prose):
    for objective in OBJECTIVES:
        splits = load(prose, objective, mask="prefix", batch_size=7)
        for dataset in splits:
            for x, y, weight in dataset:
                assert {a.shape for a in (*x.values(), y, weight)} == {(7, 64)}
                assert [a.dtype for a in (*x.values(), y, weight)] == [np.int32] * 4 + [np.float32]
        count = splits.facts["valid_rows"]
        assert len(splits.valid) == math.ceil(count / 7) and count % 7
        x, y, weight = splits.valid[len(splits.valid) - 1]
        fill = slice(count % 7, None)
        assert (x["token_ids"][fill] == PAD).all() and (y[fill] == PAD).all()
        assert not x["padding_mask"][fill].any() and not x["source_mask"][fill].any()
        assert not weight[fill].any() and weight[: count % 7].any(axis=1).all()


def test_held_out_rows_do_not_depend_on_the_batch_size(prose):
    rows = []
    for batch_size in (4, 9):
        splits = load(prose, "masked_lm", mask="bidirectional", batch_size=batch_size)
        batches = [np.stack([x["token_ids"], y]) for x, y, _ in splits.valid]
        rows.append(np.concatenate(batches, 1)[:, : splits.facts["valid_rows"]])
    assert (rows[0] == rows[1]).all()


# The split


def test_held_out_text_is_about_a_tenth_in_blocks_throughout(prose):
    whole = prose.read_bytes()
    train, held_out = text.split(whole, 0.1)
    assert abs(len(held_out) / len(whole) - 0.1) < 0.02
    assert len(train) + len(held_out) == len(whole)
    big = np.random.default_rng(0).integers(97, 123, 400_000, dtype=np.uint8).tobytes()
    _, held_out = text.split(big, 0.1)
    places = [big.index(held_out[i : i + 64].tobytes()) for i in range(0, len(held_out), 4096)]
    assert np.ptp(places) > 0.85 * len(big) and np.diff(places).min() > 0


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=3000), st.floats(0.01, 0.99))
def test_a_split_loses_and_shares_nothing(whole, valid):
    train, held_out = text.split(whole, valid)
    assert len(held_out) and len(train) + len(held_out) <= len(whole)
    if len(whole) > 200:
        assert abs(len(held_out) - valid * len(whole)) <= 0.15 * valid * len(whole) + 2


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(0, 3000))
def test_repeated_passages_are_cut_out_of_the_training_part(seed, at):
    fresh = np.random.default_rng(seed).integers(97, 123, 20_000, dtype=np.uint8).tobytes()
    passage = text.split(fresh, 0.1)[1][at % 1500 :][:400].tobytes()
    whole = fresh[:5000] + passage + fresh[5000:]
    train, held_out = (part.tobytes() for part in text.split(whole, 0.1))
    runs = {held_out[i : i + 64] for i in range(len(held_out) - 63)}
    # Inside one piece; a run across a cut may only be one that never stood there.
    assert not any(train[i : i + 64] in runs for i in range(len(train) - 63))
    assert len(train) >= 0.85 * len(whole)


def test_a_text_that_is_all_repetition_is_kept_with_a_warning(tmp_path, caplog):
    path = tmp_path / "again.txt"
    path.write_text("the same line again and again\n" * 1000)
    splits = load(path)
    assert splits.facts["train_rows"] > 400
    assert "repeats itself" in caplog.text


def shared_runs(train, held_out):
    """How many of the rows' 64 bytes at a held-out row stand anywhere in training rows."""
    runs = {row[i : i + 64] for row in train for i in range(len(row) - 63)}
    return sum(row[i : i + 64] in runs for row in held_out for i in range(len(row) - 63))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pydoc", pytest.param(SHAKESPEARE, marks=needs_shakespeare)])
def test_real_text_shares_no_64_bytes(source):
    splits = load(source, length=128, batch_size=1)
    assert shared_runs(rows_of(splits.train), rows_of(splits.valid)) == 0
    assert 0.09 < splits.facts["valid_bytes"] / splits.facts["train_bytes"] < 0.13


@pytest.mark.parametrize("count, valid", [(10, 0.1), (25, 0.3), (3, 0.1), (1000, 0.05)])
def test_whole_rows_are_held_out_evenly(count, valid):
    rows = [f"row {i}" for i in range(count)]
    splits = load(rows, length=32, batch_size=1, valid=valid)
    train, held_out = ([row.split(b"\0")[0] for row in _lines(d)] for d in splits)
    assert len(held_out) == splits.facts["valid_rows"] == max(1, round(valid * count))
    assert sorted(train + held_out) == sorted(row.encode() for row in rows)
    places = [rows.index(row.decode()) for row in held_out]
    assert np.diff(places).max(initial=0) <= math.ceil(count / len(held_out))


def _lines(dataset):
    """The bytes of each real row, whatever its length."""
    rows = (row for i in range(len(dataset)) for row in dataset[i][1])
    rows = [bytes(row[row < NUM_BYTES].astype(np.uint8)) for row in rows]
    return [row for row in rows if row]


def test_duplicates_never_stand_on_both_sides(tmp_path):
    rows = [f"row {i % 20}" for i in range(200)]
    splits = load(rows, length=32, batch_size=1)
    train, held_out = map(_lines, splits)
    assert len(train) + len(held_out) == 20 and not set(train) & set(held_out)

    for name in "ab":
        (tmp_path / name).write_text("".join(f"{i} squared is {i * i}\n" for i in range(400)))
    assert sources.read(tmp_path).text == (tmp_path / "a").read_bytes()


class Rows:
    """As a `Dataset` of Hugging Face `datasets`: two columns that are read by random access."""

    column_names = ["prompt", "response"]

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitems__(self, indices):
        return [dict(zip(self.column_names, self.pairs[i], strict=True)) for i in indices]


def test_what_repeats_itself_is_counted_and_said(tmp_path, caplog):
    pairs = [(f"q{i}", f"a{i}") for i in range(41)]
    splits = load(pairs + pairs[:29], "prefix_lm", mask="prefix", batch_size=1)
    assert splits.facts["repeated"] == 29 and "29 of 70 examples repeat others" in caplog.text
    assert splits.facts["train_rows"] + splits.facts["valid_rows"] == 41
    assert "repeated_by_split" not in splits.facts

    caplog.clear()  # few are counted, and no reason to warn
    load([f"row {i % 40}" for i in range(41)], length=32, batch_size=1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    parts = {"train": pairs[:20] + pairs[:3], "validation": pairs[20:] + pairs[20:21]}
    found = load({k: Rows(v) for k, v in parts.items()}, "prefix_lm", mask="prefix").facts
    assert found["repeated"] == 4 and found["repeated_by_split"] == {"train": 3, "valid": 1}
    assert (found["train_rows"], found["valid_rows"]) == (20, 21)

    for name in "abc":
        (tmp_path / name).write_text("".join(f"{i} squared is {i * i}\n" for i in range(400)))
    assert load(tmp_path, batch_size=1).facts["repeated"] == 2


def test_records_without_a_count_of_what_repeats_go_on():
    facts = load([f"row {i % 20}" for i in range(40)], length=32, batch_size=1).facts
    before = {name: value for name, value in facts.items() if name != "repeated"}
    record = {"data": "list", "arm": "a", "run": "list/a/0", "facts": before}
    check_data("list", "a", facts, [record])
    record["facts"] = {**before, "sha256": "another"}
    with pytest.raises(InputError, match="changed after the run"):
        check_data("list", "a", facts, [record])


# Entropies


def test_entropies():
    assert text.unigram_entropy(b"abcd" * 5) == 2
    assert text.unigram_entropy(b"aaaa") == 0
    assert text.bigram_entropy(b"abab" * 9) == 0
    noise = np.random.default_rng(0).integers(4, size=100_000).astype(np.uint8)
    assert abs(text.bigram_entropy(noise) - 2) < 1e-3


@given(st.binary(min_size=2, max_size=200))
def test_a_byte_of_context_never_raises_the_entropy(whole):
    bigram, rest = text.bigram_entropy(whole), text.unigram_entropy(whole[1:])
    assert -1e-9 <= bigram <= rest + 1e-9 and rest <= 8


def test_facts_are_json_and_describe_the_data(prose):
    splits = load(prose, batch_size=8)
    facts = json.loads(json.dumps(splits.facts))
    held_out = b"".join(rows_of(splits.valid))
    assert facts["source"] == str(prose)
    assert facts["sha256"] == hashlib.sha256(prose.read_bytes()).hexdigest()
    assert facts["row_length"] == 64 and facts["cut_rows"] == 0
    assert facts["valid_bytes"] == 64 * facts["valid_rows"] == len(held_out)
    assert facts["train_bytes"] == 64 * facts["train_rows"]
    assert facts["unigram_entropy"] == text.unigram_entropy(held_out)
    assert 0 < facts["bigram_entropy"] < facts["unigram_entropy"] < 8


# Sources


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("sea")
    (tmp_path / "b.txt").write_text("bee")
    (tmp_path / "a.md").write_text("ay")
    (tmp_path / ".hidden").write_bytes(b"\0")
    assert sources.read(str(tmp_path)).text == b"ay\n\nbee\n\nsea"


def test_copying():
    rows = tasks.get("copy").pairs()
    assert len(set(rows)) == 20000 and rows == tasks.Copy().pairs()
    assert all(source == target and len(source) == 16 for source, target in rows)
    assert set("".join(source for source, _ in rows)) == set(SYMBOLS)
    assert len(set(SYMBOLS)) == 32

    splits = load("synthetic:copy", "prefix_lm", mask="prefix", batch_size=32)
    x, y, weight = splits.train[0]
    assert x["token_ids"].shape == (32, 34)  # BOS, 16, SEP, 16
    assert (x["token_ids"][:, 1:17] == x["token_ids"][:, 18:]).all()
    assert (weight.sum(1) == 17).all() and (y[:, -1] == EOS).all()
    assert abs(splits.facts["unigram_entropy"] - 5) < 0.01


def test_pairs_come_in_two_forms():
    pairs = [(f"{i}+{i}", f"{2 * i}") for i in range(40)]
    prompts, responses = (list(column) for column in zip(*pairs, strict=True))
    as_pairs = load(pairs, "prefix_lm", mask="prefix")
    as_dict = load({"prompts": prompts, "responses": responses}, "prefix_lm", mask="prefix")
    assert same(as_pairs.train[0], as_dict.train[0])
    assert as_pairs.facts == as_dict.facts
    x, _, _ = as_pairs.train[0]
    rows = [bytes(row[row < NUM_BYTES].astype(np.uint8)).decode() for row in x["token_ids"]]
    assert set(rows) <= {prompt + response for prompt, response in pairs}
    assert ((x["token_ids"] == SEP).sum(1) == 1).all() and (x["token_ids"][:, 0] == BOS).all()


def test_sequences_are_as_long_as_the_longest_needs():
    rows = ["word " * n for n in range(1, 30)]
    assert load(rows, length=512).facts["row_length"] == len(rows[-1]) + 1
    assert load(rows, "masked_lm", mask="causal", length=512).facts["row_length"] == 147


def test_examples_that_are_truncated_are_counted(caplog):
    splits = load(["x" * n for n in range(1, 41)], length=31)
    assert splits.facts["cut_rows"] == 10 and splits.facts["row_length"] == 31
    assert "10 of 40 examples are longer than 31 tokens" in caplog.text


# Bad input


@pytest.mark.parametrize(
    "source, kwargs, words",
    [
        ("pydocs", {}, "did you mean 'pydoc'?"),
        ("no/such/file.txt", {}, "no such file or folder"),
        ("a text given in place of a path " * 200, {}, "no such file or folder"),
        ("synthetic:cpoy", {}, "did you mean 'copy'?"),
        ([], {}, "empty"),
        (["a", ""], {}, "Received: '' (example 1)"),
        ([("a", "b"), ("c", "")], {}, "Received: '' (example 1)"),
        ([("a", "b", "c")], {}, "(example 0)"),
        (["a", ("b", "c")], {}, "str (example 0)"),
        ({"prompts": ["a"], "response": ["b"]}, {}, "['prompts', 'response']"),
        ({"prompts": ["a"], "responses": []}, {}, "1 prompts, 0 responses"),
        (3, {}, "Received: int"),
        (["ab", "c", "de"] * 9, {"objective": "prefix_lm", "batch_size": 1}, "a text of 1"),
        (["only one"], {"batch_size": 1}, "Received: 1 examples"),
        (["a", "b", "c"], {}, "batch_size of at most 2"),
        ("synthetic:copy", {"valid": 0}, "Received: 0"),
        ("synthetic:copy", {"valid": 1.0}, "Received: 1.0"),
        ("synthetic:copy", {"batch_size": 0}, "batch_size=0"),
        ("synthetic:copy", {"length": 3}, "max_sequence_length=3"),
        ("synthetic:copy", {"objective": "casual_lm"}, "did you mean 'causal_lm'?"),
    ],
)
def test_bad_input(source, kwargs, words):
    assert_raises(words, lambda: load(source, **kwargs))


def assert_raises(words, function):
    with pytest.raises(InputError) as error:
        function()
    message = str(error.value)
    assert words in message and "Received: " in message and "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "no text"),
        (b" \n", "no text"),
        (b"ab\0cd" * 100, "binary"),
        ("\u00e9t\u00e9 ".encode("latin-1") * 100, "8-bit"),
        (b"too short", "too short"),
        (bytes(range(32, 127)) * 3, "too short"),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert_raises(words, lambda: load(path))


def test_bad_folders_and_near_misses(tmp_path):
    assert_raises("no text", lambda: load(tmp_path))
    (tmp_path / "moby.txt").write_text("x")
    assert_raises("moby.txt'?", lambda: load(str(tmp_path / "mobi.txt")))


def test_too_few_windows_for_a_batch(prose):
    assert_raises("batch_size=5000", lambda: load(prose, batch_size=5000))


def test_bad_configs(prose):
    bad = [
        ("unknown tokenizer", config(tokenizer="wordpiece")),
        ("Received: ['mask']", {"mask": "causal"}),
        ("did you mean 'causal'?", config(mask="casual")),
        ("kzoo.presets.config(name)", "gpt_nano"),
    ]
    for words, fields in bad:
        assert_raises(words, lambda fields=fields: data.load(prose, fields, batch_size=8))
