import numpy as np
import pytest
from autodiff import value_and_gradients
from keras import ops

from kzoo import masks
from kzoo.ops import linear_attention, reference_attention, softmax_attention

pytestmark = pytest.mark.backends

# The heads of one call carry the orders, its rows carry padding and packing.
ORDERS = masks.heads(
    "bidirectional",
    "causal",
    "reversed",
    "prefix",
    {"block": {"size": 3}},
    {"permuted": {"seed": 1}},
)
ONE_BY_ONE = ["bidirectional", "causal", "reversed", "prefix", {"block": {"size": 3}}, "permuted"]
CHUNK = 8
# A multiple of the chunk, not one, shorter than a chunk, one token.
TIMES = [24, 21, 5, 1]


def padding_rows(time):
    """Rows: whole, padded right, left, with a hole, packed, packed with gaps, all padding."""
    rows = np.ones((7, time), "int32")
    rows[1, -(time // 3) :] = 0
    rows[2, : time // 3] = 0
    rows[3, time // 2] = 0
    rows[4] = 1 + np.arange(time) * 4 // time
    rows[5] = rows[4] * (np.arange(time) % (time // 3 + 2) != time // 3)
    rows[6] = 0
    if time == 1:
        rows[:] = [[1], [0], [1], [0], [3], [1], [0]]
    return rows


def operands(time, heads=6, kv_heads=6, dim=4, value_dim=3, poison=True, batch=7, seed=0):
    rng = np.random.default_rng(seed)
    padding_mask = padding_rows(time)[:batch]
    source_mask = (rng.random((batch, time)) < 0.3).astype("int32")
    source_mask[:, : time // 2] = 1
    source_mask[4:, :2] = 0
    q = rng.normal(size=(batch, time, heads, dim))
    k = rng.normal(size=(batch, time, kv_heads, dim))
    v = rng.normal(size=(batch, time, kv_heads, value_dim))
    cotangent = rng.normal(size=(batch, time, heads, value_dim))
    if poison:
        for x, bad in ((q, np.nan), (k, 1e30), (v, np.nan)):
            x[padding_mask == 0] = bad
    return q, k, v, padding_mask, source_mask, cotangent


def fast(mechanism, **kwargs):
    if mechanism == "linear":
        return lambda q, k, v: linear_attention(q, k, v, chunk_size=CHUNK, **kwargs)
    kwargs.pop("feature_map", None)
    return lambda q, k, v: softmax_attention(q, k, v, **kwargs)


def assert_equals_oracle(arrays, cotangent, mechanism, dtype="float32", **kwargs):
    # The oracle starts from the same rounded operands and computes in float64.
    arrays = [_round(x, dtype) for x in arrays]

    def oracle(q, k, v):
        return reference_attention(q, k, v, mechanism=mechanism, dtype="float64", **kwargs)

    expected, expected_gradients = value_and_gradients(oracle, arrays, cotangent, "float64")
    value, gradients = value_and_gradients(fast(mechanism, **kwargs), arrays, cotangent, dtype)
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    for got, want in zip([value, *gradients], [expected, *expected_gradients], strict=True):
        assert np.isfinite(got).all() and np.isfinite(want).all()
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)
    return value, gradients


def _round(x, dtype):
    return ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32")).astype("float64")


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_every_order_packed_and_padded_equals_the_oracle(mechanism, dtype, time):
    q, k, v, padding_mask, source_mask, cotangent = operands(time)
    value, gradients = assert_equals_oracle(
        (q, k, v),
        cotangent,
        mechanism,
        dtype,
        mask=ORDERS,
        padding_mask=padding_mask,
        source_mask=source_mask,
    )
    padded = padding_mask == 0
    assert (value[padded] == 0).all()
    for gradient in gradients:
        assert (gradient[padded] == 0).all()


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_every_order_without_padding_equals_the_oracle(mechanism, time):
    q, k, v, _, source_mask, cotangent = operands(time, poison=False, batch=2)
    kwargs = {"mask": ORDERS, "source_mask": source_mask}
    assert_equals_oracle((q, k, v), cotangent, mechanism, **kwargs)


@pytest.mark.parametrize("mask", ONE_BY_ONE, ids=str)
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_one_order_in_all_heads_equals_the_oracle(mechanism, mask):
    q, k, v, padding_mask, source_mask, cotangent = operands(21, heads=2, kv_heads=1)
    source = {"source_mask": source_mask} if mask == "prefix" else {}
    for padding in ({}, {"padding_mask": padding_mask}):
        rows = slice(None) if padding else slice(0, 1)
        arrays = [x[rows] for x in (q, k, v)]
        source_rows = {name: x[rows] for name, x in source.items()}
        assert_equals_oracle(
            arrays, cotangent[rows], mechanism, mask=mask, rotary=True, **padding, **source_rows
        )


@pytest.mark.parametrize("feature_map", ["elu1", "relu", "exp"])
def test_feature_maps_equal_the_oracle(feature_map):
    q, k, v, padding_mask, source_mask, cotangent = operands(21)
    kwargs = {"padding_mask": padding_mask, "source_mask": source_mask, "mask": ORDERS}
    assert_equals_oracle((q, k, v), cotangent, "linear", feature_map=feature_map, **kwargs)


@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_queries_in_a_window_of_the_keys(mechanism):
    q, k, v, padding_mask, source_mask, cotangent = operands(21)
    q, cotangent = q[:, 15:19], cotangent[:, 15:19]
    kwargs = {"padding_mask": padding_mask, "source_mask": source_mask, "mask": ORDERS}
    assert_equals_oracle((q, k, v), cotangent, mechanism, query_offset=15, **kwargs)


@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_cross_attention_sees_the_same_document(mechanism):
    q, _, _, padding_mask, _, cotangent = operands(21)
    _, k, v, key_padding_mask, _, _ = operands(13)
    mask = masks.heads(
        "bidirectional", "causal", "reversed", {"block": {"size": 3}}, "permuted", "bidirectional"
    )
    for padding in ({"padding_mask": padding_mask}, {}):
        if not padding:
            q = np.nan_to_num(q)
        assert_equals_oracle(
            (q, k, v), cotangent, mechanism, mask=mask, key_padding_mask=key_padding_mask, **padding
        )
