"""Every order, ours and users', on every kernel, against an oracle that shares nothing with it."""

import keras
import numpy as np
import oracle
import pytest
from autodiff import value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from orders import OURS, THEIRS

from kzoo import masks
from kzoo.ops import linear_attention, softmax_attention

pytestmark = pytest.mark.backends

JAX = keras.backend.backend() == "jax"
CHUNK = 8
KERNELS = {
    "jax": [
        ("softmax", "dense"),
        ("softmax", "blockwise"),
        ("softmax", "native"),
        ("linear", "chunked"),
        ("linear", "native"),
    ],
    "torch": [("softmax", "dense"), ("softmax", "sdpa"), ("linear", "chunked")],
    "tensorflow": [("softmax", "dense"), ("linear", "chunked")],
}[keras.backend.backend()]
SPECS = [*OURS, *THEIRS]


def rows_of(time):
    """Padding masks: packed in any order of ids, padded left, right and inside."""
    t = np.arange(time)
    rows = np.ones((8, time), "int32")
    rows[1] = np.where(t % 4 == 2, 0, 1)  # holes
    rows[2] = np.where(t < time // 3, 0, 1)
    rows[3] = np.where(t >= time - time // 3, 0, 1)
    rows[4] = 2 - (2 * t // max(time, 1))  # 2 2 2 1 1 1
    rows[5] = np.array([7, 3, 5])[3 * t // max(time, 1)] * (t % 5 != 3)
    rows[6] = (1 + t // 4) * (t % 3 != 1)
    rows[7] = 0
    return rows


def attend(mechanism, kernel, specs, **static):
    mask = masks.get({"heads": list(specs)})
    if mechanism == "linear":
        static.setdefault("chunk_size", CHUNK)
        return lambda q, k, v, **rows: linear_attention(
            q, k, v, mask, implementation=kernel, **static, **rows
        )
    if kernel == "splash":
        return lambda q, k, v, **rows: splash(q, k, v, mask, **rows)
    return lambda q, k, v, **rows: softmax_attention(
        q, k, v, mask, implementation=kernel, **static, **rows
    )


def splash(q, k, v, mask, **rows):
    return softmax_attention(q, k, v, mask, implementation="splash", **rows)


def operands(time, heads, kv_heads, padding, seed=0):
    rng = np.random.default_rng(seed)
    batch = len(padding)
    q, k, v = (rng.normal(size=(batch, time, n, 16)) for n in (heads, kv_heads, kv_heads))
    cotangent = rng.normal(size=(batch, time, heads, 16))
    source = (rng.random((batch, time)) < 0.7).astype("int32")
    source[:, : time // 4] = 1
    for x in (q, k, v):
        x[padding == 0] = np.nan
    return q, k, v, cotangent, source


def assert_equals_oracle(run, mechanism, specs, arrays, padding, source, cotangent):
    see = np.array(
        [
            [oracle.visible(spec, *row) for spec in specs]
            for row in zip(padding, source, strict=True)
        ]
    )
    want = oracle.attention(mechanism, *arrays, see, cotangent)
    out, gradients = run(arrays, padding, source, cotangent)
    for got, expected in zip((out, *gradients), want, strict=True):
        worst = np.abs(got - expected).max(axis=(0, 1, 3))
        limit = 3e-5 * max(1, np.abs(expected).max())
        assert (worst < limit).all(), dict(enumerate(worst))
        assert np.isfinite(got).all()


def eager_rows(mechanism, kernel, specs, **static):
    """Masks are known when the program is made."""
    function = attend(mechanism, kernel, specs, **static)

    def run(arrays, padding, source, cotangent):
        rows = {"padding_mask": padding, "source_mask": source}
        return value_and_gradients(lambda *x: function(*x, **rows), arrays, cotangent)

    return run


def check(mechanism, kernel, time, specs=SPECS, kv_heads=None, **static):
    padding = rows_of(time)
    q, k, v, cotangent, source = operands(time, len(specs), kv_heads or len(specs), padding)
    run = eager_rows(mechanism, kernel, specs, **static)
    assert_equals_oracle(run, mechanism, specs, (q, k, v), padding, source, cotangent)


# One token; a chunk, one less and one more; not a multiple.
@pytest.mark.parametrize("time", [1, CHUNK - 1, CHUNK, CHUNK + 1, 21])
@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_every_order_on_every_kernel(mechanism, kernel, time):
    if kernel in ("dense", "blockwise", "sdpa") and time in (CHUNK - 1, CHUNK):
        pytest.skip("has no chunks")
    check(mechanism, kernel, time, kv_heads=4 if time == 21 else None)


@pytest.mark.skipif(not JAX, reason="splash is a kernel of JAX")
@pytest.mark.parametrize("time", [21, pytest.param(300, marks=pytest.mark.slow)])
def test_every_order_on_splash(time, monkeypatch):
    from kzoo.ops.kernels import splash

    monkeypatch.setattr(splash, "TILES", (128,))  # so that some tiles are skipped
    check("softmax", "splash", time)


# What is not known when the program is made ------------------------------------------------

TIME, BATCH = 12, 4
rows_of_ids = st.lists(
    st.lists(st.sampled_from([0, 1, 1, 2, 2, 5]), min_size=TIME, max_size=TIME),
    min_size=BATCH,
    max_size=BATCH,
).map(lambda rows: np.array(rows, "int32"))


@pytest.fixture(scope="module")
def traced():
    """By kernel, what takes rows too: one compiled program for all that hypothesis draws."""
    import jax

    def make(mechanism, kernel):
        function = attend(
            mechanism, kernel, SPECS, **({"chunk_size": 5} if mechanism == "linear" else {})
        )

        @jax.jit
        def run(arrays, padding, source, cotangent):
            rows = {"padding_mask": padding, "source_mask": source}
            out, pull = jax.vjp(lambda *x: function(*x, **rows), *arrays)
            return out, pull(cotangent)

        return lambda arrays, padding, source, cotangent: jax.tree.map(
            np.asarray,
            run(
                [x.astype("float32") for x in arrays], padding, source, cotangent.astype("float32")
            ),
        )

    return {names: make(*names) for names in [("softmax", "blockwise"), *KERNELS[2:]]}


@pytest.mark.skipif(not JAX, reason="the others know all values")
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(padding=rows_of_ids, seed=st.integers(0, 9))
def test_any_documents_and_padding_of_a_traced_batch(traced, padding, seed):
    *arrays, cotangent, source = operands(TIME, len(SPECS), len(SPECS), padding, seed)
    for (mechanism, _), run in traced.items():
        assert_equals_oracle(run, mechanism, SPECS, arrays, padding, source, cotangent)


# Windows and two sequences -------------------------------------------------------------------


@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_a_window_of_queries(mechanism, kernel):
    time, window = 21, slice(9, 14)
    padding = rows_of(time)
    q, k, v, cotangent, source = operands(time, len(SPECS), len(SPECS), padding)
    see = np.array(
        [
            [oracle.visible(spec, *row) for spec in SPECS]
            for row in zip(padding, source, strict=True)
        ]
    )
    want = oracle.attention(mechanism, q[:, window], k, v, see[:, :, window], cotangent[:, window])
    run = attend(mechanism, kernel, SPECS, query_offset=9)
    got = run(
        *(x.astype("float32") for x in (q[:, window], k, v)),
        padding_mask=padding,
        source_mask=source,
    )
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), want[0], atol=3e-5)


@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_two_sequences(mechanism, kernel):
    specs = [spec for spec in SPECS if not masks.get(spec).needs_source]
    queries, keys = rows_of(13), rows_of(21)
    keys[5] = np.where(keys[5] == 3, 9, keys[5])  # a document without a partner
    q, _, _, cotangent, _ = operands(13, len(specs), len(specs), queries)
    _, k, v, _, _ = operands(21, len(specs), len(specs), keys)
    see = np.array(
        [
            [oracle.visible_across(spec, *row) for spec in specs]
            for row in zip(queries, keys, strict=True)
        ]
    )
    want = oracle.attention(mechanism, q, k, v, see, cotangent)
    rows = {"padding_mask": queries, "key_padding_mask": keys}
    got = attend(mechanism, kernel, specs)(*(x.astype("float32") for x in (q, k, v)), **rows)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), want[0], atol=3e-5)
