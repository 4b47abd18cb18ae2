"""Decays inside a chunk and across its ends: the exponential of sums of gates between two tokens.

The gates between a key and a query are the query's and those of all tokens between the two, not
the key's, in whichever direction: over (j, i] where the key j stands before the query i, over
[i, j) where it stands behind. Each is a sum of its own, a product with zeros and ones: a difference
of two cumulative sums would lose what is small beside what stands before it.
"""

import numpy as np
from keras import ops


def within(gates, *, reverse=False, both=False):
    """From each key of a chunk to each query: [.., chunk, chunk], queries first.

    Args:
        gates: floats [.., chunk], at most 0.
        reverse: the keys that count stand behind their queries, and not before.
        both: they stand on both sides. Where no key counts, the decay is 1.
    """
    t = np.arange(gates.shape[-1])
    query, key, token = t[:, None, None], t[None, :, None], t[None, None, :]
    before = (key < token) & (token <= query)
    behind = (query <= token) & (token < key)
    table = before | behind if both else behind if reverse else before
    decays = _exp_of_sums(gates, table.reshape(-1, len(t)).T)
    return ops.reshape(decays, (*ops.shape(gates), len(t)))


def arriving(gates, *, reverse=False):
    """From what stands before a chunk (behind it if `reverse`) to each of its queries."""
    t = np.arange(gates.shape[-1])
    return _exp_of_sums(gates, t[:, None] >= t if reverse else t[:, None] <= t)


def leaving(gates, *, reverse=False):
    """From each key of a chunk to its end (to its beginning if `reverse`)."""
    t = np.arange(gates.shape[-1])
    return _exp_of_sums(gates, t[:, None] < t if reverse else t[:, None] > t)


def across(gates):
    """Through a whole chunk: [.., 1]."""
    return _exp_of_sums(gates, np.ones((gates.shape[-1], 1)))


def between(gates):
    """From each token of a whole sequence to each other one, dense: [.., time, time], queries
    first; memory and products grow as for a matrix of weights."""
    clock = ops.arange(ops.shape(gates)[-1])

    def before(gates):
        own = ops.where(
            clock[:, None] > clock, gates[..., :, None], ops.zeros_like(gates[..., :1, None])
        )
        return ops.matmul(ops.cast(clock[:, None] >= clock, gates.dtype), own)

    behind = ops.flip(before(ops.flip(gates, axis=-1)), axis=(-2, -1))
    return ops.exp(ops.where(clock[:, None] > clock, before(gates), behind))


def _exp_of_sums(gates, table):
    """The exponential of gates [.., chunk] times zeros and ones [chunk, sums]: [.., sums]."""
    return ops.exp(ops.matmul(gates, ops.convert_to_tensor(table.astype("float32"), gates.dtype)))
