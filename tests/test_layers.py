import itertools

import keras
import numpy as np
import pytest
from autodiff import computed, value_and_gradients
from blocks import block as make_block
from keras import ops
from marks import once

from kzoo import layers, masks
from kzoo.errors import InputError
from kzoo.layers.normalization import NORMALIZATIONS, norm
from kzoo.ops.normalization import layer_norm

pytestmark = pytest.mark.backends

DIM, HEADS = 8, 2
MASKS = ("bidirectional", "causal", "reversed", "prefix", "permuted", "half_heads")
FEW = ("prefix", "half_heads")  # of the other backends: one order in all heads, and two
ATTENTIONS = [
    (mechanism, mask) if mask in FEW else once(mechanism, mask)
    for mechanism, mask in itertools.product(("softmax", "linear"), MASKS)
]


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def inputs(batch, time, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, time, DIM)).astype("float32")


def who(mask, padding):
    """Call arguments: the source only where the mask takes one."""
    padding = np.asarray(padding, "int32")
    if not masks.get(mask).needs_source:
        return {"padding_mask": padding}
    source = np.ones_like(padding) * (np.arange(padding.shape[1]) % 7 < 3)
    return {"padding_mask": padding, "source_mask": source.astype("int32")}


def attention(mechanism, mask, **kwargs):
    return layers.Attention(HEADS, 4, mechanism=mechanism, mask=mask, rotary=True, **kwargs)


# Attention ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mechanism, mask", ATTENTIONS)
def test_padding_and_packing_change_nothing(mechanism, mask):
    layer = attention(mechanism, mask)
    x = inputs(2, 14)
    # One row of 14; two documents of 7 in a row; both with padding, once full of NaN.
    packed = np.array([[1] * 7 + [2] * 7, [1] * 5 + [0] * 2 + [2] * 6 + [0]])
    x[1, packed[1] == 0] = np.nan
    alone = x.reshape(4, 7, DIM)
    padding = (packed.reshape(4, 7) != 0).astype("int32")
    longer = np.concatenate([alone, np.full((4, 7, DIM), np.nan, "float32")], axis=1)
    source = {name: np.tile(value, (1, 2)) for name, value in who(mask, alone[..., 0] * 0).items()}
    source["padding_mask"] = np.concatenate([padding, 0 * padding], axis=1)
    order = [2, 0, 3, 1]

    @computed
    def outs():
        return (
            layer(x, **who(mask, packed)),
            layer(alone, **who(mask, padding)),
            layer(longer, **source),
            layer(alone[order], **who(mask, padding[order])),
        )

    together, apart, longer, permuted = outs
    np.testing.assert_allclose(together, apart.reshape(together.shape), atol=1e-5)
    np.testing.assert_allclose(longer[:, :7].reshape(together.shape), together, atol=1e-5)
    bias = numpy(layer.output_dense.bias)
    np.testing.assert_array_equal(together[packed == 0], np.tile(bias, ((packed == 0).sum(), 1)))
    np.testing.assert_allclose(permuted, apart[order], atol=1e-5)


@pytest.mark.parametrize("mechanism", ["softmax", "linear", once("gated_linear")])
def test_each_head_follows_its_own_mask(mechanism):
    x, args = inputs(2, 7), who("causal", [[1] * 7, [1] * 4 + [2] * 3])
    kinds = (masks.heads("causal", "reversed"), "causal", "reversed")
    attentions = [attention(mechanism, mask) for mask in kinds]
    for layer in attentions:
        layer.build(x.shape)
    both, *single = computed(lambda: [layer.attend(x, **args) for layer in attentions])
    assert both.shape == (2, 7, HEADS, 4)
    for head, one in enumerate(single):
        np.testing.assert_allclose(both[:, :, head], one[:, :, head], atol=1e-5)


@pytest.mark.parametrize("mechanism", ["softmax", "linear", once("gated_linear")])
def test_attention_weights_are_those_of_the_output(mechanism):
    layer = attention(mechanism, "half_heads")
    layer.rotary = False
    x, args = inputs(2, 7), who("causal", [[1] * 7, [1] * 4 + [0] * 3])
    layer.build(x.shape)

    @computed
    def results():
        return layer.attention_weights(x, **args), layer.value(x), layer.attend(x, **args)

    weights, values, out = results
    assert weights.shape == (2, HEADS, 7, 7)
    values = values.reshape(2, 7, HEADS, 4)
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, values), out, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1)[1, :, 4:], 0)
    if mechanism != "gated_linear":  # which has no denominator
        np.testing.assert_allclose(weights.sum(-1)[0], 1, atol=1e-5)


def test_heads_of_keys_are_shared():
    x = inputs(1, 7)
    layer = layers.Attention(4, 2, kv_heads=2, mask="causal")
    layer.build(x.shape)
    assert layer.key.kernel.shape == layer.value.kernel.shape == (DIM, 4)
    full = layers.Attention(4, 2, mask="causal")
    full.build(x.shape)
    for name in ("query", "output_dense"):
        getattr(full, name).set_weights(getattr(layer, name).get_weights())
    for name in ("key", "value"):
        kernel, bias = getattr(layer, name).get_weights()
        kernel = np.repeat(kernel.reshape(DIM, 2, 2), 2, axis=1).reshape(DIM, 8)
        getattr(full, name).set_weights([kernel, np.repeat(bias.reshape(2, 2), 2, axis=0).ravel()])
    shared, out = computed(lambda: (layer(x), full(x)))
    assert shared.shape == x.shape
    np.testing.assert_allclose(out, shared, atol=1e-5)


@pytest.mark.parametrize("cls", [layers.SoftmaxAttention, layers.LinearAttention])
def test_attention_of_a_second_sequence(cls):
    """As `MultiHeadAttention(query, value)`: other times, other widths, padded keys."""
    layer = cls(HEADS, 4, seed=3)
    query, value = inputs(2, 5), inputs(2, 7)[..., :6]
    shown = np.array([[1] * 7, [1] * 4 + [0] * 3], "int32")
    equal = value[..., :0].sum(-1, keepdims=True) + query[:, :1].repeat(7, 1)
    layer.build(query.shape, value.shape)

    @computed
    def results():
        out = layer(query, value, key_padding_mask=shown)
        one = layer(query[1:], value[1:, :4]), layer(equal, value), layer(query[:, :1], value)
        weights = layer.attention_weights(query, value, key_padding_mask=shown)
        return out, layer(query, value), *one, weights

    out, unmasked, short, many, first, weights = results
    assert out.shape == query.shape
    np.testing.assert_allclose(unmasked[0], out[0], atol=1e-5)
    np.testing.assert_allclose(short[0], out[1], atol=1e-5)
    # Two sequences of one length are still two.
    np.testing.assert_allclose(many, first.repeat(7, 1), atol=1e-5)
    assert weights.shape == (2, HEADS, 5, 7) and (weights[1, :, :, 4:] == 0).all()


@pytest.mark.parametrize("cls", [layers.SoftmaxAttention, layers.LinearAttention])
def test_attention_in_anyones_model(cls):
    """Keras's own mask arrives, the model saves and loads, any length runs."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(11, DIM, mask_zero=True)(ids)
    x = cls(HEADS, 4, mask="causal", name="attention")(x)
    model = keras.Model(ids, keras.layers.Dense(3)(x))
    tokens = np.array([[3, 4, 5, 6], [7, 8, 0, 0]])
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    out, short, again = computed(lambda: (model(tokens), model(tokens[1:, :2]), copy(tokens)))
    np.testing.assert_allclose(short[0], out[1, :2], atol=1e-5)
    np.testing.assert_allclose(again, out, atol=1e-6)
    assert isinstance(copy.get_layer("attention"), cls)
    assert copy.get_layer("attention").mask == masks.causal()


def test_linear_attention_streams():
    layer = layers.LinearAttention(HEADS, 4, mask="causal", rotary=True)
    x = inputs(2, 7)

    @computed
    def results():
        state, parts = None, []
        for t in range(7):
            step = {"initial_state": state, "return_state": True, "query_offset": t}
            part, state = layer(x[:, t : t + 1], **step)
            parts.append(part)
        return layer(x), ops.concatenate(parts, 1)

    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    with pytest.raises(ValueError, match="a state needs a mechanism that has one"):
        layers.SoftmaxAttention(HEADS, 4)(x, return_state=True)


@pytest.mark.parametrize("feature_map", ["hedgehog", "taylor2", {"favor": {"features": 8}}])
def test_feature_maps_in_a_layer(feature_map):
    layer = layers.LinearAttention(
        HEADS, 4, mask="half_heads", rotary=True, feature_map=feature_map
    )
    x = inputs(2, 7)
    layer.build(x.shape)
    copy = layers.LinearAttention.from_config(layer.get_config())

    @computed
    def results():
        return layer(x), copy(x), layer.attention_weights(x), layer.value(x), layer.attend(x)

    names = [variable.path.split("/")[-1] for variable in layer.weights]
    learned = [name for name in names if name.startswith("feature_map")]
    expected = ["feature_map_query_kernel", "feature_map_key_kernel"]
    assert sorted(learned) == (sorted(expected) if feature_map == "hedgehog" else [])
    out, again, weights, values, attended = results
    np.testing.assert_allclose(again, out, atol=1e-6)  # the same initial values
    values = values.reshape(2, 7, HEADS, 4)
    np.testing.assert_allclose(np.einsum("bhqk,bkhd->bqhd", weights, values), attended, atol=1e-5)


def test_kernels_say_what_runs_where():
    x = keras.Input((2048, DIM))
    y = layers.SoftmaxAttention(HEADS, 4, mask="causal", name="one")(x)
    model = keras.Model(x, layers.LinearAttention(HEADS, 4, mask="causal", name="two")(y))
    backend = keras.backend.backend()
    cpu = {"jax": "blockwise", "torch": "sdpa", "tensorflow": "dense"}[backend]
    two = "chunk_scan" if backend == "jax" else "chunked"
    assert layers.kernels(model, (2, 2048), "cpu") == {"one": cpu, "two": two}
    if backend == "jax":
        assert layers.kernels(model, (2, 2048), "tpu") == {"one": "splash", "two": two}
        assert layers.kernels(model, (2, 64), "cpu") == {"one": "dense", "two": two}
    with pytest.raises(ValueError, match="did you mean 'tpu'"):
        layers.kernels(model, (2, 64), "tpuu")


# Block --------------------------------------------------------------------------------------

BLOCKS = [
    {},
    {"mechanism": "linear", "mask": {"heads": ["causal", {"block": {"size": 2}}]}, "rotary": True},
    {"norm_placement": "post", "normalization": "rms_norm", "activation": "swiglu", "kv_heads": 1},
    {
        "mechanism": "linear",
        "feature_map": "relu",
        "activation": "geglu",
        "dropout": 0.1,
        "seed": 7,
    },
]


@pytest.mark.parametrize("kwargs", BLOCKS, ids=str)
def test_a_block_from_its_config_is_the_same_block(kwargs):
    x, args = inputs(2, 7), who("causal", [[1] * 7, [1] * 4 + [0] * 3])
    block = make_block(HEADS, 4, 16, **kwargs)
    copy = layers.Block.from_config(block.get_config())
    out, again = computed(lambda: [layer(x, **args) for layer in (block, copy)])
    assert out.shape == block.compute_output_shape(x.shape) == x.shape
    assert copy.get_config() == block.get_config()
    for a, b in zip(copy.get_weights(), block.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # the seed is part of the config
    np.testing.assert_array_equal(again, out)


# What `get_config` gave when a block took the fields of its mixers, and an attention those of its
# mechanism beside the name.
SAVED_ATTENTION = {
    "num_heads": HEADS,
    "head_dim": 4,
    "mechanism": "softmax",
    "mask": "causal",
    "feature_map": "elu1",
    "kv_heads": 1,
    "rotary": True,
    "scale": 0.5,
    "relative": False,
    "identity_mix": 0.0,
    "use_bias": True,
    "stddev": None,
    "seed": 3,
}
SAVED_BLOCK = {
    **SAVED_ATTENTION,
    "name": "block",
    "intermediate_dim": 16,
    "activation": "swiglu",
    "normalization": "rms_norm",
    "epsilon": 1e-5,
    "norm_placement": "pre",
    "dropout": 0.0,
    "cross_attention": True,
    "remat": "none",
}


def test_layers_saved_with_the_fields_of_their_parts_load():
    layer = layers.Attention.from_config(SAVED_ATTENTION)
    assert layer.mechanism.get_config() == {"softmax": {"scale": 0.5}}
    linear = {"mechanism": "linear", "feature_map": "relu", "scale": None}
    layer = layers.Attention.from_config(SAVED_ATTENTION | linear)
    assert layer.mechanism.get_config() == {"linear": {"feature_map": "relu"}}
    without = {name: value for name, value in SAVED_ATTENTION.items() if name != "mechanism"}
    assert layers.SoftmaxAttention.from_config(without).mechanism.scale == 0.5

    unset = {"feature_map", "stddev"}
    fields = {name: value for name, value in SAVED_BLOCK.items() if name not in unset}
    want, got = make_block(**fields), layers.Block.from_config(SAVED_BLOCK)
    for block in (want, got):
        block.build((1, 5, DIM))
    assert got.get_config() == want.get_config()
    for a, b in zip(got.weights, want.weights, strict=True):
        assert a.path == b.path
        np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_where_the_norms_stand(placement):
    given = inputs(1, 7)
    block = make_block(HEADS, 4, 16, norm_placement=placement, mask="causal")
    block.build(given.shape)

    @computed
    def results():
        x = ops.convert_to_tensor(given)
        a, n = block.attention, block.attention_norm
        f, m = block.feed_forward, block.feed_forward_norm
        if placement == "pre":
            y = x + a(n(x))
            want = n(x), y + f(m(y))
        else:
            y = n(x + a(x))
            want = x, m(y + f(y))
        return want, (block.attention_inputs(x), block(x))

    want, got = results
    np.testing.assert_allclose(got[0], want[0], atol=1e-6 if placement == "pre" else 0, rtol=0)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)


@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_dropout_acts_on_what_is_added_and_is_seeded(mechanism):
    def block(**kwargs):
        block = make_block(HEADS, 4, 16, mechanism=mechanism, dropout=0.5, **kwargs)
        block.build(x.shape)
        block.feed_forward.output_dense.kernel.assign(np.zeros((16, DIM)))
        return block

    x = inputs(2, 7)
    first = block()
    added = numpy(first(x)) - x
    dropped = numpy(first(x, training=True)) - x
    kept = np.abs(dropped) > 1e-7
    assert 0.2 < kept.mean() < 0.8
    # Whole entries go, the others double: nothing was dropped inside the attention.
    np.testing.assert_allclose(dropped, np.where(kept, 2 * added, 0), atol=1e-5)
    np.testing.assert_array_equal(numpy(block()(x, training=True)) - x, dropped)
    assert ((numpy(block(seed=1)(x, training=True)) == x) == kept).any()


def test_dropouts_of_a_block_differ():
    block = make_block(HEADS, 4, 16, dropout=0.5)
    ones = np.ones((1, 9, DIM), "float32")
    first = numpy(block.attention_dropout(ones, training=True))
    assert (first != numpy(block.feed_forward_dropout(ones, training=True))).any()


# Norms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_norms_compute_in_float32(name, dtype):
    # Far from zero, so that sums in bfloat16 would leave nothing of the differences.
    x = np.random.default_rng(0).normal(8, 0.5, size=(1, 3, 512))
    x = numpy(ops.cast(x, "bfloat16"))
    high, low = norm(name, dtype="float32"), norm(name, dtype=dtype)
    got = low(ops.cast(x, "bfloat16"))
    assert keras.backend.standardize_dtype(got.dtype) == "bfloat16"
    want = numpy(high(x))
    np.testing.assert_allclose(numpy(got), want, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2**-7)])
def test_layer_norm_and_its_gradients_are_those_of_the_formula(dtype, tolerance):
    rng = np.random.default_rng(1)
    x, cotangent = rng.normal(3, 2, size=(2, 5, 64)), rng.normal(size=(2, 5, 64))
    arrays = x, rng.normal(1, 0.3, size=64), rng.normal(size=64)
    arrays = [numpy(ops.cast(array, dtype)) for array in arrays]
    cotangent = numpy(ops.cast(cotangent, dtype))

    def formula(x, scale, offset):
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        return centred / ops.sqrt(variance + 1e-5) * scale + offset

    def ours(*arrays):
        return layer_norm(*(ops.cast(array, dtype) for array in arrays), 1e-5)

    right, slopes = value_and_gradients(formula, arrays, cotangent, "float64")
    value, gradients = value_and_gradients(ours, arrays, cotangent)
    for got, want in zip((value, *gradients), (right, *slopes), strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("asked", [{"axis": 1}, {"center": False}, {"scale": False}])
def test_a_layer_norm_of_another_kind_is_refused(asked):
    with pytest.raises(InputError, match="keras.layers.LayerNormalization has others"):
        norm("layer_norm", **asked)


# Positions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [layers.LearnedPositions(9), layers.SinusoidalPositions()], ids=["learned", "sine"]
)
def test_positions_restart_in_each_document(layer):
    zeros = np.zeros((2, 6, DIM), "float32")
    packed = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 3, 3, 0]], "int32")
    got = numpy(layer(zeros, padding_mask=packed))
    assert len(np.unique(got[0].round(6), axis=0)) == 6
    for time, place in zip((1, 2, 3, 4), (0, 1, 0, 1), strict=True):
        np.testing.assert_array_equal(got[1, time], got[0, place])
    np.testing.assert_allclose(numpy(layer(zeros + 5, padding_mask=packed)), got + 5, atol=1e-5)
    copy = type(layer).from_config(layer.get_config())
    np.testing.assert_array_equal(numpy(copy(zeros, padding_mask=packed)), got)


def test_sinusoidal_positions_are_those_of_the_paper():
    zeros, ones = np.zeros((1, 5, DIM), "float32"), np.ones((1, 5), "int32")
    got = numpy(layers.SinusoidalPositions()(zeros, padding_mask=ones))[0]
    angle = np.arange(5)[:, None] / 10_000 ** (np.arange(DIM // 2) / (DIM // 2))
    want = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(got / np.linalg.norm(got[0]), want / 2, atol=1e-5)
    odd = layers.SinusoidalPositions()(np.zeros((1, 5, 7), "float32"), padding_mask=ones)
    assert odd.shape == (1, 5, 7)


# Embedding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_logits(tied):
    layer = layers.TokenEmbedding(11, DIM, tie_weights=tied, seed=5)
    ids = np.array([[1, 2, 10], [0, 0, 3]], "int32")
    vectors = layer(ids)
    table = numpy(layer.embeddings)
    np.testing.assert_array_equal(numpy(vectors), table[ids])
    out = table.T if tied else numpy(layer.reverse_embeddings)
    assert len(layer.weights) == (1 if tied else 2)
    if not tied:
        assert (out != table.T).all()
    np.testing.assert_allclose(numpy(layer(vectors, reverse=True)), table[ids] @ out, atol=1e-5)
    copy = layers.TokenEmbedding.from_config(layer.get_config())
    np.testing.assert_array_equal(numpy(copy(ids)), numpy(vectors))


def test_logits_are_float32_under_mixed_precision():
    layer = layers.TokenEmbedding(11, DIM, dtype="mixed_bfloat16")
    vectors = layer(np.array([[1, 2]], "int32"))
    assert keras.backend.standardize_dtype(vectors.dtype) == "bfloat16"
    logits = layer(vectors, reverse=True)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    # The table is rounded to bfloat16, as all weights are; the products are not.
    exact = numpy(vectors) @ numpy(ops.cast(layer.embeddings, "bfloat16")).T
    np.testing.assert_allclose(numpy(logits), exact, rtol=1e-5, atol=1e-6)


# Initial values, wrong input ----------------------------------------------------------------


def test_initial_values_follow_from_seed_and_path():
    a, b, c = layers.derive_seed(0, "x"), layers.derive_seed(0, "y"), layers.derive_seed(1, "x")
    assert len({a, b, c}) == 3 and all(0 <= seed < 2**31 for seed in (a, b, c))
    draw = layers.SeededNormal(0.5, seed=a)
    np.testing.assert_array_equal(
        numpy(draw((50, 40))), numpy(layers.SeededNormal.from_config(draw.get_config())((50, 40)))
    )
    np.testing.assert_allclose(numpy(draw((50, 40))).std(), 0.5, rtol=0.05)
    expected = np.random.default_rng(a).standard_normal((50, 40), "float32") * np.float32(0.5)
    np.testing.assert_array_equal(numpy(draw((50, 40))), expected)  # on every backend


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: layers.Attention(2, 4, mechanism="lineer"), "did you mean 'linear'?"),
        (lambda: layers.Attention(2, 4, "linear", feature_map="elu_1"), "did you mean 'elu1'?"),
        (lambda: layers.Attention(2, 4, mask="casual"), "did you mean 'causal'?"),
        (lambda: layers.Attention(3, 4, mask="half_heads"), "use a multiple of 2"),
        (lambda: layers.Attention(2, 4, mask="alternating"), "per_layer"),
        (lambda: layers.Attention(4, 4, kv_heads=3), "kv_heads must divide num_heads=4"),
        (lambda: layers.Attention(2, 3, rotary=True), "even head_dim"),
        (
            lambda: layers.LinearAttention(2, 4, mask="causal", feature_map="softmax"),
            "needs a bidirectional mask",
        ),
        (
            lambda: layers.Attention(2, 4, "linear", masks.causal() & masks.block(2)),
            "linear attention follows orders",
        ),
        (
            lambda: layers.Attention(2, 4, "linear", masks.custom(lambda q, k: q >= k)),
            "linear attention follows orders",
        ),
        (lambda: layers.FeedForward(8, "gelou"), "did you mean 'gelu'?"),
        (lambda: layers.FeedForward(8.5), "intermediate_dim must be a positive integer"),
        (lambda: layers.Attention(2, 4, use_bias="no"), "use_bias must be true or false"),
        (lambda: layers.Attention(2, 4, rotary="no"), "rotary must be true or false"),
        (lambda: layers.Attention(2, 4, seed=-1), "seed must be an integer in"),
        (lambda: layers.Attention(2, 4, identity_mix=2.0), "identity_mix must be a number in"),
        (lambda: layers.Attention(2, 4, stddev=0.1), "stddev must be two positive numbers"),
        (lambda: layers.TokenEmbedding(9, 8, stddev=(0.1, 0.1)), "stddev must be a positive"),
        (lambda: layers.RelativeBias(0), "num_heads must be a positive integer"),
        (
            lambda: layers.Attention(2, 4, identity_mix=0.5)(inputs(1, 3), inputs(1, 3) + 1),
            "identity_mix mixes in a token's own value",
        ),
        (lambda: make_block(2, 4, 8, normalization="rmsnorm"), "did you mean 'rms_norm'?"),
        (lambda: make_block(2, 4, 8, norm_placement="prae"), "did you mean 'pre'?"),
    ],
)
def test_wrong_arguments(attempt, said):
    with pytest.raises(InputError) as caught:
        attempt()
    message = str(caught.value)
    assert said in message and "Received: " in message and "\n" not in message


def test_a_prefix_needs_its_source():
    with pytest.raises(InputError, match="source_mask"):
        layers.Attention(2, 4, mask="prefix")(inputs(1, 3))
