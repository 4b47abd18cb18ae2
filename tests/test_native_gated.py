"""The kernel in C++ of gated linear attention against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gated_linear import FORMS, ORDERS, assert_equals_the_definition, case

from kzoo import masks
from kzoo.ops import gated_linear_attention, oracle
from kzoo.ops.dispatch import Spec, kernel_for
from kzoo.ops.kernels.native import library

NATIVE = {"implementation": "native"}
LARGE = {"dim": 16, "value_dim": 32}


@pytest.fixture(autouse=True)
def made():
    if reason := library.missing():
        pytest.skip(reason)


# Groups shorter and longer than a chunk, chunks of a vector's lanes and of one token.
@pytest.mark.parametrize("time, chunk", [(45, 7), (45, 64), (45, 16), (5, 1), (1, 64)])
def test_every_order_packed_and_padded_equals_the_definition(time, chunk):
    arrays, sequence, cotangent = case(time, **LARGE)
    value, gradients = assert_equals_the_definition(
        arrays,
        cotangent,
        ours={**NATIVE, "chunk_size": chunk},
        mask=masks.heads(*ORDERS),
        **sequence,
    )
    padded = sequence["padding_mask"] == 0
    for x in (value, *gradients):
        assert (x[padded] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_share_keys_and_other_forms_equal_the_definition(form):
    for dtype in ("float32", "bfloat16") if form == "as they are" else ("float32",):
        arrays, sequence, cotangent = case(37, 10, 5, batch=4, **LARGE)
        own = {**NATIVE, "chunk_size": 16}
        mask = masks.heads(*ORDERS)
        assert_equals_the_definition(
            arrays, cotangent, dtype, ours=own, mask=mask, **sequence, **FORMS[form]
        )


def drawn(time=40, heads=2, batch=2, seed=0):
    """q, k, v and gates in float32."""
    (q, k, v, gates), *_ = case(time, heads, heads, batch=batch, poison=False, seed=seed, **LARGE)
    return [jnp.asarray(x, "float32") for x in (q, k, v, np.where(np.isfinite(gates), gates, 0))]


def test_small_gates_are_exact_behind_large_ones():
    """100 gates of -50 and then -0.01: a difference of cumulative sums loses 1e-4 of it."""
    q, k, v, _ = drawn(130)
    gates = np.full((2, 130, 2), -50, "float32")
    gates[:, 100:] = -0.01
    for mask in ("causal", "bidirectional"):
        own = {"mechanism": "gated_linear", "normalize": False, "feature_map": None}
        expected, _ = oracle.attention(q, k, v, mask, log_decay=gates, **own)
        got = gated_linear_attention(q, k, v, gates, mask, **NATIVE)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_state_goes_on_with_its_gradient():
    """Split in three, under a slope of the last state too: as the whole in JAX's operations."""
    arrays = drawn()
    options = {"feature_map": "elu1", "normalize": True, "return_state": True, "chunk_size": 16}

    def whole(*arrays):
        return gated_linear_attention(*arrays, **options, implementation="chunk_scan")

    def parts(*arrays):
        outs, state = [], None
        for start, end in ((0, 17), (17, 18), (18, 40)):
            own = {**options, **NATIVE, "initial_state": state, "query_offset": start}
            out, state = gated_linear_attention(*[x[:, start:end] for x in arrays], **own)
            outs.append(out)
        return jnp.concatenate(outs, axis=1), state

    want, pull = jax.vjp(jax.jit(whole), *arrays)
    got, pull_parts = jax.vjp(jax.jit(parts), *arrays)
    slopes = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size).reshape(x.shape)), want)
    for ours, theirs in zip(
        jax.tree.leaves((got, pull_parts(slopes))),
        jax.tree.leaves((want, pull(slopes))),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-4)


def test_derivatives_past_the_gradient_are_those_of_the_definition():
    """Of heads in both directions, packed, from a state."""
    arrays = drawn(9)
    rows = {"padding_mask": np.array([[1, 1, 1, 1, 2, 2, 2, 0, 3], [1] * 9])}
    state = {"kv_state": jnp.ones((2, 2, 16, 32))}

    def curvature(mask, **own):
        def total(*arrays):
            out = gated_linear_attention(*arrays, mask, **rows, **own)
            out, *states = out if isinstance(out, tuple) else (out,)
            return sum((x**2).sum() for x in jax.tree.leaves((out, states)))

        slopes = tuple(jnp.sin(jnp.arange(x.size).reshape(x.shape)) for x in arrays)
        return jax.jit(lambda *x: jax.jvp(jax.grad(total, argnums=(0, 1, 2, 3)), x, slopes)[1])

    stateful = {"initial_state": state, "return_state": True}
    for mask, own in ((masks.heads("reversed", "prefix"), {}), ("causal", stateful)):
        rows.pop("source_mask", None)
        if not own:
            rows["source_mask"] = np.array([[1, 1, 0, 0, 1, 1, 1, 0, 0], [1] * 6 + [0] * 3])
        want = curvature(mask, implementation="chunked", **own)(*arrays)
        got = curvature(mask, **NATIVE, **own)(*arrays)
        for one, other in zip(got, want, strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * scale)


def test_equal_calls_give_equal_bits_and_hidden_tokens_change_none():
    q, k, v, gates = drawn(70)
    step = jax.jit(lambda *x: gated_linear_attention(*x, "causal", **NATIVE))
    first = step(q, k, v, gates)
    np.testing.assert_array_equal(step(q, k, v, gates), first)
    later = [x.at[:, 50:].set(7.0) for x in (q, k, v)]
    np.testing.assert_array_equal(step(*later, gates.at[:, 50:].set(-9.0))[:, :50], first[:, :50])
    out = np.asarray(step(q.at[0, 3, 0, 0].set(np.nan), k, v, gates))
    assert np.isnan(out[0, 3, 0]).all() and np.isfinite(np.delete(out, 3, axis=1)).all()


def test_dispatch_takes_it_on_a_cpu():
    spec = {"query_time": 64, "key_time": 64, "num_heads": 4, "dim": 32, "mask": masks.causal()}
    for features, value_dim, platform, kernel in (
        (32, 32, "cpu", "native"),
        (24, 32, "cpu", "chunk_scan"),
        (272, 32, "cpu", "chunk_scan"),
        (32, 2**14, "cpu", "chunk_scan"),
        (32, 32, "gpu", "chunk_scan"),
    ):
        own = Spec(**spec, features=features, value_dim=value_dim, platform=platform)
        assert kernel_for("gated_linear", own) == kernel
