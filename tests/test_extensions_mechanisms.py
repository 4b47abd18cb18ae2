"""Parts that are added from outside the package, without an edit inside it."""

import numpy as np
import pytest
from small_models import SMALL

import kzoo
from kzoo import feature_maps, layers, mechanisms, presets
from kzoo.cli import main
from kzoo.config import count_parameters
from kzoo.training.flops import count_flops

TIME, HEADS, DIM = 7, 2, 8


def numpy(x):
    from keras import ops

    return np.asarray(ops.convert_to_numpy(x))


class Cube(feature_maps.FeatureMap):
    """φ(x) = max(x, 0)³."""

    name = "cube"

    def of_query(self, x):
        from keras import ops

        return ops.relu(x) ** 3


class Importance(mechanisms.Mechanism):
    """out_i = loudness · Σ_j g_j v_j / Σ_j g_j over the visible keys j, g = exp(strength · gate).

    It has a field, a projection of each token to a gate per head, and a variable per head.
    """

    strength: float = 1.0
    name = "importance"
    sharding = {"gate/kernel": (None, "model"), "gate/bias": ("model",), "loudness": ("model",)}

    def projections(self, sizes):
        return {"gate": sizes.num_heads}

    def variables(self, sizes):
        return {"loudness": np.ones(sizes.num_heads, "float32")}

    def attend_with_weights(self, q, k, v, extras, mask, *, rotary=False, bias=None, **sequence):
        from keras import ops

        from kzoo.ops.qkv import prepare
        from kzoo.ops.tensors import hide, ratio, repeat_heads

        q, k, v, mask, queries, keys = prepare(q, k, v, mask, **sequence)
        gate = ops.exp(self.strength * ops.cast(extras.projected["gate"], "float32"))
        gate = ops.transpose(gate, (0, 2, 1))[:, :, None]  # [batch, heads, 1, key_time]
        visible = mask.between(queries, keys, q.shape[2])
        gate = hide(ops.broadcast_to(gate, ops.shape(gate + visible)), visible)
        weights = ratio(gate, ops.sum(gate, axis=-1, keepdims=True))
        weights = weights * ops.cast(extras.variables["loudness"], "float32")[:, None, None]
        v = repeat_heads(ops.cast(v, "float32"), q.shape[2])
        return ops.einsum("bhqk,bkhd->bqhd", weights, v), weights


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Both parts in their registries, which are as before afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (feature_maps.REGISTRY, mechanisms.REGISTRY):
            patch.setattr(registry, "_classes", dict(registry._classes))
        feature_maps.register(Cube)
        yield mechanisms.register(Importance)


def test_a_feature_map():
    layer = layers.Attention(HEADS, DIM, "linear", "causal", feature_map="cube")
    assert layer.mechanism.get_config() == {"linear": {"feature_map": "cube"}}
    x = np.random.default_rng(0).normal(size=(1, TIME, HEADS * DIM)).astype("float32")
    layer.build(x.shape)
    weights = numpy(layer.attention_weights(x))
    q, k = (numpy(f(x)).reshape(TIME, HEADS, DIM).clip(0) ** 3 for f in (layer.query, layer.key))
    want = np.einsum("qhd,khd->hqk", q, k) * np.tri(TIME)
    want /= want.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[0], want, atol=1e-5)


# A mechanism --------------------------------------------------------------------------------------


def test_a_mechanism_in_a_layer(registered):
    layer = layers.Attention(HEADS, DIM, {"importance": {"strength": 2.0}}, "causal", kv_heads=1)
    x = np.random.default_rng(0).normal(size=(1, TIME, 12)).astype("float32")
    out = numpy(layer(x))
    layer.extra_variables["loudness"].assign([1.0, 3.0])
    gates = np.exp(2 * numpy(layer.extra_projections["gate"](x)))[0]
    want = np.tri(TIME) * gates.T[:, None]
    want *= np.array([1, 3])[:, None, None] / want.sum(-1, keepdims=True)
    np.testing.assert_allclose(numpy(layer.attention_weights(x))[0], want, atol=1e-5)
    copy = layers.Attention.from_config(layer.get_config())
    assert copy.mechanism == registered(strength=2.0)
    np.testing.assert_array_equal(numpy(copy(x)), out)  # its initial values follow from the seed
    assert layer.kernel_for(TIME, "cpu") == "ops"
    assert numpy(layers.Attention(HEADS, DIM, "importance")(x, x[:, :3])).shape == x.shape


@pytest.fixture(scope="module")
def model():
    return presets.load("gpt_nano", mechanism={"importance": {"strength": 2.0}}, **SMALL)


def test_a_mechanism_in_a_model(model, tmp_path, capsys):
    x, y, weight = model.preprocessor(["to be or not", "that is"])
    before = model.evaluate(x, y, sample_weight=weight, return_dict=True, verbose=0)["loss"]
    model.fit(x, y, sample_weight=weight, epochs=3, verbose=0)
    loss = model.evaluate(x, y, sample_weight=weight, return_dict=True, verbose=0)["loss"]
    assert loss < before
    text = model.generate("to", max_length=10, sampler="greedy")
    presets.save(model, tmp_path / "model")
    copy = presets.load(tmp_path / "model")
    assert copy.backbone.mechanism == model.backbone.mechanism == Importance(2.0)
    assert copy.generate("to", max_length=10, sampler="greedy") == text


@pytest.mark.slow
def test_decoding_with_a_mechanism_equals_its_call(model):
    from keras import ops

    ids = np.random.default_rng(0).integers(256, size=(1, TIME)).astype("int32")
    want = numpy(model.backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)}))
    start = ops.zeros(1, "int32")
    cache = model.backbone.init_cache(start, start, TIME)
    assert set(cache["blocks"][0]["attention"]) == {"key", "value", "gate"}
    prompt, cache = model.backbone.decode(ops.convert_to_tensor(ids[:, :4]), cache, 0)
    token = ops.convert_to_tensor(ids[:, 4:5])
    step, cache = model.backbone.decode(token, cache, ops.convert_to_tensor(4))
    got = np.concatenate([numpy(prompt), numpy(step)], axis=1)
    np.testing.assert_allclose(got, want[:, :5], atol=1e-4)


def test_a_mechanism_is_counted_and_shown(model, capsys):
    settings = {**SMALL, "mechanism": {"importance": {"strength": 2.0}}}
    config = presets.config("gpt_nano", **settings)
    assert count_parameters(config) == model.count_params()
    assert count_flops(config)["matmul"] > count_flops({**config, "mechanism": "softmax"})["matmul"]
    assert main(["show", "gpt_nano", "--set", "mechanism.importance.strength=2.0"]) == 0
    assert '"importance"' in capsys.readouterr().out


def test_devices_split_a_mechanism(model):
    from kzoo.training.distribution import layout

    mesh = {"data": 2, "model": 2}
    layouts = {x.path: layout(x.path, x.shape, mesh) for x in model.backbone.weights}
    prefix = "block_1/attention/"
    assert layouts[f"{prefix}gate/kernel"] == (None, "model")
    assert layouts[f"{prefix}loudness"] == layouts[f"{prefix}gate/bias"] == ("model",)


def test_nothing_leaks_through_a_mechanism(model):
    report = kzoo.check(model)
    assert report.ok, report
    with pytest.raises(ValueError, match="needs a mechanism that has scores"):
        presets.config("gpt_nano", mechanism="importance", positions="relative")
