"""Kernels of linear and gated linear attention for TPUs, interpreted, against the definition."""

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from test_gated_linear import gates_of
from test_ops import operands

from kzoo import masks
from kzoo.ops import gated_linear_attention, linear_attention, oracle, reference_attention
from kzoo.ops.dispatch import Spec, kernels

if keras.backend.backend() != "jax":
    pytest.skip("Pallas is JAX's", allow_module_level=True)

import jax

from kzoo.ops.context import compiling_for
from kzoo.ops.kernels.pallas import form
from kzoo.training.roofline import jaxpr_work

TIME = 300  # two steps of the grid, of two chunks each; the last step is not full
BLOCK = {"block": {"size": 150}}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(form, "MOST_TOKENS", 256)


def assert_equals_the_definition(ours, mechanism, arrays, cotangent, dtype, **kwargs):
    arrays = [np.asarray(jax.numpy.asarray(x, dtype), "float64") for x in arrays]

    def dense(q, k, v, *gates):
        own = {"log_decay": gates[0], "feature_map": None, "normalize": False} if gates else {}
        own |= {"mechanism": mechanism, "dtype": "float64"}
        return reference_attention(q, k, v, **{**own, **kwargs})

    def attend(*arrays):
        return ours(*arrays, implementation="pallas", **kwargs)

    want = value_and_gradients(dense, arrays, cotangent, "float64")
    got = value_and_gradients(attend, arrays, cotangent, dtype)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for one, other in zip([got[0], *got[1]], [want[0], *want[1]], strict=True):
        assert np.isfinite(one).all()
        scale = max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale)
    return got


def check(mask, dtype="float32", *, gated=False, padded=True, heads=2, kv_heads=None, **kwargs):
    dim = kwargs.pop("dim", 64)
    sizes = {"dim": dim, "value_dim": kwargs.pop("value_dim", dim)}
    *arrays, padding, source, cotangent = operands(
        TIME, heads, kv_heads or heads, poison=padded, batch=7 if padded else 2, **sizes
    )
    kwargs |= {"mask": mask} | ({"padding_mask": padding} if padded else {})
    if masks.get(mask).needs_source:
        kwargs["source_mask"] = source
    ours, mechanism = linear_attention, "linear"
    if gated:
        ours, mechanism = gated_linear_attention, "gated_linear"
        arrays.append(gates_of(padding if padded else np.ones_like(padding), heads))
    got = assert_equals_the_definition(ours, mechanism, arrays, cotangent, dtype, **kwargs)
    if padded:
        for x in (got[0], *got[1]):
            assert (x[padding == 0] == 0).all()


@pytest.mark.parametrize(
    ("mask", "dtype", "options"),
    [
        ("causal", "bfloat16", {"heads": 3, "kv_heads": 1, "rotary": True}),
        ("prefix", "float32", {"dim": 32, "rotary": True}),
        pytest.param("causal", "float32", {"padded": False}, marks=pytest.mark.slow),
        pytest.param("reversed", "float32", {"dim": 128}, marks=pytest.mark.slow),
        pytest.param(
            "bidirectional", "float32", {"padded": False, "rotary": True}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"heads": ["permuted", BLOCK]},
            "bfloat16",
            {"rotary": True, "feature_map": "exp"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"heads": ["causal", "reversed"]},
            "bfloat16",
            {"heads": 4, "feature_map": "favor", "rotary": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_linear_attention_equals_the_definition(mask, dtype, options):
    check(mask, dtype, **options)


@pytest.mark.parametrize(
    ("mask", "dtype", "options"),
    [
        ("reversed", "float32", {"scale": 0.7, "feature_map": "relu"}),
        pytest.param(
            "prefix",
            "float32",
            {"rotary": True, "feature_map": "elu1", "normalize": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "causal", "bfloat16", {"dim": 64, "value_dim": 32, "heads": 5}, marks=pytest.mark.slow
        ),
        pytest.param("bidirectional", "float32", {"padded": False}, marks=pytest.mark.slow),
        pytest.param(
            {"heads": ["causal", BLOCK]}, "bfloat16", {"heads": 4}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_gated_linear_attention_equals_the_definition(mask, dtype, options):
    check(mask, dtype, gated=True, **options)


def test_small_gates_are_exact_behind_large_ones():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 130, 2, 64)).astype("float32") for _ in range(3))
    gates = np.full((1, 130, 2), -50, "float32")
    gates[:, 100:] = -0.01
    own = {"log_decay": gates, "normalize": False, "feature_map": None}
    want, _ = oracle.attention(q, k, v, "causal", mechanism="gated_linear", **own)
    got = gated_linear_attention(q, k, v, gates, "causal", implementation="pallas")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_forward_mode_and_the_derivative_of_the_gradient():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 20, 2, 64)).astype("float32") for _ in range(3))
    gates = -rng.random((1, 20, 2)).astype("float32")
    ways = {}
    for name in ("pallas", "chunk_scan"):

        def loss(q, gates, name=name):
            out = gated_linear_attention(q, k, v, gates, "bidirectional", implementation=name)
            return (out**2).sum()

        slope = jax.grad(loss, argnums=(0, 1))
        ways[name] = jax.jit(lambda *x, f=slope: jax.jvp(f, x, x))(q, gates)
    for a, b in zip(*(jax.tree.leaves(way) for way in ways.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def spec(**changes):
    sizes = {"query_time": 512, "key_time": 512, "num_heads": 4, "dim": 64, "value_dim": 64}
    own = {"mask": masks.get("prefix"), "features": 64, "platform": "tpu", "dtype": "bfloat16"}
    return Spec(**{**sizes, **own, **changes})


@pytest.mark.parametrize(
    ("mechanism", "changes", "said"),
    [
        ("linear", {"features": 2145}, "not (2145, 64)"),
        ("linear", {"value_dim": 24}, "not (64, 24)"),
        ("linear", {"state": True}, "neither takes nor returns a state"),
        ("linear", {"same_sequence": False}, "one whole sequence"),
        ("linear", {"dtype": "float16"}, "not float16"),
        ("linear", {"batch": None}, "when the program is made"),
        ("linear", {"mask": masks.custom(lambda q, k: q == k)}, "follows orders"),
        ("linear", {}, None),
        ("gated_linear", {}, None),
    ],
)
def test_refusals_say_why(mechanism, changes, said):
    reason = kernels(mechanism, "jax")["pallas"].unsupported_reason(spec(**changes))
    assert reason is None if said is None else said in reason


def slopes_of(mask, gated, shape, dtype="bfloat16"):
    """The gradients of an attention as a program for a TPU, traced from arrays [b, t, h · d]."""
    batch, time, heads, dim = shape
    x = jax.ShapeDtypeStruct((batch, time, heads * dim), dtype)
    gates = jax.ShapeDtypeStruct((batch, time, heads), "float32")

    def step(q, k, v, gates, slope):
        def attend(q, k, v, gates):
            q, k, v = (x.reshape(shape) for x in (q, k, v))
            if gated:
                return gated_linear_attention(q, k, v, gates, mask).reshape(slope.shape)
            return linear_attention(q, k, v, mask).reshape(slope.shape)

        out, pull = jax.vjp(attend, q, k, v, gates)
        return out, *pull(slope)

    with compiling_for("tpu"):
        return jax.jit(step).trace(x, x, x, gates, x)


@pytest.mark.parametrize("gated", [False, True])
def test_bytes_counted_by_hand(monkeypatch, gated):
    monkeypatch.setattr(form, "MOST_TOKENS", 1024)
    batch, time, heads, dim = shape = 2, 2048, 4, 64
    traced = slopes_of("causal", gated, shape)
    array = batch * time * heads * dim * 2
    # Of each of two steps and two heads together, the state that enters it: 64 rows of 128 lanes.
    sums = batch * 2 * (heads // 2) * 64 * 128 * 4
    # q, k and v in, the output out; then these and its slope in, and three slopes out.
    arrays, states = 4 + 7, 2 * sums
    rows = batch * (heads // 2) * 8 * time * 4  # a number of each token and head, in tiles of 8
    if gated:
        others = 3 * rows  # gates in, twice, and their slope out
    else:
        weights = batch * 2 * (heads // 2) * 8 * 128 * 4  # the sums of keys alone
        others = array + 2 * rows + 2 * weights  # the output and the denominator in again
    assert jaxpr_work(traced.jaxpr).bytes == arrays * array + states + others


@pytest.mark.parametrize(("mask", "calls"), [("causal", 2), ("bidirectional", 4)])
def test_the_kernels_lower_for_a_tpu(mask, calls):
    for gated in (False, True):
        traced = slopes_of(mask, gated, (2, 130, 2, 64))
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert text.count("@tpu_custom_call") == calls
