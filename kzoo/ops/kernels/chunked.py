"""Linear attention in chunks on JAX: a rolled loop over the chunks that keeps one state.

A step does all of a chunk while it is in cache: the products inside, what the state adds, and
the next state. The backward pass goes through the same steps in reverse and differentiates each
from its inputs and the state that it started from, so that no [chunk, chunk] product is kept.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kzoo.ops.operands import ratio


class Operands(NamedTuple):
    """Chunks of features and values, [chunks, batch, heads, chunk, dim].

    Attributes:
        q, k, v: of the numerator Σ (q·k) v.
        q_norm, k_norm: of the normaliser Σ q_norm·k_norm; None where they are q and k.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    q_norm: jax.Array | None
    k_norm: jax.Array | None


class Labels(NamedTuple):
    """Integers [chunks, batch or 1, heads or 1, chunk]; None where all would be equal.

    Attributes:
        document: ascending along time.
        rank: ascending within a document; None where no two positions share one, so that
            time is the rank.
    """

    document: jax.Array | None
    rank: jax.Array | None


def chunked(q, k, v, q_norm, k_norm, document, rank, initial_state, chunk_size, reverse=False):
    """Σ_j (q_i·k_j) v_j / Σ_j q_norm_i·k_norm_j over i's document, rank[j] <= rank[i].

    Args:
        q, k: floats [batch, heads, time, features], time sorted by (document, rank).
        v: floats [batch, heads, time, value_dim].
        q_norm, k_norm: features of the normaliser like q and k; None where they are the same.
        document, rank: integers [batch or 1, heads or 1, time], or None; see `Labels`.
        initial_state: (Σ k vᵀ, Σ k_norm) of earlier keys, which the first document sees:
            [batch, heads, features, value_dim] and [batch, heads, features]. None for zeros.
        chunk_size: tokens in a chunk.
        reverse: time is sorted by descending rank, and no two positions share one.

    Returns:
        Floats [batch, heads, time, value_dim], and the state after the document that is last
        in order.
    """
    batch, heads, time, _ = q.shape
    cut = functools.partial(_cut, chunk=min(chunk_size, time))
    operands = Operands(*(None if x is None else cut(x) for x in (q, k, v, q_norm, k_norm)))
    labels = Labels(*(None if x is None else cut(x, mode="edge") for x in (document, rank)))
    if len(operands.q) == 1 and initial_state is None:  # nothing to loop over
        first = jax.tree.map(lambda x: x[0], (operands, None, labels))
        state, (numerator, normaliser) = _step(reverse, None, *first, None)
        out = ratio(numerator, normaliser[..., None])[None]
    else:
        later = None if rank is None or len(operands.q) == 1 else _later(operands, labels)
        state = _zero_state(operands) if initial_state is None else initial_state
        out, state = _attend(reverse, operands, later, state, labels)
    return jnp.moveaxis(out, 0, 2).reshape(batch, heads, -1, v.shape[3])[:, :, :time], state


def _step(reverse, state, operands, later, labels, arriving):
    """One chunk: the state after it, and the numerator and normaliser of its queries.

    Args:
        state: of the keys before the chunk in the document that reaches into it; or None.
        later: of the keys after the chunk in the group that reaches out of it, and whether any
            does; or None.
        arriving: [batch or 1, heads or 1, 1], the document that `state` belongs to.
    """
    q, k, v, q_norm, k_norm = operands
    visible, reached, staying, grouped, joined = _relations(reverse, labels, arriving, k.shape[-2])
    products = _hide(_dot("bhid,bhjd->bhij", q, k), visible)
    numerator = _dot("bhij,bhje->bhie", products, v)
    if q_norm is None:
        q_norm, k_norm = q, k
        normaliser = products.sum(-1)
    else:
        sums = jnp.broadcast_to(visible, (*products.shape[:2], *visible.shape[-2:]))
        sums = _dot("bhij,bhjd->bhid", sums.astype(q.dtype), k_norm)
        normaliser = (q_norm * sums).sum(-1)

    def gather(sums, state, seen):
        matrix, vector = state
        numerator = _dot("bhid,bhde->bhie", _hide_rows(q, seen), matrix)
        normaliser = _hide((q_norm * vector[:, :, None]).sum(-1), seen)
        return sums[0] + numerator, sums[1] + normaliser

    sums = numerator, normaliser
    if state is None:
        return _added(0, 0, k, v, k_norm, staying), sums
    sums = gather(sums, state, reached)
    if later is not None:
        goes_on, *later = later
        sums = jax.lax.cond(goes_on, gather, lambda sums, *_: sums, sums, tuple(later), grouped)
    matrix, vector = (_hide_all(x, joined) for x in state)
    return _added(matrix, vector, k, v, k_norm, staying), sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(reverse, operands, later, state, labels):
    return _forward(reverse, operands, later, state, labels)[0]


def _forward(reverse, operands, later, state, labels):
    def step(state, chunk):
        after, (numerator, normaliser) = _step(reverse, state, *chunk)
        return after, (ratio(numerator, normaliser[..., None]), normaliser, state)

    chunks = (operands, later, labels, _arriving(reverse, labels))
    state, (out, normaliser, states) = jax.lax.scan(step, state, chunks, reverse=reverse)
    return (out, state), (*chunks, out, normaliser, states)


def _backward(reverse, saved, cotangents):
    operands, later, labels, arriving, out, normaliser, states = saved
    cotangent, after = cotangents

    def step(after, chunk):
        operands, later, labels, arriving, out, normaliser, state, cotangent = chunk

        def run(state, operands, later):
            return _step(reverse, state, operands, later, labels, arriving)

        _, pull = jax.vjp(run, state, operands, later)
        # Of out = numerator / normaliser; `ratio` hides what a normaliser of 0 would give.
        numerator = ratio(cotangent, normaliser[..., None])
        before, *gradients = pull((after, (numerator, -(numerator * out).sum(-1))))
        return before, gradients

    chunks = (operands, later, labels, arriving, out, normaliser, states, cotangent)
    before, (operands, later) = jax.lax.scan(step, after, chunks, reverse=not reverse)
    return operands, later, before, None


_attend.defvjp(_forward, _backward)


def _later(operands, labels):
    """Of each chunk, whether a group reaches across its end, and the state of its keys there."""
    edges = [None if x is None else x[..., -1:] for x in labels]
    firsts = [None if x is None else x[..., :1] for x in labels]
    # Of each chunk: does the run at its end go on in the next, and did its first one begin before?
    crossing = _same(
        [x if x is None else x[:-1] for x in edges], [x if x is None else x[1:] for x in firsts]
    )
    none = jnp.zeros_like(crossing[:1])
    goes_on, begun = jnp.concatenate([crossing, none]), jnp.concatenate([none, crossing])

    @jax.checkpoint
    def step(state, chunk):
        (_, k, v, _, k_norm), labels, firsts, edges, goes_on, begun = chunk
        k_norm = k if k_norm is None else k_norm
        own = tuple(_hide_all(x, goes_on) for x in state)

        def add(own, k, v, k_norm):
            through = [_hide_all(x, _same(edges, firsts)) for x in own]
            return _added(*through, k, v, k_norm, _same(labels, firsts))

        # What no earlier chunk can see is not summed.
        state = jax.lax.cond(begun.any(), add, lambda own, *_: own, own, k, v, k_norm)
        return state, own

    state = _zero_state(operands)
    chunks = (operands, labels, firsts, edges, goes_on, begun)
    _, states = jax.lax.scan(step, state, chunks, reverse=True)
    return goes_on.any(axis=(1, 2, 3)), *states


def _zero_state(operands):
    shape, dtype = operands.q.shape[1:3], operands.q.dtype
    size, dim = operands.k.shape[-1], operands.v.shape[-1]
    return jnp.zeros((*shape, size, dim), dtype), jnp.zeros((*shape, size), dtype)


def _relations(reverse, labels, arriving, chunk):
    """Who sees whom in a chunk: booleans that broadcast, None for everybody.

    Returns:
        visible: [.., chunk, chunk], the keys of the chunk that a query of it sees.
        reached: [.., chunk], the queries that see the state before the chunk.
        staying: [.., chunk], the keys that belong to the state after it.
        grouped: [.., chunk], the queries that see the state of later chunks.
        joined: [.., 1], whether the state before belongs to the state after.
    """
    document, rank = labels
    if rank is None:
        half = jnp.triu if reverse else jnp.tril
        visible = half(jnp.ones((1, 1, chunk, chunk), bool))
    else:
        visible = rank[..., None, :] <= rank[..., :, None]
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


def _added(matrix, vector, k, v, k_norm, staying):
    matrix += _dot("bhjd,bhje->bhde", _hide_rows(k, staying), v)
    return matrix, vector + _hide_rows(k_norm, staying).sum(-2)


def _same(labels, others):
    equal = [a == b for a, b in zip(labels, others, strict=True) if a is not None]
    return functools.reduce(jnp.logical_and, equal) if equal else None


def _hide(x, seen):
    return x if seen is None else jnp.where(seen, x, jnp.zeros_like(x))


def _hide_rows(x, seen):
    return x if seen is None else _hide(x, seen[..., None])


def _hide_all(x, seen):
    return x if seen is None else _hide(x, seen.reshape(*seen.shape[:2], *[1] * (x.ndim - 2)))


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=a.dtype)


def _cut(x, chunk, mode="constant"):
    """[batch, heads, time, ..] as [chunks, batch, heads, chunk, ..], the end filled."""
    missing = -x.shape[2] % chunk
    if missing:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 3), mode=mode)
    x = x.reshape(*x.shape[:2], -1, chunk, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)
