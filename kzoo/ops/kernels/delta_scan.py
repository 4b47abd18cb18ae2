"""The delta rule in chunks on JAX: a rolled loop over the chunks that keeps one state.

A step does all of a chunk while it is in cache. The backward pass goes through the same steps in
reverse and differentiates each from its inputs, the state that it started from and the inverse that
it solved with; nothing else is kept, and no inverse is differentiated.

A step takes its tokens from where they lie, and puts what it makes of them where it belongs, in the
dtype that it has there: arrays [batch, time, heads · dim]. Other layouts cost a TPU copies of all,
and a last axis of 64, in tiles of 128 lanes, twice the bytes. What is saved is flat likewise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kzoo.ops.kernels import delta_terms as terms
from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.precision import float32_products

NAME, MECHANISM = "chunk_scan", "delta"
unsupported_reason = terms.unsupported_reason


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def run(q, k, v, beta, log_decay, document, real, initial_state, *, chunk_size, scale, l2_norm):
    """What `kzoo.ops.kernels.delta_chunked.run` computes, of the same arguments."""
    form = _Form(q.shape[2], chunk_size, float(scale), l2_norm)
    floats = initial_state, _Tokens(*map(form.flat, (q, k, v)))
    gates = tuple(terms.cut(x, chunk_size) for x in (beta, log_decay))
    others = terms.cut_documents(document, chunk_size), terms.cut(real, chunk_size)
    out, state = _attend(form, (*floats, gates), others)
    return out[:, : v.shape[1]].reshape(v.shape), state


class _Tokens(NamedTuple):
    """q, k and v, each [batch, time, heads · dim]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array


class _Form(NamedTuple):
    """What is static: the number of heads, the tokens in a chunk, the factor on the output, and
    whether q and k are made unit vectors."""

    heads: int
    size: int
    scale: float
    l2_norm: bool

    def flat(self, x):
        """[batch, time, heads, dim] as [batch, time, heads · dim], of whole chunks."""
        return terms.filled(x.reshape(*x.shape[:2], -1), self.size, "zeros")

    def take(self, whole, index):
        """A chunk of it, [batch, heads, size, dim]."""
        x = jax.lax.dynamic_slice_in_dim(whole, index * self.size, self.size, axis=1)
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def put(self, whole, index, x):
        x = x.swapaxes(1, 2).reshape(x.shape[0], self.size, -1).astype(whole.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, x, index * self.size, axis=1)

    def indices(self, tokens):
        """Of the chunks."""
        return jnp.arange(tokens.q.shape[1] // self.size)

    def chunk(self, tokens, gates, real, dtype):
        """A `Chunk` of what was taken."""
        return terms.Chunk(*terms.tokens(*tokens, real, dtype, self.l2_norm), *gates)

    def step(self, state, chunk, decay, real, solve):
        """One chunk: the state after it, and what its queries read."""
        new = terms.written(state, chunk, decay, solve)
        read = terms.shown(self.scale * terms.read(state, chunk, decay, new), real)
        return terms.after(state, chunk, decay, new), read


def _forward(form, floats, others):
    state, tokens, gates = floats

    def one(carry, inputs):
        (state, out), (index, gates, (documents, real)) = carry, inputs
        chunk = form.chunk((form.take(x, index) for x in tokens), gates, real, state.dtype)
        decay = terms.decays(chunk.log_decay, *documents)
        solved = terms.inverse(terms.system(chunk.k, chunk.beta, decay.between))
        end, read = form.step(state, chunk, decay, real, lambda right: solved @ right)
        saved = tuple(x.reshape(*x.shape[:2], -1) for x in (state, solved))
        return (end, form.put(out, index, read)), saved

    carry = varying((state, jnp.zeros_like(tokens.v)), floats, others)
    inputs = form.indices(tokens), gates, others
    (state, out), saved = jax.lax.scan(one, carry, inputs)
    return (out, state), saved


@float32_products()
def _backward(form, floats, others, saved, slopes):
    first, tokens, gates = floats
    out_slope, end_slope = slopes

    def one(carry, inputs):
        (end_slope, into), (index, gates, (documents, real), (state, solved)) = carry, inputs
        state = state.reshape(first.shape)
        solved = solved.reshape(*solved.shape[:2], form.size, form.size)

        def run(state, taken, gates):
            chunk = form.chunk(taken, gates, real, state.dtype)
            decay = terms.decays(chunk.log_decay, *documents)
            matrix = terms.system(chunk.k, chunk.beta, decay.between)
            solve = functools.partial(_solve, matrix, solved)
            return form.step(state, chunk, decay, real, solve)

        _, pull = jax.vjp(run, state, _Tokens(*(form.take(x, index) for x in tokens)), gates)
        read_slope = form.take(out_slope, index).astype(state.dtype)
        end_slope, taken_slope, gate_slopes = pull((end_slope, read_slope))
        into = (form.put(x, index, own) for x, own in zip(into, taken_slope, strict=True))
        return (end_slope, _Tokens(*into)), gate_slopes

    carry = end_slope, jax.tree.map(jnp.zeros_like, tokens)
    carry = varying(carry, floats, others, slopes)
    inputs = form.indices(tokens), gates, others, saved
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
