"""Gates of linear attention: the logarithms of decays, of each token and head, checked."""

from keras import ops

from kzoo.errors import InputError
from kzoo.sequence import concrete

ACROSS = (
    "a decay counts the tokens between two of one sequence: of two sequences, or of queries that "
    "are fewer than the keys, log_decay is None, and nothing decays. Received: a log_decay of them"
)


def given(log_decay, q):
    """Gates as a function takes them, as a tensor [batch or 1, time, heads] of as many tokens as q.

    Args:
        log_decay: floats [batch or 1, time or 1, heads].
        q: a tensor [batch, time, heads, dim].

    Raises:
        InputError: for another shape.
    """
    gates = ops.convert_to_tensor(log_decay)
    batch, time, heads = q.shape[:3]
    allowed = ((1, batch), (1, time), (heads,))
    fits = len(gates.shape) == 3 and all(
        None in (size, *sizes) or size in sizes
        for size, sizes in zip(gates.shape, allowed, strict=True)
    )
    if not fits or "float" not in str(gates.dtype):
        raise InputError(
            "log_decay is of floats, of the shape [batch or 1, time or 1, heads] of q, "
            f"{[batch, time, heads]}. Received: {gates.dtype} of shape {list(gates.shape)}"
        )
    return gates + ops.zeros((1, ops.shape(q)[1], 1), gates.dtype)


def of_tokens(gates, q, queries, keys):
    """The gates in float32, or float64 where q is, exactly 0 at padding.

    Args:
        gates: floats [batch or 1, time, heads].
        q: floats [batch, time, heads, dim].
        queries, keys: their `SequenceInfo`, which must be one.

    Raises:
        InputError: for a positive gate, where the values are known, and for two sequences.
    """
    if queries is not keys:
        raise InputError(ACROSS)
    wide = "float64" if "float64" in str(q.dtype) else "float32"
    gates = ops.cast(gates, wide)
    if queries.segment is not None:
        gates = ops.where(queries.segment[:, :, None] != 0, gates, ops.zeros_like(gates))
    known = concrete(gates)
    if known is not None and (known > 0).any():
        raise InputError(
            f"a log_decay is at most 0, of a decay of at most 1. Received: {float(known.max())}"
        )
    return ops.maximum(gates, -1e9)  # of -inf, a decay of 0, a product with 0 is no number
