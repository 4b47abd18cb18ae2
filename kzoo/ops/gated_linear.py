"""Linear attention whose weights decay with distance, by a gate of each head and token."""

from collections.abc import Mapping

from keras import ops

from kzoo import feature_maps, masks
from kzoo.errors import InputError
from kzoo.masks.orders import not_along_time
from kzoo.ops import gates
from kzoo.ops.linear import Options, attend
from kzoo.ops.qkv import check_shapes
from kzoo.ops.tensors import softmax_scale
from kzoo.typing import FeatureMapSpec, MaskSpec, Tensor
from kzoo.values import is_count, is_integer, plain


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    mask: MaskSpec = "causal",
    *,
    padding_mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_offset: int | Tensor = 0,
    feature_map: FeatureMapSpec | None = None,
    feature_weights: Mapping[str, Tensor] | None = None,
    normalize: bool = False,
    scale: float | None = None,
    rotary: bool = False,
    initial_state: Mapping[str, Tensor] | None = None,
    return_state: bool = False,
    chunk_size: int | None = None,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """scale · Σ_j φ(q_i)·φ(k_j) exp(Σ g) v_j over the visible keys j, in linear time.

    The inner sum is over the gates g of the query and of all tokens between it and the key: those
    of (j, i] for j <= i, of [i, j) for j > i. So a token's own weight does not decay, causal is the
    recurrence S_i = exp(g_i) S_{i-1} + φ(k_i) v_iᵀ, out_i = scale · S_iᵀ φ(q_i), reversed is its
    mirror, and a bidirectional mask gives the sum of both with the token itself counted once.
    Padded tokens have gates of 0: they take no distance. Products and sums are in float32, but for
    the kernel `pallas` of bfloat16, as in `linear_attention`.

    Sources: Sun et al. 2023 (RetNet), arXiv:2307.08621, equations 5 and 6, with a gate that is the
    same for all tokens; Yang et al. 2023, arXiv:2312.06635, section 4.4 (a scalar gate), and Dao
    and Gu 2024 (Mamba-2), arXiv:2405.21060, equation 6, with one for each; Afzal et al. 2025
    (LION), arXiv:2502.16249, for both directions.

    Args:
        q: floats [batch, time, heads, dim].
        k: floats [batch, time, kv_heads, dim], heads a multiple of kv_heads; of a second sequence
            [batch, key_time, kv_heads, dim].
        v: floats [batch, time, kv_heads, value_dim], likewise.
        log_decay: floats [batch or 1, time or 1, heads], the gates g, at most 0 (that is checked
            where the values are known). None for no decay, as it must be over a second sequence.
        mask: a mask spec or `Mask` made of orders along time: bidirectional, causal, reversed,
            prefix, block, by head too.
        padding_mask, source_mask, key_padding_mask: as in `Mask.dense`.
        query_offset: with a state, the position of each example's first token in its document;
            an integer or integers [batch].
        feature_map: φ, a name, JSON or `FeatureMap` of `kzoo.feature_maps`; None for q and k as
            they are.
        feature_weights: the tensors of a learned feature map, by name.
        normalize: divide by the sum of the weights, Σ_j φ(q_i)·φ(k_j) exp(Σ g), which needs a
            feature map; the scale then cancels.
        scale: factor on the sum; 1/√dim by default.
        rotary: rotate φ(q) and φ(k) in the numerator by the position within the document; q and k
            themselves without a map, or under one of their product.
        initial_state, return_state: as in `kzoo.ops.linear_attention`; the state has decayed up
            to the last token.
        chunk_size: tokens whose products are formed at once; the result is the same.
        implementation: for tests and benchmarks, a kernel by name (`kzoo.ops.dispatch`).

    Returns:
        [batch, time, heads, value_dim] in the dtype of v; exactly 0 at padded queries, and at those
        that see no key. With `return_state` also the state, float32: `{"kv_state": [batch, heads,
        features, value_dim]}`, and with `normalize` `"k_sum": [batch, heads, features]`.

    Raises:
        InputError: if shapes disagree, a gate is positive, there are gates over a second sequence,
            the mask is not of orders along time (a decay has no meaning where order and time
            differ, as under permuted), `normalize` has no feature map, and as `linear_attention`.

    Example:
        >>> gates = -0.1 * np.ones((1, 1, 2))  # of two heads, the same for all tokens
        >>> out = gated_linear_attention(q, k, v, gates, "causal")
        >>> first, state = gated_linear_attention(q, k, v, gates, return_state=True)
        >>> second = gated_linear_attention(q, k, v, gates, initial_state=state)
    """
    if chunk_size is not None and not is_count(chunk_size):
        raise InputError(f"chunk_size is an integer of at least 1. Received: {chunk_size!r}")
    phi = None if feature_map is None else feature_maps.get(feature_map)
    mask = masks.get(mask)
    check_normalize(normalize, phi)
    q, k, v = (ops.convert_to_tensor(x) for x in (q, k, v))
    check_shapes(q, k, v)
    if log_decay is not None:
        if key_padding_mask is not None:
            raise InputError(gates.ACROSS)
        reason = not_along_time(mask.per_head(q.shape[2]))
        if reason:
            raise InputError(reason)
        log_decay = gates.given(log_decay, q)
    by_token = {
        "padding_mask": padding_mask,
        "source_mask": source_mask,
        "key_padding_mask": key_padding_mask,
    }
    options = Options(
        mask,
        phi,
        rotary,
        plain(chunk_size),
        implementation,
        gated=True,
        normalize=normalize,
        scale=None if normalize else softmax_scale(q, scale),
    )
    query_offset = int(query_offset) if is_integer(query_offset) else query_offset
    states = {"initial_state": initial_state, "return_state": return_state}
    own = {"query_offset": query_offset, **states}
    return attend(options, q, k, v, by_token, feature_weights, log_decay, **own)


def check_normalize(normalize, feature_map):
    """`InputError` for a denominator of products that may be negative."""
    if normalize and feature_map is None:
        raise InputError(
            "normalize=True divides by a sum of weights, which must be positive: give a "
            "feature_map, such as 'elu1'. Received: normalize=True with feature_map=None"
        )
