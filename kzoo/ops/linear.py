"""Linear attention in linear time, for every order."""

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

from kzoo import feature_maps, masks
from kzoo.errors import InputError
from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.ops import gates
from kzoo.ops.context import current_mesh, platform
from kzoo.ops.dispatch import kernel_for, kernels, spec_of
from kzoo.ops.features import features_of
from kzoo.ops.linear_orders import Core, from_all_keys, one_sequence, two_sequences
from kzoo.ops.qkv import check_batch, check_state, cleaned, nothing, prepare, widened
from kzoo.ops.tensors import zero_padding
from kzoo.precision import float32_products
from kzoo.sequence import concrete
from kzoo.typing import FeatureMapSpec, MaskSpec, Tensor
from kzoo.values import is_count, is_integer, plain

log = logging.getLogger("kzoo")

CHUNKS = (64, 256)  # the least and the largest that is chosen
TPU_LANES = 128


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskSpec = "bidirectional",
    *,
    padding_mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_offset: int | Tensor = 0,
    feature_map: FeatureMapSpec = "elu1",
    feature_weights: Mapping[str, Tensor] | None = None,
    rotary: bool = False,
    initial_state: Mapping[str, Tensor] | None = None,
    return_state: bool = False,
    chunk_size: int | None = None,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the visible keys j, in linear time.

    Products and sums are in float32 whatever the dtype of q, k and v, on a TPU in six passes
    (`kzoo.precision`), since states are sums that are multiplied again. The kernel `pallas` alone
    takes bfloat16 q, k and v as they are and forms products of what bfloat16 holds, as softmax
    attention does; its sums and states are in float32 too. Under `native`
    derivatives past the gradient, and forward mode, take memory quadratic in time.
    Source: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 to 9; with `rotary`,
    Su et al. 2021, arXiv:2104.09864, equation 19.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask` made of orders (not `custom`, not `&`).
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`; with an
            `initial_state`, `query_offset` is the position of the first token in its document,
            an integer or integers [batch].
        feature_map: a name, JSON or `FeatureMap` of `kzoo.feature_maps`.
        feature_weights: the tensors of a learned feature map, by name.
        rotary: rotate φ(q) and φ(k) in the numerator by the position within the document; q and k
            themselves under a map of their product (`FeatureMap.of_products`).
        initial_state: the state that an earlier call returned, of as many examples as q or of
            one, which all go on from. Its keys come before all of these, in the first
            document of each example, and every query of that document sees them.
        return_state: also return the state after the last key, for masks that let later tokens
            see all of it: bidirectional, causal and prefix; of two sequences, for a bidirectional
            mask without a `padding_mask`.
        chunk_size: tokens whose products are formed at once; the result is the same. By
            default chosen from the shapes.
        implementation: for tests and benchmarks, a kernel by name (`kzoo.ops.dispatch`).

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries
        that see no key, give exactly 0. With `return_state` also the state, float32 tensors
        whose size does not depend on the time: `{"kv_state": [batch, heads, features, value_dim],
        "k_sum": [batch, heads, features]}`, summed over the keys of the last document.

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
    if is_integer(query_offset):
        query_offset = int(query_offset)  # NumPy's are static, too
    by_token = {
        "padding_mask": padding_mask,
        "source_mask": source_mask,
        "key_padding_mask": key_padding_mask,
    }
    phi = feature_maps.get(feature_map)
    options = Options(masks.get(mask), phi, rotary, plain(chunk_size), implementation)
    states = {"initial_state": initial_state, "return_state": return_state}
    return attend(options, q, k, v, by_token, feature_weights, query_offset=query_offset, **states)


class Options(NamedTuple):
    """What is static in a call of `linear_attention` or `gated_linear_attention`.

    Attributes:
        mask: a `Mask`.
        phi: a `FeatureMap`; None for q and k as they are.
        rotary, chunk_size, implementation: as in `linear_attention`.
        gated: whether it is gated linear attention, of other kernels.
        normalize, scale: as in `gated_linear_attention`.
    """

    mask: Any
    phi: Any
    rotary: bool
    chunk_size: int | None
    implementation: str
    gated: bool = False
    normalize: bool = True
    scale: float | None = None

    @property
    def kernels_of(self):
        """The name of the mechanism whose kernels compute it."""
        return "gated_linear" if self.gated else "linear"

    def sizes(self, q, v):
        """How many features a head has, and how many entries its values."""
        return q.shape[3] if self.phi is None else self.phi.size(q.shape[3]), v.shape[3]


def attend(
    options,
    q,
    k,
    v,
    by_token,
    weights=None,
    log_decay=None,
    *,
    query_offset=0,
    initial_state=None,
    return_state=False,
):
    """`linear_attention` or `gated_linear_attention` of what they take: the masks of each token by
    name, the weights of a feature map, the gates of each token and head or None, and the rest."""
    zeros = nothing(q, k, v)
    if zeros is not None:
        return (zeros, initial_state or _no_state(options, q, v)) if return_state else zeros
    if initial_state is not None or return_state:
        states = initial_state, return_state
        return _attend(options, q, k, v, by_token, weights, log_decay, query_offset, *states)
    mesh = _mesh(options.mask, q, k, query_offset)
    if mesh is None:
        return _attend(options, q, k, v, by_token, weights, log_decay, query_offset)
    from kzoo.ops.kernels.mesh import each_device

    own = functools.partial(_attend, options, query_offset=query_offset)
    return each_device(own, mesh, q, k, v, by_token, weights, log_decay)


def _no_state(options, q, v):
    """The state of no keys."""
    features, value_dim = options.sizes(q, v)
    shape = (q.shape[0], q.shape[2], features)
    state = {"kv_state": ops.zeros((*shape, value_dim), "float32")}
    return state | ({"k_sum": ops.zeros(shape, "float32")} if options.normalize else {})


def _mesh(mask, q, k, query_offset):
    """The mesh on whose devices each computes for itself; None for one device, or if not."""
    mesh = current_mesh()
    if mesh is None:
        return None
    from kzoo.ops.kernels.mesh import unsplittable_reason

    heads = math.gcd(q.shape[2], k.shape[2])
    reason = unsplittable_reason(mask, batch=q.shape[0], num_heads=heads, mesh=mesh)
    if not isinstance(query_offset, int):
        reason = "the queries begin at a column that is computed"
    if reason:
        _tell_of_partitioner(reason)
    return None if reason else mesh


@functools.cache
def _tell_of_partitioner(reason):
    """Say once that devices do not compute linear attention each for itself."""
    log.info("linear attention on several devices is left to XLA's partitioner: %s", reason)


@float32_products()
def _attend(
    options,
    q,
    k,
    v,
    by_token,
    weights,
    log_decay=None,
    query_offset=0,
    initial_state=None,
    return_state=False,
):
    """`attend` on one device."""
    dtype, phi = ops.convert_to_tensor(v).dtype, options.phi
    stateful = return_state or initial_state is not None
    offset = 0 if stateful else query_offset
    q, k, v, mask, queries, keys = prepare(
        q, k, v, options.mask, query_offset=offset, clean=False, **by_token
    )
    kernel = _kernel(options, q, k, v, queries, keys, stateful)
    raw = getattr(kernel, "RAW", False)
    if not raw or (phi is not None and not phi.elementwise):  # of NaN the gradient is NaN
        q, k, v = cleaned(q, k, v, queries, keys)
    q, k, v = widened(q, k, v, dtype if raw else None)
    if stateful:
        query_offset = query_offsets(query_offset, by_token["key_padding_mask"] is not None)
    heads = mask.per_head(q.shape[2])
    # All of a second sequence, by queries of one document: one state, made of its keys.
    one_state = by_token["key_padding_mask"] is not None and by_token["padding_mask"] is None
    one_state = one_state and initial_state is None and all(head.is_full for head in heads)
    _check(options, heads, stateful, one_state or queries is keys)
    if log_decay is not None:
        log_decay = gates.of_tokens(log_decay, q, queries, keys)
    sizes = options.sizes(q, v)
    features, q, k = features_of(phi, options.rotary, q, k, weights, keys.segment)
    chunk = options.chunk_size or choose_chunk(*sizes, platform())
    core = Core(
        features, chunk, kernel, options.gated, options.normalize, options.scale, platform()
    )
    if one_state:
        out, state = from_all_keys(core, q, k, v, weights, queries, keys)
    elif queries is not keys:
        out, state = two_sequences(core, q, k, v, weights, heads, queries, keys), None
    else:
        state = initial_state
        if state is not None:
            state = check_state(state, q, *sizes, options.normalize)
        position, bound = _positions(queries, q, query_offset if stateful else 0)
        wide = "float32" if raw else q.dtype
        sin_cos = features.sin_cos(position, q.shape[3], wide, bound)
        own = q, k, v, weights, heads, queries, sin_cos, state, log_decay
        out, state = one_sequence(core, *own)
    if raw:  # what is left to do here, the kernel has done
        return out
    out = out if options.scale is None else out * options.scale
    out = ops.cast(zero_padding(out, queries), dtype)
    if not return_state:
        return out
    named = zip(("kv_state", "k_sum"), state, strict=True)
    return out, {name: x for name, x in named if x is not None}


def _positions(queries, q, offset):
    """The position of each query in its document after `offset`, and a bound on it or None."""
    if isinstance(offset, int) and offset == 0:
        return queries.position, q.shape[1]
    check_batch("query_offset", ops.convert_to_tensor(offset), q.shape[0])
    return shifted(queries, offset), None


def _kernel(options, q, k, v, queries, keys, stateful):
    spec = spec_of(
        q,
        k,
        v,
        options.mask,
        padded=keys.segment is not None,
        same_sequence=queries is keys,
        dtype=_dtype(q, v),
        features=options.sizes(q, v)[0],
        normalize=options.normalize,
        state=stateful,
    )
    name = kernel_for(options.kernels_of, spec, options.implementation)
    return kernels(options.kernels_of, spec.backend)[name]


def _dtype(q, v):
    """The dtype of the call: float64 where q is, else that of v."""
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in (q, v)]
    return dtypes[0] if dtypes[0] == "float64" else dtypes[1]


def choose_chunk(features, value_dim, platform="cpu"):
    """The chunk at which products inside and states between cost about the same memory; on a TPU
    no less than the 128 lanes of a tile."""
    least, largest = CHUNKS
    least = TPU_LANES if platform == "tpu" else least
    return min(max(2 ** round(math.log2(features * value_dim) / 2), least), largest)


def _check(options, heads, stateful, same_sequence):
    phi = options.phi
    other = no_order(heads)
    if other is not None:
        raise InputError(f"linear attention {ORDERS_ONLY}; use softmax. Received: {other!r}")
    for head in set(heads):
        if stateful and not head.resumable:
            raise InputError(
                "a state sums keys that all later tokens see: of a bidirectional, causal or "
                f"prefix mask, or an order that declares `resumable`. Received: {head!r}"
            )
    whole_sequence = phi is not None and phi.whole_sequence
    if phi is not None:
        phi.check(heads)
    if stateful and (whole_sequence or not same_sequence):
        reason = phi.get_config() if whole_sequence else "queries and keys of two sequences"
        raise InputError(
            "a state needs queries and keys of one sequence, and features of a key that later "
            f"keys do not change. Received: {reason!r}"
        )


def query_offsets(offset, cross):
    """The `query_offset` of a state, one or one for each example, checked where it is known."""
    known = concrete(offset)
    wrong = known is not None and (
        known.ndim > 1 or known.dtype.kind not in "iu" or known.min() < 0
    )
    if wrong or (cross and not (isinstance(offset, int) and offset == 0)):
        raise InputError(
            "with a state `query_offset` is the position of each example's first token, an integer "
            "or integers [batch] of at least 0; 0 of two sequences, where keys have positions of "
            f"their own. Received: {offset!r}"
        )
    return int(known) if known is not None and not known.ndim else offset


def shifted(sequence, offset):
    """The positions of `sequence`, those of each example's first document moved by `offset`."""
    moved = sequence.position + ops.reshape(ops.cast(offset, "int32"), (-1, 1))
    if sequence.segment is None:
        return moved
    return ops.where(sequence.document <= 1, moved, sequence.position)
