"""What all attention functions do first: check q, k and v, and make padding harmless."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from kzoo import masks, sequence
from kzoo.errors import InputError
from kzoo.ops.tensors import repeat_heads, zero_padding


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
    clean=True,
):
    """Check and clean q, k and v.

    Padded positions become exact zeros with `where`, before any product: what stands there
    may be NaN, and 0 · NaN is NaN.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`; the rest as in `Mask.dense`.
        clean: False leaves what stands at padding to the kernel.

    Returns:
        q, k, v, as tensors of the same shapes and dtypes; the mask; the `SequenceInfo` of queries
        and of keys.

    Raises:
        InputError: if shapes disagree.
    """
    q, k, v = (ops.convert_to_tensor(x) for x in (q, k, v))
    mask = masks.get(mask)
    check_shapes(q, k, v)
    by_token = {
        "padding_mask": padding_mask,
        "source_mask": source_mask,
        "key_padding_mask": key_padding_mask,
    }
    for name, x in by_token.items():
        check_batch(name, x, q.shape[0])

    # TensorFlow may not know the time: then they are one sequence, unless keys have their own mask.
    apart = not _equal(q.shape[1], k.shape[1]) or key_padding_mask is not None
    queries, keys = sequence.sequence_info(
        mask,
        ops.shape(q)[1],
        ops.shape(k)[1] if apart else None,
        query_offset=query_offset,
        **by_token,
    )
    if clean:
        q, k, v = cleaned(q, k, v, queries, keys)
    return q, k, v, mask, queries, keys


def cleaned(q, k, v, queries, keys):
    """q, k and v with exact zeros at padding."""
    return zero_padding(q, queries), zero_padding(k, keys), zero_padding(v, keys)


def wide(x):
    """The dtype that sums of a tensor are kept in: float64 where it is that, else float32."""
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"


def widened(q, k, v, dtype=None):
    """q, k and v in a dtype that sums are kept in, with k and v repeated to the heads of q.

    Args:
        dtype: of the result; by default that of `wide(q)`.
    """
    dtype = dtype or wide(q)
    q, k, v = (ops.cast(x, dtype) for x in (q, k, v))
    return q, repeat_heads(k, q.shape[2]), repeat_heads(v, q.shape[2])


def check_batch(name, x, batch):
    """Refuse a tensor `x` [batch or 1, ..] of another batch size; one of 1 serves all examples."""
    shape = () if x is None else tuple(np.shape(x))
    size = shape[0] if shape else None
    if not _equal(size, 1) and not _equal(size, batch):
        raise InputError(
            f"`{name}` has the batch size of q, {batch}, or 1, which serves all examples. "
            f"Received: shape {list(shape)}"
        )


def check_state(initial_state, q, features, value_dim, normalize=True, dtype=None):
    """The tensors of the state that `linear_attention` was given, of every example: Σ φ(k) vᵀ, and
    Σ φ(k), which is None where nothing is normalised. In a dtype, by default that of q."""
    heads = q.shape[2]
    shapes = {"kv_state": (heads, features, value_dim)}
    if normalize:
        shapes["k_sum"] = (heads, features)
    if not isinstance(initial_state, Mapping) or set(initial_state) != set(shapes):
        known = isinstance(initial_state, Mapping)
        received = sorted(initial_state) if known else type(initial_state).__name__
        raise InputError(
            f"an initial_state is a dict of {' and '.join(map(repr, shapes))}, as "
            f"return_state=True returns it. Received: {received}"
        )
    state = []
    for name, shape in shapes.items():
        x = ops.cast(ops.convert_to_tensor(initial_state[name]), dtype or q.dtype)
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
    return tuple(state) if normalize else (*state, None)


def nothing(q, k, v):
    """The output where there are no examples, no queries or no keys, of which no kernel knows:
    zeros [batch, query_time, heads, value_dim] in the dtype of v; else None.

    Raises:
        InputError: as `prepare`.
    """
    q, k, v = (ops.convert_to_tensor(x) for x in (q, k, v))
    check_shapes(q, k, v)
    if 0 not in (*q.shape[:2], k.shape[1]):
        return None
    return ops.zeros((*ops.shape(q)[:3], v.shape[3]), dtype=v.dtype)


def check_shapes(q, k, v):
    """`InputError` unless three tensors can be q, k and v."""
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


def _equal(a, b):
    return a is None or b is None or a == b
