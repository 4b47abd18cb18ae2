"""Cross-entropy in chunks on JAX: a rolled loop that sums the gradients as it goes."""

import functools

import jax
import jax.numpy as jnp

from kzoo.ops.kernels.cross_entropy_terms import terms, terms_and_slopes
from kzoo.ops.kernels.derivatives import by_hand, varying


# Compiled by itself too, so that calls outside of a program share one compilation.
@functools.partial(jax.jit, static_argnums=4)
def cross_entropy(hidden, kernel, labels, weights, tokens_at_once):
    """See `kzoo.ops.cross_entropy.cross_entropy`; all floats are float32."""
    # JAX traces the derivative later, outside of the caller's `float32_products`.
    static = tokens_at_once, jax.config.jax_default_matmul_precision
    return _sum(static, (hidden, kernel), (labels, weights))


def _terms(static, floats, others):
    tokens_at_once, precision = static
    hidden, kernel = floats
    labels, weights = others

    def step(_, chunk):
        hidden, labels, weights = _flat(chunk)
        return None, terms(hidden, kernel, labels, weights).reshape(chunk[1].shape)

    with jax.default_matmul_precision(precision):
        _, nats = _loop(step, None, [_cut(x, tokens_at_once) for x in (hidden, labels, weights)])
    nats = _join(nats, labels.shape)
    return nats.sum(), nats


def _forward(static, floats, others):
    tokens_at_once, precision = static
    hidden, kernel = floats
    labels, weights = others

    def step(summed, chunk):
        hidden, labels, weights = _flat(chunk)
        nats, slopes = terms_and_slopes(hidden, kernel, labels, weights)
        # [width, vocabulary], of a transposed copy: on a CPU 60 ms, where XLA takes 90 to
        # transpose within the product, and 117 for [vocabulary, width].
        transposed = jax.lax.optimization_barrier(hidden.T)
        out = nats.reshape(chunk[1].shape), (slopes @ kernel).reshape(chunk[0].shape)
        return summed + transposed @ slopes, out

    chunks = [_cut(x, tokens_at_once) for x in (hidden, labels, weights)]
    start = varying(jnp.zeros_like(kernel.T), floats, others)
    with jax.default_matmul_precision(precision):
        summed, (nats, hidden_gradient) = _loop(step, start, chunks)
    nats = _join(nats, labels.shape)
    return (nats.sum(), nats), (_join(hidden_gradient, hidden.shape), summed.T)


def _backward(static, floats, others, gradients, slopes):
    return tuple(slopes[0] * x for x in gradients)  # the terms carry no gradient


_sum = by_hand(_terms, _forward, _backward)


def _loop(step, start, chunks):
    if len(chunks[0]) > 1:
        return jax.lax.scan(step, start, chunks)
    end, out = step(start, [x[0] for x in chunks])
    return end, jax.tree.map(lambda x: x[None], out)


def _flat(chunk):
    # A product over two axes at once costs XLA a transposed copy on a CPU.
    return (x.reshape(-1, *x.shape[2:]) for x in chunk)


def _cut(x, tokens_at_once):
    """[batch, time, ...] as [chunks, batch, steps, ...], padded with zeros at the end."""
    batch, time = x.shape[:2]
    count = -(-time // max(1, tokens_at_once // batch))
    steps = -(-time // count)
    filled = [(0, 0), (0, count * steps - time), *[(0, 0)] * (x.ndim - 2)]
    x = jnp.pad(x, filled).reshape(batch, count, steps, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def _join(x, shape):
    """The inverse of `_cut`, to its original shape."""
    return jnp.moveaxis(x, 0, 1).reshape(shape[0], -1, *shape[2:])[:, : shape[1]]
