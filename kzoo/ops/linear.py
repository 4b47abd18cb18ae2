"""Linear attention in linear time, for every order.

Queries sorted by rank see everything before their group of equal ranks, plus the group, inside
their document. So time is brought into ascending rank (reversed: flipped; permuted: sorted)
and cut into chunks. Inside a chunk the products are dense; the chunks before add one state,
summed over their keys in the document that reaches across the boundary; where ranks are shared,
the chunks after add another, summed over their keys in the group that reaches across it.
States are sums, never differences of sums, which would lose precision.
"""

from keras import ops

from kzoo.errors import InputError
from kzoo.masks import Bidirectional, Order, Reversed
from kzoo.ops import feature_maps
from kzoo.ops.operands import prepare, ratio, zero_padding
from kzoo.ops.rotary import rotate

CHUNK = 64


def linear_attention(
    q,
    k,
    v,
    mask="bidirectional",
    *,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
    query_offset=0,
    feature_map="elu1",
    rotary=False,
    chunk_size=CHUNK,
):
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the visible keys j, in linear time.

    Products, sums and the normaliser are in float32 whatever the dtype of the operands.
    Source: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 to 9; with `rotary`,
    Su et al. 2021, arXiv:2104.09864, equation 19.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask` made of orders (not `custom`, not `&`).
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`.
        feature_map: a name in `feature_maps.NAMES`.
        rotary: rotate φ(q) and φ(k) in the numerator by the place within the document.
        chunk_size: tokens whose products are formed at once; the result is the same.

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries
        that see no key, give exactly 0.

    Raises:
        InputError: if shapes disagree, the heads of the mask do not tile those of q, a prefix
            has no `source_mask`, or the mask is no order.

    Example:
        >>> out = linear_attention(q, k, v, "prefix", source_mask=source_mask)
    """
    if chunk_size < 1:
        raise InputError(f"chunk_size is at least 1. Received: {chunk_size}")
    phi = feature_maps.get(feature_map)
    dtype = ops.convert_to_tensor(v).dtype
    q, k, v, mask, queries, keys = prepare(
        q,
        k,
        v,
        mask,
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
        query_offset=query_offset,
    )
    heads = mask.per_head(q.shape[2])
    for head in set(heads):
        if not isinstance(head, Order):
            raise InputError(
                "linear attention follows orders (bidirectional, causal, reversed, prefix, "
                f"block, permuted), not custom masks or &; use softmax. Received: {head!r}"
            )
    q, k = phi(q), zero_padding(phi(k), keys)  # φ(0) is not 0, so padding is hidden after φ

    def attend(q, k, v):
        q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
        run = _merged if queries is not keys else _sorted
        return ops.transpose(run(q, k, v, heads, queries, keys, chunk_size), (0, 2, 1, 3))

    ones = ops.ones_like(v[..., :1])
    if rotary:
        normaliser = attend(q, k, ones)
        numerator = attend(rotate(q, queries.position), rotate(k, keys.position), v)
    else:
        both = attend(q, k, ops.concatenate([v, ones], axis=-1))
        numerator, normaliser = both[..., :-1], both[..., -1:]
    return ops.cast(zero_padding(ratio(numerator, normaliser), queries), dtype)


# Queries and keys at the same places ------------------------------------------------------


def _sorted(q, k, v, heads, _, places, chunk_size):
    """Bring the time of every head into ascending rank, sum, and bring it back.

    Arrays are [batch, heads, time, dim]; returns Σ_j (q_i·k_j) v_j over the visible j.
    """
    orders = sorted(set(heads), key=lambda order: (order.grouped, repr(order)))
    index = {order: [i for i, head in enumerate(heads) if head == order] for order in orders}
    outs = []
    for grouped in (False, True):
        members = [order for order in orders if order.grouped == grouped]
        if members:
            outs += _same_kind(q, k, v, members, index, places, grouped, chunk_size)
    if len(orders) == 1:
        return outs[0]
    back = sorted(range(len(heads)), key=[i for order in orders for i in index[order]].__getitem__)
    return ops.take(ops.concatenate(outs, axis=1), back, axis=1)


def _same_kind(q, k, v, orders, index, places, grouped, chunk_size):
    """The heads of several orders in one pass; a list of results, one per order."""
    sorts = [_Sort(order, places) for order in orders]
    everything = [range(q.shape[1])] == [index[order] for order in orders]

    def gather(x):
        parts = [
            sort.forth(x if everything else ops.take(x, index[order], axis=1))
            for order, sort in zip(orders, sorts, strict=True)
        ]
        return _join(parts)

    document = rank = None
    if places.segment is not None:
        document = _per_head([sort.document for sort in sorts], orders, index)
    if grouped:
        rank = _per_head([sort.rank for sort in sorts], orders, index)
    total = grouped and document is None and orders == [Bidirectional()]
    q, k, v = gather(q), gather(k), gather(v)
    out = _total(q, k, v) if total else _chunked(q, k, v, document, rank, chunk_size)
    bounds, outs = 0, []
    for order, sort in zip(orders, sorts, strict=True):
        outs.append(sort.back(out[:, bounds : bounds + len(index[order])]))
        bounds += len(index[order])
    return outs


class _Sort:
    """Time in ascending (document, rank), for one order.

    Attributes:
        document, rank: integers [batch or 1, time] in sorted time; documents are filled so
            that padding belongs to a neighbour and never parts a document in two.
    """

    def __init__(self, order, places):
        self.flip = isinstance(order, Reversed)
        self.permutation = None
        document, rank = places.document, order.rank(places)
        if not order.ascending and not self.flip:
            self.permutation = _stable_sort(rank, document)
            self.inverse = ops.argsort(self.permutation, axis=1)
        self.document = None if document is None else self._forth(document, axis=1)
        self.rank = self._forth(rank, axis=1)

    def _forth(self, x, axis):
        if self.flip:
            return ops.flip(x, axis=axis)
        return x if self.permutation is None else _take_time(x, self.permutation, axis)

    def forth(self, x):
        return self._forth(x, axis=2)

    def back(self, x):
        if self.flip:
            return ops.flip(x, axis=2)
        return x if self.permutation is None else _take_time(x, self.inverse, 2)


def _total(q, k, v):
    """One document, everybody sees everybody: one sum over time."""
    return ops.matmul(q, ops.matmul(ops.swapaxes(k, -1, -2), v))


def _chunked(q, k, v, document, rank, chunk_size):
    """Σ_j (q_i·k_j) v_j over the j of i's document with rank[j] <= rank[i].

    Args:
        q, k: floats [batch, heads, time, features], time sorted by (document, rank).
        v: floats [batch, heads, time, value_dim].
        document: integers [batch or 1, heads or 1, time], or None for one document.
        rank: likewise; None where no two positions of a document share a rank.
        chunk_size: tokens in a chunk.
    """
    time = q.shape[2]
    chunk = chunk_size if time is None else min(chunk_size, time)
    time = ops.shape(q)[2]
    q, k, v = (_cut(x, chunk, time, 0) for x in (q, k, v))
    document, rank = (x if x is None else _cut(x, chunk, time, "edge") for x in (document, rank))

    step = ops.arange(chunk)
    if rank is None:
        visible = step[None, :] <= step[:, None]
    else:
        visible = rank[..., None, :] <= rank[..., :, None]
    if document is not None:
        visible = ops.logical_and(visible, document[..., None, :] == document[..., :, None])
    scores = ops.matmul(q, ops.swapaxes(k, -1, -2))
    out = ops.matmul(ops.where(visible, scores, ops.zeros_like(scores)), v)

    if q.shape[2] != 1:
        # Documents that reach across a chunk's first boundary, groups across its last.
        last = None if document is None else document[..., -1:]
        out = out + _from_neighbours(q, k, v, [document], [last])
        if rank is not None:
            flipped = [ops.flip(x, axis=2) for x in (q, k, v)]
            keys = [x if x is None else ops.flip(x, axis=2) for x in (document, rank)]
            firsts = [x if x is None else x[..., :1] for x in keys]
            out = out + ops.flip(_from_neighbours(*flipped, keys, firsts), axis=2)
    batch, heads, chunks, _, dim = out.shape
    out = ops.reshape(out, (-1 if batch is None else batch, heads, ops.shape(out)[2] * chunk, dim))
    return out[:, :, :time]


def _from_neighbours(q, k, v, labels, edges):
    """What the chunks before add: products with their keys of the run that reaches into a chunk.

    A run is a stretch of time with equal labels.

    Args:
        q, k, v: floats [batch, heads, chunks, chunk, dim].
        labels: list of integers [batch or 1, heads or 1, chunks, chunk] that name the runs.
        edges: the same at the end of each chunk that faces the next: [..., chunks, 1].
            None stands for one run over all time.
    """
    labels = [label for label in labels if label is not None]
    edges = [edge for edge in edges if edge is not None]
    if not labels:
        state = ops.cumsum(ops.matmul(ops.swapaxes(k, -1, -2), v), axis=2)
        return ops.matmul(q, _shift(state))

    def belongs(x, to):
        equal = _all_equal(labels, to)
        return ops.where(equal[..., None], x, ops.zeros_like(x))

    before = [_shift(edge, fill=-1) for edge in edges]
    own = ops.matmul(ops.swapaxes(belongs(k, edges), -1, -2), v)
    joined = ops.cast(_all_equal(edges, before)[..., None], own.dtype)

    def step(state, chunk):
        joined, own = chunk
        return joined * state + own, state

    chunks_first = [ops.moveaxis(x, 2, 0) for x in (joined, own)]
    _, states = ops.scan(step, ops.zeros_like(own[:, :, 0]), tuple(chunks_first))
    return ops.matmul(belongs(q, before), ops.moveaxis(states, 0, 2))


# Queries and keys at different places -------------------------------------------------------


def _merged(q, k, v, heads, queries, keys, chunk_size):
    """Queries and keys as one sequence in order of (document, rank, keys first).

    Then whatever a query sees stands before it, and one causal pass does for every order.
    Arrays are [batch, heads, time, dim].
    """
    batch, key_time = ops.shape(k)[0], ops.shape(k)[2]
    size = ops.shape(q)[2]
    zeros_q = ops.zeros((batch, q.shape[1], key_time, q.shape[3]), dtype=q.dtype)
    zeros_k = ops.zeros((batch, q.shape[1], size, k.shape[3]), dtype=k.dtype)
    zeros_v = ops.zeros((batch, q.shape[1], size, v.shape[3]), dtype=v.dtype)
    q = ops.concatenate([zeros_q, q], axis=2)
    k = ops.concatenate([k, zeros_k], axis=2)
    v = ops.concatenate([v, zeros_v], axis=2)
    document = None
    if queries.segment is not None:
        document = _concatenate_time(keys.segment, queries.segment)
    outs = []
    for i, order in enumerate(heads):
        rank = _concatenate_time(order.rank(keys), order.rank(queries))
        permutation = _stable_sort(rank, document)
        q_i, k_i, v_i = (_take_time(x[:, i : i + 1], permutation, 2) for x in (q, k, v))
        sorted_document = None
        if document is not None:
            sorted_document = _take_time(document, permutation, 1)[:, None]
        out = _chunked(q_i, k_i, v_i, sorted_document, None, chunk_size)
        outs.append(_take_time(out, ops.argsort(permutation, axis=1), 2)[:, :, key_time:])
    return ops.concatenate(outs, axis=1)


# Helpers ------------------------------------------------------------------------------------


def _stable_sort(rank, document):
    """The permutation [batch or 1, time] that sorts by document, then rank, then time."""
    permutation = ops.argsort(rank, axis=1)
    if document is None:
        return permutation
    second = ops.argsort(_take_time(document, permutation, 1), axis=1)
    return _take_time(permutation, second, 1)


def _take_time(x, permutation, axis):
    """`x` with its time axis reordered, example by example."""
    if permutation.shape[0] == 1:
        return ops.take(x, permutation[0], axis=axis)
    if axis == 2:
        permutation = permutation[:, None, :, None]
    return ops.take_along_axis(x, permutation, axis=axis)


def _concatenate_time(a, b):
    a, b = a + ops.zeros_like(b[:, :1]), b + ops.zeros_like(a[:, :1])  # equal batch sizes
    return ops.concatenate([a, b], axis=1)


def _per_head(tensors, orders, index):
    """[batch or 1, time] of each order as [batch or 1, heads or 1, time]."""
    if len(orders) == 1:
        return tensors[0][:, None]
    pairs = zip(tensors, orders, strict=True)
    return _join([ops.repeat(x[:, None], len(index[order]), axis=1) for x, order in pairs])


def _join(parts):
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)


def _cut(x, chunk, time, fill):
    """[.., time, ..] as [.., chunks, chunk, ..], the end filled with zeros or its last value."""
    missing = -time % chunk
    if not isinstance(missing, int) or missing:
        tail = ops.repeat(x[:, :, -1:], missing, axis=2)
        x = ops.concatenate([x, tail if fill == "edge" else ops.zeros_like(tail)], axis=2)
    chunks = (time + missing) // chunk
    return ops.reshape(x, (*ops.shape(x)[:2], chunks, chunk, *x.shape[3:]))


def _shift(x, fill=0):
    """`x` one chunk later: what stood before each chunk."""
    return ops.concatenate([ops.full_like(x[:, :, :1], fill), x[:, :, :-1]], axis=2)


def _all_equal(a, b):
    first, *others = (x == y for x, y in zip(a, b, strict=True))
    for other in others:
        first = ops.logical_and(first, other)
    return first
