"""Attention in C++ for JAX on a CPU, where XLA gives small products to one core.

Softmax in blocks and linear attention in chunks, each forward and backward one call that shares
out heads over XLA's threads. Operands stay [batch, time, heads, dim]. Memory beside the results is
that of a few blocks for each thread.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kzoo.masks import Order
from kzoo.ops.choice import compiled_for
from kzoo.ops.kernels.mesh import current_mesh
from kzoo.ops.kernels.native.library import missing

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
        queries, keys: their `Places`.

    Returns:
        Float32 [batch, query_time, heads, value_dim]; 0 for queries that see no key.
    """
    heads = mask.per_head(q.shape[2])
    return _softmax(q, k, v, (*_labels(heads, queries), *_labels(heads, keys)))


def _labels(heads, places):
    """Integers [batch or 1, heads or 1, time]: the level, and the document, 0 for padding."""
    levels = {order: order.levels(places) for order in dict.fromkeys(heads)}
    level = jnp.stack(jnp.broadcast_arrays(*levels.values()), axis=1)
    if len(levels) > 1:
        level = level[:, np.array([list(levels).index(order) for order in heads])]
    segment = jnp.ones_like(places.position) if places.segment is None else places.segment
    return level, segment[:, None].astype("int32")


@jax.custom_vjp
def _softmax(q, k, v, labels):
    return _softmax_forward(q, k, v, labels)[0]


def _softmax_forward(q, k, v, labels):
    out = _floats(*q.shape[:3], v.shape[3])
    log_total = _floats(q.shape[0], q.shape[2], q.shape[1])
    out, log_total = _call("kzoo_softmax_forward", (out, log_total), q, k, v, *labels)
    return out, (q, k, v, labels, out, log_total)


def _softmax_backward(saved, slope):
    q, k, v, labels, out, log_total = saved
    shapes = [_floats(*x.shape) for x in (q, k, v)]
    operands = (q, k, v, *labels, out, log_total, slope)
    return *_call("kzoo_softmax_backward", shapes, *operands), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


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
    return _linear(static, (q, k, v, *norms), labels, initial_state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(static, operands, labels, state):
    return _linear_forward(static, operands, labels, state)[0]


def _linear_forward(static, operands, labels, state):
    q, k, v, *norms = operands
    batch, time, heads, _ = q.shape
    shapes = [_floats(*v.shape), _floats(batch, heads, time), *(_floats(*x.shape) for x in state)]
    arrays = (q, k, v, *labels, *state, *norms)
    out, normaliser, *after = _call("kzoo_linear_forward", shapes, *arrays, **_fields(static))
    return (out, tuple(after)), (operands, labels, state, out, normaliser)


def _linear_backward(static, saved, slopes):
    (q, k, v, *norms), labels, state, out, normaliser = saved
    slope, after = slopes
    shapes = [_floats(*x.shape) for x in (q, k, v, *state, *norms)]
    arrays = (q, k, v, *labels, *state, out, normaliser, slope, *after, *norms)
    results = _call("kzoo_linear_backward", shapes, *arrays, **_fields(static))
    dq, dk, dv, matrix, vector, *dnorms = results
    return (dq, dk, dv, *dnorms), None, (matrix, vector)


_linear.defvjp(_linear_forward, _linear_backward)


def _fields(static):
    chunk, reverse = static
    return {"chunk": np.int64(chunk), "reverse": np.array(reverse, "int32")}


def _call(name, shapes, *operands, **static):
    return jax.ffi.ffi_call(name, tuple(shapes), vmap_method="sequential")(*operands, **static)


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
