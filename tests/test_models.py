"""Tasks: what they are trained on, what they score, what they refuse."""

import math

import grain
import keras
import keras_hub
import numpy as np
import pytest
from marks import once
from small_models import (
    BATCH,
    FAMILIES,
    PAIRS,
    SMALL,
    TEXTS,
    TIME,
    load,
    logits,
    nll,
    numpy,
    tokens,
)

import kzoo
from kzoo import config, presets
from kzoo.errors import InputError
from kzoo.vocabulary import BOS, EOS, MASK, PAD, SEP, VOCABULARY_SIZE

TRIED = [name if name in ("gpt", "bert_mixed_heads") else once(name) for name in FAMILIES]


@pytest.fixture(scope="module")
def models():
    return {family: load(family) for family in ("gpt", "unilm", "bert")}


@pytest.fixture
def same_weights(models):
    """The models, with their weights put back afterwards."""
    before = {name: model.get_weights() for name, model in models.items()}
    yield models
    for name, model in models.items():
        model.set_weights(before[name])


# Fit, evaluate -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param("gpt", marks=pytest.mark.backends),
        "unilm",
        pytest.param("bert", marks=pytest.mark.torch),
    ],
)
def test_fit_takes_strings_pairs_token_batches_and_grain(same_weights, family):
    model = same_weights[family]
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    start = model.get_weights()

    def loss(*args, **kwargs):
        model.set_weights(start)
        history = model.fit(*args, verbose=0, shuffle=False, **kwargs).history
        changed = [(a != b).any() for a, b in zip(start, model.get_weights(), strict=True)]
        assert np.mean(changed) > 0.8
        return history["loss"][0]

    for data in (TEXTS, PAIRS):
        model.set_weights(start)
        x, y, weight = tokens(model, data)
        expected = nll(logits(model, x), y)
        expected = (weight * expected).sum() / weight.sum()
        dataset = grain.MapDataset.source([(x, y, weight)])
        losses = [loss(data), loss(x, y, sample_weight=weight), loss(dataset)]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.torch
def test_evaluate_measures_the_whole_set_and_not_means_of_batches(models):
    model = models["gpt"]
    batches = [tokens(model, TEXTS), tokens(model, ["a", "bc", "d", "e"])]
    batches[1][2][2:] = 0  # rows of zero weight, which fill a last batch
    nats = [(w * nll(logits(model, x), y)).sum() for x, y, w in batches]
    count = [((y < 256) * w).sum() for _, y, w in batches]
    got = model.evaluate(grain.MapDataset.source(batches), verbose=0, return_dict=True)
    expected = sum(nats) / sum(count) / math.log(2)
    np.testing.assert_allclose(got["bits_per_byte"], expected, rtol=1e-5)
    assert not np.isclose(expected, np.divide(nats, count).mean() / math.log(2), rtol=1e-2)


@pytest.mark.torch
def test_the_loss_is_per_scored_token(models):
    loss = models["gpt"].loss
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 384)).astype("float32")
    y = rng.integers(384, size=(2, 6))
    weight = np.array([[1, 1, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0]], "float32")
    expected = (weight * nll(x.astype("float64"), y)).sum() / weight.sum()
    np.testing.assert_allclose(numpy(loss(y, x, weight)), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.backends
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_long_packed_sequences_in_a_compiled_model(mechanism):
    time = 300  # several chunks of linear attention, and the long way to documents and places
    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(256, size=(1, time), dtype="int32"),
        "padding_mask": np.repeat([[1, 2, 0]], [145, 145, 10], axis=1).astype("int32"),
        "source_mask": np.repeat([[1, 0, 1, 0]], [90, 55, 70, 85], axis=1).astype("int32"),
    }
    documents = {name: array[:, :290].reshape(2, 145) for name, array in x.items()}
    documents["padding_mask"] = np.ones((2, 145), "int32")
    together, apart = (
        logits(load("unilm", mechanism=mechanism, num_layers=1, max_sequence_length=time), batch)
        for batch in (x, documents)
    )
    np.testing.assert_allclose(together[:, :290].reshape(apart.shape), apart, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    "mechanism",
    [
        "softmax",
        pytest.param(
            "linear",
            marks=pytest.mark.xfail(
                keras.backend.backend() == "tensorflow",
                run=False,
                reason="Keras's scan on TensorFlow needs to know the number of chunks",
            ),
        ),
    ],
)
def test_a_compiled_model_takes_sequences_of_several_lengths(mechanism):
    model = load("gpt", mechanism=mechanism, num_layers=1)
    x, _, _ = tokens(model, TEXTS)
    long, short = (logits(model, {k: v[:, :t] for k, v in x.items()}) for t in (16, 11))
    np.testing.assert_allclose(short, long[:, :11], atol=1e-5)


# Score ---------------------------------------------------------------------------------------


def score_by_hand(model, rows):
    """nats of each row (token ids before the shift, source length, scored places)."""
    width = TIME + 1
    ids = np.full((len(rows), width), PAD, "int32")
    weight, source = np.zeros((2, len(rows), width))
    for i, (row, source_length, scored) in enumerate(rows):
        ids[i, : len(row)] = row
        weight[i, list(scored)] = 1
        source[i, :source_length] = 1
    x = {"token_ids": ids[:, :-1], "padding_mask": (ids[:, :-1] != PAD).astype("int32")}
    if model.backbone.mask.needs_source:
        x["source_mask"] = source[:, :-1].astype("int32")
    return (weight[:, 1:] * nll(logits(model, x), ids[:, 1:])).sum(1)


def assert_scores(model, data, nats, sizes, **kwargs):
    got = model.score(data, batch_size=BATCH, **kwargs)
    assert got["nats"].dtype == got["bits_per_byte"].dtype == "float64"
    np.testing.assert_allclose(got["nats"], nats, rtol=1e-4)
    assert got["bytes"].tolist() == list(sizes)
    np.testing.assert_allclose(got["bits_per_byte"], nats / np.log(2) / sizes, rtol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("end_token", [True, False])
def test_score_of_a_causal_model(models, end_token):
    model, texts = models["gpt"], ["ab", "to be or not", "é", "c"]
    end = [EOS] * end_token
    rows = [[BOS, *text.encode(), *end] for text in texts]
    nats = score_by_hand(model, [(row, 0, range(1, len(row))) for row in rows])
    assert_scores(model, texts, nats, [2, 12, 2, 1], end_token=end_token)
    got = model.score(texts, BATCH, end_token=end_token)
    assert got["tokens"].tolist() == [len(row) - 1 for row in rows]

    # The prompt is what the response is given, and is not scored.
    pairs = {"prompts": ["ab", "é", "abc", "d"], "responses": ["c", "dé", "f", "ghi"]}
    parts = [[text.encode() for text in pair] for pair in zip(*pairs.values(), strict=True)]
    rows = [([BOS, *a, SEP, *b, *end], 0, len(a) + 2) for a, b in parts]
    nats = score_by_hand(model, [(row, 0, range(start, len(row))) for row, _, start in rows])
    assert_scores(model, pairs, nats, [len(b) for _, b in parts], end_token=end_token)
    listed = list(zip(*pairs.values(), strict=True))
    assert_scores(model, listed, nats, [len(b) for _, b in parts], end_token=end_token)


def test_a_context_that_runs_on_is_scored_as_lm_evaluation_harness_scores_it(models):
    model, context, continuation = models["gpt"], "to be or ", "not"
    ids = np.array([[BOS, *(context + continuation).encode()]], "int32")
    x = {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, 1:])}
    expected = -nll(logits(model, x), ids[:, 1:])[0, len(context) :].sum()
    nats = model.score([context, context + continuation], BATCH, end_token=False)["nats"]
    np.testing.assert_allclose(nats[0] - nats[1], expected, rtol=1e-4)


@pytest.mark.torch
def test_score_of_a_prefix_lm(models):
    def row(a, b):
        start = len(a) + 2
        return [BOS, *a.encode(), SEP, *b.encode(), EOS], start, range(start, start + len(b) + 1)

    nats = score_by_hand(models["unilm"], [row(*p) for p in zip(*PAIRS.values(), strict=True)])
    assert_scores(models["unilm"], PAIRS, nats, [2, 5, 7, 8])
    nats = score_by_hand(models["unilm"], [row("", text) for text in TEXTS])
    assert_scores(models["unilm"], TEXTS, nats, [len(text) for text in TEXTS])


def test_score_of_a_prefix_lm_is_of_targets_whatever_is_trained_on(models):
    model = kzoo.models.CausalLM(
        models["gpt"].backbone,
        kzoo.models.CausalLMPreprocessor(
            kzoo.models.ByteTokenizer(), TIME, {"prefix_lm": {"score": "all"}}
        ),
        objective={"prefix_lm": {"score": "all"}},
    )
    parts = list(zip(*PAIRS.values(), strict=True))
    rows = [([BOS, *a.encode(), SEP, *b.encode(), EOS], 0, len(a) + 2) for a, b in parts]
    rows = [(row, n, range(start, len(row))) for row, n, start in rows]
    assert_scores(model, PAIRS, score_by_hand(model, rows), [len(b) for _, b in parts])


@pytest.mark.torch
def test_score_of_a_masked_model_hides_one_byte_at_a_time(models):
    model, text = models["bert"], "abcd"
    ids = np.array([BOS, *text.encode(), EOS] + [PAD] * (TIME - 6), "int32")
    hidden = np.tile(ids, (4, 1))
    hidden[range(4), range(1, 5)] = MASK
    x = {"token_ids": hidden, "padding_mask": (hidden != PAD).astype("int32")}
    nats = nll(logits(model, x), np.tile(ids, (4, 1)))[range(4), range(1, 5)].sum()
    assert_scores(model, [text], np.array([nats]), [4])


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt", "unilm", "bert"])
def test_a_long_text_is_scored_in_windows_each_byte_once(models, family):
    # Where nothing is learned, every token costs the same: 40 bytes, EOS where it is scored.
    model = load(family)
    model.backbone.token_embedding.embeddings.assign(np.zeros((VOCABULARY_SIZE, 16)))
    scored = 40 if family == "bert" else 41
    got = model.score(["x" * 40, "y"], batch_size=BATCH)
    np.testing.assert_allclose(
        got["nats"], np.array([scored, 1 if family == "bert" else 2]) * np.log(384), rtol=1e-5
    )
    np.testing.assert_allclose(got["bits_per_byte"][0], scored / 40 * np.log2(384), rtol=1e-5)


@pytest.mark.parametrize(
    "family, data, said",
    [
        ("gpt", ["abc", ""], "at least one token"),
        ("gpt", {"prompts": ["a" * 10], "responses": ["b" * 10]}, "fits in 16 tokens"),
        ("unilm", {"prompts": ["a" * 20], "responses": ["b"]}, "fits in 16 tokens"),
        ("unilm", {"prompts": ["a"]}, "'responses'"),
        ("unilm", {"prompts": ["a"], "responses": []}, "as many prompts as responses"),
        ("gpt", [1, 2], "texts are strings"),
    ],
)
def test_score_refuses(models, family, data, said):
    with pytest.raises(InputError, match=said) as caught:
        models[family].score(data)
    assert "Received" in str(caught.value)


# Wrong input ---------------------------------------------------------------------------------


def refused(attempt, *said):
    with pytest.raises(InputError) as caught:
        attempt()
    for part in (*said, "Received: "):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "way",
    [
        "fit",
        "evaluate",
        "predict",
        "train_on_batch",
        "grain",
    ],
)
def test_token_ids_outside_the_vocabulary(models, way):
    model = models["gpt"]
    x, y, weight = tokens(model, TEXTS)
    for bad in (384, -1):
        ids = x["token_ids"].copy()
        ids[0, 0] = bad
        wrong = {**x, "token_ids": ids}
        attempt = {
            "fit": lambda x=wrong: model.fit(x, y, sample_weight=weight, verbose=0),
            "evaluate": lambda x=wrong: model.evaluate(x, y, sample_weight=weight, verbose=0),
            "predict": lambda x=wrong: model.predict(x, verbose=0),
            "train_on_batch": lambda x=wrong: model.train_on_batch(x, y, weight),
            "grain": lambda x=wrong: model.fit(
                grain.MapDataset.source([(x, y, weight)]), verbose=0
            ),
        }[way]
        refused(attempt, "token ids are in [0, 384)", str(bad))


def test_arrays_of_ids_outside_the_vocabulary(models):
    """A program would take another row of a table, or none, and give a number all the same."""
    model, good = models["gpt"], np.full((2, 8), 7)
    for wrong in (1000, -1, VOCABULARY_SIZE):
        ids = good.copy()
        ids[1, 3] = wrong
        for call in (model.evaluate, model.fit, model.predict):
            refused(lambda call=call, ids=ids: call(ids, verbose=0), "[0, 384)", str(wrong))
        refused(lambda ids=ids: model.evaluate((x for x in [ids]), verbose=0), str(wrong))
    assert np.isfinite(model.evaluate(good, verbose=0)).all()


def test_labels_outside_the_vocabulary_count_only_where_they_weigh_nothing(models):
    model = models["gpt"]
    ids = np.arange(40, dtype="int32").reshape(2, 20)[:, :TIME]
    x, y = {"token_ids": ids, "padding_mask": ids * 0 + 1}, ids + 1
    half = np.where(np.arange(TIME) < 8, 0.0, 1.0) * np.ones_like(ids, "float32")
    ignored = np.where(half > 0, y, -100)  # as transformers marks them
    refused(lambda: model.evaluate(x, ignored, verbose=0), "sample_weight is not 0", "-100")
    want = model.evaluate(x, y, sample_weight=half, verbose=0)
    got = model.evaluate(x, ignored, sample_weight=half, verbose=0)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_inputs_without_labels_are_refused_and_the_model_stays(models):
    model = models["gpt"]
    x, y, _ = tokens(model, TEXTS)
    before = model.evaluate(TEXTS, verbose=0)
    refused(lambda: model.evaluate(x, verbose=0), "no y")
    refused(lambda: model.fit(x, verbose=0), "no y")
    refused(lambda: model.fit(x, y[:2], verbose=0), "y of shape [2, 16]")
    for nothing in ([], np.zeros((0, 5), "int32"), {"prompts": [], "responses": []}):
        refused(lambda nothing=nothing: model.evaluate(nothing, verbose=0), "none")
    refused(lambda: model.score([]), "none")
    np.testing.assert_allclose(model.evaluate(TEXTS, verbose=0), before)


@pytest.mark.parametrize("way", ["fit", "predict_on_batch"])
def test_a_missing_source_mask(models, way):
    model = models["unilm"]
    x, y, weight = tokens(model, PAIRS)
    del x["source_mask"]
    attempt = {
        "fit": lambda: model.fit(x, y, sample_weight=weight, verbose=0),
        "predict_on_batch": lambda: model.predict_on_batch(x),
    }[way]
    refused(attempt, "source_mask is missing", "token_ids, padding_mask")


@pytest.mark.parametrize(
    "data, said",
    [
        ({"prompts": ["a"]}, "{'prompts': [...], 'responses': [...]}"),
        (["ab", ""], "at least one token"),
        ({"prompts": ["a", "b"], "responses": ["a", ""]}, "at least one token"),
    ],
)
def test_fit_refuses(models, data, said):
    refused(lambda: models["gpt"].fit(data, verbose=0), said)


def test_keras_hub_does_not_drop_an_override(models, tmp_path):
    presets.save(models["gpt"], tmp_path)
    attempt = keras_hub.models.CausalLM.from_preset
    refused(lambda: attempt(str(tmp_path), mechanism="linear"), "mechanism is the backbone's")
    assert presets.load(tmp_path, mechanism="linear").config["mechanism"] == "linear"


def test_relative_positions_take_no_padding_inside_a_document():
    model = load("bert", positions="relative")
    ids = np.full((2, 6), 7, "int32")
    good = np.array([[0, 1, 1, 0, 2, 2], [1, 1, 1, 1, 0, 0]], "int32")
    model.predict({"token_ids": ids, "padding_mask": good}, verbose=0)
    gap = np.array([[1, 0, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0]], "int32")
    bad = {"token_ids": ids, "padding_mask": gap}
    refused(lambda: model.predict(bad, verbose=0), "before column 2 of example 0")


def test_sequences_longer_than_the_table_of_positions():
    model = load("gpt", positions="learned")
    ids = np.zeros((1, TIME + 1), "int32")
    x = {"token_ids": ids, "padding_mask": ids + 1}
    refused(lambda: model.predict_on_batch(x), "16", "17")


@pytest.mark.parametrize(
    "family, overrides, said",
    [
        ("gpt", {"mask": "bidirectional"}, "show a next-token loss its answer"),
        ("gpt", {"mask": "half_heads"}, "show a next-token loss its answer"),
        ("gpt", {"mask": {"layers": ["causal", "reversed"]}}, "show a next-token loss its answer"),
        ("unilm", {"mask": {"block": {"size": 2}}}, "show a next-token loss its answer"),
        ("gpt", {"mask": "prefix"}, "use the objective 'prefix_lm'"),
        ("bert", {"mask": "prefix"}, "use the objective 'prefix_lm'"),
        ("unilm", {"objective": {"prefix_lm": {"score": "all"}}}, "shows the source whole"),
        ("bert", {"objective": "causal_lm"}, "show a next-token loss its answer"),
    ],
)
def test_a_mask_must_not_show_the_objective_its_answer(family, overrides, said):
    refused(lambda: load(family, **overrides), said)
    fields = presets.config(f"{family}_nano", **SMALL)
    fields = {name: fields[name] for name in config.BackboneConfig.field_names()} | {
        name: value for name, value in overrides.items() if name == "mask"
    }
    backbone = kzoo.models.SingleStackBackbone(**fields)
    objective = overrides.get("objective", presets.config(f"{family}_nano")["objective"])
    task = getattr(kzoo.models, kzoo.objectives.task_name("single", kzoo.objectives.get(objective)))
    refused(lambda: task(backbone, objective=objective), said)


def test_an_objective_of_another_task(models):
    backbone = models["gpt"].backbone
    refused(lambda: kzoo.models.CausalLM(backbone, objective="masked_lm"), "causal_lm")
    refused(lambda: kzoo.models.MaskedLM(backbone, objective="causal_lm"), "masked_lm")


def test_backbone_arguments_are_checked():
    fields = presets.config("gpt_nano", **SMALL)
    fields = {name: fields[name] for name in config.BackboneConfig.field_names()}
    for wrong, said in (
        ({"positions": "rotery"}, "rotary"),
        ({"positions": "relative", "mechanism": "linear"}, "softmax"),
        ({"mechanism": {"linear": {"scale": 1.0}}}, "feature_map"),
        ({"mechanism": {"softmax": {"scale": -1.0}}}, "positive"),
        ({"identity_mix": 1.0}, "[0, 1)"),
        ({"num_segments": -1}, "0 or more"),
        ({"relative_buckets": 2, "positions": "relative"}, "buckets"),
        ({"use_biases": False}, "use_bias"),
        ({"initialization": "gpt3"}, "gpt2"),
    ):
        refused(lambda wrong=wrong: kzoo.models.SingleStackBackbone(**{**fields, **wrong}), said)
    refused(lambda: presets.config("gpt_nano", output_scale=0), "positive")
    refused(lambda: presets.config("gpt_nano", output_transform=1), "true or false")


# Leaks ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
@pytest.mark.parametrize("family", TRIED)
def test_each_layer_uses_what_its_mask_shows_and_nothing_else(family, mechanism):
    model = load(family, mechanism=mechanism)
    padding = np.array([[1] * 9, [1, 1, 0, 1, 2, 2, 2, 2, 0]], "int32")
    x = {"token_ids": np.arange(18, dtype="int32").reshape(2, 9), "padding_mask": padding}
    if model.backbone.mask.needs_source:
        x["source_mask"] = np.array([[1] * 4 + [0] * 5, [1, 1, 1, 0, 1, 1, 0, 1, 1]], "int32")
    layers = kzoo.analysis.leaks(model, x)
    assert len(layers) == 2
    for layer in layers:
        assert layer.hidden == [] and layer.unused == []
