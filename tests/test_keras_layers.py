"""Our layers among Keras's: its masks, its wrappers, and `MultiHeadAttention`'s calls."""

import keras
import numpy as np
import pytest
from keras import ops

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
    for mask in MASKS:
        layer = layers.Attention(HEADS, 4, mechanism=mechanism, mask=mask)
        ordered_by_gaps = mask in (MASKS[-2], MASKS[-1])  # positions count padding inside
        tokens = PADDED[:3] if ordered_by_gaps else PADDED
        ids = keras.Input((None,), dtype="int32")
        out = numpy(keras.Model(ids, layer(embed(ids)))(tokens))
        want = numpy(layer(numpy(embed(np.array([[3, 4, 5, 6]])))))[0]
        for row, kept in zip(out, tokens != 0, strict=True):
            np.testing.assert_allclose(row[kept], want, atol=1e-5, err_msg=str(mask))


class Subclassed(keras.Model):
    def __init__(self, *parts):
        super().__init__()
        self.parts = list(parts)

    def call(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


def attached(x, mask):
    x = ops.convert_to_tensor(x)
    x._keras_mask = ops.convert_to_tensor(mask)
    return x


@pytest.mark.parametrize("layer", ["softmax", "linear", "block"])
def test_every_source_of_kerass_masks(layer):
    if layer == "block":
        layer = layers.Block(HEADS, 4, 16, mask="causal", norm_placement="post")
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
    want = numpy(layer(query[:, 1:], value[shown][None]))
    outs = {
        "attached": layer(attached(query, own), attached(value, shown)),
        "arguments": layer(query, value, query_mask=own, value_mask=shown),
        "mask": layer(query, value, mask=own, value_mask=shown),
        "key_mask": layer(query, value, attached(value, shown), mask=own),
        "both": layer(query, value, mask=own, value_mask=np.arange(7)[None] > 1, key_mask=shown),
        "beside": layer(
            query, attached(value, shown), mask=own, key_padding_mask=np.ones((1, 7), "int32")
        ),
    }
    fewer = numpy(layer(query[:, 1:], value[shown & (np.arange(7)[None] > 1)][None]))
    for name, out in outs.items():
        right = fewer if name == "both" else want
        np.testing.assert_allclose(numpy(out)[:, 1:], right, atol=1e-5, err_msg=name)
    # In a block, of what it looks at.
    block = layers.Block(HEADS, 4, 16, mechanism=mechanism, cross_attention=True)
    right = block(query, encoded=value, encoder_padding_mask=shown.astype("int32"))
    got = block(query, encoded=attached(value, shown))
    np.testing.assert_allclose(numpy(got), numpy(right), atol=1e-6)


def test_masks_are_handed_on():
    token = layers.TokenEmbedding(9, DIM, mask_zero=True)
    chain = [
        token,
        layers.Block(HEADS, 4, 16, normalization="rms_norm"),
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
    assert getattr(state["matrix"], "_keras_mask", None) is None


@pytest.mark.parametrize("shape", [(4,), (4, 6, 6)])
def test_a_mask_of_another_shape(shape):
    with pytest.raises(InputError, match=r"\[batch, time\].*Received: shape"):
        layers.Attention(HEADS, 4)(draw(4, 6, DIM), mask=np.ones(shape, bool))
