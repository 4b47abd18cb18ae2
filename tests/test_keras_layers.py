"""Our layers among Keras's: its masks, its wrappers, and `MultiHeadAttention`'s calls."""

import inspect

import keras
import numpy as np
import pytest
from autodiff import computed
from blocks import block as make_block
from keras import ops
from keras.src.backend.common.masking import set_keras_mask  # of what JAX traces too
from marks import once

from kzoo import layers
from kzoo.errors import InputError

pytestmark = pytest.mark.backends

DIM, HEADS = 8, 2
# The same four tokens, padded at the end, at the beginning, on both sides and in the middle.
PADDED = np.array(
    [[3, 4, 5, 6, 0, 0], [0, 0, 3, 4, 5, 6], [0, 3, 4, 5, 6, 0], [3, 0, 4, 5, 0, 6]], "int32"
)
MASKS = ("bidirectional", "causal", "reversed", "half_heads", {"block": {"size": 2}}, "permuted")
MECHANISMS = ("softmax", "linear")


def numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def embedding(**kwargs):
    layer = keras.layers.Embedding(9, DIM, **kwargs)
    layer.build((None, None))
    layer.embeddings.assign(draw(9, DIM))
    return layer


# Masks from Keras -----------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_kerass_mask_hides_changes_nothing(mechanism):
    """The oracle is the row without its padding, which knows of no mask."""
    embed = embedding(mask_zero=True)
    masks = MASKS if keras.backend.backend() == "jax" else MASKS[2:4]
    ids, bare = keras.Input((None,), dtype="int32"), numpy(embed(np.array([[3, 4, 5, 6]])))
    attentions = [layers.Attention(HEADS, 4, mechanism=mechanism, mask=mask) for mask in masks]
    model = keras.Model(ids, [layer(embed(ids)) for layer in attentions])

    @computed
    def results():
        return model(PADDED), [layer(bare)[0] for layer in attentions]

    for mask, out, want in zip(masks, *results, strict=True):
        for row, kept in zip(out, PADDED != 0, strict=True):
            np.testing.assert_allclose(row[kept], want, atol=1e-5, err_msg=str(mask))


@pytest.mark.parametrize("kind", ["LearnedPositions", "SinusoidalPositions"])
def test_what_kerass_mask_hides_counts_as_no_position(kind):
    layer = getattr(layers, kind)(*([6] if kind == "LearnedPositions" else []))
    x, shown = draw(4, 6, DIM), PADDED != 0
    want = numpy(layer(x[:, :4])) - x[:, :4]  # without a mask a row is one document
    outs = {
        "attached": layer(attached(x, shown)),
        "argument": layer(x, mask=shown),
        "padding_mask": layer(x, shown.astype("int32")),
        "beside one": layer(attached(x, shown), padding_mask=np.ones_like(PADDED)),
    }
    for name, out in outs.items():
        for added, row, vectors in zip(numpy(out) - x, shown, want, strict=True):
            np.testing.assert_allclose(added[row], vectors, atol=1e-6, err_msg=name)


class Subclassed(keras.Model):
    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


def attached(x, mask):
    x = ops.convert_to_tensor(np.array(x))  # JAX has one tensor for an array that it sees twice
    set_keras_mask(x, ops.convert_to_tensor(mask))
    return x


@pytest.mark.parametrize("layer", [once("softmax"), "linear", "block"])
def test_every_source_of_kerass_masks(layer):
    if layer == "block":
        layer = make_block(HEADS, 4, 16, mask="causal", norm_placement="post")
    else:
        layer = layers.Attention(HEADS, 4, mechanism=layer, mask="causal")
    embed, shown = embedding(mask_zero=True), PADDED != 0
    x = numpy(embed(PADDED)) * shown[..., None]
    want = numpy(layer(x, padding_mask=shown.astype("int32")))
    assert np.abs(numpy(layer(x)) - want).max() > 1e-3  # so the mask matters
    source = {"source_mask": np.ones_like(PADDED)}  # a second tensor: Keras says inputs_mask
    outs = {
        "argument": layer(x, mask=shown),
        "argument over an attached one": layer(attached(x, shown[::-1]), mask=shown),
        "attached": layer(attached(x, shown)),
        "beside another tensor": layer(attached(x, shown), **source),
        "beside a padding mask": layer(attached(x, shown), padding_mask=np.ones_like(PADDED)),
        "masking": layer(keras.layers.Masking()(x)),
        "sequential": keras.Sequential([keras.layers.Masking(), layer])(x),
        "subclassed": Subclassed(keras.layers.Masking(), layer)(x),
        "time distributed": keras.layers.TimeDistributed(layer)(x[None], mask=shown[None])[0],
    }
    for name, out in outs.items():
        np.testing.assert_allclose(numpy(out), want, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_kerass_masks_of_two_sequences(mechanism):
    layer = layers.Attention(HEADS, 4, mechanism=mechanism)
    query, value = draw(1, 5, DIM), draw(1, 7, DIM, seed=1)
    shown = np.array([[1, 1, 0, 1, 0, 1, 1]], bool)
    own = np.array([[0, 1, 1, 1, 1]], bool)
    later = np.arange(7)[None] > 1
    block = make_block(HEADS, 4, 16, mechanism=mechanism, cross_attention=True)

    @computed
    def outs():
        return {
            "attached": layer(attached(query, own), attached(value, shown)),
            "arguments": layer(query, value, query_mask=own, value_mask=shown),
            "mask": layer(query, value, mask=own, value_mask=shown),
            "key_mask": layer(query, value, attached(value, shown), mask=own),
            "both": layer(query, value, mask=own, value_mask=later, key_mask=shown),
            "beside": layer(
                query, attached(value, shown), mask=own, key_padding_mask=np.ones((1, 7), "int32")
            ),
        }

    @computed
    def wanted():  # with a block, of what it looks at
        return {
            "all": layer(query[:, 1:], value[shown][None]),
            "both": layer(query[:, 1:], value[shown & later][None]),
            "block": block(query, encoded=value, encoder_padding_mask=shown.astype("int32")),
            "block's mask": block(query, encoded=attached(value, shown)),
        }

    for name, out in outs.items():
        right = wanted["both" if name == "both" else "all"]
        np.testing.assert_allclose(out[:, 1:], right, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(wanted["block's mask"], wanted["block"], atol=1e-6)


def test_masks_are_handed_on():
    token = layers.TokenEmbedding(9, DIM, mask_zero=True)
    chain = [
        token,
        make_block(HEADS, 4, 16, normalization="rms_norm"),
        layers.FeedForward(16),
        layers.normalization.norm("rms_norm"),
        layers.normalization.norm("layer_norm"),
        layers.LinearAttention(HEADS, 4),
        layers.Head(token),
    ]
    x = PADDED
    for layer in chain:
        x = layer(x)
        np.testing.assert_array_equal(ops.convert_to_numpy(x._keras_mask), PADDED != 0)
    hidden = attached(draw(4, 6, DIM), PADDED != 0)
    segments = layers.SegmentEmbedding(2)(hidden, np.zeros_like(PADDED))
    np.testing.assert_array_equal(ops.convert_to_numpy(segments._keras_mask), PADDED != 0)
    out, state = layers.LinearAttention(HEADS, 4, mask="causal")(hidden, return_state=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(out._keras_mask), PADDED != 0)
    assert getattr(state["kv_state"], "_keras_mask", None) is None


@pytest.mark.parametrize("shape", [(4,), (4, 6, 6)])
def test_a_mask_of_another_shape(shape):
    with pytest.raises(InputError, match=r"\[batch, time\].*Received: shape"):
        layers.Attention(HEADS, 4)(draw(4, 6, DIM), mask=np.ones(shape, bool))


# In place of MultiHeadAttention ---------------------------------------------------------------


def twins(value_dim=DIM, **kwargs):
    """Keras's layer and ours, with the weights that Keras drew."""
    theirs = keras.layers.MultiHeadAttention(HEADS, 4, flash_attention=False, seed=0)
    ours = layers.Attention(HEADS, 4, **kwargs)
    theirs.build((None, None, DIM), (None, None, value_dim))
    ours.build((None, None, DIM), (None, None, value_dim))
    weights = [draw(*weight.shape, seed=i) for i, weight in enumerate(theirs.weights)]
    theirs.set_weights(weights)
    for name, kernel, bias in zip(
        ("query", "key", "value", "output_dense"), weights[::2], weights[1::2], strict=True
    ):
        part = getattr(ours, name)
        part.set_weights([kernel.reshape(part.kernel.shape), bias.ravel()])
    return theirs, ours


SEEN = np.random.default_rng(5).random((3, 6, 6)) < 0.5
SEEN[:, :, 0] = True  # Keras gives the mean of all values where a query sees nothing, and we 0
PER_HEAD = np.stack([SEEN, SEEN[:, :, ::-1] | (np.arange(6) == 0)], axis=1)
CALLS = {
    "plain": {},
    "causal": {"use_causal_mask": True},
    "examples": {"attention_mask": SEEN},
    "integers": {"attention_mask": SEEN.astype("int32")},
    "all alike": {"attention_mask": SEEN[0]},
    "heads": {"attention_mask": PER_HEAD},
    "both": {"attention_mask": SEEN, "use_causal_mask": True},
}


@pytest.mark.parametrize("across", [False, True], ids=["self", "cross"])
def test_it_replaces_multi_head_attention(across):
    theirs, ours = twins(value_dim=6 if across else DIM)
    x = draw(3, 6, DIM)
    value = draw(3, 7, 6, seed=1) if across else x
    calls = {}
    for name, call in CALLS.items():
        if across and "attention_mask" in call:  # one key more, which all see
            shown = call["attention_mask"]
            call = {**call, "attention_mask": np.concatenate([shown, shown[..., :1]], -1)}
        calls[name] = call
    # With padding, as Keras attaches it to both sequences.
    own, shown = np.arange(6)[None] < [[6], [4], [2]], np.arange(value.shape[1])[None] < 3
    shown = shown | np.zeros((3, 1), bool)

    def results(layer):
        scores = {"return_attention_scores": True}
        for name, call in calls.items():
            yield name, (layer(x, value, **call), *layer(x, value, **call, **scores))
        query = attached(x, own)
        padded = attached(value, shown) if across else query
        yield "padded", layer(query, padded, use_causal_mask=True, **scores)

    @computed
    def both():
        return dict(results(ours)), dict(results(theirs))

    got, want = both
    for name in got:
        for a, b in zip(got[name], want[name], strict=True):
            if name == "padded":
                a, b = (np.moveaxis(y, -2, 1)[own] for y in (a, b))  # [query, ..]
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


def test_it_replaces_multi_head_attention_in_a_model():
    theirs, ours = twins()
    ids = keras.Input((None,), dtype="int32")
    shown = keras.Input((None, None), dtype="bool")
    x = embedding(mask_zero=True)(ids)
    models = []
    for layer in (theirs, ours):
        out, scores = layer(x, x, attention_mask=shown, return_attention_scores=True)
        pooled = keras.layers.GlobalAveragePooling1D()(out)  # which asks for the mask
        models.append(keras.Model([ids, shown], [pooled, out, scores]))
    tokens = PADDED[:1].repeat(3, 0)
    copy = keras.Model.from_config(models[1].get_config())
    copy.set_weights(models[1].get_weights())

    @computed
    def results():
        return [model([tokens, SEEN]) for model in (*models, copy)]

    want, got, again = results
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1][:, :4], want[1][:, :4], atol=1e-5)
    np.testing.assert_allclose(got[2][:, :, :4], want[2][:, :, :4], atol=1e-5)
    assert models[1].output_shape[1:] == [(None, None, DIM), (None, HEADS, None, None)]
    np.testing.assert_allclose(again[0], got[0], atol=1e-6)


@pytest.mark.parametrize("mask", ["bidirectional", "half_heads"])
def test_scores_of_linear_attention_and_of_other_orders(mask):
    x, shown = draw(4, 6, DIM), (PADDED != 0).astype("int32")
    for mechanism in MECHANISMS:
        mixed = {"kv_heads": 1, "identity_mix": 0.25, "rotary": True}
        layer = layers.Attention(HEADS, 4, mechanism=mechanism, mask=mask, **mixed)
        out, weights = layer(x, padding_mask=shown, return_attention_scores=True)
        np.testing.assert_allclose(numpy(out), numpy(layer(x, padding_mask=shown)), atol=1e-5)
        rows = numpy(weights).sum(-1)
        if mechanism == "softmax":  # rotary positions make linear attention's sum to another
            np.testing.assert_allclose(rows, shown[:, None].repeat(HEADS, 1), atol=1e-5)
        hidden = shown[:, None, None, :] * shown[:, None, :, None] == 0
        assert (numpy(weights)[np.broadcast_to(hidden, weights.shape)] == 0).all()
    causal = layers.Attention(HEADS, 4, mechanism="linear", mask="causal")
    wide = layers.Attention(HEADS, 4, mechanism="linear")
    np.testing.assert_allclose(
        numpy(wide(x, padding_mask=shown, use_causal_mask=True)),
        numpy(causal(x, padding_mask=shown)),
        atol=1e-6,
    )
    reversed_ = layers.Attention(HEADS, 4, mask="reversed")
    out = numpy(reversed_(x, use_causal_mask=True))  # each sees itself alone
    np.testing.assert_allclose(out, numpy(reversed_(x, attention_mask=np.eye(6))), atol=1e-6)


def test_a_query_that_sees_nothing_gives_the_output_bias():
    _, layer = twins()
    out, scores = layer(
        draw(3, 6, DIM), attention_mask=np.zeros((6, 6)), return_attention_scores=True
    )
    np.testing.assert_array_equal(numpy(scores), 0)
    np.testing.assert_array_equal(numpy(out), np.tile(numpy(layer.output_dense.bias), (3, 6, 1)))


def test_shapes_that_keras_asks_for():
    x = keras.Input((5, 7, DIM))
    for layer in (
        layers.Attention(HEADS, 4),
        layers.LinearAttention(HEADS, 4),
        make_block(HEADS, 4, 16),
        layers.FeedForward(16),
    ):
        assert tuple(layer.compute_output_shape((2, 7, DIM))) == (2, 7, DIM)
        out = keras.layers.TimeDistributed(layer)(x)
        assert out.shape == (None, 5, 7, DIM)
        single = draw(1, 2, 7, DIM)

        @computed
        def results(layer=layer, single=single):
            return keras.layers.TimeDistributed(layer)(single)[0], layer(single[0])

        np.testing.assert_allclose(*results, atol=1e-5)
    assert layers.Attention(HEADS, 4).compute_output_shape((2, 7, 8), (2, 9, 6)) == (2, 7, 8)
    token = layers.TokenEmbedding(9, DIM)
    assert tuple(token.compute_output_shape((2, 7))) == (2, 7, DIM)
    assert layers.Head(token).compute_output_shape((2, 7, DIM)) == (2, 7, 9)
    assert layers.SegmentEmbedding(2).compute_output_shape((2, 7, DIM), (2, 7)) == (2, 7, DIM)


OURS = {"num_heads", "use_bias", "seed", "activity_regularizer", "name", "dtype", "trainable"}
OURS |= {"self", "kwargs", "autocast"}


def arguments_of(cls):
    return [name for name in inspect.signature(cls.__init__).parameters if name not in OURS]


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *arguments_of(keras.layers.MultiHeadAttention),
            *arguments_of(keras.layers.GroupQueryAttention),
        }
        - {"head_dim"}
    ),
)
@pytest.mark.parametrize("cls", [layers.Attention, layers.LinearAttention])
def test_an_argument_of_multi_head_attention_is_refused_by_name(cls, name):
    for others in ({"num_heads": 2, "head_dim": 4}, {}):
        with pytest.raises(InputError, match=rf"{name}: .*Received: {name}=3"):
            cls(**others, **{name: 3})


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: layers.Attention(0, 4), "num_heads is a positive integer"),
        (lambda: layers.Attention(2, 0), "head_dim is a positive integer"),
        (lambda: layers.Attention(2, 4, kv_heads=0), "kv_heads is a positive integer"),
        (lambda: layers.Attention(2, 4)(draw(2, 3, 5, DIM)), "TimeDistributed"),
        (lambda: layers.Attention(2, 4)(draw(2, DIM)), "[batch, time, width]"),
        (lambda: layers.Attention(2, 4)(keras.Input((3, 5, DIM))), "TimeDistributed"),
        (lambda: layers.Attention(2, 4)(draw(2, 3, DIM), draw(2, DIM)), "'value': (2, 8)"),
        (
            lambda: layers.Attention(2, 4)(draw(2, 3, DIM), attention_mask=np.ones((2, 3, 4))),
            "[query_time, key_time] = [3, 3]",
        ),
        (
            lambda: layers.Attention(2, 4)(draw(2, 3, DIM), attention_mask=np.ones((2, 3, 3, 3))),
            "heads=2",
        ),
        (
            lambda: layers.LinearAttention(2, 4)(draw(2, 3, DIM), attention_mask=np.ones((3, 3))),
            "linear attention follows orders",
        ),
        (
            lambda: layers.LinearAttention(2, 4, "reversed")(draw(2, 3, DIM), use_causal_mask=True),
            "for the masks bidirectional and causal",
        ),
        (
            lambda: layers.LinearAttention(2, 4)(
                draw(2, 3, DIM), return_attention_scores=True, return_state=True
            ),
            "ask for one of them",
        ),
    ],
)
def test_wrong_calls(attempt, said):
    with pytest.raises(InputError) as caught:
        attempt()
    assert said in str(caught.value) and "Received: " in str(caught.value)
