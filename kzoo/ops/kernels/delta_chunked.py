"""The delta rule in chunks, in `keras.ops`: for every backend.

All that needs no state is computed of all chunks at once; the chunks then follow one another.
"""

import functools

from keras import ops

from kzoo.ops.kernels import delta_terms as terms

NAME, MECHANISM = "chunked", "delta"
unsupported_reason = terms.unsupported_reason


def preferred(spec):
    """Whether "auto" takes it: where no other kernel does."""
    return True


def run(q, k, v, beta, log_decay, document, initial_state, *, chunk_size, scale):
    """S ← exp(g) S, S ← S - β k (kᵀS) + β k vᵀ and scale · Sᵀq, for each token in turn.

    All kernels of the delta rule take these arguments.

    Args:
        q, k: float32 or float64 [batch, time, heads, dim].
        v: likewise [batch, time, heads, value_dim].
        beta, log_decay: likewise [batch or 1, time, heads or 1]; 0 at padding.
        document: integers [batch or 1, time, heads or 1], of which only neighbours are compared:
            where they differ, S is 0. None for one document.
        initial_state: S before the first token, in its document: [batch, heads, dim, value_dim].
        chunk_size: tokens in a chunk, a power of 2.
        scale: a number.

    Returns:
        Floats [batch, time, heads, value_dim], and S after the last token.
    """
    time = ops.shape(q)[1]
    chunk = terms.Chunk(*(terms.cut(x, chunk_size) for x in (q, k, v, beta, log_decay)))
    documents = terms.cut_documents(document, chunk_size)
    decay = terms.decays(chunk.log_decay, *documents)
    solved = terms.inverse(terms.system(chunk.k, chunk.beta, decay.between))

    def solve(solved, right):
        return ops.matmul(solved, right)

    def one(state, inputs):  # Keras's scan returns what has the shape of the state alone
        chunk, decay, solved = terms.Chunk(*inputs[0]), terms.Decays(*inputs[1]), inputs[2]
        new = terms.written(state, chunk, decay, functools.partial(solve, solved))
        return terms.after(state, chunk, decay, new), state

    state, states = ops.scan(one, initial_state, (tuple(chunk), tuple(decay), solved))
    new = terms.written(states, chunk, decay, functools.partial(solve, solved))
    return scale * terms.joined(terms.read(states, chunk, decay, new), time), state
