"""The delta rule in chunks on JAX: a rolled loop over the chunks that keeps one state.

A step does all of a chunk while it is in cache. The backward pass goes through the same steps in
reverse and differentiates each from its inputs, the state that it started from and the inverse that
it solved with; nothing else is kept, and no inverse is differentiated.
"""

import jax

from kzoo.ops.kernels import delta_terms as terms
from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.precision import float32_products

NAME, MECHANISM = "chunk_scan", "delta"
unsupported_reason = terms.unsupported_reason


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def run(q, k, v, beta, log_decay, document, initial_state, *, chunk_size):
    """What `kzoo.ops.kernels.delta_chunked.run` computes, of the same arguments."""
    chunk, documents = terms.cut(q, k, v, beta, log_decay, document, chunk_size)
    out, state = _attend(None, (initial_state, chunk), documents)
    return terms.joined(out, q.shape[1]), state


def _step(state, chunk, decay, solve):
    """One chunk: the state after it, and what its queries read."""
    new = terms.written(state, chunk, decay, solve)
    return terms.after(state, chunk, decay, new), terms.read(state, chunk, decay, new)


def _forward(_, floats, documents):
    state, chunks = floats

    def one(state, inputs):
        chunk, documents = inputs
        decay = terms.decays(chunk.log_decay, *documents)
        solved = terms.inverse(terms.system(chunk.k, chunk.beta, decay.between))
        end, out = _step(state, chunk, decay, lambda right: solved @ right)
        return end, (out, state, solved)

    state = varying(state, floats, documents)
    state, (out, *saved) = jax.lax.scan(one, state, (chunks, documents))
    return (out, state), saved


@float32_products()
def _backward(_, floats, documents, saved, slopes):
    _, chunks = floats
    out_slope, end_slope = slopes

    def one(end_slope, inputs):
        chunk, documents, (state, solved), out_slope = inputs

        def run(state, chunk):
            decay = terms.decays(chunk.log_decay, *documents)
            matrix = terms.system(chunk.k, chunk.beta, decay.between)
            return _step(state, chunk, decay, lambda right: _solve(matrix, solved, right))

        _, pull = jax.vjp(run, state, chunk)
        return pull((end_slope, out_slope))

    end_slope = varying(end_slope, floats, documents, slopes)
    inputs = chunks, documents, saved, out_slope
    return jax.lax.scan(one, end_slope, inputs, reverse=True)


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
