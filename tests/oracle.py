"""Attention by its definition in NumPy, float64, dense, with its gradients.

It shares nothing with `kzoo`: padded tokens are dropped, each document is computed alone, and its
results are written to the positions of its tokens. The orders are those of `kzoo.masks`' docstring
and those of `orders.py`.
"""

import numpy as np


def murmur(seed, t):
    """The finalizer of MurmurHash3 over unsigned 32-bit integers, read as a signed one."""
    x = t ^ ((seed * 0x9E3779B1 + 0x7F4A7C15) % 2**31)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ x >> shift) * factor % 2**32
    return x - 2**32 * (x >= 2**31)


def levels(spec, source):
    """The level of each token of one document without padding, from a name or its JSON."""
    name, fields = next(iter(spec.items())) if isinstance(spec, dict) else (spec, {})
    times = range(len(source))
    run = next((t for t in times if not source[t]), len(source))  # of the initial source tokens
    match name:
        case "bidirectional":
            return [0 for t in times]
        case "causal" | "bare_causal":
            return [t for t in times]
        case "reversed":
            return [-t for t in times]
        case "prefix":
            return [0 if t < run else t + 1 for t in times]
        case "block":
            return [t // fields["size"] for t in times]
        case "permuted":
            return [murmur(fields.get("seed", 0), t) for t in times]
        case "reversed_block":
            return [-(t // fields["size"]) for t in times]
        case "strided":
            return [t % fields["step"] for t in times]
        case "from_the_middle":
            return [abs(3 * t - 10) for t in times]
        case "prefix_of_pairs":
            return [0 if t < run else 1 + t // 2 for t in times]
    raise ValueError(name)


def documents(ids):
    """The times of each document's tokens: runs of equal ids, padding left out."""
    runs, last = [], 0
    for t, one in enumerate(ids):
        if one:
            if one != last:
                runs.append([])
            runs[-1].append(t)
            last = one
    return runs


def visible(spec, ids, source=None):
    """Booleans [time, time] of one example: which keys each query sees."""
    see = np.zeros((len(ids), len(ids)), bool)
    for times in documents(ids):
        level = np.array(levels(spec, [0 if source is None else source[t] for t in times]))
        see[np.ix_(times, times)] = level[None] <= level[:, None]
    return see


def visible_of(specs, padding, source):
    """Booleans [batch, heads, time, time] of some examples, an order by head."""
    return np.array(
        [[visible(spec, *one) for spec in specs] for one in zip(padding, source, strict=True)]
    )


def visible_across(spec, query_ids, key_ids):
    """Booleans [query_time, key_time] of two sequences: a document sees the one of its id."""
    see = np.zeros((len(query_ids), len(key_ids)), bool)
    for queries in documents(query_ids):
        for keys in documents(key_ids):
            if query_ids[queries[0]] == key_ids[keys[0]]:
                query_level = np.array(levels(spec, [0] * len(queries)))
                key_level = np.array(levels(spec, [0] * len(keys)))
                see[np.ix_(queries, keys)] = key_level[None] <= query_level[:, None]
    return see


def attention(mechanism, q, k, v, see, cotangent, scale=None):
    """out [batch, time, heads, value_dim], and the gradients of Σ out · cotangent by q, k and v.

    Args:
        mechanism: "softmax" or "linear" of elu(x) + 1.
        q, k, v: [batch, time, heads or kv_heads, dim]; at padding they may hold anything.
        see: booleans [batch, heads, query_time, key_time].
        scale: of softmax; 1/√dim by default.
    """
    q, k, v, cotangent = (np.asarray(x, "float64") for x in (q, k, v, cotangent))
    q = np.where(see.any((1, 3))[:, :, None, None], q, 0)
    k, v = (np.where(see.any((1, 2))[:, :, None, None], x, 0) for x in (k, v))
    kv_heads, repeats = k.shape[2], q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, repeats, axis=2) for x in (k, v))
    if mechanism == "softmax":
        scale = scale or q.shape[3] ** -0.5
        scores = np.where(see, np.einsum("bqhd,bkhd->bhqk", q, k) * scale, -np.inf)
        highest = scores.max(-1, keepdims=True, initial=-1e30)
        weights = np.where(see, np.exp(scores - highest), 0)
    else:
        fq, fk = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
        weights = np.where(see, np.einsum("bqhd,bkhd->bhqk", fq, fk), 0)
    total = weights.sum(-1, keepdims=True)
    total = np.where(total > 0, total, 1)
    weights = weights / total
    out = np.einsum("bhqk,bkhd->bqhd", weights, v)
    dv = np.einsum("bhqk,bqhd->bkhd", weights, cotangent)
    slope = np.einsum("bqhd,bkhd->bhqk", cotangent, v)
    slope = np.where(see, slope - (slope * weights).sum(-1, keepdims=True), 0)
    if mechanism == "softmax":
        slope = slope * weights * scale
        dq, dk = np.einsum("bhqk,bkhd->bqhd", slope, k), np.einsum("bhqk,bqhd->bkhd", slope, q)
    else:
        slope = slope / total
        dq, dk = np.einsum("bhqk,bkhd->bqhd", slope, fk), np.einsum("bhqk,bqhd->bkhd", slope, fq)
        dq, dk = (g * np.where(x > 0, 1, np.exp(np.minimum(x, 0))) for g, x in ((dq, q), (dk, k)))
    dk, dv = (x.reshape(*x.shape[:2], kv_heads, repeats, -1).sum(3) for x in (dk, dv))
    return out, dq, dk, dv
