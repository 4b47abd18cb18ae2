import keras
import numpy as np
import oracle
import pytest
from autodiff import computed, value_and_gradients
from keras import ops
from marks import once

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
ONE_BY_ONE = ["bidirectional", "causal", once("reversed"), "prefix"]
ONE_BY_ONE += [once({"block": {"size": 3}}), once("permuted")]
CHUNK = 8  # times: a multiple of it, 24, not one, 21, shorter, 5, and one token


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
        return lambda q, k, v: linear_attention(q, k, v, **{"chunk_size": CHUNK, **kwargs})
    kwargs.pop("feature_map", None)
    return lambda q, k, v: softmax_attention(q, k, v, **kwargs)


def assert_equals_oracle(arrays, cotangent, mechanism, dtype="float32", ours=None, **kwargs):
    # The oracle starts from the same rounded operands and computes in float64.
    arrays = [_round(x, dtype) for x in arrays]
    expected, *expected_gradients = by_definition(mechanism, arrays, cotangent, **kwargs)
    attend = fast(mechanism, **kwargs, **(ours or {}))
    value, gradients = value_and_gradients(attend, arrays, cotangent, dtype)
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    for got, want in zip([value, *gradients], [expected, *expected_gradients], strict=True):
        assert np.isfinite(got).all() and np.isfinite(want).all()
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)
    return value, gradients


def by_definition(mechanism, arrays, cotangent, **kwargs):
    """The value and the gradients, of NumPy where it knows the case: it has nothing to compile."""
    if set(kwargs) <= {"mask", "padding_mask", "source_mask", "query_offset", "scale"}:
        q, k, _ = arrays
        specs = [one.get_config() for one in masks.get(kwargs["mask"]).per_head(q.shape[2])]
        ones, first = np.ones(k.shape[:2], "int32"), kwargs.get("query_offset", 0)
        rows = (kwargs.get("padding_mask", ones), kwargs.get("source_mask", 0 * ones))
        see = oracle.visible_of(specs, *rows)[:, :, first : first + q.shape[1]]
        return oracle.attention(mechanism, *arrays, see, cotangent, kwargs.get("scale"))

    def dense(q, k, v):
        return reference_attention(q, k, v, mechanism=mechanism, dtype="float64", **kwargs)

    value, gradients = value_and_gradients(dense, arrays, cotangent, "float64")
    return value, *gradients


def _round(x, dtype):
    return ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32")).astype("float64")


def _tensors(*arrays):
    return [ops.convert_to_tensor(x, "float32") for x in arrays]


# Every mechanism at every length, and in either dtype.
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, time",
    [once("float32", 24), ("float32", 21), once("float32", 5), ("float32", 1), ("bfloat16", 21)],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("time", [once(24), 21, 1])
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_every_order_without_padding_equals_the_oracle(mechanism, time):
    q, k, v, _, source_mask, cotangent = operands(time, poison=False, batch=2)
    kwargs = {"mask": ORDERS, "source_mask": source_mask}
    assert_equals_oracle((q, k, v), cotangent, mechanism, **kwargs)


@pytest.fixture(scope="module")
def one_by_one():
    """Arrays, a cotangent, and by mechanism what the definition gives, from one program.

    Each order has two heads and a head of keys. The last row is the first one again, without a
    padding mask.
    """
    orders = [getattr(order, "values", [order])[0] for order in ONE_BY_ONE]
    rows = [*range(7), 0]
    *arrays, padding, source, cotangent = (
        x[rows] for x in operands(21, heads=2 * len(orders), kv_heads=len(orders))
    )
    mask = masks.heads(*(order for order in orders for _ in range(2)))
    kwargs = {"padding_mask": padding, "source_mask": source, "rotary": True}
    arrays = [_round(x, "float32") for x in arrays]

    def expected(mechanism):
        def dense(q, k, v):
            how = {"mechanism": mechanism, "dtype": "float64", **kwargs}
            return reference_attention(q, k, v, mask=mask, **how)

        return value_and_gradients(dense, arrays, cotangent, "float64")

    wanted = {mechanism: expected(mechanism) for mechanism in ("softmax", "linear")}
    return orders, arrays, padding, source, cotangent, wanted


@pytest.mark.parametrize("mask", ONE_BY_ONE, ids=str)
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_one_order_in_all_heads_equals_the_oracle(mechanism, mask, one_by_one):
    orders, arrays, padding, source, cotangent, wanted = one_by_one
    own = orders.index(mask)
    q_heads, kv_heads = slice(2 * own, 2 * own + 2), slice(own, own + 1)
    parts = (q_heads, kv_heads, kv_heads)

    def both(*qkv):
        padded = {"padding_mask": padding[:7]}
        whole = {}
        if mask == "prefix":
            padded["source_mask"], whole["source_mask"] = source[:7], source[7:]
        outs = [
            fast(mechanism, mask=mask, rotary=True, **kwargs)(*(x[rows] for x in qkv))
            for rows, kwargs in ((slice(0, 7), padded), (slice(7, 8), whole))
        ]
        return ops.concatenate(outs, axis=0)

    own_arrays = [x[:, :, part] for x, part in zip(arrays, parts, strict=True)]
    got = value_and_gradients(both, own_arrays, cotangent[:, :, q_heads])
    value, gradients = wanted[mechanism]
    found, expected = [got[0], *got[1]], [value, *gradients]
    for one, whole, part in zip(found, expected, (q_heads, *parts), strict=True):
        want = whole[:, :, part]
        assert np.isfinite(one).all() and np.isfinite(want).all()
        scale = max(1, np.abs(want).max())
        np.testing.assert_allclose(one, want, rtol=2e-5, atol=2e-5 * scale)


# `favor` draws seeded directions, `softmax` needs a bidirectional mask, `hedgehog` weights.
# A map acts on q and k before any order does: every map meets a sum over all keys or a scan, and
# every order meets a map. (All orders together are those of the tests above, with elu1.)
FEATURE_MAPS = [
    ("elu1", ["bidirectional", "causal"]),
    once("squared_relu", ["reversed", "permuted"]),
    once("taylor2", ["causal", {"block": {"size": 3}}]),
    ("favor", ["bidirectional", "prefix"]),
]


@pytest.mark.parametrize("feature_map, orders", FEATURE_MAPS)
def test_feature_maps_equal_the_oracle(feature_map, orders):
    q, k, v, padding_mask, source_mask, cotangent = operands(21, heads=2, kv_heads=2)
    kwargs = {"padding_mask": padding_mask, "mask": masks.heads(*orders)}
    if kwargs["mask"].needs_source:
        kwargs["source_mask"] = source_mask
    assert_equals_oracle((q, k, v), cotangent, "linear", feature_map=feature_map, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_queries_in_a_window_of_the_keys(mechanism):
    q, k, v, padding_mask, source_mask, cotangent = operands(21)
    q, cotangent = q[:, 15:19], cotangent[:, 15:19]
    kwargs = {"padding_mask": padding_mask, "source_mask": source_mask, "mask": ORDERS}
    assert_equals_oracle((q, k, v), cotangent, mechanism, query_offset=15, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_cross_attention_sees_the_same_document(mechanism):
    q, _, _, padding_mask, _, cotangent = operands(21)
    _, k, v, key_padding_mask, _, _ = operands(13)
    mask = masks.heads(
        "bidirectional", "causal", "reversed", {"block": {"size": 3}}, "permuted", "bidirectional"
    )
    # Without documents among the queries a bidirectional look is one sum over the keys.
    few = masks.heads("causal", "reversed", "permuted")
    cases = [(mask, {"padding_mask": padding_mask}), (few, {}), ("bidirectional", {})]
    for mask, padding in cases:
        if not padding:
            q = np.nan_to_num(q)
        assert_equals_oracle(
            (q, k, v), cotangent, mechanism, mask=mask, key_padding_mask=key_padding_mask, **padding
        )


# Kernels ------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    if keras.backend.backend() != "jax":
        pytest.skip("the blockwise kernel is JAX's")
    from kzoo.ops.kernels import blockwise

    monkeypatch.setattr(blockwise, "BLOCK", (4, 3))
    monkeypatch.setattr(blockwise, "SCORES", 24)  # groups of two rows, several groups
    blockwise._one_mask.clear_cache()  # equal shapes may have been traced with other sizes
    yield
    blockwise._one_mask.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("time, padded", [(24, True), (22, True), (22, False)])
def test_blockwise_softmax_equals_the_oracle(small_blocks, time, padded):
    """Whole blocks, and parts of blocks of queries and of keys."""
    q, k, v, padding_mask, source_mask, cotangent = operands(time, batch=6)
    rows = slice(None) if padded else slice(0, 1)
    kwargs = {"mask": ORDERS, "source_mask": source_mask[rows]}
    if padded:
        kwargs["padding_mask"] = padding_mask
    arrays, ours = [x[rows] for x in (q, k, v)], {"implementation": "blockwise"}
    assert_equals_oracle(arrays, cotangent[rows], "softmax", ours=ours, **kwargs)


@pytest.mark.slow
def test_blockwise_softmax_takes_custom_masks_windows_and_two_sequences(small_blocks):
    q, k, v, padding_mask, _, _ = operands(21, poison=False)
    window = masks.causal() & masks.custom(lambda query, key: query - key < 5)
    cases = [
        ({"mask": window, "padding_mask": padding_mask}, slice(None)),
        ({"mask": window, "padding_mask": padding_mask, "query_offset": 9}, slice(9, 15)),
        ({"mask": "causal", "query_offset": 9}, slice(9, 15)),
        ({"mask": "bidirectional", "key_padding_mask": padding_mask}, slice(0, 6)),
    ]
    q, k, v = (x.astype("float32") for x in (q, k, v))

    def outputs(implementation):
        return [
            softmax_attention(q[:, rows], k, v, implementation=implementation, **kwargs)
            for kwargs, rows in cases
        ]

    got, want = computed(lambda: (outputs("blockwise"), outputs("dense")))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_blockwise_softmax_skips_blocks_that_the_mask_hides(small_blocks):
    from kzoo.ops.kernels.blockwise import _arrays, _bounds, _fields, _meetings
    from kzoo.sequence import sequence_info

    def work(mask, **kwargs):
        queries, keys = sequence_info(masks.get(mask), 32, **kwargs)
        blocks = [
            tuple(None if x is None else x.swapaxes(0, 1) for x in _arrays(_fields(which), 1, size))
            for which, size in ((queries, 8), (keys, 4))
        ]
        first, end = _bounds(_meetings(masks.get(mask), *blocks)[None])
        return (end - first).sum()

    source = (np.arange(32)[None] < 16).astype("int32")
    documents = 1 + np.arange(32)[None] // 8

    @computed
    def found():
        plain = [work(mask) for mask in ("bidirectional", "causal", "reversed")]
        packed = work("bidirectional", padding_mask=documents)
        return [*plain, work("prefix", source_mask=source), packed]

    assert [*map(int, found)] == [4 * 8, 2 + 4 + 6 + 8, 2 + 4 + 6 + 8, 4 + 4 + 6 + 8, 4 * 2]


def test_a_kernel_that_does_not_apply_raises_when_named():
    q, k, v, *_ = operands(5, poison=False)
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        softmax_attention(q, k, v, implementation="dens")
    wrong = {"jax": "sdpa", "torch": "blockwise", "tensorflow": "sdpa"}[keras.backend.backend()]
    with pytest.raises(ValueError, match="backend"):
        softmax_attention(q, k, v, implementation=wrong)
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="bias"):
            softmax_attention(q, k, v, implementation="blockwise", bias=np.zeros((1, 1, 5, 5)))


# States -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "cuts, rotary",
    [once([9, 10], False), (list(range(1, 21)), True)],
    ids=["three parts", "token steps with rotary positions"],
)
def test_split_and_resumed_linear_attention_equals_the_whole(cuts, rotary):
    q, k, v = (x.astype("float32") for x in operands(21, poison=False, batch=2)[:3])
    kwargs = {"mask": "causal", "rotary": rotary, "chunk_size": CHUNK}
    whole, last = computed(lambda: linear_attention(q, k, v, return_state=True, **kwargs))

    def step(x, state, offset):
        more = {"initial_state": state, "return_state": True, "query_offset": offset}
        return linear_attention(*x, **kwargs, **more)

    if keras.backend.backend() == "jax":
        import jax

        step = jax.jit(step)  # one program for all steps of one token
    state, parts = None, []
    for start, end in zip([0, *cuts], [*cuts, 21], strict=True):
        part, state = step([x[:, start:end] for x in (q, k, v)], state, np.array([start, start]))
        parts.append(ops.convert_to_numpy(part))
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=2e-5, atol=2e-5)
    for name in last:
        np.testing.assert_allclose(state[name], last[name], rtol=2e-5, atol=2e-5)


def test_a_prefix_goes_on_causally_from_its_state():
    q, k, v, *_ = _tensors(*operands(21, poison=False, batch=1))
    source_mask = (np.arange(21)[None] < 9).astype("int32")

    @computed
    def results():
        whole = linear_attention(q, k, v, "prefix", source_mask=source_mask)
        first = [x[:, :9] for x in (q, k, v)]
        source, state = linear_attention(*first, "bidirectional", return_state=True)
        rest = linear_attention(*(x[:, 9:] for x in (q, k, v)), "causal", initial_state=state)
        return whole, source, rest

    whole, source, rest = results
    np.testing.assert_allclose(source, whole[:, :9], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(rest, whole[:, 9:], rtol=2e-5, atol=2e-5)


def test_a_state_belongs_to_the_first_document_and_comes_of_the_last():
    q, k, v, *_ = operands(21, poison=False, batch=1)
    rows = np.array([[0, 0, *[1] * 6, *[2] * 8]])
    first = np.r_[0:5, 7:13]

    def attend(times, **kwargs):
        return linear_attention(*_tensors(*(x[:, times] for x in (q, k, v))), "causal", **kwargs)

    @computed
    def results():
        _, state = attend(slice(0, 5), return_state=True)
        whole = {"initial_state": state, "padding_mask": rows, "return_state": True}
        later = [attend(slice(5, None), chunk_size=size, **whole) for size in (4, 64)]
        return later, attend(first), attend(slice(13, None), return_state=True)

    # The first document goes on from the state; the second knows of neither.
    later, before, (after, ends) = results
    for out, last in later:
        np.testing.assert_allclose(out[:, 2:8], before[:, 5:], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(out[:, 8:], after, rtol=2e-5, atol=2e-5)
        for name in ends:
            np.testing.assert_allclose(last[name], ends[name], rtol=2e-5, atol=2e-5)


def test_gradients_flow_through_a_state():
    q, k, v, *_, cotangent = operands(21, poison=False, batch=2)

    def resumed(q, k, v):
        first, state = linear_attention(
            q[:, :13], k[:, :13], v[:, :13], "causal", return_state=True, chunk_size=4
        )
        rest = linear_attention(
            q[:, 13:], k[:, 13:], v[:, 13:], "causal", initial_state=state, chunk_size=4
        )
        return ops.concatenate([first, rest], axis=1)

    want = value_and_gradients(lambda *x: linear_attention(*x, "causal"), (q, k, v), cotangent)
    got = value_and_gradients(resumed, (q, k, v), cotangent)
    for a, b in zip([got[0], *got[1]], [want[0], *want[1]], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mask", ["reversed", {"block": {"size": 3}}, "permuted"])
def test_masks_under_which_no_state_is_enough_are_refused(mask):
    q, k, v, *_ = operands(5, poison=False)
    with pytest.raises(ValueError, match="a state sums keys that all later tokens see"):
        linear_attention(q, k, v, mask, return_state=True)


def test_feature_maps_of_the_whole_sequence_need_a_mask_that_shows_it():
    q, k, v, *_ = operands(5, poison=False)
    with pytest.raises(ValueError, match="later keys"):
        linear_attention(q, k, v, "causal", feature_map="softmax")
    assert np.isfinite(linear_attention(q, k, v, feature_map="softmax")).all()


def test_what_does_not_divide_over_devices_is_said(monkeypatch, caplog):
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX splits attention over a mesh")
    from jax.sharding import AbstractMesh

    from kzoo.ops import linear

    linear._tell_of_partitioner.cache_clear()
    q, k, v, *_ = operands(5, poison=False, batch=3)
    want = linear_attention(q, k, v, "causal")
    monkeypatch.setattr(linear, "current_mesh", lambda: AbstractMesh((2,), ("data",)))
    with caplog.at_level("INFO", "kzoo"):
        for _ in range(2):
            np.testing.assert_array_equal(linear_attention(q, k, v, "causal"), want)
    (message,) = caplog.messages
    assert "left to XLA's partitioner: a batch of 3 does not divide into 2" in message
