"""Variants of models, and how models are saved."""

import itertools
import json
import logging

import keras
import keras_hub
import numpy as np
import pytest
from autodiff import computed
from keras import ops
from marks import once
from small_models import SMALL, TEXTS, load, logits, numpy, tokens

from kzoo import config, names, presets
from kzoo.errors import InputError

# Saving --------------------------------------------------------------------------------------


def assert_same_weights(a, b):
    a, b = ({v.path: numpy(v) for v in model.weights} for model in (a, b))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt", once("unilm"), once("bert")])
def test_keras_files_both_ways(family, tmp_path):
    model = load(family, num_layers=1)
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
        presets.load(str(tmp_path), mechanism={"linear": {"feature_map": "relu"}}),
        base.from_preset(str(tmp_path)),
    ):
        assert type(copy) is type(model)
        changed = set() if copy.config["mechanism"] == "softmax" else {"mechanism"}
        assert {k for k in model.config if model.config[k] != copy.config[k]} == changed
        assert_same_weights(copy, model)
        assert tokens(copy, TEXTS)[1].tolist() == tokens(model, TEXTS)[1].tolist()
    assert_same_weights(presets.load_backbone(tmp_path), model.backbone)


def test_saved_weights_serve_another_mask_and_objective(tmp_path, caplog):
    gpt = load("gpt")
    presets.save(gpt, tmp_path)
    unilm = presets.load(tmp_path, mask="prefix", objective="prefix_lm")
    bert = presets.load(tmp_path, mask="half_heads", objective="masked_lm")
    assert isinstance(bert, keras_hub.models.MaskedLM)
    for model in (unilm, bert):
        assert_same_weights(model, gpt)
    with caplog.at_level(logging.INFO, "kzoo"):
        presets.load(tmp_path, num_layers=3)
    (new,) = [line for line in caplog.messages if line.startswith("new parameters")]
    assert "block_2/attention/query/kernel" in new and "block_1" not in new
    with pytest.raises(InputError, match="unknown block_1/attention/query/kernel"):
        presets.load(tmp_path, num_layers=1)
    with pytest.raises(InputError, match="show a next-token loss its answer"):
        presets.load(tmp_path, mask="bidirectional")


def test_not_a_saved_model(tmp_path):
    with pytest.raises(InputError, match="task.json"):
        presets.load(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"registered_name": "keras_hub>GPT2CausalLM"}))
    with pytest.raises(InputError, match="another library's model"):
        presets.load(tmp_path)


# Weights by path -----------------------------------------------------------------------------


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
    with pytest.raises(InputError, match="all of them, without options"):
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


# Variants ------------------------------------------------------------------------------------

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
CHOICES = {
    "positions": names.POSITIONS,
    "normalization": names.NORMALIZATIONS,
    "norm_placement": names.NORM_PLACEMENTS,
    "activation": names.ACTIVATIONS,
}


def test_variants_cover_every_pair():
    for a, b in itertools.combinations(FIELDS, 2):
        choices = [CHOICES.get(field, (True, False)) for field in (a, b)]
        choices = [[choice for choice in own if choice not in TANH] for own in choices]
        assert {(row[a], row[b]) for row in VARIANTS} == set(itertools.product(*choices))


@pytest.mark.slow
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
        "mechanism": {"softmax": {"scale": 1.0}},
        "output_scale": 0.25,
        "activation": "geglu_tanh",
    },
    {"initialization": "gpt2", "positions": "learned", "identity_mix": 0.25},
    {"output_transform": True, "tie_embeddings": False, "loss_tokens": 5, "mechanism": "linear"},
]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    "fields", [*map(once, DETAILS[:3:2]), *DETAILS[1::2]], ids=["bert", "gpt2", "t5", "head"]
)
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
    def one(family, **fields):
        return load(family, num_layers=1, **fields)

    gpt = one("gpt")
    x = tokens(gpt, TEXTS)[0]
    plain = logits(gpt, x)
    np.testing.assert_allclose(logits(one("gpt", output_scale=0.25), x), plain / 4, atol=1e-5)
    np.testing.assert_allclose(
        logits(one("gpt", mechanism={"softmax": {"scale": 8**-0.5}}), x), plain, atol=1e-5
    )
    close = logits(one("gpt", activation="gelu_tanh"), x)
    assert 0 < np.abs(close - plain).max() < 0.01

    model = one("gpt", num_segments=2)
    paired = {"prompts": ["abc"], "responses": ["de"]}
    (a, *_), (b, *_) = (model.preprocessor(t) for t in (["abc"], paired))
    assert a["segment_ids"].sum() == 0
    np.testing.assert_array_equal(b["segment_ids"][0, :8], [0, 0, 0, 0, 0, 1, 1, 1])
    other = {**b, "segment_ids": 1 - b["segment_ids"]}
    assert np.abs(logits(model, other) - logits(model, b)).max() > 0.01

    model = one("bert", pooler=True)
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

        @computed
        def results(plain=plain, mixed=mixed, x=x, known={"padding_mask": padding}):  # noqa: B006
            v = plain._project(keras.ops.convert_to_tensor(x), None, None)[2]
            attended = plain.attend(x, **known), mixed.attend(x, **known)
            return v, *attended, mixed.attention_weights(x, **known)

        v, alone, got, weights = results
        v = np.where(padding[..., None, None] != 0, np.repeat(v, 4 // plain.kv_heads, axis=2), 0)
        np.testing.assert_allclose(got, 0.75 * alone + 0.25 * v, atol=1e-6)
        np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, v), got, atol=1e-5)


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
        model = load("gpt", num_layers=1, dropout=0.5, **overrides)
        model.compile(optimizer=keras.optimizers.SGD(0.0))
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
    dtypes = {}

    @computed
    def outputs():
        found = {"low": low(x), "hidden": low.backbone(x), "high": high(x)}
        dtypes.update({name: str(y.dtype) for name, y in found.items()})
        return found

    assert dtypes == {"low": "float32", "hidden": "bfloat16", "high": "float32"}
    np.testing.assert_allclose(outputs["low"], outputs["high"], atol=0.06)
