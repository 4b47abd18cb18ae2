"""Splash attention, JAX's own Pallas kernel for TPU, for every order of `kzoo.masks`.

Splash takes a mask that is known when the program is traced, a function of the columns of the
query and of the key; and segments, integers of each token: a query sees keys of its own segment
only. Segments carry documents and padding. The orders become

    full             the full mask
    causal           key <= query
    time reversed    key >= query
    levels that ascend with time    key <= last[query], the last column that the query sees
    others           the same, once the tokens of each example stand in order of level

What a query of a group sees last differs from example to example. Splash compares the key's column
with a number that it keeps for each query (`q_sequence`), the query's own column unless it is
replaced: here by `last`. Which tiles of scores are skipped stays static: those beyond the order's
`lookahead` columns ahead, without one none.

Source: the softmax by tiles is Dao et al. 2022, arXiv:2205.14135.
"""

from functools import partial

import jax
import numpy as np
from jax import numpy as jnp

from kzoo.errors import InputError
from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.names import MODEL
from kzoo.ops.kernels.mesh import each_device, unsplittable_reason
from kzoo.ops.tensors import repeat_heads
from kzoo.sequence import SequenceInfo

NAME, MECHANISM = "splash", "softmax"
# Limits found by compiling forward and backward passes for a v5e.
LANES = 128  # splash works on whole registers
TILES = (512, 384, 256)  # sizes of a tile of scores where time does not fit into the largest
LARGEST_DIM = 1024  # at 2048 in float32 the vector memory overflows
SCALAR_BYTES = 2**20  # of scalar memory, for the tables of tiles


def preferred(spec):
    """Whether "auto" takes it: on TPUs."""
    return spec.platform == "tpu"


def unsupported_reason(spec) -> str | None:
    """Why splash cannot compute an attention, in words for its user, or None if it can.

    Static: looks at no tensor and at no device. Any time is legal (it is padded inside) up to
    some ten thousands; any head dimension up to 1024, and v may have another than q and k.

    Raises:
        InputError: if the mask does not tile the heads, as from every attention.
    """
    if spec.bias:
        return "splash adds no bias to the scores"
    if max(spec.dim, spec.value_dim) > LARGEST_DIM:
        return (
            f"splash takes heads of at most {LARGEST_DIM} dimensions, not {spec.dim}, "
            f"{spec.value_dim}"
        )
    orders = spec.mask.per_head(spec.num_heads)
    other = no_order(orders)
    if other is not None:
        return f"splash {ORDERS_ONLY}: {other!r}"
    for order in orders:
        if not spec.same_sequence and not order.is_full:
            return (
                f"splash follows the order {order!r} inside one whole sequence only; here "
                "queries and keys are two sequences, or the queries begin later"
            )
    tables = _table_bytes(orders, _tiles(spec.query_time), _tiles(spec.key_time))
    if tables > SCALAR_BYTES:
        return (
            f"splash has {SCALAR_BYTES} bytes for its tables of tiles; {spec.num_heads} heads of "
            f"{spec.query_time} queries and {spec.key_time} keys need {tables}"
        )
    return None


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ) v over the visible keys, as `kzoo.ops.kernels.dense.run`.

    Scores and statistics are in float32; float32 q, k and v are multiplied in float32, bfloat16
    ones as they are. Heads of keys and values are not repeated, but where heads of queries with
    other orders share them, or devices. Memory is linear in time, forward and backward. Under a
    mesh the batch is split over its axis "data" and the heads over "model". Elsewhere than on a
    TPU the kernel is interpreted: run as ordinary operations, slowly.

    Raises:
        InputError: if the mesh cannot split the batch and the heads.
    """
    dtype = "bfloat16" if spec.dtype == "bfloat16" else "float32"
    q = (q.astype("float32") * scale).astype(dtype)
    k, v = k.astype(dtype), v.astype(dtype)
    mask, mesh = spec.mask, spec.mesh
    batch, _, num_heads, _ = q.shape
    sequence = (queries.segment, keys.segment, keys.document, keys.position, keys.in_source)
    sequence = [None if x is None else jnp.broadcast_to(x, (batch, x.shape[1])) for x in sequence]
    attend = partial(_attend, mask=mask, interpret=spec.platform != "tpu")
    if mesh is not None:
        reason = unsplittable_reason(mask, batch=batch, num_heads=num_heads, mesh=mesh)
        if reason:
            raise InputError(f"{reason}. Received: a mesh of {dict(mesh.shape)}")
        if k.shape[2] % mesh.shape.get(MODEL, 1):
            k, v = (repeat_heads(x, num_heads) for x in (k, v))
        out = each_device(attend, mesh, q, k, v, sequence)
    else:
        out = attend(q, k, v, sequence)
    if queries.segment is None:
        return out
    # In splash padding sees padding, and a query without keys gets the mean of all values.
    sees = sequence[0] != 0
    if queries is not keys:
        sees = sees & jax.vmap(jnp.isin)(sequence[0], sequence[1])
    return jnp.where(sees[:, :, None, None], out, jnp.zeros_like(out))


def _attend(q, k, v, sequence, weights=None, *, mask, interpret):
    """`run` on one device: one kernel for the heads that can share it, one for each other."""
    groups = {}
    for head, order in enumerate(mask.per_head(q.shape[2])):
        groups.setdefault(None if _is_static(order) else order, []).append((head, order))
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    parts, positions = [], []
    for group in groups.values():
        heads, orders = zip(*group, strict=True)
        own = q, k, v
        if len(groups) > 1:
            own = (x[:, np.array(heads) // (q.shape[1] // x.shape[1])] for x in own)
        parts.append(_together(*own, sequence, orders, interpret))
        positions.extend(heads)
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)[:, np.argsort(positions)]
    return jnp.swapaxes(out, 1, 2)


def _is_static(order):
    """Whether what an order shows is known when the program is traced, up to documents."""
    return order.is_full or order.is_causal or order.time_reversed


def _together(q, k, v, sequence, orders, interpret):
    """Heads of one kernel: q, k, v [batch, heads, time, dim], sequence [batch, time], orders."""
    query_segment, key_segment, document, position, in_source = sequence
    order = orders[0]
    if _is_static(order):
        windows = [_window(order) for order in orders]
        return _call(q, k, v, (query_segment, key_segment), windows, interpret)
    level = order.levels(SequenceInfo(position, in_source=in_source))
    # Padding inside a document would stretch how far ahead a token sees: it goes to the front.
    ahead, permutation = order.lookahead, None
    if not order.ascending or (ahead is not None and key_segment is not None):
        labels = (level,) if key_segment is None else (level, key_segment)
        permutation = jnp.lexsort(labels, axis=1)
        labels = [jnp.take_along_axis(x, permutation, axis=1) for x in labels]
        level, document = labels[0], labels[1] if len(labels) > 1 else None
        key_segment = document
        q, k, v = (_reorder(x, permutation) for x in (q, k, v))
    segments = (key_segment, key_segment)
    if order.grouped:
        ahead = position.shape[1] if ahead is None else min(ahead, position.shape[1])
        last = _last(level, document)
    else:
        ahead, last = 0, None
    out = _call(q, k, v, segments, [(None, ahead)] * len(orders), interpret, last)
    return out if permutation is None else _reorder(out, jnp.argsort(permutation, axis=1))


def _call(q, k, v, segments, windows, interpret, last=None):
    """Of each head what its window shows; with `last` the keys up to that column.

    Args:
        q, k, v: [batch, heads, time, dim].
        segments: integers [batch, time] of queries and of keys, or None and None.
        windows: for each head, from how many columns before a query to how many behind it keys
            are seen; None for all on that side. None for all keys.
        last: integers [batch, time], no more than the window's end, or None.
    """
    from kzoo.ops.kernels import splash_pallas  # Pallas takes a while to import

    query_time, key_time = q.shape[2], k.shape[2]
    whole = segments[0] is None
    if whole:
        segments = [jnp.ones((q.shape[0], time), "int32") for time in (query_time, key_time)]
    segments = [_pad(x, axis=1) for x in segments]
    q, k, v = (_pad(x, axis=2) for x in (q, k, v))
    if whole and (q.shape[2], k.shape[2]) == (query_time, key_time):
        segments = None
    last = None if last is None else _pad(last, axis=1)
    times = q.shape[2], k.shape[2]
    kernel = splash_pallas.kernel(windows, times, [_tile(time) for time in times], interpret)
    return splash_pallas.run(windows[0], kernel, q, k, v, segments, last)[:, :, :query_time]


def _last(level, document):
    """Of tokens sorted by level, the last column of each one's group: integers [batch, time]."""
    time = level.shape[1]
    ends = level[:, 1:] != level[:, :-1]
    if document is not None:
        ends |= document[:, 1:] != document[:, :-1]
    column = jnp.arange(time, dtype="int32")
    ends = jnp.pad(ends, [(0, 0), (0, 1)], constant_values=True)
    return jax.lax.cummin(jnp.where(ends, column, time), axis=1, reverse=True)


def _window(order):
    """The window of a static order, as `_call` takes it."""
    if order.is_full:
        return None
    return (None, 0) if order.is_causal else (0, None)


def _tile(time):
    """The size of a tile: all of a short time, else what leaves the least padding."""
    if time <= TILES[0]:
        return time + -time % LANES
    return min(TILES, key=lambda tile: -time % tile)


def _tiles(time):
    return -(-time // _tile(time))


def _table_bytes(orders, query_tiles, key_tiles):
    """At most what splash's tables take: the next tile, how full it is, where its mask is."""
    shared = [order for order in orders if _is_static(order)]
    heads = len(shared) if len(set(map(_window, shared))) > 1 else 1
    entries = heads * (query_tiles + -query_tiles % 8) * (key_tiles + -key_tiles % LANES)
    return entries * (3 if max(query_tiles, key_tiles) <= LANES else 5)


def _pad(x, axis):
    """`x` with zeros behind it along time, to whole tiles."""
    time = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -time % _tile(time))
    return jnp.pad(x, widths)


def _reorder(x, permutation):
    """`x` [batch, heads, time, dim] with the time of each example in the order [batch, time]."""

    def take(example, permutation):
        # That no column comes twice spares the gradient a sum.
        return example.at[:, permutation].get(unique_indices=True, mode="promise_in_bounds")

    return jax.vmap(take)(x, permutation)
