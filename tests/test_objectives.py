"""Objectives: layouts, labels, weights and the laws of their random choices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kzoo import migrations, objectives, presets
from kzoo.encoder import Encoder
from kzoo.errors import InputError
from kzoo.objectives import layouts
from kzoo.vocabulary import BOS, EOS, MASK, NUM_BYTES, PAD, SENTINELS, SEP

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
    config = {**migrations.LATER, "objective": new, "mask": "causal"}
    assert migrations.record(record)["config"] == config
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


# Span corruption, by T5's rule ----------------------------------------------------------------

SPANS = {"span_corruption": {"rate": 0.5, "span": 2.0}}


def corrupted(text, spec="span_corruption", seed=0, batch=1):
    """The sources and targets of the same text, `batch` times."""
    rng = np.random.default_rng(seed)
    texts = [np.asarray(text)] * batch
    return zip(*objectives.get(spec).examples(None, texts, len(text), rng)[:2], strict=True)


@settings(deadline=None)
@given(st.integers(2, 300), st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.9, 1.0)]))
def test_spans_are_counted_as_published_and_put_together_again(n, law):
    rate, span = law
    text = np.random.default_rng(n).integers(256, size=n)
    ((source, target),) = corrupted(text, {"span_corruption": {"rate": rate, "span": span}}, n)
    noise = min(max(round(float(np.float32(n) * np.float32(rate))), 1), n - 1)
    spans = min(max(round(float(np.float32(noise) / np.float32(span))), 1), noise, n - noise)
    marks = [token for token in source if token >= NUM_BYTES]
    assert marks == [token for token in target if token >= NUM_BYTES] == [*SENTINELS[:spans]]
    assert (len(source), len(target)) == (n - noise + spans, noise + spans)
    assert source[0] < NUM_BYTES and source[-1] == target[0] + spans - 1
    # Each sentinel of the source becomes its span of the target: the text again.
    cut = {mark: [*part] for mark, part in zip(marks, _between(target, marks), strict=True)}
    assert all(cut.values())
    again = [t for token in source for t in cut.get(token, [token])]
    assert again == text.tolist()


def _between(target, marks):
    starts = [*(target.tolist().index(mark) for mark in marks), len(target)]
    return [target[a + 1 : b] for a, b in zip(starts, starts[1:], strict=False)]


def test_all_divisions_into_spans_are_equally_likely():
    # Of 8 tokens 4 go in 2 spans: 3 ways to divide the 4 that stay times 3 for those that go.
    draws = 9000
    seen = {}
    for source, _ in corrupted(np.arange(8), SPANS, batch=draws):
        seen[tuple(source)] = seen.get(tuple(source), 0) + 1
    assert len(seen) == 9
    counts = np.array([*seen.values()])
    assert ((counts - draws / 9) ** 2 / (draws / 9)).sum() < 31.8  # chi square, 8 df, p=1e-4


def test_span_corruption_in_both_layouts_scores_the_same_tokens():
    text = np.random.default_rng(0).integers(256, size=(4, 30))
    spec, length = objectives.get("span_corruption"), 40
    one = encode(spec, None, text, length)
    two = Encoder(spec, layouts.EncoderDecoder()).batch(
        None, text, length, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(one[1][one[2] > 0], two[1][two[2] > 0])
    source = one[0]["token_ids"][one[0]["source_mask"] > 0]
    read = two[0]["encoder_token_ids"][two[0]["encoder_padding_mask"] > 0]
    np.testing.assert_array_equal(source, read)
    # T5's targets end, also where the text goes on; tokens that stand for bytes bring theirs.
    window = Encoder(spec).window(40)
    whole = np.stack([np.arange(window) % 256, np.full(window, 3)], axis=1)
    x, y, weight = encode(spec, None, [whole], 40, complete=False)
    assert y[0, -1] == EOS and weight[0, -1] == 1 and x["padding_mask"].all()
    assert x["label_bytes"].sum() == 3 * window and not x["label_bytes"][y >= NUM_BYTES].any()


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"span_corruption": {"rate": 1}}, "Received: 1"),
        ({"span_corruption": {"span": 0.5}}, "Received: 0.5"),
    ],
)
def test_span_corruptions_fields_are_checked(spec, words):
    with pytest.raises(InputError, match=words):
        objectives.get(spec)


def test_what_span_corruption_cannot_cut_is_refused():
    with pytest.raises(InputError, match="texts; of pairs use the objective 'prefix_lm'"):
        encode("span_corruption", [[1]], [[2]], 8)
    with pytest.raises(InputError, match="a text of 1"):
        encode("span_corruption", None, [[1]], 8)
    with pytest.raises(InputError, match="Received: 102 spans"):
        encode("span_corruption", None, [np.zeros(2040, int)], 3000)


def test_span_corruption_is_for_every_stack_that_reads_a_source():
    for preset in ("gpt_nano", "unilm_nano", "t5_nano", "t5_shared_nano"):
        config = presets.config(preset, objective="span_corruption")
        assert config["objective"] == "span_corruption"
    with pytest.raises(InputError, match="show a next-token loss its answer"):
        presets.config("bert_nano", objective="span_corruption")
