"""Every transformation of JAX, of every kernel with a gradient of its own.

The oracle is attention written down in a few lines here, which JAX differentiates by itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kzoo import masks
from kzoo.layers import Attention
from kzoo.ops import cross_entropy, linear_attention, softmax_attention
from kzoo.ops.kernels.derivatives import by_hand, quotient
from kzoo.ops.kernels.native import library
from kzoo.ops.normalization import layer_norm

BATCH, TIME, HEADS, DIM = 2, 9, 3, 16
MASK = masks.heads("causal", "prefix", "reversed")
# Heads of several orders stand in first derivatives, forward and in reverse. What a second
# derivative adds is the kernels' own rules, which are the same for every order; a prefix takes all
# of them, since its tokens see both sides.
ONE_ORDER = masks.get("prefix")
ROWS = {
    "padding_mask": np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 0]], "int32"),
    "source_mask": np.array([[1, 1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0, 0]], "int32"),
}
DRAW = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(DRAW.normal(size=shape), "float32")


QKV = [draw(BATCH, TIME, HEADS, DIM) for _ in range(3)]


def plain_softmax(q, k, v, visible):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / DIM**0.5
    powers = jnp.where(visible, jnp.exp(scores), 0)
    total = powers.sum(-1, keepdims=True)
    weights = powers / jnp.where(total == 0, 1, total)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def plain_linear(q, k, v, visible):
    q, k = (jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))) for x in (q, k))
    weights = jnp.where(visible, jnp.einsum("bqhd,bkhd->bhqk", q, k), 0)
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum("bhqk,bkhd->bqhd", weights / jnp.where(total == 0, 1, total), v)


def plain_layer_norm(x, scale, offset):
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + offset


LABELS = np.array([[0, 3, 1], [4, 4, 2]], "int32")


def plain_cross_entropy(hidden, kernel):
    logits = jax.nn.log_softmax(hidden @ kernel.T)
    return -jnp.take_along_axis(logits, LABELS[..., None], axis=-1).sum()


NORM = [draw(2, 3, 5), draw(5), draw(5)]
ENTROPY = [draw(2, 3, 4), draw(5, 4)]


def cases(mask):
    visible = np.asarray(mask.dense(TIME, num_heads=HEADS, **ROWS))
    softmax = functools.partial(plain_softmax, visible=visible)
    linear = functools.partial(plain_linear, visible=visible)

    def attend(function, implementation, **kwargs):
        kwargs = {"implementation": implementation, **ROWS, **kwargs}
        return lambda q, k, v: function(q, k, v, mask, **kwargs)

    return {
        "dense": (attend(softmax_attention, "dense"), softmax, QKV),
        "native softmax": (attend(softmax_attention, "native"), softmax, QKV),
        "blockwise": (attend(softmax_attention, "blockwise"), softmax, QKV),
        "native linear": (attend(linear_attention, "native", chunk_size=4), linear, QKV),
        "chunk_scan": (attend(linear_attention, "chunk_scan", chunk_size=4), linear, QKV),
        "one chunk": (attend(linear_attention, "chunk_scan"), linear, QKV),
        "layer norm": (lambda *x: layer_norm(*x, 1e-5), plain_layer_norm, NORM),
        "cross-entropy": (
            lambda hidden, kernel: cross_entropy.cross_entropy(
                hidden, kernel, LABELS, tokens_at_once=2
            )[0],
            plain_cross_entropy,
            ENTROPY,
        ),
    }


CASES, OF_ONE_ORDER = cases(MASK), cases(ONE_ORDER)


@pytest.fixture(params=CASES)
def case(request):
    if "native" in request.param and (reason := library.missing()):
        pytest.skip(reason)
    return CASES[request.param]


@pytest.fixture
def case_of_one_order(case, request):
    return OF_ONE_ORDER[request.node.callspec.params["case"]]


def total(function, *arrays):
    return (function(*arrays) ** 2).sum()


def assert_equal(transform, case, tolerance=2e-4):
    ours, plain, arrays = case
    got, want = (jax.jit(functools.partial(transform, f))(*arrays) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


def slopes_of(arrays):
    draws = np.random.default_rng(1)
    return tuple(jnp.asarray(draws.normal(size=x.shape), "float32") for x in arrays)


def forward(f, *arrays):
    tangents = slopes_of(arrays)
    one = jax.linearize(f, *arrays)[1](*tangents)
    return (
        jax.jvp(f, arrays, tangents),
        one,
        jax.jvp(lambda x: f(x, *arrays[1:]), *((x[0],) for x in (arrays, tangents))),
    )


@pytest.mark.slow
def test_forward_mode(case):
    assert_equal(forward, case)


@pytest.mark.slow
def test_a_jacobian_by_columns_and_by_rows(case):
    def jacobians(f, *arrays):
        some = lambda x: f(x, *arrays[1:]).ravel()[:7]  # noqa: E731
        return jax.jacrev(some)(arrays[0]), jax.jacfwd(some)(arrays[0])

    def slim(f, *arrays):
        return jax.jacrev(lambda x: f(x, *arrays[1:]).ravel()[:7])(arrays[0])

    ours, plain, arrays = case
    by_rows, by_columns = jax.jit(functools.partial(jacobians, ours))(*arrays)
    np.testing.assert_allclose(by_rows, by_columns, rtol=0, atol=2e-4)
    np.testing.assert_allclose(by_rows, slim(plain, *arrays), rtol=0, atol=2e-4)


def second_order(f, *arrays):
    """Products with the Hessian: forward over reverse, reverse over forward, reverse twice."""
    tangents, every = slopes_of(arrays), tuple(range(len(arrays)))
    gradient = jax.grad(functools.partial(total, f), every)

    def along(*arrays):
        return jax.jvp(functools.partial(total, f), arrays, tangents)[1]

    def product(*arrays):
        return sum((a * b).sum() for a, b in zip(gradient(*arrays), tangents, strict=True))

    return (
        jax.jvp(gradient, arrays, tangents)[1],
        jax.grad(along, every)(*arrays),
        jax.grad(product, every)(*arrays),
    )


@pytest.mark.slow
def test_second_order(case_of_one_order):
    assert_equal(second_order, case_of_one_order)


@pytest.mark.slow
def test_third_order(case_of_one_order):
    def third(f, *arrays):
        tangents = slopes_of(arrays)
        return jax.jvp(lambda *x: second_order(f, *x)[0], arrays, tangents)[1]

    assert_equal(third, case_of_one_order, 1e-3)


@pytest.mark.slow
def test_vmap_around_and_inside(case_of_one_order):
    def mapped(f, *arrays):
        several = [jnp.stack([x, x[::-1] * 0.5]) for x in arrays]
        gradient = jax.grad(functools.partial(total, f))
        half = (0, *[None] * (len(arrays) - 1))  # one argument is batched

        def outside(*several):
            return sum(total(jax.vmap(f, axes), *x) for axes, x in ((0, several), (half, mixed)))

        mixed = [several[0], *arrays[1:]]
        push = lambda *x: jax.jvp(f, x, x)[1]  # noqa: E731
        return (
            jax.vmap(gradient)(*several),
            jax.vmap(gradient, half)(*mixed),
            jax.grad(outside, tuple(range(len(arrays))))(*several),
            jax.vmap(push)(*several),
            jax.vmap(push, half)(*mixed),
        )

    assert_equal(mapped, case_of_one_order)


@pytest.mark.slow
def test_scan_and_remat(case_of_one_order, request):
    def looped(f, *arrays, twice=True):
        """The gradient of a loop whose every step is formed again; and its derivative."""

        def loop(x):
            @jax.checkpoint
            def step(x, _):
                return x + 0.1 * jnp.tanh(f(x, *arrays[1:]).sum()) * x, None

            return (jax.lax.scan(step, x, length=2)[0] ** 2).sum()

        gradient = jax.grad(loop)
        if not twice:
            return gradient(arrays[0])
        return gradient(arrays[0]), jax.jvp(gradient, arrays[:1], arrays[:1])[1]

    if "native" not in request.node.callspec.id:
        assert_equal(looped, case_of_one_order)
        return
    assert_equal(functools.partial(looped, twice=False), case_of_one_order)
    # JAX drops the rules of what is formed again in a loop before it derives it once more.
    with pytest.raises(ValueError, match="FFI call to `kzoo_.*` cannot be differentiated"):
        looped(case_of_one_order[0], *case_of_one_order[2])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["native", "chunk_scan"])
@pytest.mark.parametrize("packed", [False, True])
def test_derivatives_of_a_state(implementation, packed):
    if implementation == "native" and (reason := library.missing()):
        pytest.skip(reason)
    rows = {"padding_mask": ROWS["padding_mask"]} if packed else {}

    def both(q, k, v, kv_state, k_sum, implementation=implementation, chunk_size=4):
        state = {"kv_state": kv_state, "k_sum": k_sum}
        kwargs = {**rows, "implementation": implementation, "chunk_size": chunk_size}
        kwargs |= {"initial_state": state, "return_state": True}
        out, last = linear_attention(q, k, v, "causal", **kwargs)
        return jnp.concatenate([x.ravel() for x in (out, last["kv_state"], last["k_sum"])])

    padding = ROWS["padding_mask"] if packed else np.ones((BATCH, TIME), "int32")
    visible = np.asarray(masks.causal().dense(TIME, padding_mask=padding))

    def plain(q, k, v, kv_state, k_sum):
        q, k = (jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0))) for x in (q, k))
        weights = jnp.where(visible, jnp.einsum("bqhd,bkhd->bhqk", q, k), 0)
        first = padding == np.where(padding == 0, 9, padding).min(1, keepdims=True)
        last = padding == padding.max(1, keepdims=True)
        total = weights.sum(-1) + jnp.einsum("bqhd,bhd,bq->bhq", q, k_sum, first * 1.0)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        out += jnp.einsum("bqhd,bhde,bq->bqhe", q, kv_state, first * 1.0)
        total = jnp.swapaxes(total, 1, 2)[..., None]
        out = jnp.where((padding != 0)[..., None, None], out / jnp.where(total == 0, 1, total), 0)
        on = jnp.asarray(padding.max(1) == np.where(padding == 0, 9, padding).min(1)) * 1.0
        kv_state = kv_state * on[:, None, None, None] + jnp.einsum(
            "bkhd,bkhe,bk->bhde", k, v, last * 1.0
        )
        k_sum = k_sum * on[:, None, None] + jnp.einsum("bkhd,bk->bhd", k, last * 1.0)
        return jnp.concatenate([x.ravel() for x in (out, kv_state, k_sum)])

    state = [jnp.abs(draw(BATCH, HEADS, DIM, DIM)), jnp.abs(draw(BATCH, HEADS, DIM)) + 1]
    # Each kernel, with documents and without, and each kind of derivative of each kernel.
    assert_equal(second_order if packed else forward, (both, plain, [*QKV, *state]))


def test_a_quotient_of_small_numbers_keeps_its_slopes():
    slopes = jax.grad(quotient, (0, 1))(jnp.float32(3e-25), jnp.float32(1e-25))
    np.testing.assert_allclose(slopes, [1e25, -3e25], rtol=1e-6)
    assert jax.grad(jax.grad(quotient, 1), 1)(2.0, 4.0) == 2 * 2.0 / 4.0**3


def test_the_gradient_by_hand_is_the_one_that_runs():
    """What has a kernel is never replaced by what JAX derives, under any order of transforms."""
    square = by_hand(
        lambda _, x, __: x * x,
        lambda _, x, __: (x * x, None),
        lambda _, x, __, ___, slope: 7 * slope,  # wrong, so that it is seen
    )
    f = functools.partial(square, None, others=None)
    x = jnp.arange(3.0)
    assert jax.grad(f)(2.0) == 7
    for g in (jax.vmap(jax.grad(f)), jax.grad(lambda x: jax.vmap(f)(x).sum())):
        assert g(x).tolist() == jax.jit(g)(x).tolist() == [7, 7, 7]
    assert jax.grad(lambda x: jax.lax.scan(lambda c, y: (c + f(y), None), 0.0, x)[0])(x)[0] == 7
    assert jax.grad(jax.checkpoint(f))(2.0) == 7
    assert jax.vjp(jax.jit(f), 2.0)[1](1.0) == (7,)
    assert jax.jvp(f, (2.0,), (1.0,)) == (4, 4)
    assert jax.grad(jax.grad(f))(2.0) == jax.hessian(f)(2.0) == 2


@pytest.mark.parametrize("mechanism", ["softmax", "linear", "gated_linear", "gated_delta"])
def test_attention_outside_a_program_is_compiled_once(mechanism, caplog):
    """A loop that is traced anew at each call costs a hundred times what it computes."""
    layer, x = Attention(2, 8, mask="causal", mechanism=mechanism), draw(1, 40, 16)
    for compiles in (True, False):
        caplog.clear()
        with jax.log_compiles():
            layer(x)
        assert ("Compiling" in caplog.text) == compiles
