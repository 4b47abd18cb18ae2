"""Softmax attention in blocks on JAX: memory linear in time, hidden blocks skipped.

The forward pass goes over blocks of queries and, for each, over the blocks of keys that it may
see, with a running maximum and sum (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al.
2022, arXiv:2205.14135). The backward pass forms each block of weights again from the logarithm
of the sums. Both are rolled loops whose bounds are computed, so one program serves every length
of prefix and every packing. Examples are taken in groups; the blocks of one group follow
those of another, and blocks of two groups never meet. Derivatives other than the gradient, as
forward mode and the gradient of a gradient, come from a dense form: quadratic memory.
"""

import functools

import jax
import jax.numpy as jnp

from kzoo.ops.kernels.derivatives import by_hand, varying
from kzoo.ops.tensors import masked_softmax, ratio, repeat_heads, take_heads
from kzoo.sequence import SequenceInfo

NAME, MECHANISM = "blockwise", "softmax"
SHORT = 128  # up to it one block holds all scores, and XLA compiles its dense softmax sooner
BLOCK = 128, 128  # queries and keys: small ones hide more
# In long sequences: XLA shares a product of matrices out over cores from 2**17 results.
LONG, LONG_BLOCK = 1024, (512, 256)
SCORES = 2**19  # of the examples and heads of a group in one block: they stay in the cache
HIDDEN = -1e30


def preferred(spec):
    """Whether "auto" takes it: on a CPU for more than one block of scores, on a GPU for more than
    its memory should hold of every head."""
    if spec.platform == "cpu":
        return not spec.sizes_known or spec.query_time * spec.key_time > SHORT**2
    return spec.platform == "gpu" and spec.sizes_known and spec.query_time * spec.key_time > LONG**2


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    if not spec.sizes_known:
        return "the blockwise kernel needs to know batch and time when the program is made"
    if spec.bias:
        return "the blockwise kernel takes no bias (its gradient is quadratic); use 'dense'"
    return None


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ) v over the visible keys, as `kzoo.ops.kernels.dense.run`."""
    q, k, v = (x.astype(spec.wide_dtype) for x in (q, k, v))
    q = q * scale
    k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
    heads = spec.mask.per_head(q.shape[2])
    queries, keys = _fields(queries), _fields(keys)
    outs, order = [], []
    for head in dict.fromkeys(heads):
        index = [i for i, other in enumerate(heads) if other == head]
        outs.append(_one_mask(head, *(take_heads(x, index) for x in (q, k, v)), queries, keys))
        order += index
    back = sorted(range(len(order)), key=order.__getitem__)
    return take_heads(jnp.concatenate(outs, axis=2), back)


@functools.partial(jax.jit, static_argnums=0)  # traced once for all layers that are alike
def _one_mask(mask, q, k, v, queries, keys):
    return _attention(mask, (q, k, v), (queries, keys))


def _attend(mask, floats, sequence):
    """What `run` returns, for heads of one mask, and what its gradient needs."""
    q, k, v = floats
    queries, keys = sequence
    batch, query_time, heads, _ = q.shape
    key_time = k.shape[1]
    block = LONG_BLOCK if min(query_time, key_time) >= LONG else BLOCK
    query_block, key_block = min(block[0], query_time), min(block[1], key_time)
    most = max(1, min(batch, SCORES // (heads * query_block * key_block)))
    examples = next(size for size in range(most, 0, -1) if batch % size == 0)
    queries = _arrays(queries, batch, query_block)
    keys = _arrays(keys, batch, key_block)
    if queries[1] is None and keys[1] is not None:  # the end of the keys is filled
        queries = (queries[0], jnp.ones_like(queries[0]), *queries[2:])
    if keys[1] is None and queries[1] is not None:
        keys = (keys[0], jnp.ones_like(keys[0]), *keys[2:])
    queries, keys = (jax.tree.map(lambda x: _group(x, examples), x) for x in (queries, keys))
    meet = jax.vmap(functools.partial(_meetings, mask))(queries, keys)
    bounds = _bounds(meet), _bounds(jnp.swapaxes(meet, 1, 2))
    queries, keys = jax.tree.map(_chain, (queries, keys))
    q = _cut(q, query_block, examples)
    k, v = (_cut(x, key_block, examples) for x in (k, v))
    out, saved = _forward(mask, q, k, v, queries, keys, bounds)
    return _join(out, batch, query_time), saved


def _gradient(mask, floats, sequence, saved, slope):
    q, k, v = floats
    _, examples, _, block, _ = saved[0].shape  # q in blocks
    gradients = _backward(mask, saved, _cut(slope, block, examples))
    times = (q.shape[1], k.shape[1], v.shape[1])
    return tuple(_join(x, len(q), time) for x, time in zip(gradients, times, strict=True))


def _dense(mask, floats, sequence):
    q, k, v = floats
    visible = mask.between(*(SequenceInfo(*xs) for xs in sequence))
    weights = masked_softmax(_dot("bqhd,bkhd->bhqk", q, k), visible)
    return _dot("bhqk,bkhd->bqhd", weights, v)


_attention = by_hand(lambda *arrays: _attend(*arrays)[0], _attend, _gradient, _dense)


# From here on blocks are those of all groups: q, k and v are [blocks, examples, heads, block,
# dim], sequence [blocks, examples, block], and bounds the first block that each meets and one past
# the last.


def _forward(mask, q, k, v, queries, keys, bounds):
    visible = _visible(mask, queries, keys)

    def block_of_queries(block):
        i, q, first, end = block

        def step(j, carry):
            highest, total, out = carry
            scores = jnp.where(visible(i, j), _dot("bhqd,bhkd->bhqk", q, _at(k, j)), HIDDEN)
            higher = jnp.maximum(highest, scores.max(-1))
            powers = jnp.exp(scores - higher[..., None])
            shrink = jnp.exp(highest - higher)
            out = out * shrink[..., None] + _dot("bhqk,bhkd->bhqd", powers, _at(v, j))
            return higher, total * shrink + powers.sum(-1), out

        empty = jnp.zeros(q.shape[:3], q.dtype)
        # Above what is hidden, whose powers then are 0 of a query that has seen nothing too.
        start = (empty + HIDDEN / 2, empty, jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype))
        start = varying(start, q, k, v, queries, keys)
        highest, total, out = jax.lax.fori_loop(first, end, step, start)
        log_total = jnp.where(total > 0, highest + jnp.log(jnp.where(total > 0, total, 1)), 0)
        return ratio(out, total[..., None]), log_total

    out, log_total = jax.lax.map(block_of_queries, (jnp.arange(len(q)), q, *bounds[0]))
    return out, (q, k, v, queries, keys, bounds, out, log_total)


def _backward(mask, saved, cotangent):
    q, k, v, queries, keys, bounds, out, log_total = saved
    visible = _visible(mask, queries, keys)
    inner = (out * cotangent).sum(-1)

    # Weights stand with keys first and the slope of queries with `dim` first, since products with
    # a transposed left side are slow on a CPU.
    def column(dq, block):
        j, k, k_transposed, v, first, end = block

        def step(i, carry):
            dq, dk, dv = carry
            q_i, cotangent_i = _at(q, i), _at(cotangent, i)
            scores = _dot("bhkd,bhqd->bhkq", k, q_i)
            seen = jnp.swapaxes(visible(i, j), -1, -2)
            weights = jnp.where(seen, jnp.exp(scores - _at(log_total, i)[:, :, None]), 0)
            dv += _dot("bhkq,bhqd->bhkd", weights, cotangent_i)
            slope = _dot("bhkd,bhqd->bhkq", v, cotangent_i) - _at(inner, i)[:, :, None]
            slope = weights * slope
            dk += _dot("bhkq,bhqd->bhkd", slope, q_i)
            dq_i = _at(dq, i) + _dot("bhdk,bhkq->bhdq", k_transposed, slope)
            return jax.lax.dynamic_update_index_in_dim(dq, dq_i, i, 0, **_INSIDE), dk, dv

        start = varying((dq, jnp.zeros_like(k), jnp.zeros_like(v)), dq)
        dq, dk, dv = jax.lax.fori_loop(first, end, step, start)
        return dq, (dk, dv)

    blocks = (jnp.arange(len(k)), k, jnp.swapaxes(k, -1, -2), v, *bounds[1])
    start = varying(jnp.zeros_like(jnp.swapaxes(q, -1, -2)), saved, cotangent)
    dq, (dk, dv) = jax.lax.scan(column, start, blocks)
    return jnp.swapaxes(dq, -1, -2), dk, dv


def _visible(mask, queries, keys):
    """The booleans of one block: a function of its blocks of queries and of keys."""

    def visible(i, j):
        pair = (
            SequenceInfo(*(None if x is None else _at(x, at) for x in xs))
            for xs, at in ((queries, i), (keys, j))
        )
        return mask.between(*pair)

    return visible


def _meetings(mask, queries, keys):
    """Which blocks of queries may see which blocks of keys: booleans [query blocks, key blocks].

    Never False where something is visible; True also where only the ranges of levels touch.
    """
    meet = jnp.ones((len(queries[0]), len(keys[0]), 1), bool)
    if queries[1] is not None:
        (low, high), (key_low, key_high) = _documents(queries[1]), _documents(keys[1])
        meet = (low[:, None] <= key_high[None]) & (key_low[None] <= high[:, None])
    for order in mask.orders():
        low = _levels(order, keys).min(-1)[None]
        meet = meet & (low <= _levels(order, queries).max(-1)[:, None])
    return meet.any(-1)


def _levels(order, sequence):
    """[blocks, examples, block]: the level of each position."""
    return jax.vmap(lambda xs: order.levels(SequenceInfo(*xs)))(sequence)


def _documents(segment):
    """The least and the greatest document of each block; padding is none."""
    return jnp.where(segment == 0, 2**30, segment).min(-1), segment.max(-1)


def _bounds(meet):
    """The first block that each meets, and one past the last; equal where it meets none.

    Args:
        meet: booleans [groups, blocks, other blocks].

    Returns:
        Two arrays of integers [groups · blocks], of the blocks of all groups.
    """
    groups, _, count = meet.shape
    some = meet.any(2)
    first = jnp.where(some, jnp.argmax(meet, axis=2), 0)
    end = jnp.where(some, count - jnp.argmax(meet[:, :, ::-1], axis=2), 0)
    before = jnp.arange(groups)[:, None] * count
    return (before + first).reshape(-1), (before + end).reshape(-1)


def _fields(sequence):
    """The tensors of `SequenceInfo`, in a tuple as JAX takes it."""
    return sequence.position, sequence.segment, sequence.document, sequence.in_source


def _arrays(sequence, batch, block):
    """The tensors of `SequenceInfo` as [batch, blocks, block]; the end is filled up, and hidden."""
    position, segment, document, in_source = sequence
    missing = -position.shape[1] % block
    if segment is None and missing:
        segment = jnp.ones_like(position)

    def fill(x, mode="edge"):
        if x is None:
            return None
        x = jnp.pad(x, [(0, 0), (0, missing)], mode=mode)
        return jnp.broadcast_to(x, (batch, x.shape[1])).reshape(batch, -1, block)

    return fill(position), fill(segment, "constant"), fill(document), fill(in_source)


def _group(x, examples):
    """[batch, blocks, ...] as [groups, blocks, examples, ...]."""
    return jnp.swapaxes(x.reshape(-1, examples, *x.shape[1:]), 1, 2)


def _chain(x):
    """[groups, blocks, ...] as [groups · blocks, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _cut(x, block, examples):
    """[batch, time, heads, dim] as [groups · blocks, examples, heads, block, dim], end filled."""
    missing = -x.shape[1] % block
    if missing:
        x = jnp.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)])
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
    return _chain(_group(jnp.swapaxes(x, 2, 3), examples))


def _join(x, batch, time):
    """What `_cut` cut, [batch, time, heads, dim]."""
    _, examples, heads, block, dim = x.shape
    x = jnp.swapaxes(x.reshape(batch // examples, -1, examples, heads, block, dim), 1, 2)
    return jnp.swapaxes(x, 3, 4).reshape(batch, -1, heads, dim)[:, :time]


# An index that jnp takes may count from the end: many operations more to compile.
_INSIDE = {"allow_negative_indices": False}


def _at(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False, **_INSIDE)


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=a.dtype)
