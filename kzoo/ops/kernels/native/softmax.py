"""Softmax attention in C++, in blocks."""

import jax.numpy as jnp
import numpy as np

from kzoo.ops.kernels.derivatives import by_hand
from kzoo.ops.kernels.native import calls
from kzoo.ops.kernels.native.calls import call, float32
from kzoo.ops.tensors import masked_softmax, repeat_heads

NAME, MECHANISM = "native", "softmax"


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    return calls.unsupported_reason(spec, dim=spec.dim, value_dim=spec.value_dim)


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ) v over the visible keys, as `kzoo.ops.kernels.dense.run`."""
    q, k, v = (x.astype("float32") for x in (q, k, v))
    k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
    heads = spec.mask.per_head(q.shape[2])
    return _attend(None, (q * scale, k, v), (*_labels(heads, queries), *_labels(heads, keys)))


def _labels(heads, sequence):
    """Integers [batch or 1, heads or 1, time]: the level, and the document, 0 for padding."""
    levels = {order: order.levels(sequence) for order in dict.fromkeys(heads)}
    level = jnp.stack(jnp.broadcast_arrays(*levels.values()), axis=1)
    if len(levels) > 1:
        level = level[:, np.array([list(levels).index(order) for order in heads])]
    segment = jnp.ones_like(sequence.position) if sequence.segment is None else sequence.segment
    return level, segment[:, None].astype("int32")


def _forward(_, floats, labels):
    q, k, v = floats
    out = float32(*q.shape[:3], v.shape[3])
    log_total = float32(q.shape[0], q.shape[2], q.shape[1])
    out, log_total = call("kzoo_softmax_forward", (out, log_total), q, k, v, *labels)
    return out, (out, log_total)


def _backward(_, floats, labels, saved, slope):
    shapes = [float32(*x.shape) for x in floats]
    return tuple(call("kzoo_softmax_backward", shapes, *floats, *labels, *saved, slope))


def _plain(_, floats, labels):
    q, k, v = floats
    level, segment, key_level, key_segment = labels
    visible = key_level[..., None, :] <= level[..., :, None]
    visible &= key_segment[..., None, :] == segment[..., :, None]
    visible &= key_segment[..., None, :] != 0
    weights = masked_softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), visible)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


_attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward, _plain)
