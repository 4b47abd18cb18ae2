import itertools
import json
import math

import grain
import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import kzoo
from kzoo import config, presets
from kzoo.errors import InputError
from kzoo.vocabulary import BOS, EOS, MASK, PAD, SEP, VOCABULARY_SIZE

TIME, BATCH = 16, 4
SMALL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": TIME,
}
FAMILIES = ("gpt", "unilm", "bert", "bert_mixed_heads", "bert_mixed_layers")
TEXTS = ["to be", "or not to be", "that is", "the question"]
PAIRS = {
    "prompts": ["to", "or not", "", "the"],
    "responses": ["be", "to be", "that is", "question"],
}


def load(family, **overrides):
    return presets.load(f"{family}_nano", **{**SMALL, **overrides})


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


def tokens(model, x):
    """The token batch (x, y, sample_weight) of strings or pairs."""
    return model.preprocessor(x)


def logits(model, x):
    return np.asarray(ops.convert_to_numpy(model.predict_on_batch(x)), "float64")


def nll(logits, y):
    """-log softmax(logits)[y], in float64."""
    logits = logits - logits.max(-1, keepdims=True)
    log_normaliser = np.log(np.exp(logits).sum(-1))
    return log_normaliser - np.take_along_axis(logits, y[..., None], -1)[..., 0]


def numpy(x):
    return ops.convert_to_numpy(x)


# Fit, evaluate ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("gpt", marks=pytest.mark.backends),
        pytest.param("unilm", marks=pytest.mark.torch),
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


@pytest.mark.backends
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_long_packed_rows_in_a_compiled_model(mechanism):
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
def test_a_compiled_model_takes_rows_of_several_lengths(mechanism):
    model = load("gpt", mechanism=mechanism, num_layers=1)
    x, _, _ = tokens(model, TEXTS)
    long, short = (logits(model, {k: v[:, :t] for k, v in x.items()}) for t in (16, 11))
    np.testing.assert_allclose(short, long[:, :11], atol=1e-5)


# Score --------------------------------------------------------------------------------------


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
def test_score_of_a_continuation(models):
    def row(a, b):
        start = len(a) + 2
        return [BOS, *a.encode(), SEP, *b.encode(), EOS], start, range(start, start + len(b) + 1)

    nats = score_by_hand(models["unilm"], [row(*p) for p in zip(*PAIRS.values(), strict=True)])
    assert_scores(models["unilm"], PAIRS, nats, [2, 5, 7, 8])
    nats = score_by_hand(models["unilm"], [row("", text) for text in TEXTS])
    assert_scores(models["unilm"], TEXTS, nats, [len(text) for text in TEXTS])


def test_score_of_a_continuation_is_of_targets_whatever_is_trained_on(models):
    model = kzoo.models.CausalLM(
        models["gpt"].backbone,
        kzoo.models.CausalLMPreprocessor(
            kzoo.models.ByteTokenizer(), TIME, {"continuation": {"score": "all"}}
        ),
        objective={"continuation": {"score": "all"}},
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


# Saving -------------------------------------------------------------------------------------


def assert_same_weights(a, b):
    a, b = ({v.path: numpy(v) for v in model.weights} for model in (a, b))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt", "unilm", "bert"])
def test_keras_files_both_ways(family, tmp_path):
    model = load(family)
    model.train_on_batch(*tokens(model, TEXTS))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    pairs = zip(copy.optimizer.variables, model.optimizer.variables, strict=True)
    for ours, theirs in pairs:  # its moments and its step too
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (ours, theirs)))
    assert type(copy) is type(model) and copy.config == model.config
    assert_same_weights(copy, model)
    assert copy.loss.reduction == "mean_with_sample_weight"
    assert copy.preprocessor.get_config() == model.preprocessor.get_config()
    x, y, weight = tokens(model, TEXTS)
    np.testing.assert_allclose(logits(copy, x), logits(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt", "unilm", "bert_mixed_heads", "bert_mixed_layers"])
def test_presets_both_ways(family, tmp_path):
    model = load(family, seed=3)
    presets.save(model, tmp_path)
    base = keras_hub.models.MaskedLM if "bert" in family else keras_hub.models.CausalLM
    for copy in (
        presets.load(tmp_path),
        presets.load(str(tmp_path), mechanism="linear", feature_map="relu"),
        base.from_preset(str(tmp_path)),
    ):
        assert type(copy) is type(model)
        changed = {"mechanism", "feature_map"} if copy.config["mechanism"] == "linear" else set()
        assert {k for k in model.config if model.config[k] != copy.config[k]} == changed
        assert_same_weights(copy, model)
        assert tokens(copy, TEXTS)[1].tolist() == tokens(model, TEXTS)[1].tolist()
    assert_same_weights(presets.load_backbone(tmp_path), model.backbone)


def test_saved_weights_serve_another_mask_and_objective(tmp_path):
    gpt = load("gpt")
    presets.save(gpt, tmp_path)
    unilm = presets.load(tmp_path, mask="prefix", objective="continuation")
    bert = presets.load(tmp_path, mask="half_heads", objective="masked_lm")
    assert isinstance(bert, keras_hub.models.MaskedLM)
    for model in (unilm, bert):
        assert_same_weights(model, gpt)
    with pytest.raises(InputError, match="missing block_2/attention/query/kernel"):
        presets.load(tmp_path, num_layers=3)
    with pytest.raises(InputError, match="show a next-token loss its answer"):
        presets.load(tmp_path, mask="bidirectional")


def test_not_a_saved_model(tmp_path):
    with pytest.raises(InputError, match="task.json"):
        presets.load(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"registered_name": "keras_hub>GPT2CausalLM"}))
    with pytest.raises(InputError, match="another library's model"):
        presets.load(tmp_path)


# Weights by path ----------------------------------------------------------------------------


def test_a_task_and_its_backbone_read_each_others_weights(tmp_path):
    model, other = load("gpt"), load("gpt", seed=1)
    model.save_weights(tmp_path / "task.weights.h5")
    model.backbone.save_weights(tmp_path / "backbone.weights.h5")
    other.load_weights(tmp_path / "backbone.weights.h5")
    assert_same_weights(other, model)
    other = load("gpt", seed=1)
    other.backbone.load_weights(tmp_path / "task.weights.h5")
    assert_same_weights(other, model)


def test_all_weights_that_do_not_fit_are_named_at_once(tmp_path):
    path = tmp_path / "model.weights.h5"
    load("gpt", num_layers=3, intermediate_dim=8).save_weights(path)
    model = load("gpt", tie_embeddings=False)
    before = model.get_weights()
    with pytest.raises(InputError) as caught:
        model.load_weights(path)
    message = str(caught.value)
    for part in (
        "missing token_embedding/reverse_embeddings",
        "unknown block_2/attention/query/kernel",
        "block_0/feed_forward/intermediate/kernel has shape [16, 8], not [16, 32]",
        "block_1/feed_forward/output_dense/kernel has shape [8, 16], not [32, 16]",
        f"Received: {path}",
    ):
        assert part in message
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_are_written_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "model.weights.h5"
    model = load("gpt")
    model.save_weights(path)
    written = path.read_bytes()
    calls = itertools.count()

    def fails(x):
        if next(calls) == 5:
            raise OSError("the disk is full")
        return np.zeros(1)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):
        patch.setattr(keras.ops, "convert_to_numpy", fails)
        model.save_weights(path)
    assert path.read_bytes() == written
    model.save_weights(path)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")] == [path.name]
    with pytest.raises(InputError, match="overwrite"):
        model.save_weights(path, overwrite=False)
    with pytest.raises(InputError, match=r"\.weights\.h5"):
        model.save_weights(tmp_path / "model.h5")
    with pytest.raises(InputError, match="all or none"):
        model.load_weights(path, skip_mismatch=True)


@pytest.mark.torch
def test_bfloat16_weights_are_kept_exactly(tmp_path):
    model = presets.load("gpt_nano", dtype="bfloat16", **SMALL)
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.weights} == {"bfloat16"}
    presets.save(model, tmp_path)
    copy = presets.load(tmp_path, dtype="bfloat16", seed=1)
    wide = presets.load(tmp_path, dtype="float32", seed=1)
    for a, b, c in zip(model.weights, copy.weights, wide.weights, strict=True):
        a, b, c = (numpy(ops.cast(v, "float32")) for v in (a, b, c))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


# Variants -----------------------------------------------------------------------------------

# Every pair of choices stands in one row at least.
FIELDS = ("positions", "normalization", "norm_placement", "activation", "tie_embeddings")
VARIANTS = [
    dict(zip(FIELDS, row, strict=True))
    for row in [
        ("none", "layer_norm", "pre", "gelu", True),
        ("none", "rms_norm", "post", "relu", False),
        ("none", "layer_norm", "post", "geglu", True),
        ("none", "rms_norm", "pre", "swiglu", False),
        ("learned", "rms_norm", "post", "gelu", False),
        ("learned", "layer_norm", "pre", "relu", True),
        ("learned", "rms_norm", "pre", "geglu", False),
        ("learned", "layer_norm", "post", "swiglu", True),
        ("sinusoidal", "layer_norm", "post", "gelu", False),
        ("sinusoidal", "rms_norm", "pre", "relu", True),
        ("sinusoidal", "rms_norm", "post", "geglu", False),
        ("sinusoidal", "layer_norm", "pre", "swiglu", True),
        ("rotary", "rms_norm", "pre", "gelu", True),
        ("rotary", "layer_norm", "post", "relu", False),
        ("rotary", "layer_norm", "pre", "geglu", False),
        ("rotary", "rms_norm", "post", "swiglu", True),
        ("relative", "layer_norm", "pre", "gelu", False),
        ("relative", "rms_norm", "post", "relu", True),
        ("relative", "layer_norm", "post", "geglu", True),
        ("relative", "rms_norm", "pre", "swiglu", False),
    ]
]
TANH = ("gelu_tanh", "geglu_tanh")  # approximate two of the others


def test_variants_cover_every_pair():
    for a, b in itertools.combinations(FIELDS, 2):
        choices = [config.CHOICES.get(field, (True, False)) for field in (a, b)]
        choices = [[choice for choice in own if choice not in TANH] for own in choices]
        assert {(row[a], row[b]) for row in VARIANTS} == set(itertools.product(*choices))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_variants_train_and_have_the_parameters_that_are_counted(variant):
    model = presets.load("gpt_nano", **{**SMALL, "num_layers": 1}, **variant)
    assert model.count_params() == config.count_parameters(model.config)
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    before = model.get_weights()
    logs = model.train_on_batch(*tokens(model, TEXTS), return_dict=True)
    assert 4 < logs["loss"] < 8
    paths = [v.path for v in model.weights]
    still = {
        p for p, a, b in zip(paths, before, model.get_weights(), strict=True) if (a == b).all()
    }
    # A bias of the keys moves all scores of a query by the same.
    rotated = variant["positions"] == "rotary"
    assert still <= (set() if rotated else {"block_0/attention/key/bias"})


# The details of published models, in a few models that have them all.
DETAILS = [
    {
        "activation": "gelu_tanh",
        "num_segments": 2,
        "embedding_norm": True,
        "norm_epsilon": 1e-12,
        "pooler": True,
        "output_transform": True,
    },
    {
        "positions": "relative",
        "normalization": "rms_norm",
        "use_bias": False,
        "attention_scale": 1.0,
        "output_scale": 0.25,
        "activation": "geglu_tanh",
    },
    {"initialization": "gpt2", "positions": "learned", "identity_mix": 0.25},
    {"output_transform": True, "tie_embeddings": False, "loss_rows": 5, "mechanism": "linear"},
]


@pytest.mark.torch
@pytest.mark.parametrize("fields", DETAILS, ids=["bert", "t5", "gpt2", "head"])
def test_details_train_save_and_have_the_counted_parameters(fields, tmp_path):
    fields = {**SMALL, "num_layers": 1, **fields}
    model = presets.load("gpt_nano", **fields)
    assert model.count_params() == config.count_parameters(model.config)
    assert model.config == presets.config("gpt_nano", **fields)
    model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    x, *rest = tokens(model, TEXTS)
    assert 3 < model.train_on_batch(x, *rest, return_dict=True)["loss"] < 8
    presets.save(model, tmp_path / "model")
    again = presets.load(tmp_path / "model")
    assert again.config == model.config
    np.testing.assert_allclose(logits(again, x), logits(model, x), atol=1e-6)


def test_details_do_what_they_say():
    x = tokens(load("gpt"), TEXTS)[0]
    plain = logits(load("gpt"), x)
    np.testing.assert_allclose(logits(load("gpt", output_scale=0.25), x), plain / 4, atol=1e-5)
    np.testing.assert_allclose(logits(load("gpt", attention_scale=8**-0.5), x), plain, atol=1e-5)
    close = logits(load("gpt", activation="gelu_tanh"), x)
    assert 0 < np.abs(close - plain).max() < 0.01

    model = load("gpt", num_segments=2)
    paired = {"prompts": ["abc"], "responses": ["de"]}
    (a, *_), (b, *_) = (model.preprocessor(t) for t in (["abc"], paired))
    assert a["segment_ids"].sum() == 0
    np.testing.assert_array_equal(b["segment_ids"][0, :8], [0, 0, 0, 0, 0, 1, 1, 1])
    other = {**b, "segment_ids": 1 - b["segment_ids"]}
    assert np.abs(logits(model, other) - logits(model, b)).max() > 0.01

    model = load("bert", pooler=True)
    hidden = model.backbone.predict(tokens(model, TEXTS)[0], verbose=0)
    pooled = keras.ops.convert_to_numpy(model.backbone.pooler(hidden[:, 0]))
    assert pooled.shape == (len(TEXTS), 16) and np.abs(pooled).max() < 1


def test_gpt2_initialization_scales_what_writes_to_the_residual_stream():
    model = presets.load("gpt_nano", initialization="gpt2", num_layers=8)
    deviation = {v.path.partition("block_0/")[2]: np.std(v.numpy()) for v in model.weights}
    assert deviation["attention/query/kernel"] == pytest.approx(0.02, rel=0.1)
    assert deviation["attention/output_dense/kernel"] == pytest.approx(0.005, rel=0.1)
    assert deviation["feed_forward/output_dense/kernel"] == pytest.approx(0.005, rel=0.1)
    assert np.std(model.backbone.token_embedding.embeddings.numpy()) == pytest.approx(0.02, rel=0.1)


def test_identity_mix_keeps_a_share_of_every_token():
    from kzoo.layers import Attention

    for mechanism, fields in (
        ("softmax", {}),
        ("linear", {"rotary": True}),
        ("softmax", {"kv_heads": 2}),
    ):
        x = np.random.default_rng(0).normal(size=(2, 6, 16)).astype("float32")
        padding = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 2, 2, 0]], "int32")
        plain, mixed = (
            Attention(4, 4, mechanism, "causal", identity_mix=e, **fields) for e in (0.0, 0.25)
        )
        plain.build(x.shape), mixed.build(x.shape)
        v = plain._project(x, None, None)[2]
        v = keras.ops.convert_to_numpy(keras.ops.repeat(v, 4 // plain.kv_heads, axis=2))
        v = np.where(padding[..., None, None] != 0, v, 0)
        want = 0.75 * keras.ops.convert_to_numpy(plain.attend(x, padding_mask=padding)) + 0.25 * v
        got = keras.ops.convert_to_numpy(mixed.attend(x, padding_mask=padding))
        np.testing.assert_allclose(got, want, atol=1e-6)
        weights = mixed.attention_weights(x, padding_mask=padding)
        np.testing.assert_allclose(
            np.einsum("bhqk,bkhd->bqhd", keras.ops.convert_to_numpy(weights), v), got, atol=1e-5
        )


@pytest.mark.parametrize("fields", [{"num_heads": 4, "kv_heads": 2}, {"head_dim": 6}], ids=str)
def test_head_sizes_have_the_parameters_that_are_counted(fields):
    model = presets.load("gpt_nano", **{**SMALL, **fields})
    assert model.count_params() == config.count_parameters(model.config)
    assert np.isfinite(logits(model, tokens(model, TEXTS)[0])).all()


def test_projection_kernels_have_two_dimensions():
    model = load("gpt", activation="geglu", tie_embeddings=False, positions="learned")
    kernels = [v for v in model.weights if not v.path.endswith(("bias", "gamma", "beta"))]
    assert len(kernels) == 2 * 7 + 3
    assert {len(v.shape) for v in kernels} == {2}


@pytest.mark.torch
def test_dropout_is_seeded_and_off_in_evaluation():
    def run(**overrides):
        model = load("gpt", dropout=0.5, **overrides)
        model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
        batch = tokens(model, TEXTS)
        steps = [float(model.train_on_batch(*batch)[0]) for _ in range(2)]
        return steps, [float(model.test_on_batch(*batch)[0]) for _ in range(2)]

    (first, second), evaluated = run()
    assert first != second and evaluated[0] == evaluated[1]
    assert run() == ([first, second], evaluated)
    assert not set(run(seed=1)[0]) & {first, second}


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_logits_are_float32_and_near(dtype):
    low, high = (presets.load("gpt_nano", dtype=d, **SMALL) for d in (dtype, "float32"))
    low.set_weights(high.get_weights())
    x, _, _ = tokens(high, TEXTS)
    got = low(x)
    assert keras.backend.standardize_dtype(got.dtype) == "float32"
    assert keras.backend.standardize_dtype(low.backbone(x).dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(got), numpy(high(x)), atol=0.06)


# Wrong input --------------------------------------------------------------------------------


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
        ("gpt", {"mask": "prefix"}, "use the objective 'continuation'"),
        ("bert", {"mask": "prefix"}, "use the objective 'continuation'"),
        ("unilm", {"objective": {"continuation": {"score": "all"}}}, "shows the source whole"),
        ("bert", {"objective": "causal_lm"}, "show a next-token loss its answer"),
    ],
)
def test_a_mask_must_not_show_the_objective_its_answer(family, overrides, said):
    refused(lambda: load(family, **overrides), said)
    fields = presets.config(f"{family}_nano", **SMALL)
    fields = {name: fields[name] for name in config.BACKBONE_FIELDS} | {
        name: value for name, value in overrides.items() if name == "mask"
    }
    backbone = kzoo.models.SingleStackBackbone(**fields)
    objective = overrides.get("objective", presets.config(f"{family}_nano")["objective"])
    task = getattr(kzoo.models, kzoo.objectives.get(objective).task)
    refused(lambda: task(backbone, objective=objective), said)


def test_an_objective_of_another_task(models):
    backbone = models["gpt"].backbone
    refused(lambda: kzoo.models.CausalLM(backbone, objective="masked_lm"), "causal_lm")
    refused(lambda: kzoo.models.MaskedLM(backbone, objective="causal_lm"), "masked_lm")


def test_backbone_arguments_are_checked():
    fields = presets.config("gpt_nano", **SMALL)
    fields = {name: fields[name] for name in config.BACKBONE_FIELDS}
    for wrong, said in (
        ({"positions": "rotery"}, "rotary"),
        ({"positions": "relative", "mechanism": "linear"}, "bias on softmax"),
        ({"attention_scale": 1.0, "mechanism": "linear"}, "softmax attention"),
        ({"attention_scale": -1.0}, "positive"),
        ({"identity_mix": 1.0}, "[0, 1)"),
        ({"num_segments": -1}, "0 or more"),
        ({"relative_buckets": 2, "positions": "relative"}, "buckets"),
        ({"use_biases": False}, "use_bias"),
        ({"initialization": "gpt3"}, "gpt2"),
    ):
        refused(lambda wrong=wrong: kzoo.models.SingleStackBackbone(**{**fields, **wrong}), said)
    refused(lambda: presets.config("gpt_nano", output_scale=0), "positive")
    refused(lambda: presets.config("gpt_nano", output_transform=1), "true or false")


# Leaks --------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
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
