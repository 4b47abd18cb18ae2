"""Memory and precision: remat, accumulated gradients, donated buffers, half precision."""

import keras
import numpy as np
import pytest
from blocks import block as make_block
from keras import ops

from kzoo import presets
from kzoo.errors import InputError

BATCH, TIME, WIDTH = 2, 12, 16
SMALL = {
    "num_layers": 1,
    "hidden_dim": WIDTH,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 16,
}
TEXTS = [f"{i} and {i}" for i in range(8)]
PAIRS = {"prompts": TEXTS[:4], "responses": TEXTS[4:]}

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="looks into JAX's programs")


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")))


def loss_and_gradients(block, inputs):
    """Of Σ out², for the inputs and the weights of a block in training, on JAX."""
    import jax

    weights = [v.value for v in block.trainable_variables]
    frozen = [v.value for v in block.non_trainable_variables]

    def loss(weights, floats):
        out, _ = block.stateless_call(weights, frozen, training=True, **{**inputs, **floats})
        return ops.sum(ops.cast(out, "float32") ** 2)

    floats = {name: x for name, x in inputs.items() if "mask" not in name}
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(weights, floats)


def block_inputs(**settings):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))

    padding = np.ones((BATCH, TIME), "int32")
    padding[0, 9:] = 0
    inputs = {"inputs": draw(BATCH, TIME, WIDTH), "padding_mask": ops.convert_to_tensor(padding)}
    if settings.get("mask") == "prefix":
        inputs["source_mask"] = ops.convert_to_tensor((padding * (np.arange(TIME) < 4)) * 1)
    if settings.get("cross_attention"):
        inputs["encoded"] = draw(BATCH, TIME, WIDTH)
        inputs["encoder_padding_mask"] = ops.convert_to_tensor(padding)
    if settings.get("relative"):
        inputs["bias"] = draw(1, 2, TIME, TIME)
    return inputs


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize(
    "settings",
    [
        {"mask": "causal", "rotary": True, "norm_placement": "post"},
        {"mechanism": {"linear": {"feature_map": "hedgehog"}}, "mask": "prefix"},
        {"cross_attention": True, "relative": True, "mask": "causal"},
        {"mechanism": "linear", "cross_attention": True, "dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_what_is_computed_again_has_the_same_gradients(settings):
    inputs, expected = block_inputs(**settings), None
    for remat in ("none", "block", "attention"):
        block = make_block(2, 8, 32, dropout=0.3, seed=7, remat=remat, **settings)
        block.build(inputs["inputs"].shape)
        loss, gradients = loss_and_gradients(block, inputs)
        got = [numpy(x) for x in (loss, *gradients[0], *gradients[1].values())]
        expected = expected or got
        # Fusion moves the last bits, of bfloat16 where that is the dtype.
        tolerance = 2e-2 if "dtype" in settings else 1e-6
        largest = max(abs(b).max() for b in expected[1:])
        np.testing.assert_allclose(got[0], expected[0], rtol=tolerance)
        for a, b in zip(got[1:], expected[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * largest)


@on_jax
def test_dropout_acts_and_differs_by_call():
    block = make_block(2, 8, 32, dropout=0.5, remat="block")
    x = block_inputs()["inputs"]
    first, second = (numpy(block(x, training=True)) for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(numpy(block(x)), numpy(block(x, training=False)))


@pytest.mark.slow
@on_jax
def test_memory_falls():
    import jax

    def needed(remat):
        inputs = block_inputs()
        stack = [make_block(2, 8, 32, use_bias=False, seed=i, remat=remat) for i in range(8)]
        for block in stack:
            block.build(inputs["inputs"].shape)
        weights = [[v.value for v in block.trainable_variables] for block in stack]
        frozen = [[v.value for v in block.non_trainable_variables] for block in stack]

        def loss(weights, x):
            for block, own, fixed in zip(stack, weights, frozen, strict=True):
                x, _ = block.stateless_call(own, fixed, x, training=True)
            return ops.sum(x**2)

        lowered = jax.jit(jax.grad(loss)).lower(weights, np.zeros((64, TIME, WIDTH), "float32"))
        # Else XLA for CPUs takes out the barriers, and then what is computed twice.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    none, attention, block = map(needed, ("none", "attention", "block"))
    assert attention < 0.8 * none and block < 0.5 * none, (none, attention, block)


def test_remat_is_no_field_of_a_config(tmp_path):
    model = presets.load("gpt_nano", remat="block", **SMALL)
    assert "remat" not in model.config
    assert [block.remat for block in model.backbone.transformer_layers] == ["block"]
    assert model.twin().backbone.remat == "block"
    assert type(model.backbone).from_config(model.backbone.get_config()).remat == "block"
    presets.save(model, tmp_path)
    assert presets.load(tmp_path).backbone.remat == "none"
    with pytest.raises(InputError, match="did you mean 'block'"):
        presets.load("gpt_nano", remat="blocks", **SMALL)


@on_jax
def test_accumulated_gradients_are_the_mean_over_batches():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (2, 8, TIME), dtype="int32")
    x = {"token_ids": ids[0], "padding_mask": np.ones((8, TIME), "int32")}
    weight = (rng.random((8, TIME)) < np.arange(1, 9)[:, None] / 8).astype("float32")

    def trained(rows, steps, weight):
        model = presets.load("gpt_nano", **SMALL)
        settings = {"weight_decay": 0.1, "global_clipnorm": 0.1}
        model.compile(keras.optimizers.AdamW(0.01, **settings, gradient_accumulation_steps=steps))
        before = model.trainable_variables[0].value
        model.fit(x, ids[1], sample_weight=weight, batch_size=rows, epochs=2, verbose=0)
        assert before.is_deleted()  # donated: training changes it in place
        return [numpy(v) for v in model.trainable_variables]

    # Each of the two batches counts alike, however many tokens it scores.
    alike = weight / weight.reshape(2, -1).sum(1).repeat(4)[:, None]
    for a, b in zip(trained(4, 2, weight), trained(8, None, alike), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize(
    ("family", "execution", "settings"),
    [
        ("gpt", {"dtype": "mixed_bfloat16", "remat": "block"}, {"loss_tokens": 16}),
        ("gpt", {"dtype": "mixed_float16"}, {}),
        ("unilm", {"dtype": "mixed_bfloat16"}, {"mechanism": "linear"}),
        ("t5_shared", {"remat": "block"}, {"positions": "relative"}),
    ],
)
def test_training_is_as_in_float32_and_without_remat(family, execution, settings):
    data = TEXTS if family == "gpt" else PAIRS
    losses = []
    for how in ({}, execution):
        model = presets.load(f"{family}_nano", dropout=0.1, **how, **SMALL, **settings)
        losses.append(model.fit(data, batch_size=2, verbose=0).history["loss"])
    half = "dtype" in execution
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01 if half else 1e-6)
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (execution.get("dtype") == "mixed_float16")


@on_jax
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_generation_in_bfloat16(family):
    model = presets.load(f"{family}_nano", dtype="mixed_bfloat16", **SMALL)
    model.compile(sampler="greedy")
    text = model.generate("to", max_length=12)
    assert "".join(model.stream("to", max_length=12)) in text
    assert isinstance(model.conversation().say("a", max_length=6), str)
    nats = model.score(TEXTS[:2] if family == "gpt" else {k: v[:2] for k, v in PAIRS.items()})
    assert np.isfinite(nats["nats"]).all()


def test_caches_in_bfloat16():
    for mechanism, dtypes in (("softmax", {"bfloat16"}), ("linear", {"float32"})):
        backbone = presets.load_backbone(
            "gpt_nano", mechanism=mechanism, dtype="mixed_bfloat16", **SMALL
        )
        start = ops.zeros((1,), "int32")
        cache = backbone.init_cache(start, start, TIME)
        x, cache = backbone.decode(ops.zeros((1, 1), "int32"), cache, 0)
        kept = cache["blocks"][0]["attention"].values()
        assert {keras.backend.standardize_dtype(t.dtype) for t in kept} == dtypes
        assert keras.backend.standardize_dtype(x.dtype) == "bfloat16"
