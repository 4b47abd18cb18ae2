"""Linear attention in chunks on JAX: a rolled loop over the chunks that keeps one state.

A step does all of a chunk while it is in cache: the products inside, what the state adds, and
the next state. The backward pass goes through the same steps in reverse and differentiates each
from its inputs and the state that it started from, so that no [chunk, chunk] product is kept.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.ops.kernels import decays
from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.ops.tensors import ratio
from kzoo.values import is_integer

NAME, MECHANISM = "chunk_scan", ("linear", "gated_linear")


class Chunks(NamedTuple):
    """What a chunk begins with; each array has the chunks on its first axis.

    Heads stand before time, as products take them: transposed once, and not in every step.

    Attributes:
        q, k, v: floats [chunks, batch, heads, chunk, dim].
        gates: floats [chunks, batch or 1, heads, chunk], the logarithms of decays; None without.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    gates: jax.Array | None


class Static(NamedTuple):
    """What is known when a program is made.

    Attributes:
        features: a `kzoo.ops.features.Features`.
        reverse: whether time goes back.
        normalize: whether there is a denominator.
    """

    features: Any
    reverse: bool
    normalize: bool


class Labels(NamedTuple):
    """Integers [chunks, batch or 1, heads or 1, chunk]; None where all would be equal.

    Attributes:
        document: ascending along time.
        level: ascending within a document; None where no two positions share one, so that
            time is the level.
    """

    document: jax.Array | None
    level: jax.Array | None


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
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
    """What `kzoo.ops.kernels.chunked.run` computes, of the same arguments.

    Features are made in each step, so that those of all time are never held.
    """
    time = q.shape[1]
    chunk = min(chunk_size, time) if is_integer(time) else chunk_size  # else unknown as yet
    shown = tokens.shown
    if shown is None and (not is_integer(time) or time % chunk):  # the filled end holds no keys
        shown = jnp.ones((1, time), bool)
    arrays = (*map(_swap, (q, k, v)), None if log_decay is None else _swap(log_decay))
    chunks = Chunks(*(None if x is None else _cut(x, 2, "constant", chunk) for x in arrays))
    where = jax.tree.map(lambda x: _cut(x, 1, "constant", chunk), (tokens.sin_cos, shown))
    labels = (tokens.document, tokens.level)
    labels = Labels(*(None if x is None else _cut(x, 2, "edge", chunk) for x in labels))
    static = Static(features, reverse, normalize)
    count = chunks.q.shape[0]
    if is_integer(count) and count == 1 and initial_state is None:  # nothing to loop over
        first = jax.tree.map(lambda x: x[0], (chunks, None, where, labels))
        state, (numerator, denominator) = _step(static, weights, None, *first, None)
        out = _ratio(numerator, denominator)[None]
    else:
        goes_on = later = None
        if tokens.level is not None and not (is_integer(count) and count == 1):
            goes_on, *later = _later(static, weights, chunks, where, labels)
        if initial_state is None:
            initial_state = _zero_state(static, weights, chunks, where)
        floats = weights, initial_state, chunks, later
        out, state = _attend(static, floats, (goes_on, where, labels))
    out = jnp.transpose(out, (1, 0, 3, 2, 4)).reshape(q.shape[0], -1, *v.shape[2:])
    return out[:, :time], state


def _step(static, weights, state, chunk, later, where, labels, arriving):
    """One chunk: the state after it, and the numerator and denominator of its queries.

    Args:
        static: a `Static`.
        weights: of the features.
        state: of the keys before the chunk in the document that reaches into it; or None.
        chunk: one of `Chunks`.
        later: of the keys after the chunk in the group that reaches out of it, and whether any
            does; or None.
        where: sines and cosines of rotary positions, and the keys that count: [batch or 1,
            chunk, ..].
        labels: one chunk of `Labels`.
        arriving: [batch or 1, heads or 1, 1], the document that `state` belongs to.
    """
    features, reverse, normalize = static
    q, k, q_norm, k_norm = _features(features, chunk, weights, where)
    v, gates = chunk.v, chunk.gates
    visible, reached, staying, grouped, joined = _relations(reverse, labels, arriving, k.shape[2])
    within = (
        gates
        if gates is None
        else decays.within(gates, reverse=reverse, both=labels.level is not None)
    )
    products = _times(_hide(_dot("bhid,bhjd->bhij", q, k), visible), within)
    numerator = _dot("bhij,bhje->bhie", products, v)
    if q_norm is None:
        q_norm, k_norm = q, k
        denominator = _sum(products) if normalize else None
    elif normalize:
        sums = jnp.broadcast_to(visible, (*products.shape[:2], *visible.shape[-2:]))
        sums = _dot("bhij,bhjd->bhid", _times(sums.astype(q.dtype), within), k_norm)
        denominator = _sum(q_norm * sums)
    else:
        denominator = None

    def gather(sums, state, seen, reverse=reverse):
        (numerator, denominator), (kv_state, k_sum) = sums, state
        decay = None if gates is None else decays.arriving(gates, reverse=reverse)[..., None]
        numerator += _dot("bhid,bhde->bhie", _times(_hide_rows(q, seen), decay), kv_state)
        if normalize:
            rows = _times(_hide_rows(q_norm, seen), decay)
            denominator += _dot("bhid,bhd->bhi", rows, k_sum)
        return numerator, denominator

    k_norm = k_norm if normalize else None
    sums = numerator, denominator
    if state is None:
        return _added((0, 0), k, v, k_norm, gates, staying, reverse), sums
    sums = gather(sums, state, reached)
    if later is not None:
        goes_on, *later = later
        behind = functools.partial(gather, reverse=True)
        sums = jax.lax.cond(goes_on, behind, lambda sums, *_: sums, sums, tuple(later), grouped)
    state = jax.tree.map(lambda x: _hide_all(x, joined), state)
    return _added(state, k, v, k_norm, gates, staying, reverse), sums


def _forward(static, floats, others):
    weights, state, *chunks = floats

    def step(state, chunk):
        after, (numerator, denominator) = _chunk_step(static, weights, state, *chunk)
        return after, (_ratio(numerator, denominator), denominator, state)

    state = varying(state, floats, others)
    chunks = (chunks, _known(static, others))
    state, (out, *saved) = jax.lax.scan(step, state, chunks, reverse=static.reverse)
    return (out, state), (out, *saved)


def _backward(static, floats, others, saved, slopes):
    weights, _, *chunks = floats
    slope, after = slopes

    def step(carry, chunk):
        after, gradients = carry
        own, known, (out, denominator, state), slope = chunk

        def run(weights, state, own):
            return _chunk_step(static, weights, state, own, known)

        _, pull = jax.vjp(run, weights, state, own)
        # Of out = numerator / denominator; `ratio` hides what a denominator of 0 would give.
        slope = _ratio(slope, denominator)
        sums = (slope, None if denominator is None else -_sum(slope * out))
        gradient, before, own = pull((after, sums))
        return (before, jax.tree.map(jnp.add, gradients, gradient)), own

    start = varying((after, jax.tree.map(jnp.zeros_like, weights)), floats, others, slopes)
    chunks = (chunks, _known(static, others), saved, slope)
    (before, gradients), own = jax.lax.scan(step, start, chunks, reverse=not static.reverse)
    return gradients, before, *own


def _chunk_step(static, weights, state, own, known):
    """`_step`, with what gets a gradient apart from what is known."""
    chunk, later = own
    goes_on, *rest = known
    return _step(static, weights, state, chunk, later and (goes_on, *later), *rest)


def _known(static, others):
    goes_on, where, labels = others
    return goes_on, where, labels, _arriving(static.reverse, labels)


_attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward)


def _later(static, weights, chunks, where, labels):
    """Of each chunk, whether a group reaches across its end, and the state of its keys there."""
    edges = [None if x is None else x[..., -1:] for x in labels]
    firsts = [None if x is None else x[..., :1] for x in labels]
    # Of each chunk: does the run at its end go on in the next, and did its first one begin before?
    crossing = _same(
        [x if x is None else x[:-1] for x in edges],
        [x if x is None else x[1:] for x in firsts],
    )
    none = jnp.zeros((1, *crossing.shape[1:]), bool)
    goes_on, begun = jnp.concatenate([crossing, none]), jnp.concatenate([none, crossing])

    @jax.checkpoint
    def step(state, chunk):
        keys, where, labels, firsts, edges, goes_on, begun = chunk
        own = jax.tree.map(lambda x: _hide_all(x, goes_on), state)

        def add(own, keys):
            k, v, gates = keys
            _, k, _, k_norm = _features(static.features, Chunks(k, *keys), weights, where)
            through = jax.tree.map(lambda x: _hide_all(x, _same(edges, firsts)), own)
            k_norm = (k if k_norm is None else k_norm) if static.normalize else None
            return _added(through, k, v, k_norm, gates, _same(labels, firsts), reverse=True)

        # What no earlier chunk can see is not summed.
        return jax.lax.cond(begun.any(), add, lambda own, _: own, own, keys), own

    state = _zero_state(static, weights, chunks, where)
    keys = chunks[1:]  # with queries, their gradient would be zeros to add
    xs = (keys, where, labels, firsts, edges, goes_on, begun)
    _, states = jax.lax.scan(step, varying(state, xs), xs, reverse=True)
    return goes_on.any(axis=(1, 2, 3)), *states


def _features(features, chunk, weights, where):
    """`features`, which have time before heads, of a chunk, which has heads before time."""
    return jax.tree.map(_swap, features(_swap(chunk.q), _swap(chunk.k), weights, *where))


def _zero_state(static, weights, chunks, where):
    def step(chunk, where):
        return _step(static, weights, None, chunk, None, where, Labels(None, None), None)[0]

    first = jax.tree.map(lambda x: x[0], (chunks, where))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, *first))


def _relations(reverse, labels, arriving, chunk):
    """Who sees whom in a chunk: booleans that broadcast, None for everybody.

    Returns:
        visible: [.., chunk, chunk], the keys of the chunk that a query of it sees.
        reached: [.., chunk], the queries that see the state before the chunk.
        staying: [.., chunk], the keys that belong to the state after it.
        grouped: [.., chunk], the queries that see the state of later chunks.
        joined: [.., 1], whether the state before belongs to the state after.
    """
    document, level = labels
    if level is None:
        half = jnp.triu if reverse else jnp.tril
        visible = half(jnp.ones((1, 1, chunk, chunk), bool))
    else:
        visible = level[..., None, :] <= level[..., :, None]
    if document is not None:
        visible &= document[..., None, :] == document[..., :, None]
    last = [None if x is None else _end(x, reverse) for x in labels]
    return (
        visible,
        None if arriving is None else _same([document], [arriving]),
        _same([document], last[:1]),
        _same(labels, last),
        None if arriving is None else _same(last[:1], [arriving]),
    )


def _arriving(reverse, labels):
    """The document that reaches into each chunk; into the first in order, its first one."""
    document = labels.document
    if document is None:
        return None
    if reverse:
        return jnp.concatenate([document[1:, ..., :1], document[-1:, ..., -1:]])
    return jnp.concatenate([document[:1, ..., :1], document[:-1, ..., -1:]])


def _end(label, reverse):
    """The label at the end of a chunk that faces the next one in order."""
    return label[..., :1] if reverse else label[..., -1:]


def _added(state, k, v, k_norm, gates, staying, reverse):
    """The state, decayed, and the keys of a chunk that stay in it."""
    kv_state, k_sum = state
    decay = None
    if gates is not None:
        decay = decays.leaving(gates, reverse=reverse)[..., None]
        kv_state = kv_state * decays.across(gates)[..., None]
    kv_state += _dot("bhjd,bhje->bhde", _times(_hide_rows(k, staying), decay), v)
    if k_norm is None:
        return kv_state, None
    if gates is not None:
        k_sum = k_sum * decays.across(gates)
    ones = jnp.ones(k.shape[2], k.dtype)
    return kv_state, k_sum + _dot("bhjd,j->bhd", _times(_hide_rows(k_norm, staying), decay), ones)


def _same(labels, others):
    equal = [a == b for a, b in zip(labels, others, strict=True) if a is not None]
    return functools.reduce(jnp.logical_and, equal) if equal else None


def _hide(x, seen):
    return x if seen is None else jnp.where(seen, x, jnp.zeros_like(x))


def _hide_rows(x, seen):
    """`x` [batch, heads, chunk, dim] where `seen` [batch or 1, heads or 1, chunk]."""
    return x if seen is None else _hide(x, seen[..., None])


def _hide_all(x, seen):
    return x if seen is None else _hide(x, seen.reshape(*seen.shape[:2], *[1] * (x.ndim - 2)))


def _times(x, decay):
    return x if decay is None else x * decay


def _ratio(numerator, denominator):
    return numerator if denominator is None else ratio(numerator, denominator[..., None])


def _swap(x):
    """Time and heads are swapped."""
    return jnp.swapaxes(x, 1, 2)


def _sum(x):
    """Over the last axis, as a product: XLA's reductions are slow on a CPU."""
    ones = jnp.ones(x.shape[-1:], x.dtype)
    return jnp.dot(x, ones, precision="highest", preferred_element_type=x.dtype)


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=a.dtype)


def _cut(x, axis, mode, chunk):
    """Time, at `axis`, in chunks along a new first axis; the end filled."""
    time = x.shape[axis]
    count = -(-time // chunk)
    missing = count * chunk - time
    if not is_integer(missing) or missing:
        x = jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], mode=mode)
    x = x.reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)
