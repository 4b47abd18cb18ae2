import json

import keras
import keras_hub
import numpy as np
import pytest
from keras import layers, ops

from kzoo import check, masks, presets
from kzoo.analysis.check import Report
from kzoo.errors import InputError

BATCH, TIME, VOCABULARY, WIDTH = 2, 6, 9, 4
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, TIME)).astype("int32")
QUERY, KEY = np.arange(TIME)[:, None], np.arange(TIME)[None]


class Gather(layers.Layer):
    """A head of dense attention without projections or residual, under fixed booleans."""

    def __init__(self, visible, **kwargs):
        super().__init__(**kwargs)
        self.visible = np.asarray(visible)

    def call(self, x, padding_mask=None):
        visible = self.visible
        if padding_mask is not None:
            visible = ops.logical_and(visible, padding_mask[:, None, :] != 0)
        scores = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return ops.matmul(ops.softmax(ops.where(visible, scores, -1e9)), x)


class Apply(layers.Layer):
    """A function of floats [batch, time, width] as a layer."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def model_of(*inside, embedding=None, time=TIME):
    """Ids, vectors, the layers `inside`, and scores."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((time,), dtype="int32", name="ids")
    x = (embedding or layers.Embedding(VOCABULARY, WIDTH, embeddings_initializer="normal"))(ids)
    for layer in inside:
        x = layer(x)
    return keras.Model(ids, layers.Dense(3)(x))


def kinds(report):
    return {found["kind"] for found in report.findings}


def pairs(found):
    """{(output, input)} of the first example."""
    return set(map(tuple, np.argwhere(found[0]).tolist()))


causal = np.tril(np.ones((TIME, TIME), bool))


# Right models -----------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("mask", ["causal", "reversed", "bidirectional", {"block": {"size": 2}}])
def test_right_models_pass(mask):
    visible = masks.get(mask).dense(TIME)[0, 0]
    visible = np.asarray(ops.convert_to_numpy(visible))
    report = check(model_of(Gather(visible)), IDS, mask)
    assert isinstance(report, Report) and report.ok and report.findings == []
    assert report.dependence.keys() == {"ids"}
    np.testing.assert_array_equal(report.dependence["ids"], np.stack([visible] * BATCH))
    assert not report.leaks["ids"].any() and not report.unused["ids"].any()
    assert "gradients" in report.notes[0]
    assert str(report).startswith("ok: nothing found")


@pytest.mark.backends
def test_causal_convolutions_of_floats_pass():
    model = keras.Sequential(
        [keras.Input((TIME, WIDTH)), layers.Conv1D(3, 2, padding="causal"), layers.ReLU()]
    )
    window = masks.causal() & masks.custom(lambda query, key: query - key < 2)
    assert check(model, mask=window).ok
    assert kinds(check(model, mask="causal")) == {"unused"}


@pytest.mark.parametrize(
    "name, mechanism",
    [("gpt_nano", "softmax"), ("unilm_nano", "linear")],
)
def test_own_models_pass_under_their_own_mask(name, mechanism):
    small = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 8}
    model = presets.load(name, mechanism=mechanism, max_sequence_length=8, **small)
    report = check(model)
    assert report.ok, report
    assert report.dependence["token_ids"].shape == (2, 8, 8)
    mask = model.backbone.mask
    assert f"mask {mask.get_config()}" in report.notes[0]
    assert [row["class"] for row in report.layers] == ["Attention"]
    # The end of the last row is padding, which nothing else sees.
    depends = report.dependence["token_ids"][1]
    assert depends[5, :6].all() and not depends[:6, 6:].any()


def test_a_model_of_keras_hub_passes():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=4,
        max_sequence_length=TIME,
    )
    report = check(backbone, mask="causal")
    assert report.ok, report
    assert report.dependence["token_ids"].shape == (2, TIME, TIME)
    assert [row["class"] for row in report.layers] == ["CachedMultiHeadAttention"]
    assert report.layers[0]["tpu"].startswith("never calls")  # it has dropout


# Planted bugs -----------------------------------------------------------------------------


@pytest.mark.torch
def test_masks_that_are_off_by_one_transposed_or_ignored_are_found():
    ahead = check(model_of(Gather(KEY <= QUERY + 1)), IDS, "causal")
    assert kinds(ahead) == {"leak"} and not ahead.ok
    assert pairs(ahead.leaks["ids"]) == {(i, i + 1) for i in range(TIME - 1)}
    assert "(0, 0, 1), (0, 1, 2)" in ahead.findings[0]["detail"]
    behind = check(model_of(Gather(causal & (KEY != QUERY - 1))), IDS, "causal")
    assert kinds(behind) == {"unused"}
    assert pairs(behind.unused["ids"]) == {(i, i - 1) for i in range(1, TIME)}
    transposed = check(model_of(Gather(causal.T)), IDS, "causal")
    assert kinds(transposed) == {"leak", "unused"}
    np.testing.assert_array_equal(transposed.leaks["ids"][0], np.triu(~causal))
    ignored = check(model_of(Gather(causal | True)), IDS, causal)
    assert kinds(ignored) == {"leak"}
    np.testing.assert_array_equal(ignored.leaks["ids"][1], ~causal)
    assert "leak" in str(ignored)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv1D(WIDTH, 3, padding="same"),
        layers.LayerNormalization(axis=1),
        Apply(lambda x: x + ops.mean(x, axis=1, keepdims=True)),
        Apply(lambda x: x + ops.max(x, axis=1, keepdims=True)),
    ],
    ids=["convolution", "norm over time", "mean over time", "maximum over time"],
)
def test_layers_that_mix_positions_are_found(layer):
    model = model_of(Gather(causal), layer)
    report = check(model, IDS, "causal")
    assert kinds(report) == {"leak"}
    assert {(i, i + 1) for i in range(TIME - 1)} <= pairs(report.leaks["ids"])


@pytest.mark.torch
@pytest.mark.parametrize("hides", [True, False])
def test_padding_that_others_see_is_found(hides):
    ids = keras.Input((TIME,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((TIME,), dtype="int32", name="padding_mask")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    x = Gather(causal | True)(x, padding_mask if hides else None) + 0 * ops.cast(
        padding_mask[..., None], "float32"
    )
    model = keras.Model({"token_ids": ids, "padding_mask": padding_mask}, layers.Dense(3)(x))
    batch = {"token_ids": IDS, "padding_mask": np.array([[1] * 4 + [0] * 2, [1] * TIME])}
    report = check(model, (batch, None), "bidirectional")
    assert report.ok == hides
    if not hides:
        assert pairs(report.leaks["token_ids"]) == {(i, j) for i in range(4) for j in (4, 5)}
    assert not report.unused["token_ids"].any() and not report.leaks["token_ids"][1].any()


@pytest.mark.torch
def test_each_method_finds_what_the_other_cannot():
    # Id 0 is padding, which has no other content to try; its vector leaks all the same.
    ids = np.array([[3, 4, 5, 0, 0, 0], [1, 2, 3, 4, 5, 6]], "int32")
    embedding = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
    mean = Apply(lambda x: x + ops.mean(x, axis=1, keepdims=True))
    mean.supports_masking = True
    report = check(model_of(mean, embedding=embedding), ids, "bidirectional")
    assert pairs(report.leaks["ids"]) == {(i, j) for i in range(3) for j in (3, 4, 5)}
    # What is cut from the gradient moves outputs.
    stopped = Apply(lambda x: x + ops.stop_gradient(ops.mean(x, axis=1, keepdims=True)))
    assert kinds(check(model_of(stopped), IDS, "causal")) == {"leak"}
    # Ids that no layer looks up have no gradient, and the report says so.
    summed = Apply(lambda x: ops.cumsum(x, axis=1))
    number = keras.Input((TIME,), dtype="int32", name="ids")
    report = check(keras.Model(number, summed(number)), IDS, "causal")
    assert report.ok and "no embedding turns it into vectors" in report.notes[1]


def test_examples_that_see_each_other_are_found():
    report = check(model_of(Apply(lambda x: x - ops.mean(x, axis=0, keepdims=True))), IDS)
    assert [found["kind"] for found in report.findings] == ["leak"]
    assert "other examples" in report.findings[0]["detail"]


def test_several_inputs_and_outputs_are_told_apart():
    words, kind = (keras.Input((None,), dtype="int32", name=name) for name in ("words", "kind"))
    x, y = layers.Embedding(VOCABULARY, WIDTH)(words), layers.Embedding(2, WIDTH)(kind)
    outputs = {"here": x + y, "there": Apply(lambda x: ops.cumsum(x, axis=1))(x), "none": x[:, 0]}
    report = check(keras.Model([words, kind], outputs))
    everything = {key: int(x[0].sum()) for key, x in report.dependence.items()}
    assert everything == {
        "words → here": 16,
        "kind → here": 16,
        "words → there": 16 * 17 // 2,
        "kind → there": 0,
    }
    assert any("none" in note for note in report.notes)


# Keras's attention on TPU -----------------------------------------------------------------


class Plain(layers.Layer):
    """`keras.ops.dot_product_attention` of a layer's input with itself."""

    def __init__(self, mask=None, bias=None, flash_attention=None, **kwargs):
        super().__init__(**kwargs)
        self.options = {"mask": mask, "bias": bias, "flash_attention": flash_attention}

    def call(self, x):
        heads = ops.reshape(x, (-1, x.shape[1], 1, WIDTH))
        return x + ops.dot_product_attention(heads, heads, heads, **self.options)[:, :, 0]


def attention_model():
    """One layer of each kind, at a length that the kernel of TPUs takes."""
    per_example = np.ones((BATCH, 1, 128, 128), bool)
    per_example[0, :, :, 100:] = False
    bias = np.random.default_rng(0).normal(size=(1, 1, 128, 128)).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((128,), BATCH, dtype="int32", name="ids")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    x += layers.MultiHeadAttention(1, 4, name="plain")(x, x)
    x += layers.MultiHeadAttention(1, 4, name="causal")(x, x, use_causal_mask=True)
    x += layers.GroupQueryAttention(4, 1, 1, name="grouped")(x, x)
    inner = keras.Sequential([Plain(per_example, name="example"), Plain(bias=bias, name="bias")])
    x = inner(x)
    x = Plain(flash_attention=False, name="careful")(x)
    return keras.Model(inputs, x)


@pytest.fixture
def flash_attention():
    yield
    keras.config.enable_flash_attention()


jax_only = pytest.mark.skipif(keras.backend.backend() != "jax", reason="this path is JAX's")


@jax_only
def test_what_keras_loses_on_tpu_is_found_and_nothing_stays_patched():
    from keras.src.backend.jax import nn

    names = ("jax", "splash_attention_kernel", "logging", "dot_product_attention")
    before = [getattr(nn, name) for name in names], layers.Layer.__call__
    model = attention_model()
    rows, findings, notes = on_tpu(model, 128)
    assert ([getattr(nn, name) for name in names], layers.Layer.__call__) == before
    tpu = {path.rpartition("/")[2]: verdict for path, verdict in rows.items()}
    assert tpu["plain"] == tpu["grouped"] == "causal, unscaled (splash)"
    assert tpu["causal"] == (
        "compiled: as asked (dense); eager: the mask asked for, unscaled (splash)"
    )
    assert tpu["example"] == "example 0's mask for all, unscaled (splash)"
    assert tpu["bias"] == "causal, unscaled, without its bias (splash)"
    assert tpu["careful"] == "as asked (dense)"
    details = {found["where"].rpartition("/")[2]: found["detail"] for found in findings}
    assert details.keys() == tpu.keys() - {"careful"}
    assert "keras.config.disable_flash_attention()" in details["plain"]
    assert "flash_attention=False" in details["bias"]
    assert any(path.count("/") == 1 for path in rows) and notes == []


def on_tpu(model, time):
    from kzoo.analysis.tpu import attention_on_tpu

    ids = np.tile(IDS, (1, time))[:, :time]
    rows, *rest = attention_on_tpu(model, lambda values: model(values[0]), [ids])
    return {row["path"]: row["tpu"] for row in rows}, *rest


@jax_only
def test_a_plain_model_is_reported_until_flash_attention_is_disabled(flash_attention):
    def report():
        keras.utils.set_random_seed(0)
        ids = keras.Input((None,), dtype="int32", name="ids")
        x = layers.Embedding(VOCABULARY, WIDTH)(ids)
        return check(keras.Model(ids, layers.MultiHeadAttention(1, 4)(x, x)), IDS, "bidirectional")

    found = report()
    assert kinds(found) == {"tpu"} and not found.ok
    assert "causal, unscaled" in found.findings[0]["detail"]
    json.dumps([found.findings, found.layers, found.notes])
    assert "causal, unscaled (splash)" in str(found)
    keras.config.disable_flash_attention()
    found = report()
    assert found.ok, found
    assert found.layers[0]["asked"] == "no mask, no flash kernel"


@jax_only
def test_lengths_that_the_kernel_refuses_are_told():
    ids = keras.Input((TIME,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    report = check(keras.Model(ids, layers.MultiHeadAttention(1, 4)(x, x)))
    assert report.ok and report.layers[0]["tpu"].startswith("as asked (dense, since q_block_size")
    assert f"{TIME} positions only" in report.notes[-1]


@pytest.mark.backends
def test_other_backends_say_that_they_have_no_such_path():
    report = check(model_of(Gather(causal)), IDS)
    said = "the backend is" in report.notes[-1]
    assert said == (keras.backend.backend() != "jax")


# Pictures and errors ----------------------------------------------------------------------


def test_plot(tmp_path):
    figure = check(model_of(Gather(causal.T)), IDS, "causal").plot()
    figure.savefig(tmp_path / "check.png")
    assert len(figure.axes) == BATCH and (tmp_path / "check.png").stat().st_size > 1000


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.dense = layers.Embedding(VOCABULARY, WIDTH), layers.Dense(3)

    def call(self, ids):
        return self.dense(ops.cumsum(self.embedding(ids), axis=1))


def test_a_subclassed_model_is_built_by_its_inputs():
    model = Subclassed()
    with pytest.raises(InputError, match="pass some. Received: Subclassed"):
        check(model)
    weights = check(model, IDS, "causal")
    assert weights.ok and len(model.weights) == 3


@pytest.mark.parametrize(
    "inputs, mask, match",
    [
        (IDS, "casual", "did you mean 'causal'"),
        (IDS, "half_heads", "one mask must be given for the whole model"),
        (IDS, "prefix", "source_mask"),
        (IDS, causal[:, :-1], r"Received: bool of shape \(6, 5\)"),
        (IDS, causal.astype(int), "Received: int64 of shape"),
        (IDS[0], None, r"Received: ids of shape \(6,\)"),
        (np.array([["a"]]), None, "dtype <U1"),
    ],
)
def test_wrong_input_raises_one_line(inputs, mask, match):
    with pytest.raises(InputError, match=match) as error:
        check(model_of(Gather(causal)), inputs, mask)
    assert "\n" not in str(error.value) and "Received: " in str(error.value)


def test_wrong_models_raise_one_line():
    ids, more = (keras.Input((time,), dtype="int32", name=f"to{time}") for time in (4, 5))
    x, y = (layers.Embedding(VOCABULARY, WIDTH)(i) for i in (ids, more))
    unequal = keras.Model([ids, more], ops.concatenate([x, y], axis=1))
    named = keras.Model({"to4": ids}, x)
    mask = keras.Input((4,), dtype="int32", name="padding_mask")
    for model, inputs, match in [
        ("a model", None, "takes a keras.Model. Received: str"),
        (unequal, None, r"one time. Received: to4 \(2, 4\), to5 \(2, 5\)"),
        (keras.Model(ids, layers.Dense(3)(x[:, 0])), None, "an output must have"),
        (named, {"words": IDS[:, :4]}, "missing to4. Received: words"),
        (keras.Model(mask, ops.cumsum(mask, axis=1)), None, "inputs other than masks"),
    ]:
        with pytest.raises(InputError, match=match) as error:
            check(model, inputs)
        assert "\n" not in str(error.value) and "Received: " in str(error.value)
