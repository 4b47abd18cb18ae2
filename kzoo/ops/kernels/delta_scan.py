"""The delta rule in chunks on JAX: a rolled loop over the chunks that keeps one state.

A step does all of a chunk while it is in cache. The backward pass goes through the same steps in
reverse and differentiates each from its inputs, the state that it started from and the inverse that
it solved with; nothing else is kept, and no inverse is differentiated.

A step takes its tokens from where they lie, and puts what it makes of them where it belongs, in the
dtype that it has there: arrays [batch, time, heads · dim]. Other layouts cost a TPU copies of all,
and a last axis of 64, in tiles of 128 lanes, twice the bytes. What is saved is flat likewise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kzoo.ops.kernels import delta_terms as terms
from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.precision import float32_products

NAME, MECHANISM = "chunk_scan", "delta"
RAW = True  # it takes q, k and v in any dtype
unsupported_reason = terms.unsupported_reason


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def run(q, k, v, beta, log_decay, document, initial_state, *, chunk_size, scale):
    """What `kzoo.ops.kernels.delta_chunked.run` computes, of the same arguments, in the dtype of v;
    q, k and v may be narrower than the rest, in which all is computed."""
    form = _Form(q.shape[2], chunk_size, float(scale))
    floats = initial_state, _Tokens(*map(form.flat, (q, k, v)))
    gates = tuple(terms.cut(x, chunk_size) for x in (beta, log_decay))
    out, state = _attend(form, (*floats, gates), terms.cut_documents(document, chunk_size))
    return out[:, : v.shape[1]].reshape(v.shape), state


class _Tokens(NamedTuple):
    """q, k and v, each [batch, time, heads · dim]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array


class _Form(NamedTuple):
    """What is static: the number of heads, the tokens in a chunk, and the factor on the output."""

    heads: int
    size: int
    scale: float

    def flat(self, x):
        """[batch, time, heads, dim] as [batch, time, heads · dim], of whole chunks."""
        return terms.filled(x.reshape(*x.shape[:2], -1), self.size, "zeros")

    def take(self, whole, index, dtype):
        """A chunk of it, [batch, heads, size, dim]."""
        x = jax.lax.dynamic_slice_in_dim(whole, index * self.size, self.size, axis=1)
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2).astype(dtype)

    def put(self, whole, index, x):
        x = x.swapaxes(1, 2).reshape(x.shape[0], self.size, -1).astype(whole.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, x, index * self.size, axis=1)

    def indices(self, tokens):
        """Of the chunks."""
        return jnp.arange(tokens.q.shape[1] // self.size)

    def step(self, state, chunk, decay, solve):
        """One chunk: the state after it, and what its queries read."""
        new = terms.written(state, chunk, decay, solve)
        read = self.scale * terms.read(state, chunk, decay, new)
        return terms.after(state, chunk, decay, new), read


def _forward(form, floats, documents):
    state, tokens, gates = floats

    def one(carry, inputs):
        (state, out), (index, gates, documents) = carry, inputs
        chunk = terms.Chunk(*(form.take(x, index, state.dtype) for x in tokens), *gates)
        decay = terms.decays(chunk.log_decay, *documents)
        solved = terms.inverse(terms.system(chunk.k, chunk.beta, decay.between))
        end, read = form.step(state, chunk, decay, lambda right: solved @ right)
        saved = tuple(x.reshape(*x.shape[:2], -1) for x in (state, solved))
        return (end, form.put(out, index, read)), saved

    carry = varying((state, jnp.zeros_like(tokens.v)), floats, documents)
    inputs = form.indices(tokens), gates, documents
    (state, out), saved = jax.lax.scan(one, carry, inputs)
    return (out, state), saved


@float32_products()
def _backward(form, floats, documents, saved, slopes):
    first, tokens, gates = floats
    out_slope, end_slope = slopes

    def one(carry, inputs):
        (end_slope, into), (index, gates, documents, (state, solved)) = carry, inputs
        state = state.reshape(first.shape)
        solved = solved.reshape(*solved.shape[:2], form.size, form.size)
        chunk = terms.Chunk(*(form.take(x, index, state.dtype) for x in tokens), *gates)

        def run(state, chunk):
            decay = terms.decays(chunk.log_decay, *documents)
            matrix = terms.system(chunk.k, chunk.beta, decay.between)
            return form.step(state, chunk, decay, lambda right: _solve(matrix, solved, right))

        _, pull = jax.vjp(run, state, chunk)
        end_slope, slope = pull((end_slope, form.take(out_slope, index, state.dtype)))
        into = (form.put(x, index, own) for x, own in zip(into, slope[:3], strict=True))
        return (end_slope, _Tokens(*into)), (slope.beta, slope.log_decay)

    carry = end_slope, jax.tree.map(jnp.zeros_like, tokens)
    carry = varying(carry, floats, documents, slopes)
    inputs = form.indices(tokens), gates, documents, saved
    (slope, token_slopes), gate_slopes = jax.lax.scan(one, carry, inputs, reverse=True)
    return slope, token_slopes, gate_slopes


_attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward)


@jax.custom_jvp
def _solve(matrix, solved, right):
    """U of (I + matrix) U = right, by the inverse that is known; of gradients the first."""
    return solved @ right


@_solve.defjvp
def _(primals, tangents):
    matrix, solved, right = primals
    out = _solve(*primals)
    return out, solved @ (tangents[2] - tangents[0] @ out)
