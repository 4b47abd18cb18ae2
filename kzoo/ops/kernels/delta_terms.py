"""What the kernels of the delta rule share: the terms of a chunk, in `keras.ops`.

Inside a chunk, with Γ_ij the decay from the token j to the token i, each token writes
u_i = β_i (v_i - γ_i S k_i - Σ_{j<i} Γ_ij (k_i·k_j) u_j) beside its key: (I + A) U = B, whose unit
lower triangular matrix is inverted once (the WY form). Sources: Yang et al. 2024, arXiv:2406.06484,
section 3.2; with decays Yang et al. 2024, arXiv:2412.06464, section 3.3.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kzoo.masks.orders import not_one_way
from kzoo.ops.tensors import hide
from kzoo.values import is_integer

EPSILON = 1e-6  # added to the squared length of q and k where they are made unit vectors
LEAST_GATE = -1e4  # e to it is 0; what is less, such as -inf, would be no number times 0


def unsupported_reason(spec) -> str | None:
    """Why a kernel cannot compute an attention, in words for its user, or None if it can."""
    return not_one_way(spec.mask.per_head(spec.num_heads))


class Chunk(NamedTuple):
    """The tokens of chunks, in any number of axes before those that are named.

    Attributes:
        q, k: floats [.., heads, chunk, dim].
        v: floats [.., heads, chunk, value_dim].
        beta, log_decay: floats [.., heads or 1, chunk].
    """

    q: Any
    k: Any
    v: Any
    beta: Any
    log_decay: Any


class Decays(NamedTuple):
    """How much of the past is left, from 0 to 1; 0 where a document ends between.

    Attributes:
        between: floats [.., heads or 1, chunk, chunk], from the key j at a column to the query i
            at a row; 0 for j > i.
        since: floats [.., heads or 1, chunk], from before the chunk to each token.
        until: floats [.., heads or 1, chunk], from each token to the end of the chunk.
        through: floats [.., heads or 1, 1], from before the chunk to its end.
    """

    between: Any
    since: Any
    until: Any
    through: Any


def unit(x):
    """`x` [.., dim] of length 1, and 0 where it is 0."""
    return x * ops.rsqrt(ops.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def tokens(q, k, v, real, dtype, l2_norm):
    """q, k and v [.., heads, chunk, dim] as they are computed with: exact zeros at padding, in a
    dtype, and with `l2_norm` q and k of length 1. `real` is as for `shown`."""
    q, k, v = (ops.cast(shown(x, real), dtype) for x in (q, k, v))
    return (unit(q), unit(k), v) if l2_norm else (q, k, v)


def shown(x, real):
    """`x` [.., heads, chunk, dim] with zeros where `real` [.., heads or 1, chunk] is False; None
    is True everywhere. Of what stands at padding not even the gradient need be a number."""
    return x if real is None else hide(x, real[..., None])


def cut(x, size):
    """[batch, time, heads, ..] as [chunks, batch, heads, size, ..], the end filled with zeros; of
    None nothing."""
    return None if x is None else _in_chunks(filled(x, size, "zeros"), size)


def cut_documents(document, size):
    """The documents of chunks, for `decays`.

    Args:
        document: integers [batch or 1, time, heads or 1]; None where there is one document.
        size: tokens in a chunk.

    Returns:
        A pair of integers [chunks, batch or 1, heads or 1, size or 1], the document of each token
        and the one that the state before the chunk belongs to; None and None where there is one.
    """
    if document is None:
        return None, None
    document = _in_chunks(filled(document, size, "edge"), size)
    return document, ops.concatenate([document[:1, ..., :1], document[:-1, ..., -1:]], axis=0)


def filled(x, size, fill):
    """[batch, time, ..] with whole chunks of time, the end filled with "zeros" or with the "edge",
    its last element, repeated."""
    missing = -ops.shape(x)[1] % size
    if is_integer(missing) and not missing:
        return x
    tail = ops.repeat(x[:, -1:], missing, axis=1)
    return ops.concatenate([x, tail if fill == "edge" else ops.zeros_like(tail)], axis=1)


def _in_chunks(x, size):
    x = ops.reshape(x, (ops.shape(x)[0], ops.shape(x)[1] // size, size, *x.shape[2:]))
    return ops.transpose(x, (1, 0, 3, 2, *range(4, len(x.shape))))


def joined(x, time):
    """[chunks, batch, heads, chunk, dim] as [batch, time, heads, dim]."""
    chunks, batch, heads, size, dim = ops.shape(x)
    x = ops.reshape(ops.transpose(x, (1, 0, 3, 2, 4)), (batch, chunks * size, heads, dim))
    return x[:, :time]


def decays(log_decay, document, arriving):
    """The `Decays` of gates [.., chunk], with what `cut_documents` tells of documents.

    An exponent is the sum of the gates between two tokens, and never a difference of longer sums,
    which would lose all that is small beside them.
    """
    size = log_decay.shape[-1]
    lower, below = np.tri(size, dtype=bool), np.tri(size, k=-1, dtype=bool)

    def floats(x):
        return ops.convert_to_tensor(x, keras.backend.standardize_dtype(log_decay.dtype))

    gates = ops.maximum(log_decay, LEAST_GATE)
    later = ops.where(lower, gates[..., None, :], ops.zeros_like(gates[..., None, :]))
    between = ops.exp(ops.matmul(later, floats(below)))
    since = ops.exp(ops.matmul(gates, floats(lower.T)))
    until = ops.exp(ops.matmul(gates, floats(below)))
    visible, through = lower, since[..., -1:]
    if document is not None:
        last = document[..., -1:]
        visible = ops.logical_and(lower, document[..., :, None] == document[..., None, :])
        since = since * ops.cast(document == arriving, since.dtype)
        until = until * ops.cast(document == last, until.dtype)
        through = through * ops.cast(last == arriving, through.dtype)
    return Decays(ops.where(visible, between, ops.zeros_like(between)), since, until, through)


def system(k, beta, between):
    """A of the equations (I + A) U = B of a chunk: A_ij = β_i Γ_ij (k_i·k_j) for j < i, else 0."""
    below = np.tri(k.shape[-2], k=-1, dtype=bool)
    products = beta[..., None] * ops.matmul(k, ops.swapaxes(k, -1, -2)) * between
    return ops.where(below, products, ops.zeros_like(products))


def inverse(a):
    """(I + A)⁻¹ of strictly lower triangular matrices [.., size, size], size a power of 2.

    The inverses of diagonal blocks make those of blocks twice as large: T ← T - T (A₂₁ T). A sum of
    powers of A is the same, and of no use: where keys are alike, powers grow as binomials do.
    """
    size = a.shape[-1]
    row, column = np.arange(size)[:, None], np.arange(size)
    t = ops.eye(size, dtype=a.dtype) + ops.zeros_like(a)
    block = 1
    while block < size:
        pairs = (row // block == column // block + 1) & (row // block % 2 == 1)
        a21 = ops.where(pairs, a, ops.zeros_like(a))
        t = t - (a21 if block == 1 else ops.matmul(t, ops.matmul(a21, t)))
        block *= 2
    return t


def written(state, chunk, decay, solve):
    """U, what the tokens of chunks write: floats [.., heads, chunk, value_dim].

    Args:
        state: floats [.., heads, dim, value_dim], before the chunk.
        chunk: a `Chunk`.
        decay: its `Decays`.
        solve: of B [.., heads, chunk, value_dim], the U of (I + A) U = B.
    """
    found = decay.since[..., None] * ops.matmul(chunk.k, state)
    return solve(chunk.beta[..., None] * (chunk.v - found))


def after(state, chunk, decay, new):
    """The state after a chunk whose tokens write `new`."""
    keys = ops.swapaxes(chunk.k * decay.until[..., None], -1, -2)
    return decay.through[..., None] * state + ops.matmul(keys, new)


def read(state, chunk, decay, new):
    """What the queries of chunks read: floats [.., heads, chunk, value_dim]."""
    seen = ops.matmul(chunk.q, ops.swapaxes(chunk.k, -1, -2)) * decay.between
    return decay.since[..., None] * ops.matmul(chunk.q, state) + ops.matmul(seen, new)
