"""Linear attention in chunks, all at once, in `keras.ops`: for every backend.

Inside a chunk the products are dense; the chunks before add one state, summed over their keys in
the document that reaches across the boundary; where levels are shared, the chunks after add
another, summed over their keys in the group that reaches across it. States are sums, never
differences of sums, which would lose precision.

Source: Hua et al. 2022, arXiv:2202.10447, for causal attention.
"""

import functools

from keras import ops

from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.ops.kernels import decays
from kzoo.ops.tensors import ratio, swap

NAME, MECHANISM = "chunked", ("linear", "gated_linear")


def preferred(spec):
    """Whether "auto" takes it: where no other kernel does."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    other = no_order(spec.mask.per_head(spec.num_heads))
    if other is not None:
        return f"linear attention {ORDERS_ONLY}: {other!r}"
    return None


def run(
    q,
    k,
    v,
    features,
    weights,
    tokens,
    initial_state,
    *,
    chunk_size,
    reverse=False,
    log_decay=None,
    normalize=True,
):
    """Σ_j w_ij v_j / Σ_j w_ij, w_ij = φ(q_i)·φ(k_j), over i's document, level[j] <= level[i].

    All kernels of linear attention take these arguments; those of gated linear attention also
    the last two.

    Args:
        q, k: float32 or float64 [batch, time, heads, dim], time sorted by (document, level).
        v: likewise [batch, time, heads, value_dim].
        features: a `kzoo.ops.features.Features`.
        weights: of a learned feature map, by name.
        tokens: `kzoo.ops.sorting.Tokens`.
        initial_state: (Σ φ(k) vᵀ, Σ φ(k)) of earlier keys, which the first document sees:
            [batch, heads, features, value_dim] and [batch, heads, features]. None for zeros.
        chunk_size: tokens in a chunk.
        reverse: time is sorted by descending level, and no two positions share one.
        log_decay: floats [batch or 1, time, heads], at most 0 and 0 at padding, whose sums between
            the tokens (`kzoo.ops.kernels.decays`) are factors exp(sum) on the weights; in the
            order of time. None for no decay.
        normalize: whether there is a denominator.

    Returns:
        Floats [batch, time, heads, value_dim], and the state after the document that is last
        in order, Σ k_sum being None without a denominator.
    """
    state = initial_state
    q, k, q_norm, k_norm = features(q, k, weights, tokens.sin_cos, tokens.shown)
    arrays = [None if x is None else swap(x) for x in (q, k, v, q_norm, k_norm)]
    gates = None if log_decay is None else ops.swapaxes(log_decay, 1, 2)
    by_token = {"document": tokens.document, "gates": gates}
    if reverse:  # a decay holds the query's gate and not the key's, seen from either end
        arrays = [None if x is None else ops.flip(x, axis=2) for x in arrays]
        by_token = {n: x if x is None else ops.flip(x, axis=2) for n, x in by_token.items()}
    sums = functools.partial(_sums, level=tokens.level, chunk_size=chunk_size, **by_token)
    out, state = (_normalised if normalize else _unnormalised)(sums, *arrays, state)
    return swap(ops.flip(out, axis=2) if reverse else out), state


def _normalised(sums, q, k, v, q_norm, k_norm, state):
    """Numerators over denominators; arrays are [batch, heads, time, dim] from here on."""
    kv_state, k_sum = (None, None) if state is None else (state[0], state[1][..., None])
    ones = ops.ones_like(v[..., :1])
    if q_norm is not None:
        numerator, kv_state = sums(q, k, v, kv_state)
        denominator, k_sum = sums(q_norm, k_norm, ones, k_sum)
        return ratio(numerator, denominator), (kv_state, k_sum[..., 0])
    both = None if state is None else ops.concatenate([kv_state, k_sum], axis=-1)
    out, state = sums(q, k, ops.concatenate([v, ones], axis=-1), both)
    return ratio(out[..., :-1], out[..., -1:]), (state[..., :-1], state[..., -1])


def _unnormalised(sums, q, k, v, q_norm, k_norm, state):
    out, kv_state = sums(q, k, v, None if state is None else state[0])
    return out, (kv_state, None)


def _sums(q, k, v, state, *, document, level, gates, chunk_size):
    """Σ_j (q_i·k_j) v_j over the j of i's document with level[j] <= level[i], and Σ k vᵀ.

    Args:
        q, k: floats [batch, heads, time, features], time sorted by (document, level).
        v: floats [batch, heads, time, value_dim].
        state: Σ k vᵀ of the keys before, in the first document; None for zeros.
        document: integers [batch or 1, heads or 1, time], or None for one document.
        level: likewise; None where no two positions of a document share a level.
        gates: floats [batch or 1, heads, time], of which the decays are made; None for none.
        chunk_size: tokens in a chunk.
    """
    time = q.shape[2]
    chunk = chunk_size if time is None else min(chunk_size, time)
    time = ops.shape(q)[2]
    q, k, v = (_cut(x, chunk, time, 0) for x in (q, k, v))
    document, level = (x if x is None else _cut(x, chunk, time, "edge") for x in (document, level))
    gates = None if gates is None else _cut(gates, chunk, time, 0)

    step = ops.arange(chunk)
    if level is None:
        visible = step[None, :] <= step[:, None]
    else:
        visible = level[..., None, :] <= level[..., :, None]
    if document is not None:
        visible = ops.logical_and(visible, document[..., None, :] == document[..., :, None])
    scores = ops.matmul(q, ops.swapaxes(k, -1, -2))
    scores = ops.where(visible, scores, ops.zeros_like(scores))
    if gates is not None:
        scores = scores * decays.within(gates, both=level is not None)
    out = ops.matmul(scores, v)

    # Documents that reach across a chunk's first boundary, groups across its last.
    first, last = (None, None) if document is None else (document[..., :1], document[..., -1:])
    before, state = _from_neighbours(q, k, v, gates, [document], [last], [first], state)
    out = out + before
    if level is not None and q.shape[2] != 1:
        flipped = [x if x is None else ops.flip(x, axis=2) for x in (q, k, v, gates)]
        keys = [x if x is None else ops.flip(x, axis=2) for x in (document, level)]
        firsts = [x if x is None else x[..., :1] for x in keys]
        after, _ = _from_neighbours(*flipped, keys, firsts, firsts, None, reverse=True)
        out = out + ops.flip(after, axis=2)
    batch, heads, chunks, _, dim = out.shape
    out = ops.reshape(out, (-1 if batch is None else batch, heads, ops.shape(out)[2] * chunk, dim))
    return out[:, :, :time], state


def _from_neighbours(q, k, v, gates, labels, edges, facing, state, reverse=False):
    """What the chunks before add: products with their keys of the run that reaches into a chunk.

    A run is a stretch of time with equal labels.

    Args:
        q, k, v: floats [batch, heads, chunks, chunk, dim].
        gates: floats [batch or 1, heads, chunks, chunk], or None.
        labels: list of integers [batch or 1, heads or 1, chunks, chunk] that name the runs.
        edges: the same at the end of each chunk that faces the next: [..., chunks, 1].
        facing: the same at the other end, of which the first chunk's counts.
            None stands for one run over all time.
        state: what stood before the first chunk, in its first run; None for nothing.
        reverse: the chunks stand in the reverse order of time, which itself is not reversed.

    Returns:
        [batch, heads, chunks, chunk, dim], and the state after the last chunk.
    """
    labels, edges, facing = (
        [x for x in group if x is not None] for group in (labels, edges, facing)
    )
    through = None
    if gates is not None:
        q = q * decays.arriving(gates, reverse=reverse)[..., None]
        k = k * decays.leaving(gates, reverse=reverse)[..., None]
        through = decays.across(gates)[..., None]
    if not labels and gates is None:
        own = ops.matmul(ops.swapaxes(k, -1, -2), v)
        first = ops.zeros_like(own[:, :, :1]) if state is None else state[:, :, None]
        states = ops.cumsum(ops.concatenate([first, own], axis=2), axis=2)
        return ops.matmul(q, states[:, :, :-1]), states[:, :, -1]

    def belongs(x, to):
        if not labels:
            return x
        equal = _all_equal(labels, to)
        return ops.where(equal[..., None], x, ops.zeros_like(x))

    before = [_shift(edge, face) for edge, face in zip(edges, facing, strict=True)]
    own = ops.matmul(ops.swapaxes(belongs(k, edges), -1, -2), v)
    joined = ops.cast(_all_equal(edges, before)[..., None], own.dtype) if labels else through
    if labels and gates is not None:
        joined = joined * through

    def step(state, chunk):
        joined, own = chunk
        return joined * state + own, state

    chunks_first = [ops.moveaxis(x, 2, 0) for x in (joined, own)]
    first = ops.zeros_like(own[:, :, 0]) if state is None else state
    last, states = ops.scan(step, first, tuple(chunks_first))
    return ops.matmul(belongs(q, before), ops.moveaxis(states, 0, 2)), last


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


def _all_equal(a, b):
    first, *others = (x == y for x, y in zip(a, b, strict=True))
    for other in others:
        first = ops.logical_and(first, other)
    return first
