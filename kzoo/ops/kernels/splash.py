"""Splash attention, JAX's own Pallas kernel for TPU, for every order of `kzoo.masks`.

Splash takes a mask that is known when the program is traced, a function of the rows of the query
and of the key; and segments, integers of each row: a query sees keys of its own segment only.
Segments carry documents and padding. The orders become

    full             the full mask
    causal           key <= query
    time reversed    key >= query
    levels that ascend with time    key <= last[query], the last row that the query sees
    others           the same, once the rows of each example stand in order of level

What a query of a group sees last differs from example to example. Splash compares the key's row
with a number that it keeps for each query (`q_sequence`), the query's own row unless it is
replaced: here by `last`. Which tiles of scores are skipped stays static: those beyond the order's
`lookahead` rows ahead, without one none.

Source: the softmax by tiles is Dao et al. 2022, arXiv:2205.14135.
"""

from functools import partial

import jax
import numpy as np
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as tile_masks

from kzoo.errors import InputError
from kzoo.masks import Order
from kzoo.ops.kernels.mesh import current_mesh, each_device, refuses_mesh
from kzoo.precision import float32_products
from kzoo.sequence import SequenceInfo

# Limits found by compiling forward and backward passes for a v5e.
LANES = 128  # splash works on whole registers
TILES = (512, 384, 256)  # sizes of a tile of scores where time does not fit into the largest
LARGEST_DIM = 1024  # at 2048 in float32 the vector memory overflows
SCALAR_BYTES = 2**20  # of scalar memory, for the tables of tiles


def refuses(
    mask, *, query_time, key_time, num_heads, dim, value_dim, bias, same_sequence, padded
) -> str | None:
    """Why splash cannot compute an attention, in words for its user, or None if it can.

    Static: looks at no tensor and at no device. Any time is legal (it is padded inside) up to
    some ten thousands; any head dimension up to 1024, and v may have another than q and k.

    Args:
        mask: a `Mask`.
        query_time, key_time, num_heads, dim, value_dim: sizes of q, k and v.
        bias: whether a bias is added to the scores.
        same_sequence: whether queries and keys are one sequence and the first query its first.
        padded: whether there is a padding mask, which splash always takes.

    Raises:
        InputError: if the mask does not tile the heads, as from every attention.
    """
    if bias:
        return "splash adds no bias to the scores"
    if max(dim, value_dim) > LARGEST_DIM:
        return f"splash takes heads of at most {LARGEST_DIM} dimensions, not {dim}, {value_dim}"
    orders = mask.per_head(num_heads)
    for order in orders:
        if not isinstance(order, Order):
            return f"splash follows orders, neither custom masks nor masks by &: {order!r}"
        if not same_sequence and not order.is_full:
            return (
                f"splash follows the order {order.name!r} inside one whole sequence only; here "
                "queries and keys are two sequences, or the queries begin later"
            )
    tables = _table_bytes(orders, _tiles(query_time), _tiles(key_time))
    if tables > SCALAR_BYTES:
        return (
            f"splash has {SCALAR_BYTES} bytes for its tables of tiles; {num_heads} heads of "
            f"{query_time} queries and {key_time} keys need {tables}"
        )
    return None


def splash(q, k, v, mask, queries, keys, *, interpret=False):
    """softmax(q kᵀ) v over the visible keys, for what `refuses` does not refuse.

    Scores and statistics are in float32, and float32 operands are multiplied in float32. Memory is
    linear in time, forward and backward. Under a `current_mesh` the batch is split over its axis
    "data" and the heads over "model".

    Args:
        q: float32 or bfloat16 [batch, query_time, heads, dim], times the scale, padding zero.
        k: the same dtype [batch, key_time, heads, dim], padding zero.
        v: the same dtype [batch, key_time, heads, value_dim], padding zero.
        mask: a `Mask`.
        queries, keys: `SequenceInfo` of both.
        interpret: run the kernel as ordinary operations, on any platform, slowly.

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries that
        see no key, give exactly 0, with finite gradients.

    Raises:
        InputError: if the mesh cannot split the batch and the heads.

    Example:
        >>> q, k, v, mask, queries, keys = prepare(q, k, v, "causal", padding_mask=padding_mask)
        >>> out = splash(q * 64**-0.5, k, v, mask, queries, keys)
    """
    batch, _, num_heads, _ = q.shape
    rows = (queries.segment, keys.segment, keys.document, keys.position, keys.in_source)
    rows = [None if x is None else jnp.broadcast_to(x, (batch, x.shape[1])) for x in rows]
    attend = partial(_attend, mask=mask, interpret=interpret)
    mesh = current_mesh()
    if mesh is not None:
        reason = refuses_mesh(mask, batch=batch, num_heads=num_heads, mesh=mesh)
        if reason:
            raise InputError(f"{reason}. Received: a mesh of {dict(mesh.shape)}")
        out = each_device(attend, mesh, q, k, v, rows)
    else:
        out = attend(q, k, v, rows)
    if queries.segment is None:
        return out
    # In splash padding sees padding, and a query without keys gets the mean of all values.
    sees = rows[0] != 0
    if queries is not keys:
        sees = sees & jax.vmap(jnp.isin)(rows[0], rows[1])
    return jnp.where(sees[:, :, None, None], out, jnp.zeros_like(out))


def _attend(q, k, v, rows, weights=None, *, mask, interpret):
    """`splash` on one device: one kernel for the heads that can share it, one for each other."""
    groups = {}
    for head, order in enumerate(mask.per_head(q.shape[2])):
        groups.setdefault(None if _is_static(order) else order, []).append((head, order))
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    parts, positions = [], []
    for group in groups.values():
        heads, orders = zip(*group, strict=True)
        own = (q, k, v) if len(groups) == 1 else (x[:, np.array(heads)] for x in (q, k, v))
        parts.append(_together(*own, rows, orders, interpret))
        positions.extend(heads)
    out = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)[:, np.argsort(positions)]
    return jnp.swapaxes(out, 1, 2)


def _is_static(order):
    """Whether what an order shows is known when the program is traced, up to documents."""
    return order.is_full or order.is_causal or order.time_reversed


def _together(q, k, v, rows, orders, interpret):
    """Heads of one kernel: q, k, v [batch, heads, time, dim], rows [batch, time], their orders."""
    query_segment, key_segment, document, position, in_source = rows
    order = orders[0]
    if _is_static(order):
        windows = [_window(order) for order in orders]
        return _call(q, k, v, (query_segment, key_segment), windows, interpret)
    level = order.levels(SequenceInfo(position, in_source=in_source))
    # Padding inside a document would stretch how far ahead a token sees: it goes to the front.
    ahead, turn = order.lookahead, None
    if not order.ascending or (ahead is not None and key_segment is not None):
        labels = (level,) if key_segment is None else (level, key_segment)
        turn = jnp.lexsort(labels, axis=1)
        labels = [jnp.take_along_axis(x, turn, axis=1) for x in labels]
        level, document = labels[0], labels[1] if len(labels) > 1 else None
        key_segment = document
        q, k, v = (_reorder(x, turn) for x in (q, k, v))
    segments = (key_segment, key_segment)
    if order.grouped:
        ahead = position.shape[1] if ahead is None else min(ahead, position.shape[1])
        last = _last(level, document)
    else:
        ahead, last = 0, None
    out = _call(q, k, v, segments, [(None, ahead)] * len(orders), interpret, last)
    return out if turn is None else _reorder(out, jnp.argsort(turn, axis=1))


def _call(q, k, v, segments, windows, interpret, last=None):
    """Of each head what its window shows; with `last` the keys up to that row.

    Args:
        q, k, v: [batch, heads, time, dim].
        segments: integers [batch, time] of queries and of keys, or None and None.
        windows: for each head, from how many rows before a query to how many behind it keys are
            seen; None for all on that side. None for all keys.
        last: integers [batch, time], no more than the window's end, or None.
    """
    query_time, key_time = q.shape[2], k.shape[2]
    whole = segments[0] is None
    if whole:
        segments = [jnp.ones((q.shape[0], time), "int32") for time in (query_time, key_time)]
    segments = kernels.SegmentIds(*(_pad(x, axis=1) for x in segments))
    q, k, v = (_pad(x, axis=2) for x in (q, k, v))
    if whole and (q.shape[2], k.shape[2]) == (query_time, key_time):
        segments = None
    last = None if last is None else _pad(last, axis=1)
    kernel = _kernel(windows, (q.shape[2], k.shape[2]), interpret)
    return _run(windows[0], kernel, q, k, v, segments, last)[:, :, :query_time]


# What splash multiplies is in the precision that holds while it is traced, backwards too.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(window, kernel, q, k, v, segments, last):
    return _run_forward(window, kernel, q, k, v, segments, last)[0]


def _run_forward(window, kernel, q, k, v, segments, last):
    def run(q, k, v):
        def example(q, k, v, segments, last):
            return _until(kernel, last, window)(q, k, v, segment_ids=segments)

        return jax.vmap(example)(q, k, v, segments, last)

    with float32_products(q.dtype):
        return jax.vjp(run, q, k, v)


def _run_backward(window, pull, slope):
    with float32_products(slope.dtype):
        return None, *pull(slope), None, None


_run.defvjp(_run_forward, _run_backward)


def _last(level, document):
    """The last row of each row's group of equal levels, in rows sorted by level: [batch, time]."""
    time = level.shape[1]
    ends = level[:, 1:] != level[:, :-1]
    if document is not None:
        ends |= document[:, 1:] != document[:, :-1]
    row = jnp.arange(time, dtype="int32")
    ends = jnp.pad(ends, [(0, 0), (0, 1)], constant_values=True)
    return jax.lax.cummin(jnp.where(ends, row, time), axis=1, reverse=True)


def _until(kernel, last, window):
    """The kernel that sees `key <= row + ahead`, as one that sees `key <= last[row]`."""
    if last is None:
        return kernel
    ahead = window[1]
    infos = (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info)
    infos = (info._replace(q_sequence=last - ahead) for info in infos)
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)


def _window(order):
    """The window of a static order, as `_call` takes it."""
    if order.is_full:
        return None
    return (None, 0) if order.is_causal else (0, None)


def _kernel(windows, shape, interpret):
    def tile_mask(window):
        full = tile_masks.FullMask(shape)
        return full if window is None else _HalfPlane(shape, window, offset=0)

    q, kv = (_tile(time) for time in shape)
    return kernels.make_splash_mha(
        tile_masks.MultiHeadMask([tile_mask(window) for window in windows]),
        block_sizes=kernels.BlockSizes(q, kv, None, q, kv, None, q, kv),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


class _HalfPlane(tile_masks.LocalMask):
    """All on one side of a diagonal, so that a tile with four equal corners is uniform.

    Splash looks at every entry of every tile when it is traced, for mixed heads at time 16384
    some ten seconds long; most tiles are uniform.
    """

    def __getitem__(self, index):
        rows, columns = (np.array([x.start, x.stop - 1]) for x in index)
        corners = self.mask_function(rows[:, None], columns[None, :])
        if corners.any() and not corners.all():
            return super().__getitem__(index)
        return np.full([x.stop - x.start for x in index], corners[0, 0])


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


def _reorder(x, rows):
    """`x` [batch, heads, time, dim] with the rows of each example in the order [batch, time]."""

    def take(example, rows):
        # That no row comes twice spares the gradient a sum.
        return example.at[:, rows].get(unique_indices=True, mode="promise_in_bounds")

    return jax.vmap(take)(x, rows)
