"""The delta rule as a mechanism: of a layer, of models, and of what is said about them."""

import keras
import numpy as np
import pytest
from autodiff import computed, numpy
from keras import ops
from small_models import SMALL, load

from kzoo import config, layers, masks, mechanisms, mixers, presets
from kzoo.mechanisms import gates
from kzoo.ops import oracle

HEADS, DIM, TIME, WIDTH = 4, 8, 12, 16
SIZES = mechanisms.HeadSizes(HEADS, 2, DIM)
PADDING = np.ones((2, TIME), "int32")
PADDING[0, :2] = PADDING[0, 5] = 0
PADDING[1, 7:] = 2


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(2, TIME, WIDTH)).astype("float32")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["delta", "gated_delta"])
def test_a_layer_computes_the_rule_of_its_projections(name):
    layer = layers.Attention(HEADS, DIM, name, "half_heads", kv_heads=2)
    x = inputs()
    layer.build(x.shape)

    @computed
    def results():
        weights = layer.attention_weights(x, padding_mask=PADDING)
        *qkv, extras = layer._project(x)
        own = {n: ops.convert_to_tensor(y) for n, y in extras.variables.items()}
        return layer.attend(x, padding_mask=PADDING), weights, qkv, {**extras.projected, **own}

    out, weights, qkv, own = results
    own = {n: y.astype("float64") for n, y in own.items()}
    q, k, v = (np.asarray(y, "float64") for y in qkv)
    gate = None
    if name == "gated_delta":
        gate = -np.exp(own["A_log"]) * np.log1p(np.exp(own["decay"] + own["dt_bias"]))
    given = unit(q), unit(k), v, 1 / (1 + np.exp(-own["beta"])), gate
    want, _ = oracle.delta(*given, "half_heads", padding_mask=PADDING)
    np.testing.assert_allclose(out, want, atol=2e-5)
    given = q, k, v, mechanisms.Extras(own, own), layer.mask
    defined = layer.mechanism.definition(*given, padding_mask=PADDING)
    np.testing.assert_allclose(defined, want, atol=1e-5)
    real = np.where(PADDING[..., None, None] == 0, 0, np.repeat(v, 2, axis=2))
    np.testing.assert_allclose(np.einsum("bhij,bjhd->bihd", weights, real), out, atol=2e-6)
    hidden = np.asarray(masks.half_heads().dense(TIME, num_heads=HEADS, padding_mask=PADDING))
    assert not weights[~hidden].any() and np.abs(weights[hidden]).min() > 0


def test_padding_that_is_no_number_changes_nothing():
    import jax

    layer = layers.Attention(HEADS, DIM, "gated_delta", "causal", rotary=True)
    layer.build((2, TIME, WIDTH))
    x = inputs()

    @jax.jit
    def total(x):
        return layer.attend(x, padding_mask=PADDING).sum()

    poisoned = np.where(PADDING[..., None] == 0, np.nan, x)
    np.testing.assert_allclose(total(poisoned), total(x), rtol=1e-5)
    slope = np.asarray(jax.grad(total)(poisoned))
    assert np.isfinite(slope[PADDING != 0]).all()


@pytest.mark.backends
def test_a_layer_streams_with_a_state_of_fixed_size():
    layer = layers.Attention(HEADS, DIM, "gated_delta", "causal", kv_heads=2, rotary=True)
    x = inputs()
    assert layer.mechanism.state_shape(SIZES) == {"kv_state": (HEADS, DIM, DIM)}

    @computed
    def results():
        first, state = layer(x[:, :5], return_state=True)
        second = layer(x[:, 5:], initial_state=state, query_offset=5)
        return layer(x), ops.concatenate([first, second], axis=1), state, layer.init_cache(2, 99)

    whole, parts, state, cache = results
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert {n: y.shape for n, y in state.items()} == {n: y.shape for n, y in cache.items()}


@pytest.mark.backends
def test_extending_in_parts_equals_one_pass():
    """Left padding, a prompt, steps of one token, and one of them a second time."""
    model = load("gpt", mechanism="gated_delta")
    start, time = np.array([0, 4], "int32"), 12
    ids = np.random.default_rng(0).integers(256, size=(2, time)).astype("int32")
    real = np.arange(time) >= start[:, None]
    x = {"token_ids": ids, "padding_mask": real.astype("int32")}
    cache = model.backbone.init_cache(*map(ops.convert_to_tensor, (start, start)), time)
    shapes = [tuple(y.shape) for y in keras.tree.flatten(cache)]

    @computed
    def results():
        parts, extended = [], cache
        for begin, end in [(0, 8), (8, 9), (9, 11), (11, 12), (11, 12)]:
            ends = ops.convert_to_tensor([end, end], "int32")
            part = ops.convert_to_tensor(ids[:, begin:end])
            hidden, extended = model.backbone.decode(part, extended, begin, ends)
            parts.append(hidden)
        return model.backbone(x), parts, extended

    want, parts, extended = results
    *parts, again = parts
    np.testing.assert_allclose(again, parts[-1], atol=2e-4)
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[real], want[real], atol=2e-4)
    assert [y.shape for y in keras.tree.flatten(extended)] == shapes


def test_a_preset_trains_saves_and_loads(tmp_path):
    family, name = "bert_mixed_heads", "gated_delta"
    model = load(family, mechanism=name, num_layers=1)
    fields = presets.config(f"{family}_nano", **SMALL | {"num_layers": 1}, mechanism=name)
    assert model.count_params() == config.count_parameters(fields)
    texts = ["to be or not to be"] * 8
    losses = model.fit(texts, batch_size=8, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save_to_preset(tmp_path)
    again = presets.load(tmp_path)
    assert again.backbone.mechanism.name == name
    ids = np.full((1, 16), 65, "int32")
    x = {n: ids if n == "token_ids" else np.ones_like(ids) for n in model.input}
    got, want = (numpy(each.predict_on_batch(x)) for each in (again, model))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_what_they_say_of_themselves():
    heads = masks.half_heads().per_head(HEADS)
    delta, gated = map(mechanisms.get, ("delta", "gated_delta"))
    assert delta.projections(SIZES) == {"beta": HEADS} and not delta.variables(SIZES)
    assert gated.projections(SIZES) == {"beta": HEADS, "decay": HEADS}
    assert delta.flops(SIZES, heads, 10) == HEADS * 10 * 6 * DIM**2
    assert gated.flops(SIZES, heads, 10) == HEADS * 10 * 7 * DIM**2
    assert delta.parameters(SIZES, WIDTH) == HEADS * (WIDTH + 1)
    assert gated.parameters(SIZES, WIDTH, use_bias=False) == 2 * HEADS * WIDTH + 2 * HEADS
    rules = mixers.sharding()
    for variable in ("beta/kernel", "decay/bias", "(A_log|dt_bias)"):
        assert "model" in rules[r"(\w+_)?attention(_\d+)?/" + variable]
    spec = {"gated_delta": {"scale": 1.0}}
    assert mechanisms.get(spec).get_config() == spec


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_initial_rates_and_time_steps_are_those_of_the_authors(heads):
    values = mechanisms.get("gated_delta").variables(mechanisms.HeadSizes(heads, heads, DIM))
    rates, steps = np.exp(values["A_log"]), np.log1p(np.exp(values["dt_bias"]))
    np.testing.assert_allclose(rates, 16 * (np.arange(heads) + 0.5) / heads, rtol=1e-5)
    even = (np.log(np.sort(steps)) - np.log(0.001)) / np.log(100)
    np.testing.assert_allclose(even, (np.arange(heads) + 0.5) / heads, rtol=1e-3)
    assert heads < 4 or (np.argsort(steps) != np.arange(heads)).any()


def test_gates_of_each_head_stay_float32_under_mixed_precision(monkeypatch):
    """As the authors keep them: bfloat16 would move a rate by up to 0.4%."""
    seen, original = [], gates.softplus_gates

    def see(logits, variables):
        seen.extend([logits, *variables.values()])
        return original(logits, variables)

    monkeypatch.setattr(gates, "softplus_gates", see)
    for mechanism in ("gated_delta", {"gated_linear": {"gate": "softplus"}}):
        layer = layers.Attention(2, DIM, mechanism, "causal", dtype="mixed_bfloat16")
        out = layer(np.ones((1, 4, WIDTH), "float32"))
        assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
        assert {x.dtype for x in layer.extra_variables.values()} == {"float32"}
    assert len(seen) == 6
    assert {keras.backend.standardize_dtype(x.dtype) for x in seen} == {"float32"}


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: presets.load("bert_nano", mechanism="delta"), "mask='half_heads'"),
        (lambda: presets.load("unilm_nano", mechanism="gated_delta"), "Received: Prefix()"),
        (lambda: presets.load("t5_mixed_encoder_nano", mechanism="delta"), "cross-attention"),
        (
            lambda: presets.load("gpt_nano", mechanism="delta", positions="relative"),
            "needs a mechanism that has scores",
        ),
        (
            lambda: layers.Attention(HEADS, DIM, "delta", "causal")(inputs(), inputs()[:, :5]),
            "cross-attention",
        ),
        (lambda: layers.Attention(HEADS, DIM, "delta", "prefix"), "Received: Prefix()"),
        (lambda: mechanisms.get({"delta": {"scale": 0}}), "positive number"),
        (lambda: mechanisms.get({"delta": {"feature_map": "relu"}}), "feature_map"),
    ],
)
def test_wrong_input_raises_one_line(attempt, said):
    with pytest.raises(ValueError) as caught:
        attempt()
    message = str(caught.value)
    assert said in message and "Received: " in message and "\n" not in message
