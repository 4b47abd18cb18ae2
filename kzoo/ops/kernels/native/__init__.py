"""Attention in C++ for JAX on a CPU, where XLA gives small products to one core.

Softmax in blocks and linear attention in chunks, each forward and backward one call that shares
out heads over XLA's threads. Operands stay [batch, time, heads, dim]. Memory beside the results is
that of a few blocks for each thread. Derivatives other than the gradient, as forward mode and the
gradient of a gradient, come from dense forms in JAX's operations: memory quadratic in time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kzoo.masks import Order
from kzoo.ops.choice import compiled_for
from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.ops.kernels.mesh import current_mesh
from kzoo.ops.kernels.native.library import missing
from kzoo.ops.operands import ratio
from kzoo.ops.reference import masked_softmax

MULTIPLE = 16  # of columns, whatever vectors the CPU has: `kMultiple` in tile.h
# `kMost...` in checks.h
MOST_FEATURES = 256  # features of all time are held
MOST_DIM = 2**14
MOST_CHUNK = 1024


def refuses(shape) -> str | None:
    """Why the C++ cannot compute an attention, in words for its user, or None if it can.

    Args:
        shape: a `kzoo.ops.choice.Shape`.
    """
    if shape.bias:
        return "the native kernel adds no bias to the scores; use 'dense'"
    if shape.dtype == "float64":
        return "the native kernel computes in float32, not in float64"
    sizes = {"dim": shape.dim, "value_dim": shape.value_dim}
    if shape.features is not None:
        sizes = {"features": shape.features, "value_dim": shape.value_dim}
        if shape.features > MOST_FEATURES:
            return f"the native kernel takes at most {MOST_FEATURES} features: {shape.features}"
    if any(size % MULTIPLE or size == 0 for size in sizes.values()):
        return f"the native kernel takes heads of multiples of {MULTIPLE}: {sizes}"
    if max(sizes.values()) > MOST_DIM:
        return f"the native kernel takes heads of at most {MOST_DIM}: {sizes}"
    for order in shape.mask.per_head(shape.num_heads):
        if not isinstance(order, Order):
            return f"the native kernel follows orders, neither custom masks nor &: {order!r}"
    if compiled_for()[0] is not None:
        return "the native kernel is this machine's; the program is for another"
    if current_mesh() is not None:
        return "the native kernel runs on one device, not on a mesh of several"
    return missing()


# Softmax ------------------------------------------------------------------------------------


def softmax(q, k, v, mask, queries, keys):
    """softmax(q kᵀ) v over the visible keys.

    Args:
        q: float32 [batch, query_time, heads, dim], scaled.
        k: float32 [batch, key_time, heads, dim].
        v: float32 [batch, key_time, heads, value_dim].
        mask: a `Mask` whose heads are orders.
        queries, keys: their `SequenceInfo`.

    Returns:
        Float32 [batch, query_time, heads, value_dim]; 0 for queries that see no key.
    """
    heads = mask.per_head(q.shape[2])
    return _softmax(None, (q, k, v), (*_labels(heads, queries), *_labels(heads, keys)))


def _labels(heads, sequence):
    """Integers [batch or 1, heads or 1, time]: the level, and the document, 0 for padding."""
    levels = {order: order.levels(sequence) for order in dict.fromkeys(heads)}
    level = jnp.stack(jnp.broadcast_arrays(*levels.values()), axis=1)
    if len(levels) > 1:
        level = level[:, np.array([list(levels).index(order) for order in heads])]
    segment = jnp.ones_like(sequence.position) if sequence.segment is None else sequence.segment
    return level, segment[:, None].astype("int32")


def _softmax_forward(_, floats, labels):
    q, k, v = floats
    out = _floats(*q.shape[:3], v.shape[3])
    log_total = _floats(q.shape[0], q.shape[2], q.shape[1])
    out, log_total = _call("kzoo_softmax_forward", (out, log_total), q, k, v, *labels)
    return out, (out, log_total)


def _softmax_backward(_, floats, labels, saved, slope):
    shapes = [_floats(*x.shape) for x in floats]
    return tuple(_call("kzoo_softmax_backward", shapes, *floats, *labels, *saved, slope))


def _softmax_plain(_, floats, labels):
    q, k, v = floats
    level, segment, key_level, key_segment = labels
    visible = key_level[..., None, :] <= level[..., :, None]
    visible &= key_segment[..., None, :] == segment[..., :, None]
    visible &= key_segment[..., None, :] != 0
    weights = masked_softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), visible)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


_softmax = by_hand(
    lambda *arrays: _softmax_forward(*arrays)[0],
    _softmax_forward,
    _softmax_backward,
    _softmax_plain,
)


# Linear -------------------------------------------------------------------------------------


def linear(features, q, k, v, weights, tokens, initial_state, *, chunk_size, reverse=False):
    """`kzoo.ops.kernels.chunked.chunked`, but features of all time are held.

    Here `reverse` may differ by head, booleans [heads], and a level need not ascend: it matters
    only which neighbours share it.
    """
    q, k, *norms = features(q, k, weights, tokens.turns, tokens.shown)
    norms = [x for x in norms if x is not None]
    batch, time, heads, size = q.shape
    document, level = tokens.document, tokens.level
    document = jnp.zeros((1, 1, time), "int32") if document is None else document
    level = jnp.arange(time, dtype="int32")[None, None] if level is None else level
    if initial_state is None:
        shapes = (batch, heads, size, v.shape[3]), (batch, heads, size)
        initial_state = tuple(jnp.zeros(shape, q.dtype) for shape in shapes)
    labels = document.astype("int32"), level.astype("int32")
    chunk = max(1, min(chunk_size, time, MOST_CHUNK))  # any size gives the same result
    static = chunk, tuple(np.broadcast_to(reverse, heads).tolist())
    return _linear(static, ((q, k, v, *norms), initial_state), labels)


def _linear_forward(static, floats, labels):
    (q, k, v, *norms), state = floats
    batch, time, heads, _ = q.shape
    shapes = [_floats(*v.shape), _floats(batch, heads, time), *(_floats(*x.shape) for x in state)]
    arrays = (q, k, v, *labels, *state, *norms)
    out, normaliser, *after = _call("kzoo_linear_forward", shapes, *arrays, **_fields(static))
    return (out, tuple(after)), (out, normaliser)


def _linear_backward(static, floats, labels, saved, slopes):
    (q, k, v, *norms), state = floats
    slope, after = slopes
    shapes = [_floats(*x.shape) for x in (q, k, v, *state, *norms)]
    arrays = (q, k, v, *labels, *state, *saved, slope, *after, *norms)
    results = _call("kzoo_linear_backward", shapes, *arrays, **_fields(static))
    dq, dk, dv, matrix, vector, *dnorms = results
    return (dq, dk, dv, *dnorms), (matrix, vector)


def _linear_plain(static, floats, labels):
    (q, k, v, *norms), (matrix, vector) = floats
    q_norm, k_norm = norms or (q, k)
    document, level = labels
    # Runs along time: of one document, and of one level in it, the groups that see each other.
    document, group = _runs(document), _runs(document, level)
    turn = np.where(static[1], -1, 1)[:, None].astype("int32")
    document, group = document * turn, group * turn  # time in the order of level
    visible = document[..., None, :] == document[..., :, None]
    visible &= group[..., None, :] <= group[..., :, None]

    def sums(q, k, visible):
        return jnp.where(visible, jnp.einsum("bqhd,bkhd->bhqk", q, k), 0)

    begun = document == document.min(-1, keepdims=True)  # what sees the state before
    ended = document == document.max(-1, keepdims=True)  # whose keys make the one after

    def of(x, tokens):  # [batch, time, heads, features] of these tokens, else 0
        return jnp.where(jnp.swapaxes(tokens, 1, 2)[..., None], x, 0)

    numerator = jnp.einsum("bhqk,bkhe->bqhe", sums(q, k, visible), v)
    numerator += jnp.einsum("bqhd,bhde->bqhe", of(q, begun), matrix)
    normaliser = jnp.swapaxes(sums(q_norm, k_norm, visible).sum(-1), 1, 2)
    normaliser += jnp.einsum("bqhd,bhd->bqh", of(q_norm, begun), vector)
    out = ratio(numerator, normaliser[..., None])
    goes_on = (begun & ended).all(-1)
    matrix = jnp.where(goes_on[..., None, None], matrix, 0)
    vector = jnp.where(goes_on[..., None], vector, 0)
    matrix += jnp.einsum("bkhd,bkhe->bhde", of(k, ended), v)
    return out, (matrix, vector + of(k_norm, ended).sum(1))


def _runs(*labels):
    """Counts, along time, of the runs of equal labels: [batch or 1, heads or 1, time]."""
    changes = [label[..., 1:] != label[..., :-1] for label in labels]
    change = functools.reduce(jnp.logical_or, changes)
    return jnp.pad(jnp.cumsum(change, axis=-1, dtype="int32"), [(0, 0), (0, 0), (1, 0)])


_linear = by_hand(
    lambda *arrays: _linear_forward(*arrays)[0], _linear_forward, _linear_backward, _linear_plain
)


def _fields(static):
    chunk, reverse = static
    return {"chunk": np.int64(chunk), "reverse": np.array(reverse, "int32")}


def _call(name, shapes, *arrays, **static):
    results = jax.ffi.ffi_call(name, tuple(shapes), vmap_method="sequential")(*arrays, **static)
    return varying(results, arrays)


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
