"""What all attention functions do first: check the operands and make padding harmless."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from kzoo import masks, sequence
from kzoo.errors import InputError


def prepare(
    q,
    k,
    v,
    mask,
    *,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
    query_offset=0,
    dtype=None,
):
    """Check and clean the operands of an attention.

    Padded positions become exact zeros with `where`, before any product: what stands there
    may be NaN, and 0 · NaN is NaN. Keys and values are repeated to the number of heads.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`; the rest as in `Mask.dense`.
        dtype: of the computation; by default float32, or float64 where q is float64.

    Returns:
        q, k, v in `dtype` with equal numbers of heads; the mask; the `SequenceInfo` of queries and
        of keys.

    Raises:
        InputError: if shapes disagree.
    """
    q, k, v = (ops.convert_to_tensor(x) for x in (q, k, v))
    mask = masks.get(mask)
    _check_shapes(q, k, v)
    rows = {
        "padding_mask": padding_mask,
        "source_mask": source_mask,
        "key_padding_mask": key_padding_mask,
    }
    for name, x in rows.items():
        check_batch(name, x, q.shape[0])

    # TensorFlow may not know the time; then queries and keys of no other place are one sequence.
    apart = not _equal(q.shape[1], k.shape[1]) or key_padding_mask is not None
    queries, keys = sequence.sequence_info(
        mask,
        ops.shape(q)[1],
        ops.shape(k)[1] if apart else None,
        query_offset=query_offset,
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
    )
    if dtype is None:
        dtype = "float64" if keras.backend.standardize_dtype(q.dtype) == "float64" else "float32"
    repeats = q.shape[2] // k.shape[2]
    q = zero_padding(ops.cast(q, dtype), queries)
    k, v = (zero_padding(ops.cast(x, dtype), keys) for x in (k, v))
    if repeats > 1:
        k, v = (ops.repeat(x, repeats, axis=2) for x in (k, v))
    return q, k, v, mask, queries, keys


def check_batch(name, x, batch):
    """Refuse a tensor `x` [batch or 1, ..] of another batch size; one of 1 serves all examples."""
    shape = () if x is None else tuple(np.shape(x))
    size = shape[0] if shape else None
    if not _equal(size, 1) and not _equal(size, batch):
        raise InputError(
            f"`{name}` has the batch size of q, {batch}, or 1, which serves all examples. "
            f"Received: shape {list(shape)}"
        )


def check_state(initial_state, q, features, value_dim):
    """The matrix and the normaliser that `linear_attention` was given, of every example."""
    heads = q.shape[2]
    shapes = {"matrix": (heads, features, value_dim), "normaliser": (heads, features)}
    if not isinstance(initial_state, Mapping) or set(initial_state) != set(shapes):
        known = isinstance(initial_state, Mapping)
        received = sorted(initial_state) if known else type(initial_state).__name__
        raise InputError(
            "an initial_state is a dict of 'matrix' and 'normaliser', as return_state=True "
            f"returns it. Received: {received}"
        )
    state = []
    for name, shape in shapes.items():
        x = ops.cast(ops.convert_to_tensor(initial_state[name]), q.dtype)
        if tuple(x.shape[1:]) != shape:
            raise InputError(
                f"the {name} of an initial_state has the shape [batch or 1, "
                f"{', '.join(map(str, shape))}]: heads, features and value_dim are those of q and "
                f"v. Received: shape {list(x.shape)}"
            )
        check_batch(f"initial_state['{name}']", x, q.shape[0])
        if x.shape[0] != q.shape[0]:  # one serves all, as of a prompt that many go on from
            x = ops.broadcast_to(x, (ops.shape(q)[0], *shape))
        state.append(x)
    return tuple(state)


def nothing(q, k, v):
    """The output where there are no examples, no queries or no keys, of which no kernel knows:
    zeros [batch, query_time, heads, value_dim] in the dtype of v; else None.

    Raises:
        InputError: as `prepare`.
    """
    q, k, v = (ops.convert_to_tensor(x) for x in (q, k, v))
    _check_shapes(q, k, v)
    if 0 not in (*q.shape[:2], k.shape[1]):
        return None
    return ops.zeros((*ops.shape(q)[:3], v.shape[3]), dtype=v.dtype)


def _check_shapes(q, k, v):
    shapes = {name: list(x.shape) for name, x in zip("qkv", (q, k, v), strict=True)}
    if any(len(shape) != 4 for shape in shapes.values()):
        raise InputError(f"q, k and v have the shape [batch, time, heads, dim]. Received: {shapes}")
    if any(size == 0 for shape in shapes.values() for size in shape[2:]):
        raise InputError(f"q, k and v have heads, and heads have entries. Received: {shapes}")
    if not _equal(k.shape[1], v.shape[1]) or k.shape[2] != v.shape[2]:
        raise InputError(f"k and v have the same times and heads. Received: {shapes}")
    if q.shape[3] != k.shape[3]:
        raise InputError(f"q and k have the same last dimension. Received: {shapes}")
    if not _equal(q.shape[0], k.shape[0]) or not _equal(k.shape[0], v.shape[0]):
        raise InputError(f"q, k and v have the same batch size. Received: {shapes}")
    if q.shape[2] % k.shape[2]:
        raise InputError(f"the heads of q are a multiple of those of k. Received: {shapes}")


def zero_padding(x, sequence):
    """`x` [batch, time, heads, dim] with exact zeros where `sequence` has padding."""
    if sequence.segment is None:
        return x
    return ops.where(sequence.segment[:, :, None, None] != 0, x, ops.zeros_like(x))


def take_heads(x, index, axis=2):
    """The heads `index`, a list of integers, along `axis`.

    In slices with steps, as few as there are: the gradient of `take` is a scatter, and slow.
    """
    before = (slice(None),) * axis
    parts = [x[(*before, part)] for part in _steps(index)]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=axis)


def _steps(index):
    """Integers as slices, each as long as equal steps forward go."""
    parts, start = [], 0
    while start < len(index):
        end = start + 1
        step = max(1, index[end] - index[start]) if end < len(index) else 1
        while end < len(index) and index[end] - index[end - 1] == step:
            end += 1
        parts.append(slice(index[start], index[end - 1] + 1, step))
        start = end
    return parts


def ratio(numerator, normaliser):
    """numerator / normaliser, exactly 0 with finite derivatives where the normaliser is 0."""
    positive = normaliser > 0
    normaliser = ops.where(positive, normaliser, ops.ones_like(normaliser))
    if keras.backend.backend() == "jax":
        from kzoo.ops.kernels.derivatives import quotient
    else:
        quotient = ops.divide
    out = quotient(numerator, normaliser)
    return ops.where(positive, out, ops.zeros_like(out))


def _equal(a, b):
    return a is None or b is None or a == b
