"""Options around every mechanism: norms of q and k, an output norm and gate, short convolutions."""

import itertools

import numpy as np
import pytest
from autodiff import computed, value_and_gradients
from keras import ops
from marks import once

from kzoo import layers, masks, mechanisms, presets
from kzoo.attention_options import AttentionOptions, ways
from kzoo.errors import InputError
from kzoo.ops.convolution import short_convolution
from kzoo.ops.normalization import rms_norm, unit

ALL = {"qk_norm": "rms", "output_norm": True, "output_gate": True, "short_convolution": 3}
SEGMENT = np.array([[0, 1, 1, 1, 1, 2, 2, 2, 0, 2, 3, 3], [1] * 12], "int32")
WIDTH, HEADS = 8, 4


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def convolved(x, kernel, way, segment):
    """The definition of one head's convolution, token by token."""
    size, out = len(kernel), np.zeros_like(x)
    for b, t, s in np.ndindex(*x.shape[:2], size):
        other = t + {"before": -s, "behind": s, "centred": s - size // 2}[way]
        first, last = sorted((t, other))
        if 0 <= first and last < x.shape[1]:
            between = segment[b, first : last + 1]
            if between[0] and (between == between[0]).all():
                out[b, t] += kernel[s] * x[b, other]
    return out


@pytest.mark.backends
@pytest.mark.parametrize("size", [3, once(1), once(4)])
def test_a_short_convolution_follows_its_way(size):
    found = ("before", "behind", "centred" if size % 2 else "before", "before")
    x, kernel = inputs(2, 12, WIDTH), inputs(size, WIDTH, seed=1)
    x[SEGMENT == 0] = np.nan
    cotangent = inputs(2, 12, WIDTH, seed=2)

    def ours(x, kernel):
        return short_convolution(x, kernel, found, SEGMENT)

    def expected(x, kernel):
        x = np.where(SEGMENT[..., None] != 0, x, 0)
        parts = zip(np.split(x, 4, -1), np.split(kernel, 4, -1), found, strict=True)
        return np.concatenate([convolved(*part, SEGMENT) for part in parts], -1)

    got, (slope, of_kernel) = value_and_gradients(ours, (x, kernel), cotangent)
    np.testing.assert_allclose(got, expected(x, kernel), atol=1e-6)
    assert (slope[SEGMENT == 0] == 0).all()
    for at in ((0, 0), (size - 1, 5)):  # it is linear in its kernel
        one = np.zeros_like(kernel)
        one[at] = 1
        np.testing.assert_allclose(of_kernel[at], (expected(x, one) * cotangent).sum(), atol=1e-4)


def test_which_way_a_mask_goes():
    found = {"bidirectional": "centred", "causal": "before", "prefix": "before"}
    found["reversed"] = "behind"
    for mask, way in found.items():
        assert ways([masks.get(mask)], 3) == (way,)
    assert ways([masks.block(3)], 2) == ("before",)


@pytest.mark.backends
def test_norms():
    x, scale = inputs(2, 3, 4, 8), inputs(8, seed=1)
    length = np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)
    got = computed(lambda: (unit(x), rms_norm(x, scale)))
    np.testing.assert_allclose(got[0], x / length, atol=1e-6)
    power = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got[1], x / power * scale, atol=1e-5)


MIXED = masks.heads("causal", "bidirectional", "reversed", {"block": {"size": 3}})


def make(mechanism, mask=MIXED, **options):
    layer = layers.Attention(HEADS, 4, mechanism, mask, rotary=True, **options)
    layer.build((None, None, WIDTH))
    return layer


@pytest.mark.backends
@pytest.mark.parametrize("mechanism", ["softmax", once("linear"), "gated_linear"])
def test_they_show_nothing_that_the_mask_hides(mechanism):
    """One token changes, and only queries that see it, or see a token beside it, do."""
    layer, x = make(mechanism, **ALL), inputs(2, 12, WIDTH)
    times = (2, 6, 10)

    @computed
    def outs():
        changed = [x + (np.arange(12) == t)[None, :, None].astype("float32") for t in times]
        return [layer.attend(one, padding_mask=SEGMENT) for one in (x, *changed)]

    visible = MIXED.dense(12, num_heads=HEADS, padding_mask=SEGMENT)
    visible = np.broadcast_to(ops.convert_to_numpy(visible), (2, HEADS, 12, 12))
    for t, changed in zip(times, outs[1:], strict=True):
        moved = np.abs(changed - outs[0]).max(-1) > 0  # [batch, time, heads]
        np.testing.assert_array_equal(moved, visible[..., t].transpose(0, 2, 1))


def test_documents_and_padding_change_nothing():
    layer, x = make("retention", **ALL), inputs(1, 9, WIDTH)
    packed = np.array([[1] * 4 + [2] * 5], "int32")
    longer = np.concatenate([np.full((1, 2, WIDTH), 7.0, "float32"), x[:, 4:]], axis=1)

    @computed
    def outs():
        return (
            layer(x, padding_mask=packed),
            layer(x[:, :4]),
            layer(longer, padding_mask=np.array([[0, 0, 1, 1, 1, 1, 1]])),
        )

    np.testing.assert_allclose(outs[0][:, :4], outs[1], atol=1e-5)
    np.testing.assert_allclose(outs[0][:, 4:], outs[2][:, 2:], atol=1e-5)


def test_the_output_has_a_norm_and_then_a_gate():
    plain, whole = make("linear"), make("linear", output_norm=True, output_gate=True)
    x = inputs(1, 5, WIDTH)

    @computed
    def results():
        return plain.attend(x), whole.gate(x), whole(x)

    out, gate, got = results
    out = out / np.sqrt((out**2).mean(-1, keepdims=True) + 1e-6)
    out = out.reshape(1, 5, 16) * gate / (1 + np.exp(-gate))
    kernel = ops.convert_to_numpy(plain.output_dense.kernel)
    np.testing.assert_allclose(got, out @ kernel, atol=1e-5)


def test_over_a_second_sequence_each_follows_its_own_order():
    orders = {"query_order": "causal", "key_order": "bidirectional", "short_convolution": 3}
    layer = layers.Attention(2, 4, **orders)
    x, other = inputs(1, 5, WIDTH), inputs(1, 6, WIDTH, seed=1)
    later = x + (np.arange(5) == 3)[None, :, None].astype("float32")
    out, changed = computed(lambda: [layer(one, other) for one in (x, later)])
    assert (np.abs(out - changed).max(-1)[0] > 0).tolist() == [False] * 3 + [True] * 2
    again = layers.Attention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config() and again.key_order.is_full


PAIRS = {  # each row of the table meets each value of every other column at least once
    "mechanism": ("softmax", "linear", "retention", "gated_linear", "delta", "gated_delta"),
    "qk_norm": ("default", "l2", "rms", "none"),
    "short_convolution": (0, 3, 4),
    "mask": ("causal", "half_heads", "bidirectional", "permuted"),
}


def test_combinations_are_models_or_are_refused():
    """Every two values of two options, in a config: one that is complete, or a reason."""
    refused = 0
    for a, b in itertools.combinations(PAIRS, 2):
        for one, other in itertools.product(PAIRS[a], PAIRS[b]):
            options = {a: one, b: other}
            mask = options.get("mask", "causal")
            mechanism, norm = options.get("mechanism", "softmax"), options.get("qk_norm")
            size = options.get("short_convolution", 0)
            wrong = "delta" in mechanism and (norm in ("rms", "none") or mask in PAIRS["mask"][2:])
            wrong |= mask == "permuted" and (size > 0 or mechanism in PAIRS["mechanism"][2:])
            wrong |= mask == "bidirectional" and size == 4
            family = (
                "bert_nano" if mask in ("bidirectional", "half_heads", "permuted") else "gpt_nano"
            )
            try:
                presets.config(family, **options)
            except InputError as error:
                assert wrong, f"{options}: {error}"
                refused += 1
            else:
                assert not wrong, options
    assert refused > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_convolution": 4, "mask": "bidirectional"}, "must be odd .* the nearest is 5"),
        ({"short_convolution": 3, "mask": "permuted"}, "goes through time"),
        ({"short_convolution": 3, "mask": masks.custom(max)}, "goes through time"),
        ({"short_convolution": -1}, "must be a number of tokens"),
        ({"short_convolution": 3, "mask": "half_heads", "kv_heads": 1}, "share their keys"),
        ({"short_convolution_activation": "slu"}, "did you mean 'silu'"),
        ({"qk_norm": "l1"}, "did you mean 'l2'"),
        ({"qk_norm": "rms", "mechanism": "delta", "mask": "causal"}, "a qk_norm of its own"),
        ({"output_norm": 1}, "output_norm is true or false"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_made(options, message):
    with pytest.raises(InputError, match=message):
        layers.Attention(2, 4, **options)


def test_a_state_is_not_that_of_a_convolution():
    with pytest.raises(InputError, match="no place for the tokens before a short convolution"):
        make("linear", "causal", short_convolution=3)(inputs(1, 4, WIDTH), return_state=True)


def test_what_they_cost():
    sizes = mechanisms.HeadSizes(num_heads=4, kv_heads=2, head_dim=8)
    shapes = AttentionOptions(**ALL).shapes(sizes, mechanisms.get("softmax"))
    assert shapes["query_convolution"] == (3, 32) and shapes["value_convolution"] == (3, 16)
    assert shapes["query_norm"] == shapes["output_norm"] == (8,)
    assert AttentionOptions().shapes(sizes, mechanisms.get("delta")) == {}
