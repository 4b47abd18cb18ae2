"""Softmax attention in blocks on JAX: memory linear in time, hidden blocks skipped.

The forward pass goes over blocks of queries and, for each, over the blocks of keys that it may
see, with a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al.
2022, arXiv:2205.14135). The backward pass forms each block of weights again from the logarithm
of the sums. Both are rolled loops whose bounds are computed, so one program serves every length
of prefix and every packing. The rows of the batch are taken two by two.
"""

import functools

import jax
import jax.numpy as jnp

from kzoo.masks import And, Order
from kzoo.ops.operands import ratio
from kzoo.places import Places

# The scores of so many rows of the batch, queries and keys stay in the cache with eight heads.
ROWS, BLOCK = 2, 128
HIDDEN = -1e30


def blockwise(q, k, v, mask, queries, keys):
    """softmax(q kᵀ) v over the visible keys.

    Args:
        q: floats [batch, query_time, heads, dim], scaled.
        k: floats [batch, key_time, heads, dim].
        v: floats [batch, key_time, heads, value_dim].
        mask: a `Mask` that does not differ by layer.
        queries, keys: their `Places`.

    Returns:
        Floats [batch, query_time, heads, value_dim]; 0 for queries that see no key.
    """
    heads = mask.per_head(q.shape[2])
    outs, order = [], []
    for head in dict.fromkeys(heads):
        index = [i for i, other in enumerate(heads) if other == head]
        outs.append(_one_mask(*(_take_heads(x, index) for x in (q, k, v)), head, queries, keys))
        order += index
    if len(outs) == 1:
        return outs[0]
    back = sorted(range(len(order)), key=order.__getitem__)
    return jnp.take(jnp.concatenate(outs, axis=2), jnp.array(back), axis=2)


def _one_mask(q, k, v, mask, queries, keys):
    query_time, dim = q.shape[1], v.shape[3]
    query_block, key_block = min(BLOCK, q.shape[1]), min(BLOCK, k.shape[1])
    queries, keys = _arrays(queries, query_block), _arrays(keys, key_block)
    if queries[1] is None and keys[1] is not None:  # the end of the keys is filled
        queries = (queries[0], jnp.ones_like(queries[0]), *queries[2:])
    if keys[1] is None and queries[1] is not None:
        keys = (keys[0], jnp.ones_like(keys[0]), *keys[2:])
    q = _cut(q, query_block)
    k, v = (_cut(x, key_block) for x in (k, v))
    out = _attend(mask, q, k, v, queries, keys)
    out = jnp.swapaxes(out, 2, 3).reshape(out.shape[0], -1, out.shape[2], dim)
    return out[:, :query_time]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mask, q, k, v, queries, keys):
    """Blocks of q, k, v [batch, blocks, heads, block, dim], places [batch or 1, blocks, block]."""
    return _forward(mask, q, k, v, queries, keys)[0]


def _forward(mask, q, k, v, queries, keys):
    out, log_total = _in_groups(functools.partial(_forward_rows, mask), q, k, v, queries, keys)
    return out, (q, k, v, queries, keys, out, log_total)


def _backward(mask, saved, cotangent):
    q, k, v, queries, keys, out, log_total = saved
    inner = (out * cotangent).sum(-1)
    backward = functools.partial(_backward_rows, mask)
    arguments = (q, k, v, queries, keys, log_total, inner, cotangent)
    return *_in_groups(backward, *arguments), None, None


_attend.defvjp(_forward, _backward)


def _forward_rows(mask, q, k, v, queries, keys):
    visible = _visible(mask, queries, keys)
    first, end = _bounds(_meetings(mask, queries, keys))

    def rows(block):
        i, q, first, end = block

        def step(j, carry):
            highest, total, out = carry
            seen = visible(i, j)
            scores = jnp.where(seen, _dot("bhqd,bhkd->bhqk", q, k[j]), HIDDEN)
            higher = jnp.maximum(highest, scores.max(-1))
            powers = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0)
            shrink = jnp.exp(highest - higher)
            out = out * shrink[..., None] + _dot("bhqk,bhkd->bhqd", powers, v[j])
            return higher, total * shrink + powers.sum(-1), out

        empty = jnp.zeros(q.shape[:3], q.dtype)
        start = (empty + HIDDEN, empty, jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype))
        highest, total, out = jax.lax.fori_loop(first, end, step, start)
        log_total = jnp.where(total > 0, highest + jnp.log(jnp.where(total > 0, total, 1)), 0)
        return ratio(out, total[..., None]), log_total

    return jax.lax.map(rows, (jnp.arange(len(q)), q, first, end))


def _backward_rows(mask, q, k, v, queries, keys, log_total, inner, cotangent):
    visible = _visible(mask, queries, keys)
    first, end = _bounds(_meetings(mask, queries, keys).T)

    def columns(dq, block):
        j, k, v, first, end = block

        # Weights stand with keys first: transposed products are slow on a CPU, and so there is
        # one of them instead of two.
        def step(i, carry):
            dq, dk, dv = carry
            scores = _dot("bhkd,bhqd->bhkq", k, q[i])
            seen = jnp.swapaxes(visible(i, j), -1, -2)
            weights = jnp.where(seen, jnp.exp(scores - log_total[i][:, :, None]), 0)
            dv += _dot("bhkq,bhqd->bhkd", weights, cotangent[i])
            slope = _dot("bhkd,bhqd->bhkq", v, cotangent[i]) - inner[i][:, :, None]
            slope = weights * slope
            dk += _dot("bhkq,bhqd->bhkd", slope, q[i])
            return dq.at[i].add(_dot("bhkq,bhkd->bhqd", slope, k)), dk, dv

        start = (dq, jnp.zeros_like(k), jnp.zeros_like(v))
        dq, dk, dv = jax.lax.fori_loop(first, end, step, start)
        return dq, (dk, dv)

    blocks = (jnp.arange(len(k)), k, v, first, end)
    dq, (dk, dv) = jax.lax.scan(columns, jnp.zeros_like(q), blocks)
    return dq, dk, dv


def _in_groups(function, *arguments):
    """The function on groups of rows of the batch, which it takes as [blocks, rows, ...]."""
    batch = len(arguments[0])
    group = next(size for size in range(min(batch, ROWS), 0, -1) if batch % size == 0)
    arguments = jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), arguments)

    def of_group(xs):
        out = function(*jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), xs))
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), out)

    if group == batch:
        return of_group(arguments)
    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), arguments)
    out = jax.lax.map(of_group, groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _visible(mask, queries, keys):
    """The booleans of one block: a function of its row and column of blocks."""

    def visible(i, j):
        pair = (
            Places(*(None if x is None else x[at] for x in xs))
            for xs, at in ((queries, i), (keys, j))
        )
        return mask.between(*pair)

    return visible


def _meetings(mask, queries, keys):
    """Which blocks of queries may see which blocks of keys: booleans [query blocks, key blocks].

    Never False where something is visible; True also where only the ranges of rank touch.
    """
    meet = jnp.ones((len(queries[0]), len(keys[0]), 1), bool)
    if queries[1] is not None:
        (low, high), (key_low, key_high) = _documents(queries[1]), _documents(keys[1])
        meet = (low[:, None] <= key_high[None]) & (key_low[None] <= high[:, None])
    for part in mask.masks if isinstance(mask, And) else [mask]:
        if isinstance(part, Order):
            low = _ranks(part, keys).min(-1)[None]
            meet = meet & (low <= _ranks(part, queries).max(-1)[:, None])
    return meet.any(-1)


def _ranks(order, places):
    """[blocks, rows, block]: the rank of each position."""
    return jax.vmap(lambda xs: order.rank(Places(*xs)))(places)


def _documents(segment):
    """The least and the greatest document of each block; padding is none."""
    return jnp.where(segment == 0, 2**30, segment).min(-1), segment.max(-1)


def _bounds(meet):
    """The first block that each row meets, and one past the last; equal where it meets none."""
    count = meet.shape[1]
    any_ = meet.any(1)
    first = jnp.where(any_, jnp.argmax(meet, axis=1), 0)
    return first, jnp.where(any_, count - jnp.argmax(meet[:, ::-1], axis=1), 0)


def _arrays(places, block):
    """The tensors of `Places` in blocks, [batch or 1, blocks, block]; the filled end is hidden."""
    segment = places.segment
    if segment is None and places.position.shape[1] % block:
        segment = jnp.ones_like(places.position)

    def cut(x, mode="edge"):
        return None if x is None else _cut(x[:, :, None, None], block, mode)[:, :, 0, :, 0]

    return (
        cut(places.position),
        cut(segment, "constant"),
        cut(places.document),
        cut(places.in_source),
    )


def _take_heads(x, index):
    return x if index == list(range(x.shape[2])) else jnp.take(x, jnp.array(index), axis=2)


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=a.dtype)


def _cut(x, block, mode="constant"):
    """[batch, time, heads, dim] as [batch, blocks, heads, block, dim], the end filled."""
    missing = -x.shape[1] % block
    if missing:
        x = jnp.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)], mode=mode)
    return jnp.swapaxes(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 2, 3)
