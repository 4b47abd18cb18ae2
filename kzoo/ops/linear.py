"""Linear attention in linear time, for every order.

Queries sorted by level see everything before their group of equal levels, plus the group, inside
their document. So time is brought into the order of level (where levels fall with time, gone
through from its end; where they do neither, sorted) and cut into chunks. Inside a chunk the
products are dense; the chunks before add one state, summed over their keys in the document that
reaches across the boundary; where levels are shared, the chunks after add another, summed over
their keys in the group that reaches across it. States are sums, never differences of sums, which
would lose precision.
"""

import functools
import logging
import math
from typing import NamedTuple

import keras
from keras import ops

from kzoo import feature_maps, masks
from kzoo.errors import InputError
from kzoo.masks import Order
from kzoo.ops.choice import kernel_for, platform, shape_of
from kzoo.ops.features import features_of
from kzoo.ops.operands import (
    check_batch,
    check_state,
    nothing,
    prepare,
    ratio,
    take_heads,
    zero_padding,
)
from kzoo.ops.sorting import backwards, in_time, stable_sort, take_time, ways
from kzoo.precision import float32_products
from kzoo.sequence import concrete
from kzoo.values import is_count, is_integer, plain

log = logging.getLogger("kzoo")

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
    implementation="auto",
):
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the visible keys j, in linear time.

    Products, sums and the normaliser are in float32 whatever the dtype of the operands, on a TPU
    in six passes (`kzoo.precision`), since states are sums that are multiplied again. Under
    `native` derivatives past the gradient, and forward mode, take memory quadratic in time.
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
        feature_map: a name, JSON or `FeatureMap` of `kzoo.feature_maps`.
        feature_weights: the tensors of a learned feature map, by name.
        rotary: rotate φ(q) and φ(k) in the numerator by the place within the document; q and k
            themselves under a map of their product (`FeatureMap.of_products`).
        initial_state: the state that an earlier call returned, of as many examples as q or of
            one, which all go on from. Its keys come before all of these, in the row's first
            document, and every query of that document sees them.
        return_state: also return the state after the last key, for masks that let later tokens
            see all of it: bidirectional, causal and prefix; of two sequences, for a bidirectional
            mask without a `padding_mask`.
        chunk_size: tokens whose products are formed at once; the result is the same. By
            default chosen from the shapes.
        implementation: for tests and benchmarks, a kernel by name (`kzoo.ops.choice`).

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
    if chunk_size is not None and not is_count(chunk_size):
        raise InputError(f"chunk_size is an integer of at least 1. Received: {chunk_size!r}")
    chunk_size = plain(chunk_size)
    if is_integer(query_offset):
        query_offset = int(query_offset)  # NumPy's are static, too
    if (zeros := nothing(q, k, v)) is not None:
        state = initial_state or _no_state(q, v, feature_maps.get(feature_map))
        return (zeros, state) if return_state else zeros
    rows = {
        "padding_mask": padding_mask,
        "source_mask": source_mask,
        "key_padding_mask": key_padding_mask,
    }
    static = {
        "feature_map": feature_map,
        "rotary": rotary,
        "chunk_size": chunk_size,
        "implementation": implementation,
    }
    if keras.backend.backend() == "jax" and initial_state is None and not return_state:
        from kzoo.ops.kernels.mesh import current_mesh, each_device, refuses_mesh

        mesh, heads = current_mesh(), (k.shape[2], q.shape[2])
        sizes = {"batch": q.shape[0], "num_heads": math.gcd(*heads), "mesh": mesh}
        if mesh is not None and not isinstance(query_offset, int):
            _tell_of_partitioner("the queries begin at a column that is computed")
        elif mesh is not None and (reason := refuses_mesh(masks.get(mask), **sizes)):
            _tell_of_partitioner(reason)
        elif mesh is not None:

            def attend(q, k, v, rows, weights):
                own = {"query_offset": query_offset, "feature_weights": weights}
                return _linear_attention(q, k, v, mask, **rows, **own, **static)

            return each_device(attend, mesh, q, k, v, rows, feature_weights)
    own = {"query_offset": query_offset, "feature_weights": feature_weights}
    states = {"initial_state": initial_state, "return_state": return_state}
    return _linear_attention(q, k, v, mask, **rows, **own, **static, **states)


def _no_state(q, v, phi):
    """The state of no keys."""
    shape = (q.shape[0], q.shape[2], phi.size(q.shape[3]))
    return {
        "matrix": ops.zeros((*shape, v.shape[3]), "float32"),
        "normaliser": ops.zeros(shape, "float32"),
    }


@functools.cache
def _tell_of_partitioner(reason):
    """Say once that devices do not compute linear attention each for itself."""
    log.info("linear attention on several devices is left to XLA's partitioner: %s", reason)


@float32_products()
def _linear_attention(
    q,
    k,
    v,
    mask,
    *,
    padding_mask,
    source_mask,
    key_padding_mask,
    query_offset,
    feature_map,
    feature_weights,
    rotary,
    chunk_size,
    implementation,
    initial_state=None,
    return_state=False,
):
    """`linear_attention` on one device."""
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
    if stateful:
        query_offset = _offsets(query_offset, key_padding_mask is not None)
    heads = mask.per_head(q.shape[2])
    size = phi.size(q.shape[3])
    computed = {"dtype": keras.backend.standardize_dtype(q.dtype), "features": size}
    shape = shape_of(q, k, v, mask, **computed)
    kernel = kernel_for("linear", shape, keras.backend.backend(), platform(), implementation)
    # All of a second sequence, by queries of one document: one state, made of its keys.
    whole = key_padding_mask is not None and padding_mask is None
    whole = whole and initial_state is None and all(head.is_full for head in heads)
    _check(heads, phi, stateful, whole or queries is keys)
    features, q, k = features_of(phi, rotary, q, k, feature_weights, keys.segment)
    if whole:
        positions = (x.position for x in (queries, keys))
        turns, key_turns = (features.turns(x, q.shape[3], q.dtype) for x in positions)
        shown = keys.segment == queries.segment[:, :1]
        operands = features(q, k, feature_weights, turns, shown, key_turns)
        out, state = _total(*operands, v, None)
        out = ops.cast(out, dtype)
        return (out, {"matrix": state[0], "normaliser": state[1]}) if return_state else out
    chunk_size = chunk_size or choose_chunk(size, v.shape[3])
    core = Core(features, chunk_size, kernel)
    if queries is not keys:
        out = _merged(core, q, k, v, feature_weights, heads, queries, keys)
        return ops.cast(zero_padding(out, queries), dtype)
    state = None if initial_state is None else check_state(initial_state, q, size, v.shape[3])
    position, bound = queries.position, q.shape[1]
    if stateful and not (isinstance(query_offset, int) and query_offset == 0):
        check_batch("query_offset", ops.convert_to_tensor(query_offset), q.shape[0])
        position, bound = _shifted(queries, query_offset), None
    turns = features.turns(position, q.shape[3], q.dtype, bound)
    out, state = _sorted(core, q, k, v, feature_weights, heads, queries, turns, state)
    out = ops.cast(zero_padding(out, queries), dtype)
    if not return_state:
        return out
    return out, {"matrix": state[0], "normaliser": state[1]}


def choose_chunk(features, value_dim):
    """The chunk at which products inside and states between cost about the same memory."""
    least, largest = CHUNKS
    return min(max(2 ** round(math.log2(features * value_dim) / 2), least), largest)


def _check(heads, phi, stateful, same_sequence):
    for head in set(heads):
        if not isinstance(head, Order):
            raise InputError(
                "linear attention follows orders (bidirectional, causal, reversed, prefix, "
                f"block, permuted), not custom masks or &; use softmax. Received: {head!r}"
            )
        if stateful and not head.resumable:
            raise InputError(
                "a state sums keys that all later tokens see: of a bidirectional, causal or "
                f"prefix mask, or an order that declares `resumable`. Received: {head!r}"
            )
    phi.check(heads)
    if stateful and (phi.whole_sequence or not same_sequence):
        reason = phi.get_config() if phi.whole_sequence else "queries and keys of two sequences"
        raise InputError(
            "a state needs queries and keys of one sequence, and features of a key that later "
            f"keys do not change. Received: {reason!r}"
        )


def _offsets(offset, cross):
    """The `query_offset` of a state, one or one for each row, checked where it is known."""
    known = concrete(offset)
    wrong = known is not None and (
        known.ndim > 1 or known.dtype.kind not in "iu" or known.min() < 0
    )
    if wrong or (cross and not (isinstance(offset, int) and offset == 0)):
        raise InputError(
            "with a state `query_offset` is the position of a row's first token, an integer or "
            "integers [batch] of at least 0; 0 of two sequences, where keys have positions of "
            f"their own. Received: {offset!r}"
        )
    return int(known) if known is not None and not known.ndim else offset


def _shifted(sequence, offset):
    """The positions of `sequence`, those of each row's first document moved by `offset`."""
    moved = sequence.position + ops.reshape(ops.cast(offset, "int32"), (-1, 1))
    if sequence.segment is None:
        return moved
    return ops.where(sequence.document <= 1, moved, sequence.position)


# One sequence -----------------------------------------------------------------------------


def _sorted(core, q, k, v, weights, heads, sequence, turns, state):
    """Bring the time of every head into the order of its level, attend, and bring it back.

    Args:
        core: the `Core`.
        q, k, v: floats [batch, time, heads, dim].
        weights: of a learned feature map, by name, heads first; or None.
        heads: the order of each head.
        sequence: the `SequenceInfo` of the tokens.
        turns: of rotary positions, from `Features.turns`.
        state: the initial state, a pair of tensors [batch, heads, ..], or None.

    Returns:
        [batch, time, heads, value_dim] and the state after the last key.
    """

    def kind(order):  # what one pass can do
        if not in_time(order):
            return order
        return None if core.any_direction else (order.grouped, backwards(order))

    groups = {}
    for i, head in enumerate(heads):
        groups.setdefault(kind(head), []).append(i)
    outs, states, taken = [], [], []
    for index in groups.values():
        own = [take_heads(x, index, 2) for x in (q, k, v)]
        own_weights = {name: take_heads(x, index, 0) for name, x in (weights or {}).items()}
        own_state = None if state is None else tuple(take_heads(x, index, 1) for x in state)
        in_order = [heads[i] for i in index]
        out, last = _same_kind(core, own, own_weights, in_order, sequence, turns, own_state)
        outs.append(out)
        states.append(last)
        taken += index
    back = sorted(range(len(heads)), key=taken.__getitem__)
    return (
        take_heads(_join(outs, 2), back, 2),
        tuple(take_heads(_join(parts, 1), back, 1) for parts in zip(*states, strict=True)),
    )


def _same_kind(core, operands, weights, heads, sequence, turns, state):
    """Heads whose orders go through time in the same way, in one pass."""
    order = heads[0]
    forth, back, reverse = ways(order, sequence, flip=not core.any_direction)
    reverse = [backwards(head) for head in heads] if core.any_direction else reverse
    document, shown = sequence.document, None
    if sequence.segment is not None:
        shown = sequence.segment != 0
        if state is not None:  # padding at the row's beginning parts no state from its document
            document = ops.maximum(document, 1)
        document = forth(document)[:, None]
    level = None
    if any(head.grouped for head in heads):
        levels = {head: forth(head.levels(sequence))[:, None] for head in dict.fromkeys(heads)}
        level = _join([levels[head] for head in heads] if len(levels) > 1 else [levels[order]], 1)
    turns = None if turns is None else tuple(forth(x) for x in turns)
    tokens = Tokens(document, level, turns, forth(shown))
    operands = [forth(x) for x in operands]
    if document is None and all(head.is_full for head in heads) and not core.any_direction:
        q, k, v = operands
        return _total(*core.features(q, k, weights, tokens.turns, shown), v, state)
    out, state = core(*operands, weights, tokens, state, reverse)
    return back(out), state


class Tokens(NamedTuple):
    """What is known of each token, integers, sorted by (document, level).

    Attributes:
        document: [batch or 1, 1, time], padding belongs to a neighbour; None for one document.
        level: [batch or 1, heads or 1, time]; None where no two of a document share one.
        turns: floats [batch or 1, time, ..], sines and cosines of rotary positions, or None.
        shown: booleans [batch or 1, time], the keys that count; None for all.
    """

    document: object
    level: object
    turns: object
    shown: object


class Core(NamedTuple):
    """What attends in sorted time.

    Attributes:
        features: a `kzoo.ops.features.Features`.
        chunk_size: tokens in a chunk.
        kernel: its name, of `kzoo.ops.choice`.
    """

    features: object
    chunk_size: int
    kernel: str

    @property
    def any_direction(self):
        """Whether one pass serves all orders that go through time, forwards or backwards."""
        return self.kernel == "native"

    def __call__(self, q, k, v, weights, tokens, state, reverse=False):
        operands = self.features, q, k, v, weights, tokens, state
        return self._function()(*operands, chunk_size=self.chunk_size, reverse=reverse)

    def _function(self):
        if self.kernel == "native":
            from kzoo.ops.kernels import native

            return native.linear
        if keras.backend.backend() == "jax":
            from kzoo.ops.kernels.chunked import chunked

            return chunked
        return _portable


def _total(q, k, q_norm, k_norm, v, state):
    """Every query sees every key: one sum over time."""
    q_norm, k_norm = (q, k) if q_norm is None else (q_norm, k_norm)
    matrix, vector = ops.einsum("bkhd,bkhe->bhde", k, v), ops.sum(k_norm, axis=1)
    if state is not None:
        matrix, vector = matrix + state[0], vector + state[1]
    normaliser = ops.einsum("bqhd,bhd->bqh", q_norm, vector)[..., None]
    return ratio(ops.einsum("bqhd,bhde->bqhe", q, matrix), normaliser), (matrix, vector)


def _portable(features, q, k, v, weights, tokens, state, *, chunk_size, reverse=False):
    """`kzoo.ops.kernels.chunked.chunked` in `keras.ops`, for every backend."""
    q, k, q_norm, k_norm = features(q, k, weights, tokens.turns, tokens.shown)
    operands = (None if x is None else _swap(x) for x in (q, k, v, q_norm, k_norm))
    document = tokens.document
    if reverse:
        operands = (None if x is None else ops.flip(x, axis=2) for x in operands)
        document = None if document is None else ops.flip(document, axis=2)
    out, state = _normalised(*operands, document, tokens.level, state, chunk_size)
    return _swap(ops.flip(out, axis=2) if reverse else out), state


def _normalised(q, k, v, q_norm, k_norm, document, level, state, chunk_size):
    """Numerators over normalisers; arrays are [batch, heads, time, dim] from here on."""
    sums = functools.partial(_sums, document=document, level=level, chunk_size=chunk_size)
    matrix, vector = (None, None) if state is None else (state[0], state[1][..., None])
    ones = ops.ones_like(v[..., :1])
    if q_norm is not None:
        numerator, matrix = sums(q, k, v, matrix)
        normaliser, vector = sums(q_norm, k_norm, ones, vector)
        return ratio(numerator, normaliser), (matrix, vector[..., 0])
    both = None if state is None else ops.concatenate([matrix, vector], axis=-1)
    out, state = sums(q, k, ops.concatenate([v, ones], axis=-1), both)
    return ratio(out[..., :-1], out[..., -1:]), (state[..., :-1], state[..., -1])


def _sums(q, k, v, state, *, document, level, chunk_size):
    """Σ_j (q_i·k_j) v_j over the j of i's document with level[j] <= level[i], and Σ k vᵀ.

    Args:
        q, k: floats [batch, heads, time, features], time sorted by (document, level).
        v: floats [batch, heads, time, value_dim].
        state: Σ k vᵀ of the keys before, in the first document; None for zeros.
        document: integers [batch or 1, heads or 1, time], or None for one document.
        level: likewise; None where no two positions of a document share a level.
        chunk_size: tokens in a chunk.
    """
    time = q.shape[2]
    chunk = chunk_size if time is None else min(chunk_size, time)
    time = ops.shape(q)[2]
    q, k, v = (_cut(x, chunk, time, 0) for x in (q, k, v))
    document, level = (x if x is None else _cut(x, chunk, time, "edge") for x in (document, level))

    step = ops.arange(chunk)
    if level is None:
        visible = step[None, :] <= step[:, None]
    else:
        visible = level[..., None, :] <= level[..., :, None]
    if document is not None:
        visible = ops.logical_and(visible, document[..., None, :] == document[..., :, None])
    scores = ops.matmul(q, ops.swapaxes(k, -1, -2))
    out = ops.matmul(ops.where(visible, scores, ops.zeros_like(scores)), v)

    # Documents that reach across a chunk's first boundary, groups across its last.
    first, last = (None, None) if document is None else (document[..., :1], document[..., -1:])
    before, state = _from_neighbours(q, k, v, [document], [last], [first], state)
    out = out + before
    if level is not None and q.shape[2] != 1:
        flipped = [ops.flip(x, axis=2) for x in (q, k, v)]
        keys = [x if x is None else ops.flip(x, axis=2) for x in (document, level)]
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


# Two sequences ----------------------------------------------------------------------------


def _merged(core, q, k, v, weights, heads, queries, keys):
    """Queries and keys as one sequence in order of (document, level, keys first).

    Then whatever a query sees stands before it, and one causal pass does for every order.
    Arrays are [batch, time, heads, dim].
    """
    key_time, query_time = ops.shape(k)[1], ops.shape(q)[1]

    def beside(x, time, keys_first):
        zeros = ops.zeros((ops.shape(x)[0], time, *x.shape[2:]), dtype=x.dtype)
        return ops.concatenate([x, zeros] if keys_first else [zeros, x], axis=1)

    q = beside(q, key_time, False)
    k, v = beside(k, query_time, True), beside(v, query_time, True)
    document, shown = None, ops.arange(key_time + query_time)[None] < key_time
    if queries.segment is not None:
        document = _concatenate_time(keys.segment, queries.segment)
        shown = ops.logical_and(shown, document != 0)
    position = _concatenate_time(keys.position, queries.position)
    outs = []
    for i, order in enumerate(heads):
        level = _concatenate_time(order.levels(keys), order.levels(queries))
        permutation = stable_sort(level, document)
        tokens = (None if x is None else take_time(x, permutation) for x in (document, shown))
        sorted_document, sorted_shown = tokens
        if document is not None:
            sorted_document = sorted_document[:, None]
        turns = core.features.turns(take_time(position, permutation), q.shape[3], q.dtype)
        tokens = Tokens(sorted_document, None, turns, sorted_shown)
        head = [take_time(x[:, :, i : i + 1], permutation) for x in (q, k, v)]
        own = {name: x[i : i + 1] for name, x in (weights or {}).items()}
        out, _ = core(*head, own, tokens, None)
        outs.append(take_time(out, ops.argsort(permutation, axis=1))[:, key_time:])
    return ops.concatenate(outs, axis=2)


# Helpers ------------------------------------------------------------------------------------


def _concatenate_time(a, b):
    a, b = a + ops.zeros_like(b[:, :1]), b + ops.zeros_like(a[:, :1])  # equal batch sizes
    return ops.concatenate([a, b], axis=1)


def _join(parts, axis):
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=axis)


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
    """Time and heads are swapped."""
    return ops.transpose(x, (0, 2, 1, 3))


def _all_equal(a, b):
    first, *others = (x == y for x, y in zip(a, b, strict=True))
    for other in others:
        first = ops.logical_and(first, other)
    return first
