"""Objectives: layouts, labels, weights and the laws of their random choices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kzoo import migrations, objectives
from kzoo.encoder import Encoder
from kzoo.errors import InputError
from kzoo.objectives import layouts
from kzoo.vocabulary import BOS, EOS, MASK, NUM_BYTES, PAD, SEP

ALL = ["causal_lm", "prefix_lm", {"prefix_lm": {"score": "all"}}, "masked_lm"]

texts = st.lists(st.integers(0, 255), min_size=2, max_size=12)
batches = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)


def encoder(spec):
    """Of a single stack that takes every input, with the segments 0 and 1."""
    return Encoder(objectives.get(spec), layouts.Single(source_mask=True, segments=(0, 1)))


def encode(spec, sources, targets, length, seed=0, **kwargs):
    return encoder(spec).batch(sources, targets, length, np.random.default_rng(seed), **kwargs)


@pytest.mark.parametrize("spec", [*ALL, {"masked_lm": {"rate": 0.3}}], ids=str)
def test_json_round_trip(spec):
    objective = objectives.get(spec)
    assert objective.get_config() == spec
    assert objectives.get(objective) is objective
    assert {objective: 1}[objectives.get(spec)] == 1


def test_shortest_json():
    assert objectives.get({"prefix_lm": {"score": "targets"}}).get_config() == "prefix_lm"
    assert objectives.get({"masked_lm": {"rate": 0.15}}).get_config() == "masked_lm"
    assert objectives.get({"causal_lm": {}}).get_config() == "causal_lm"


def test_what_objectives_say_of_themselves():
    every = [objectives.get(name) for name in ("causal_lm", "prefix_lm", "masked_lm")]
    assert [(o.next_token, o.has_source) for o in every] == [
        (True, False),
        (True, True),
        (False, False),
    ]


def test_the_task_follows_from_stack_and_objective():
    names = [objectives.task_name("single", objectives.get(name)) for name in ALL]
    assert names == ["CausalLM", "CausalLM", "CausalLM", "MaskedLM"]
    for stack in ("encoder_decoder", "encoder_decoder_shared"):
        assert objectives.task_name(stack, objectives.get("prefix_lm")) == "Seq2SeqLM"


@pytest.mark.parametrize("old", ["continuation", "seq2seq", {"continuation": {"score": "all"}}])
def test_old_names_are_migrated_in_files_and_refused_elsewhere(old):
    with pytest.raises(InputError, match="is 'prefix_lm' now.*Received: "):
        objectives.get(old)
    new = migrations.objective(old)
    assert new == migrations.objective(new) == objectives.get(new).get_config()
    saved = {"objective": old, "mask": "causal"}
    record = {"run": 0, "config": saved, "overrides": {"objective": old}}
    assert migrations.record(record)["config"] == {"objective": new, "mask": "causal"}
    assert migrations.record(record)["overrides"] == {"objective": new}
    study = {"arms": {"a": {"preset": "p", "overrides": saved}, "b": "gpt_nano"}}
    assert migrations.study(study)["arms"]["a"]["overrides"]["objective"] == new
    assert saved["objective"] == old


@pytest.mark.parametrize(
    "spec, words",
    [
        ("casual_lm", "did you mean 'causal_lm'?"),
        (3, "Received: 3"),
        (None, "Received: None"),
        ({"masked_lm": {}, "causal_lm": {}}, "or one name with its fields"),
        ({"masked_lm": 0.2}, "takes a JSON object of rate"),
        ({"masked_lm": {"rte": 0.2}}, "did you mean 'rate'?"),
        ({"causal_lm": {"rate": 0.2}}, "takes no fields"),
        ({"masked_lm": {"rate": 0}}, "Received: 0"),
        ({"masked_lm": {"rate": "high"}}, "Received: 'high'"),
        ({"prefix_lm": {"score": "target"}}, "did you mean 'targets'?"),
    ],
)
def test_bad_specs_raise_one_line(spec, words):
    with pytest.raises(InputError) as error:
        objectives.get(spec)
    assert words in str(error.value) and "Received: " in str(error.value)
    assert "\n" not in str(error.value)


# Layouts, in full


def test_pairs_of_a_causal_lm():
    x, y, weight = encode("causal_lm", [[1, 2]], [[3]], 7)
    assert x["token_ids"].tolist() == [[BOS, 1, 2, SEP, 3, EOS, PAD]]
    assert x["padding_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0]]
    assert x["source_mask"].tolist() == [[0] * 7]
    assert y.tolist() == [[1, 2, SEP, 3, EOS, PAD, PAD]]
    assert weight.tolist() == [[1, 1, 0, 1, 1, 0, 0]]


@pytest.mark.parametrize("score, held_out", [("targets", False), ("all", False), ("all", True)])
def test_pairs_of_a_prefix_lm(score, held_out):
    spec = {"prefix_lm": {"score": score}}
    x, y, weight = encode(spec, [[1, 2]], [[3]], 7, held_out=held_out)
    assert x["token_ids"].tolist() == [[BOS, 1, 2, SEP, 3, EOS, PAD]]
    assert x["source_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert y.tolist() == [[1, 2, SEP, 3, EOS, PAD, PAD]]
    source = float(score == "all" and not held_out)
    assert weight.tolist() == [[source, source, 0, 1, 1, 0, 0]]


def test_windows_of_text():
    x, y, weight = encode("causal_lm", None, [[1, 2, 3]], 3, complete=False)
    assert x["token_ids"].tolist() == [[BOS, 1, 2]] and y.tolist() == [[1, 2, 3]]
    assert weight.tolist() == [[1, 1, 1]]
    x, y, _ = encode("prefix_lm", None, [[1, 2]], 3, complete=False)
    assert x["token_ids"].tolist() == [[BOS, 1, SEP]] and y.tolist() == [[1, SEP, 2]]
    _, y, _ = encode("masked_lm", None, [[1, 2]], 3, complete=False)
    assert y.tolist() == [[BOS, 1, 2]]


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_a_window_fills_a_sequence(spec):
    objective = objectives.get(spec)
    window = np.arange(encoder(spec).window(20))
    x, y, _ = encode(spec, None, [window], 20, complete=False)
    assert x["padding_mask"].all() and not (y == PAD).any()
    seen = np.append(x["token_ids"][:, :1], y) if objective.next_token else y
    assert (seen[seen < NUM_BYTES] == window).all() and seen.max() <= SEP
    assert encoder(spec).example_length(None, window, complete=False) == 20


# Laws


@settings(deadline=None)
@given(batches, st.sampled_from(ALL), st.booleans(), st.booleans())
def test_at_its_length_an_example_is_whole(batch, spec, paired, complete):
    objective = objectives.get(spec)
    sources, targets = zip(*batch, strict=True)
    sources = sources if paired else [None] * len(targets)
    pairs = zip(sources, targets, strict=True)
    needed = [encoder(spec).example_length(*pair, complete) for pair in pairs]
    length = max(needed)
    x, y, weight = encode(spec, sources if paired else None, targets, length, complete=complete)
    arrays = [*x.values(), y, weight]
    assert [a.shape for a in arrays] == [(len(batch), length)] * 6
    assert [a.dtype for a in arrays] == [np.int32] * 5 + [np.float32]
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        seen = np.append(x["token_ids"][i, :1], y[i]) if objective.next_token else y[i]
        seen = seen[seen != PAD].tolist()
        assert len(seen) == needed[i] + objective.next_token
        assert seen[0] == BOS and (seen[-1] == EOS) == complete
        body = seen[1:-1] if complete else seen[1:]
        if paired:
            assert body == [*source, SEP, *target]
        else:
            assert [token for token in body if token != SEP] == target
            assert body.count(SEP) == objective.has_source


@settings(deadline=None)
@given(batches, st.sampled_from(ALL[:3]), st.integers(4, 20))
def test_labels_are_the_inputs_shifted(batch, spec, length):
    sources, targets = zip(*batch, strict=True)
    x, y, weight = encode(spec, sources, targets, length)
    assert (x["token_ids"][:, 1:] == y[:, :-1]).all()
    assert ((x["token_ids"] != PAD) == x["padding_mask"]).all()
    assert not weight[(y == PAD) | (y == SEP)].any()
    assert (weight.sum(1) > 0).all()


@settings(deadline=None)
@given(batches, st.integers(4, 40))
def test_the_source_is_what_stands_before_the_target(batch, length):
    sources, targets = zip(*batch, strict=True)
    x, y, weight = encode("prefix_lm", sources, targets, length)
    ends = [row.index(SEP) for row in x["token_ids"].tolist()]
    assert (x["source_mask"] == (np.arange(length) <= np.array(ends)[:, None])).all()
    # The separator predicts the first target token: scored positions are the rest.
    scored = (np.arange(length) >= np.array(ends)[:, None]) & (y != PAD)
    assert (weight == scored).all()


@given(texts, texts, st.integers(4, 30))
def test_the_target_is_cut_before_the_source(source, target, length):
    x, y, _ = encode("prefix_lm", [source], [target], length)
    tokens = [t for t in [BOS, *y[0].tolist()] if t != PAD]
    at = tokens.index(SEP)
    kept_source, kept_target = tokens[1:at], [t for t in tokens[at + 1 :] if t != EOS]
    assert kept_source == source[: len(kept_source)] and kept_target == target[: len(kept_target)]
    if kept_source != source:
        assert len(kept_target) == 1
    if kept_source + kept_target != source + target:
        assert len(tokens) == length + 1 and EOS not in tokens


def test_boundaries_are_uniform():
    n, rows = 9, 8000
    x, _, _ = encode("prefix_lm", None, np.full((rows, n), 7), n + 1, complete=False)
    cuts = x["source_mask"].sum(1) - 2  # without BOS and SEP
    counts = np.bincount(cuts, minlength=n)
    assert counts[0] == 0 and counts[1:].sum() == rows and len(counts) == n
    expected = rows / (n - 1)
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 29.9  # chi square, 7 df, p=1e-4


@settings(deadline=None)
@given(batches, st.floats(0.01, 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_exactly_the_stated_number_is_masked(batch, rate, paired, seed):
    sources, targets = zip(*batch, strict=True)
    sources = sources if paired else None
    x, y, weight = encode({"masked_lm": {"rate": rate}}, sources, targets, 32, seed)
    n = (y < NUM_BYTES).sum(1)
    assert (weight.sum(1) == [max(1, round(rate * k)) for k in n]).all()
    assert not weight[y >= NUM_BYTES].any()
    assert (x["token_ids"][weight == 0] == y[weight == 0]).all()


def test_masked_positions_are_uniform_and_80_10_10():
    rows, n = 4000, 40
    x, y, weight = encode("masked_lm", None, np.full((rows, n), 7), n + 1, complete=False)
    chosen = weight.sum(0)[1:]
    assert abs(chosen - 0.15 * rows).max() < 5 * np.sqrt(0.15 * 0.85 * rows)
    shown = x["token_ids"][weight == 1]
    total = len(shown)
    assert total == rows * 6
    for count, p in [
        ((shown == MASK).sum(), 0.8),
        ((shown == 7).sum(), 0.1 + 0.1 / 256),
        (((shown != 7) & (shown < NUM_BYTES)).sum(), 0.1 * 255 / 256),
    ]:
        assert abs(count - p * total) < 5 * np.sqrt(p * (1 - p) * total)
    assert len(set(shown[shown < NUM_BYTES].tolist())) == 256


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_the_generator_decides_and_nothing_else(spec):
    text = np.random.default_rng(1).integers(256, size=(8, 30))
    first = encode(spec, None, text, 31, seed=3)
    again = encode(spec, None, [list(row) for row in text], 31, seed=3)
    assert all((first[0][name] == again[0][name]).all() for name in first[0])
    assert (first[1] == again[1]).all() and (first[2] == again[2]).all()


def test_scores_do_not_move_the_boundary():
    text = np.random.default_rng(1).integers(256, size=(8, 30))
    x, y, weight = encode("prefix_lm", None, text, 31)
    x_all, y_all, weight_all = encode({"prefix_lm": {"score": "all"}}, None, text, 31)
    assert all((x[name] == x_all[name]).all() for name in x) and (y == y_all).all()
    assert (weight_all >= weight).all() and weight_all.sum() > weight.sum()


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_examples_with_nothing_to_score_raise(spec):
    with pytest.raises(InputError, match="Received: "):
        encode(spec, None, [[1, 2, 3], []], 8)
    with pytest.raises(InputError, match=r"example 1 of 2"):
        encode(spec, [[1], [2]], [[1, 2, 3], []], 8)


def test_one_byte_cannot_be_cut_in_two():
    with pytest.raises(InputError, match="Received: a text of 1"):
        encode("prefix_lm", None, [[1, 2], [3]], 8)
