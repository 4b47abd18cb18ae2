"""Attention by its definition, in NumPy and float64: what kernels are compared with.

It shares nothing with them but the mask: no preparation, no kernel, no `keras.ops`.
"""

import numpy as np

from kzoo import masks
from kzoo.errors import unknown


def elu1(x):
    """φ(x) = elu(x) + 1, the default feature map (arXiv:2006.16236, equation 7)."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def attention(
    q,
    k,
    v,
    mask="bidirectional",
    *,
    mechanism,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
    query_offset=0,
    scale=None,
    bias=None,
    feature_map=elu1,
    rotary=False,
    log_decay=None,
    normalize=True,
):
    """out_i = Σ_j w_ij v_j over the keys j that i sees.

    softmax:  w_ij = exp(s_ij) / Σ_l exp(s_il),  s_ij = scale · q_i·k_j + bias_ij
    linear:   w_ij = φ(q_i)·φ(k_j) / Σ_l φ(q_i)·φ(k_l)
    gated_linear:  w_ij = u_ij / Σ_l u_il, or scale · u_ij, where u_ij = φ(q_i)·φ(k_j) exp(Σ g),
                   the sum of the gates over (j, i] for j <= i, over [i, j) for j > i

    Sources: Vaswani et al. 2017, arXiv:1706.03762, equation 1; Katharopoulos et al. 2020,
    arXiv:2006.16236, equation 4; Sun et al. 2023, arXiv:2307.08621, equation 5; with `rotary`,
    Su et al. 2021, arXiv:2104.09864, equations 16 (softmax) and 19 (linear, the numerator only).

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`.
        mechanism: `"softmax"`, `"linear"` or `"gated_linear"`.
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`.
        scale: softmax, and gated_linear without a denominator; 1/√dim by default.
        bias: softmax only; floats [batch or 1, heads or 1, query_time, key_time].
        feature_map: linear ones only; a function of NumPy arrays [batch, time, heads, dim]; None
            for q and k as they are.
        rotary: rotate by the position within the document.
        log_decay: gated_linear of one sequence; the gates g, floats [batch or 1, time or 1, heads],
            which count as 0 at padding; None for 0.
        normalize: gated_linear only; whether there is a denominator.

    Returns:
        float64 [batch, query_time, heads, value_dim], and the weights [batch, heads, query_time,
        key_time]; exactly 0 for padded queries, and for queries that see no key.

    Raises:
        InputError: for an unknown mechanism, and as `Mask.dense`.

    Example:
        >>> out, weights = attention(q, k, v, "causal", mechanism="softmax")
    """
    known = ["softmax", "linear", "gated_linear"]
    if mechanism not in known:
        raise unknown("mechanism", mechanism, known)
    q, k, v = (np.asarray(x, "float64") for x in (q, k, v))
    query_time, key_time = q.shape[1], k.shape[1]
    visible = masks.get(mask).dense(
        query_time,
        key_time,
        query_offset=query_offset,
        num_heads=q.shape[2],
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
    )
    q, k, v, visible = _shown(q, k, v, np.asarray(visible))
    query_position, key_position = _of_both(
        query_time, key_time, padding_mask, key_padding_mask, query_offset
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mechanism != "softmax":
        q, k = (x if feature_map is None else feature_map(x) for x in (q, k))
        totals = np.einsum("bqhd,bkhd->bhqk", q, k)
    if rotary:
        q, k = _rotated(q, query_position), _rotated(k, key_position)
    products = np.einsum("bqhd,bkhd->bhqk", q, k)
    if mechanism == "softmax":
        scores = products * scale
        scores = scores if bias is None else scores + np.asarray(bias, "float64")
        scores = np.where(visible, scores, -np.inf)
        highest = np.where(visible.any(-1), scores.max(-1), 0)[..., None]
        products = totals = np.exp(scores - highest)
    if mechanism == "gated_linear" and log_decay is not None:
        decays = np.exp(_sums_between(log_decay, padding_mask, len(q), query_time))
        products, totals = products * decays, totals * decays
    if mechanism == "gated_linear" and not normalize:
        weights = np.where(visible, products, 0) * scale
        return np.einsum("bhqk,bkhd->bqhd", weights, v), weights
    total = np.where(visible, totals, 0).sum(-1, keepdims=True)
    weights = np.where(visible, products, 0) / np.where(total > 0, total, 1)
    weights = np.where(total > 0, weights, 0)
    return np.einsum("bhqk,bkhd->bqhd", weights, v), weights


def _shown(q, k, v, visible):
    """Queries, and the keys and values of each of their heads, with 0 where nothing is seen; and
    what is visible, [batch, heads, query_time, key_time]."""
    heads = q.shape[2]
    visible = np.broadcast_to(visible, (len(q), heads, q.shape[1], k.shape[1]))
    k, v = (np.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    # What stands at padding may be no number, and 0 · NaN is NaN.
    k, v = (np.where(visible.any(axis=(1, 2))[..., None, None], x, 0) for x in (k, v))
    return np.where(visible.any(axis=(1, 3))[..., None, None], q, 0), k, v, visible


def _sums_between(gates, padding_mask, batch, time):
    """Of each query i and key j the sum of gates over (j, i], or [i, j): [batch, heads, i, j].

    Each is added up from the query on, outwards: nothing is subtracted.
    """
    gates = np.asarray(gates, "float64")
    gates = np.broadcast_to(gates, (batch, time, gates.shape[2]))
    if padding_mask is not None:
        gates = np.where(np.asarray(padding_mask)[:, :, None] != 0, gates, 0)
    sums = np.zeros((batch, gates.shape[2], time, time))
    gates = np.swapaxes(gates, 1, 2)
    for i in range(time):
        sums[:, :, i, :i] = np.cumsum(gates[:, :, i:0:-1], axis=-1)[:, :, ::-1]
        sums[:, :, i, i + 1 :] = np.cumsum(gates[:, :, i:-1], axis=-1)
    return sums


def delta(
    q,
    k,
    v,
    beta,
    log_decay=None,
    mask="causal",
    *,
    padding_mask=None,
    scale=None,
    rotary=False,
    initial_state=None,
):
    """The delta rule: S ← exp(g) S, S ← S - β k (kᵀS) + β k vᵀ, out_i = scale Sᵀq_i, in turn.

    Sources: Schlag et al. 2021, arXiv:2102.11174, equation 24; with a decay g Yang et al. 2024,
    arXiv:2412.06464, equation 10.

    Args:
        q, k, v: as in `attention`.
        beta: floats [batch, time, heads].
        log_decay: likewise, the decays g; None for 0.
        mask: a mask spec or `Mask` under which no two tokens of a document see each other; the
            tokens come in the order in which they see more and more.
        padding_mask: as in `Mask.dense`.
        scale: 1/√dim by default.
        rotary: rotate q and k by the position within the document.
        initial_state: floats [batch, heads, dim, value_dim], S before each example's first
            document; 0 by default, as it is before every other.

    Returns:
        float64 [batch, time, heads, value_dim], exactly 0 at padding, and S after each example's
        last document: [batch, heads, dim, value_dim].

    Example:
        >>> out, state = delta(q, k, v, np.full(q.shape[:3], 0.5), mask="reversed")
    """
    q, k, v, beta = (np.asarray(x, "float64") for x in (q, k, v, beta))
    g = np.zeros(beta.shape) if log_decay is None else np.asarray(log_decay, "float64")
    batch, time, heads, dim = q.shape
    if rotary:
        q, k = (_rotated(x, _positions(padding_mask, time)) for x in (q, k))
    k, v = (np.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    masks_of = {"num_heads": heads, "padding_mask": padding_mask}
    visible = np.asarray(masks.get(mask).dense(time, **masks_of))
    visible = np.broadcast_to(visible, (batch, heads, time, time))
    ids = np.ones((1, time), int) if padding_mask is None else np.asarray(padding_mask)
    ids = np.broadcast_to(ids, (batch, time))
    scale = dim**-0.5 if scale is None else scale
    out, last = (
        np.zeros((batch, time, heads, v.shape[3])),
        np.zeros((batch, heads, dim, v.shape[3])),
    )
    for b, h in np.ndindex(batch, heads):
        s = last[b, h] if initial_state is None else np.asarray(initial_state, "float64")[b, h]
        documents = list(dict.fromkeys(ids[b][ids[b] != 0].tolist()))
        for one in documents:
            tokens = np.flatnonzero(ids[b] == one)
            s = s if one == documents[0] else np.zeros_like(s)
            for t in tokens[np.argsort(visible[b, h][tokens].sum(-1))]:
                s = np.exp(g[b, t, h]) * s
                s = s + beta[b, t, h] * np.outer(k[b, t, h], v[b, t, h] - s.T @ k[b, t, h])
                out[b, t, h] = scale * s.T @ q[b, t, h]
        last[b, h] = s
    return out, last


def _of_both(query_time, key_time, padding_mask, key_padding_mask, query_offset):
    """The positions of queries and of keys within their documents."""
    if key_padding_mask is not None:
        return _positions(padding_mask, query_time), _positions(key_padding_mask, key_time)
    keys = _positions(padding_mask, key_time)
    if padding_mask is None:
        return np.arange(query_time)[None] + query_offset, keys
    return keys[:, query_offset : query_offset + query_time], keys


def _positions(ids, time):
    """How many tokens of its document come before each: integers [batch or 1, time]."""
    if ids is None:
        return np.arange(time)[None]
    found = np.zeros(np.shape(ids), int)
    for example, row in enumerate(np.asarray(ids)):
        document = count = 0
        for t, one in enumerate(row):
            if one != 0:
                count = count if one == document else 0
                document = one
                found[example, t], count = count, count + 1
    return found


def _rotated(x, position):
    """Entries i and i + dim/2 rotated by position · 10000^(-2i/dim), as one complex number."""
    half = x.shape[-1] // 2
    angle = position[..., None, None] * 10_000.0 ** (-np.arange(half) / half)
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)
