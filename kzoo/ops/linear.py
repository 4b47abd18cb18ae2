"""Linear attention in linear time, for every order.

Queries sorted by rank see everything before their group of equal ranks, plus the group, inside
their document. So time is brought into the order of rank (reversed: gone through from its end;
permuted: sorted) and cut into chunks. Inside a chunk the products are dense; the chunks before
add one state, summed over their keys in the document that reaches across the boundary; where
ranks are shared, the chunks after add another, summed over their keys in the group that reaches
across it. States are sums, never differences of sums, which would lose precision.
"""

import functools
import itertools
import math

import keras
from keras import ops

from kzoo.errors import InputError
from kzoo.masks import Bidirectional, Causal, Order, Prefix, Reversed
from kzoo.ops import feature_maps
from kzoo.ops.operands import prepare, ratio, zero_padding
from kzoo.ops.reference import featured

CHUNKS = (64, 256)  # the least and the largest that is chosen


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
    feature_weights=None,
    rotary=False,
    initial_state=None,
    return_state=False,
    chunk_size=None,
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
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`; with an
            `initial_state`, `query_offset` is the place of the first token in its document, an
            integer or integers [batch].
        feature_map: a name, JSON or `FeatureMap` of `kzoo.ops.feature_maps`.
        feature_weights: the tensors of a learned feature map, by name.
        rotary: rotate φ(q) and φ(k) in the numerator by the place within the document; q and k
            themselves under a map of their product (`FeatureMap.of_products`).
        initial_state: the state that an earlier call returned. Its keys come before all of
            these, in the row's first document, and every query of that document sees them.
        return_state: also return the state after the last key, for masks that let later tokens
            see all of it: bidirectional, causal and prefix.
        chunk_size: tokens whose products are formed at once; the result is the same. By
            default chosen from the shapes.

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries
        that see no key, give exactly 0. With `return_state` also the state, float32 tensors
        whose size does not depend on the time: `{"matrix": [batch, heads, features, value_dim],
        "normaliser": [batch, heads, features]}`, summed over the keys of the last document.

    Raises:
        InputError: if shapes disagree, the heads of the mask do not tile those of q, a prefix
            has no `source_mask`, the mask is no order, a feature map needs keys that the mask
            hides, or a state is asked of a mask that has none.

    Example:
        >>> out = linear_attention(q, k, v, "prefix", source_mask=source_mask)
        >>> first, state = linear_attention(q, k, v, "causal", return_state=True)
        >>> second = linear_attention(q2, k2, v2, "causal", initial_state=state)
    """
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size is at least 1. Received: {chunk_size}")
    phi = feature_maps.get(feature_map)
    stateful = return_state or initial_state is not None
    dtype = ops.convert_to_tensor(v).dtype
    q, k, v, mask, queries, keys = prepare(
        q,
        k,
        v,
        mask,
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
        query_offset=0 if stateful else query_offset,
    )
    heads = mask.per_head(q.shape[2])
    _check(heads, phi, stateful, queries is keys)
    offset = query_offset if stateful else 0
    positions = (_shifted(queries, offset), _shifted(keys, offset)) if rotary else None
    q, k, q_norm, k_norm = featured(phi, feature_weights, q, k, keys, positions)

    operands = [None if x is None else _swap(x) for x in (q, k, v, q_norm, k_norm)]
    chunk_size = chunk_size or choose_chunk(k.shape[3], v.shape[3])
    if queries is not keys:
        out = _merged(operands, heads, queries, keys, chunk_size)
        return ops.cast(zero_padding(_swap(out), queries), dtype)
    state = None
    if initial_state is not None:
        state = (initial_state["matrix"], initial_state["normaliser"])
    out, state = _sorted(operands, heads, queries, state, chunk_size)
    out = ops.cast(zero_padding(_swap(out), queries), dtype)
    if not return_state:
        return out
    return out, {"matrix": state[0], "normaliser": state[1]}


def choose_chunk(features, value_dim):
    """The chunk at which products inside and states between cost about the same memory."""
    least, largest = CHUNKS
    return min(max(2 ** round(math.log2(features * value_dim) / 2), least), largest)


def _check(heads, phi, stateful, same_places):
    for head in set(heads):
        if not isinstance(head, Order):
            raise InputError(
                "linear attention follows orders (bidirectional, causal, reversed, prefix, "
                f"block, permuted), not custom masks or &; use softmax. Received: {head!r}"
            )
        if stateful and not isinstance(head, Bidirectional | Causal | Prefix):
            raise InputError(
                "a state sums keys that all later tokens see: of a bidirectional, causal or "
                f"prefix mask. Received: {head!r}"
            )
    phi.check(heads)
    if stateful and (phi.whole_sequence or not same_places):
        reason = phi.get_config() if phi.whole_sequence else "queries and keys at other places"
        raise InputError(
            "a state needs queries and keys of one sequence, and features of a key that later "
            f"keys do not change. Received: {reason!r}"
        )


def _shifted(places, offset):
    """The positions of `places`, those of each row's first document moved by `offset`."""
    if isinstance(offset, int) and offset == 0:
        return places.position
    moved = places.position + ops.reshape(ops.cast(offset, "int32"), (-1, 1))
    if places.segment is None:
        return moved
    return ops.where(places.document == _first_document(places), moved, places.position)


def _first_document(places):
    unpadded = ops.where(places.segment == 0, 2**30, places.segment)
    return ops.min(unpadded, axis=1, keepdims=True)


# Queries and keys at the same places ------------------------------------------------------


def _sorted(operands, heads, places, state, chunk_size):
    """Bring the time of every head into ascending rank, attend, and bring it back.

    Args:
        operands: q, k, v, q_norm, k_norm, each [batch, heads, time, dim]; the last two None
            where they are q and k.
        heads: the order of each head.
        state: the initial state, a pair of tensors with heads on axis 1, or None.

    Returns:
        [batch, heads, time, value_dim] and the state after the last key.
    """

    def kind(order):  # what one pass can do
        return order.grouped, isinstance(order, Reversed)

    orders = sorted(set(heads), key=lambda order: (*kind(order), repr(order)))
    index = {order: [i for i, head in enumerate(heads) if head == order] for order in orders}
    outs, states = [], []
    for _, members in itertools.groupby(orders, kind):
        members = list(members)
        passed = [i for order in members for i in index[order]]
        own = None if state is None else tuple(_take_heads(x, passed) for x in state)
        out, last = _same_kind(operands, members, index, places, own, chunk_size)
        outs += out
        states.append(last)
    order = [i for order in orders for i in index[order]]
    back = sorted(range(len(heads)), key=order.__getitem__)
    return (
        _take_heads(_join(outs), back),
        tuple(_take_heads(_join(parts), back) for parts in zip(*states, strict=True)),
    )


def _same_kind(operands, orders, index, places, state, chunk_size):
    """The heads of several orders in one pass; a list of results, one per order."""
    sorts = [_Sort(order, places) for order in orders]

    def gather(x):
        pairs = zip(orders, sorts, strict=True)
        return _join([sort.forth(_take_heads(x, index[order])) for order, sort in pairs])

    document = rank = None
    if places.segment is not None:
        document = _per_head([sort.document for sort in sorts], orders, index)
        if state is not None:  # padding at the row's beginning parts no state from its document
            first = _first_document(places)[:, None]
            document = ops.where(document == 0, first, document)
    if any(order.grouped for order in orders):
        rank = _per_head([sort.rank for sort in sorts], orders, index)
    operands = [None if x is None else gather(x) for x in operands]
    if document is None and orders == [Bidirectional()]:
        out, state = _total(*operands, state)
    else:
        reverse = isinstance(orders[0], Reversed)
        out, state = _core()(*operands, document, rank, state, chunk_size, reverse)
    bounds, outs = 0, []
    for order, sort in zip(orders, sorts, strict=True):
        outs.append(sort.back(out[:, bounds : bounds + len(index[order])]))
        bounds += len(index[order])
    return outs, state


def _core():
    """What attends in sorted time: the kernel of this backend."""
    if keras.backend.backend() == "jax":
        from kzoo.ops.kernels.chunked import chunked

        return chunked
    return _portable


class _Sort:
    """Time in ascending (document, rank), for one order; reversed stays as it is.

    Attributes:
        document, rank: integers [batch or 1, time] in sorted time; documents are filled so
            that padding belongs to a neighbour and never parts a document in two.
    """

    def __init__(self, order, places):
        self.permutation = None
        document, rank = places.document, order.rank(places)
        if not order.ascending and not isinstance(order, Reversed):
            self.permutation = _stable_sort(rank, document)
            self.inverse = ops.argsort(self.permutation, axis=1)
        self.document = None if document is None else self._forth(document, axis=1)
        self.rank = self._forth(rank, axis=1)

    def _forth(self, x, axis):
        return x if self.permutation is None else _take_time(x, self.permutation, axis)

    def forth(self, x):
        return self._forth(x, axis=2)

    def back(self, x):
        return x if self.permutation is None else _take_time(x, self.inverse, 2)


def _total(q, k, v, q_norm, k_norm, state):
    """One document, everybody sees everybody: one sum over time."""
    q_norm, k_norm = (q, k) if q_norm is None else (q_norm, k_norm)
    matrix, vector = ops.matmul(ops.swapaxes(k, -1, -2), v), ops.sum(k_norm, axis=2)
    if state is not None:
        matrix, vector = matrix + state[0], vector + state[1]
    out = ratio(ops.matmul(q, matrix), ops.matmul(q_norm, vector[..., None]))
    return out, (matrix, vector)


def _portable(q, k, v, q_norm, k_norm, document, rank, state, chunk_size, reverse=False):
    """`kzoo.ops.kernels.chunked.chunked` in `keras.ops`, for every backend."""
    if reverse:
        operands = [None if x is None else ops.flip(x, axis=2) for x in (q, k, v, q_norm, k_norm)]
        document = None if document is None else ops.flip(document, axis=2)
        out, state = _portable(*operands, document, rank, state, chunk_size)
        return ops.flip(out, axis=2), state
    sums = functools.partial(_sums, document=document, rank=rank, chunk_size=chunk_size)
    matrix, vector = (None, None) if state is None else (state[0], state[1][..., None])
    ones = ops.ones_like(v[..., :1])
    if q_norm is not None:
        numerator, matrix = sums(q, k, v, matrix)
        normaliser, vector = sums(q_norm, k_norm, ones, vector)
        return ratio(numerator, normaliser), (matrix, vector[..., 0])
    both = None if state is None else ops.concatenate([matrix, vector], axis=-1)
    out, state = sums(q, k, ops.concatenate([v, ones], axis=-1), both)
    return ratio(out[..., :-1], out[..., -1:]), (state[..., :-1], state[..., -1])


def _sums(q, k, v, state, *, document, rank, chunk_size):
    """Σ_j (q_i·k_j) v_j over the j of i's document with rank[j] <= rank[i], and Σ k vᵀ.

    Args:
        q, k: floats [batch, heads, time, features], time sorted by (document, rank).
        v: floats [batch, heads, time, value_dim].
        state: Σ k vᵀ of the keys before, in the first document; None for zeros.
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

    # Documents that reach across a chunk's first boundary, groups across its last.
    first, last = (None, None) if document is None else (document[..., :1], document[..., -1:])
    before, state = _from_neighbours(q, k, v, [document], [last], [first], state)
    out = out + before
    if rank is not None and q.shape[2] != 1:
        flipped = [ops.flip(x, axis=2) for x in (q, k, v)]
        keys = [x if x is None else ops.flip(x, axis=2) for x in (document, rank)]
        firsts = [x if x is None else x[..., :1] for x in keys]
        after, _ = _from_neighbours(*flipped, keys, firsts, firsts, None)
        out = out + ops.flip(after, axis=2)
    batch, heads, chunks, _, dim = out.shape
    out = ops.reshape(out, (-1 if batch is None else batch, heads, ops.shape(out)[2] * chunk, dim))
    return out[:, :, :time], state


def _from_neighbours(q, k, v, labels, edges, facing, state):
    """What the chunks before add: products with their keys of the run that reaches into a chunk.

    A run is a stretch of time with equal labels.

    Args:
        q, k, v: floats [batch, heads, chunks, chunk, dim].
        labels: list of integers [batch or 1, heads or 1, chunks, chunk] that name the runs.
        edges: the same at the end of each chunk that faces the next: [..., chunks, 1].
        facing: the same at the other end, of which the first chunk's counts.
            None stands for one run over all time.
        state: what stood before the first chunk, in its first run; None for nothing.

    Returns:
        [batch, heads, chunks, chunk, dim], and the state after the last chunk.
    """
    labels, edges, facing = (
        [x for x in group if x is not None] for group in (labels, edges, facing)
    )
    if not labels:
        own = ops.matmul(ops.swapaxes(k, -1, -2), v)
        first = ops.zeros_like(own[:, :, :1]) if state is None else state[:, :, None]
        states = ops.cumsum(ops.concatenate([first, own], axis=2), axis=2)
        return ops.matmul(q, states[:, :, :-1]), states[:, :, -1]

    def belongs(x, to):
        equal = _all_equal(labels, to)
        return ops.where(equal[..., None], x, ops.zeros_like(x))

    before = [_shift(edge, face) for edge, face in zip(edges, facing, strict=True)]
    own = ops.matmul(ops.swapaxes(belongs(k, edges), -1, -2), v)
    joined = ops.cast(_all_equal(edges, before)[..., None], own.dtype)

    def step(state, chunk):
        joined, own = chunk
        return joined * state + own, state

    chunks_first = [ops.moveaxis(x, 2, 0) for x in (joined, own)]
    first = ops.zeros_like(own[:, :, 0]) if state is None else state
    last, states = ops.scan(step, first, tuple(chunks_first))
    return ops.matmul(belongs(q, before), ops.moveaxis(states, 0, 2)), last


# Queries and keys at different places -------------------------------------------------------


def _merged(operands, heads, queries, keys, chunk_size):
    """Queries and keys as one sequence in order of (document, rank, keys first).

    Then whatever a query sees stands before it, and one causal pass does for every order.
    Arrays are [batch, heads, time, dim].
    """
    key_time, query_time = ops.shape(operands[1])[2], ops.shape(operands[0])[2]

    def apart(x, i):
        if x is None:
            return None
        of_query = i in (0, 3)
        shape = (ops.shape(x)[0], x.shape[1], key_time if of_query else query_time, x.shape[3])
        zeros = ops.zeros(shape, dtype=x.dtype)
        return ops.concatenate([zeros, x] if of_query else [x, zeros], axis=2)

    operands = [apart(x, i) for i, x in enumerate(operands)]
    document = None
    if queries.segment is not None:
        document = _concatenate_time(keys.segment, queries.segment)
    outs = []
    for i, order in enumerate(heads):
        rank = _concatenate_time(order.rank(keys), order.rank(queries))
        permutation = _stable_sort(rank, document)
        head = [x if x is None else _take_time(x[:, i : i + 1], permutation, 2) for x in operands]
        sorted_document = None
        if document is not None:
            sorted_document = _take_time(document, permutation, 1)[:, None]
        out, _ = _core()(*head, sorted_document, None, None, chunk_size)
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


def _shift(x, first):
    """`x` one chunk later: what stood before each chunk, `first` before the first one."""
    return ops.concatenate([first[:, :, :1], x[:, :, :-1]], axis=2)


def _swap(x):
    """Time and heads change places."""
    return ops.transpose(x, (0, 2, 1, 3))


def _take_heads(x, index):
    return x if list(index) == list(range(x.shape[1])) else ops.take(x, index, axis=1)


def _all_equal(a, b):
    first, *others = (x == y for x, y in zip(a, b, strict=True))
    for other in others:
        first = ops.logical_and(first, other)
    return first
