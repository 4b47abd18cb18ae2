"""The delta rule, with and without a decay, in linear time."""

from collections.abc import Mapping

import keras
from keras import ops

from kzoo import masks
from kzoo.errors import InputError
from kzoo.masks.orders import not_one_way
from kzoo.ops.context import platform
from kzoo.ops.dispatch import kernel_for, kernels, spec_of
from kzoo.ops.linear import query_offsets, shifted
from kzoo.ops.qkv import check_batch, check_state, nothing, prepare, wide
from kzoo.ops.rotary import rotate
from kzoo.ops.tensors import hide, repeat_heads, softmax_scale
from kzoo.precision import float32_products
from kzoo.sequence import concrete
from kzoo.typing import MaskSpec, Tensor
from kzoo.values import is_integer

CHUNK = 32  # on a CPU; elsewhere matrices of twice the size cost the same
LARGE_CHUNK = 64


@float32_products()
def delta_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    mask: MaskSpec = "causal",
    *,
    padding_mask: Tensor | None = None,
    query_offset: int | Tensor = 0,
    scale: float | None = None,
    rotary: bool = False,
    l2_norm: bool = False,
    initial_state: Mapping[str, Tensor] | None = None,
    return_state: bool = False,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """scale · Sᵀq_i, S after token i: each token replaces what its key finds in a matrix S.

    For each token in turn S ← exp(g) S, then S ← S - β k (kᵀS) + β k vᵀ: β of what S holds under
    the key k is taken out, and β of v put in its place. That is a step of gradient descent on
    |Sᵀk - v|² / 2 of size β, so k should be of length 1 and β between 0 and 1 (up to 2 S stays
    bounded). Computed in chunks; products and sums are in float32 whatever the dtype of q, k and v.

    Sources: Schlag et al. 2021, arXiv:2102.11174, equation 24, and Yang et al. 2024 (DeltaNet),
    arXiv:2406.06484; with a decay Yang et al. 2024 (Gated DeltaNet), arXiv:2412.06464, equation 10.

    Args:
        q: floats [batch, time, heads, dim].
        k: floats [batch, time, kv_heads, dim], heads a multiple of kv_heads; as it is given.
        v: floats [batch, time, kv_heads, value_dim].
        beta: floats [batch or 1, time, heads], β.
        log_decay: floats [batch or 1, time, heads], g, at most 0 (which is checked where the values
            are known); None for 0.
        mask: a mask spec or `Mask` whose heads are causal or reversed; reversed goes through time
            backwards.
        padding_mask: as in `Mask.dense`. Each document begins with S = 0; padding changes nothing.
        query_offset: with `rotary` and a state, the position of each example's first token in its
            document; an integer or integers [batch].
        scale: 1/√dim by default.
        rotary: rotate q and k by the position within the document.
        l2_norm: divide q and k by their lengths first, x / √(|x|² + 1e-6), as DeltaNet's layers do.
        initial_state: what an earlier call returned, of as many examples as q or of one, which all
            go on from: S before the first token, in the first document of each example.
        return_state: also return S after the last token; causal masks only.
        implementation: for tests and benchmarks, a kernel by name (`kzoo.ops.dispatch`).

    Returns:
        [batch, time, heads, value_dim] in the dtype of v; exactly 0 at padded queries. With
        `return_state` also `{"kv_state": S}`, float32 [batch, heads, dim, value_dim].

    Raises:
        InputError: if shapes disagree, a gate is positive, a head's mask is neither causal nor
            reversed, queries and keys are two sequences, or a state is asked of reversed heads.

    Example:
        >>> beta = np.full(q.shape[:3], 0.5)  # of each token and head
        >>> out = delta_attention(q, k, v, beta, mask="half_heads")
        >>> first, state = delta_attention(q, k, v, beta, return_state=True)
        >>> second = delta_attention(q2, k2, v2, beta, initial_state=state)
    """
    zeros = nothing(q, k, v)
    if zeros is not None:
        state = initial_state or {"kv_state": _no_state(q, v)}
        return (zeros, state) if return_state else zeros
    q, k, v, order, sequence, keys = prepare(
        q, k, v, masks.get(mask), padding_mask=padding_mask, clean=False
    )
    if sequence is not keys:
        raise InputError(
            "the delta rule goes through one sequence, so q and k have the same time. "
            f"Received: times {q.shape[1]} and {k.shape[1]}"
        )
    heads = order.per_head(q.shape[2])
    _check(heads, return_state or initial_state is not None)
    kernel, dtype = _kernel(implementation, q, k, v, order), wide(q)
    k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
    beta = _by_token("beta", beta, q, sequence)
    log_decay = _gates(log_decay, q, sequence)
    if rotary:
        positions = _positions(sequence, query_offset, q)
        q, k = (rotate(ops.cast(x, dtype), *positions) for x in (q, k))
    state = _no_state(q, v)
    if initial_state is not None:
        sizes = q.shape[3], v.shape[3]
        state = check_state(initial_state, q, *sizes, normalize=False, dtype=dtype)[0]
    real = None if sequence.segment is None else sequence.segment[:, :, None] != 0
    labels = _documents(sequence, initial_state is not None), real
    options = {"scale": softmax_scale(q, scale), "l2_norm": l2_norm}
    out, state = _in_order(kernel, heads, (q, k, v, beta, log_decay, *labels), state, options)
    return (out, {"kv_state": state}) if return_state else out


@float32_products()
def delta_step(q, k, v, beta, log_decay, state, scale=None):
    """The delta rule of one token, whose query reads the state after it.

    Args:
        q: floats [batch, 1, heads, dim].
        k, v: floats [batch, 1, kv_heads, dim], heads a multiple of kv_heads.
        beta: floats [batch, 1, heads]; 0 for a token that leaves the state as it is.
        log_decay: likewise, or None.
        state, scale: as in `delta_attention`.

    Returns:
        [batch, 1, heads, dim] in the dtype of v, computed in float32, and the state.
    """
    dtype, heads = v.dtype, q.shape[2]
    q, k, v, beta = (ops.cast(x, "float32") for x in (q, k, v, beta))
    q, k, v = (repeat_heads(x, heads)[:, 0] for x in (q, k, v))
    matrix = state["kv_state"]
    if log_decay is not None:
        matrix = ops.exp(ops.cast(log_decay, "float32"))[:, 0, :, None, None] * matrix
    error = v - ops.einsum("bhd,bhde->bhe", k, matrix)
    matrix = matrix + k[..., None] * (beta[:, 0, :, None] * error)[..., None, :]
    out = softmax_scale(q, scale) * ops.einsum("bhd,bhde->bhe", q, matrix)
    return ops.cast(out[:, None], dtype), {"kv_state": matrix}


def _check(heads, stateful):
    reason = not_one_way(heads)
    if reason:
        raise InputError(reason)
    for head in heads:
        if stateful and not head.is_causal:
            raise InputError(
                "a state is what later tokens go on from, so it needs causal heads. "
                f"Received: {head!r}"
            )


def _in_order(kernel, heads, arrays, state, options):
    """Heads that go backwards see their time flipped, and all run in one pass."""
    backwards = [head.time_reversed for head in heads]
    flags = ops.convert_to_tensor(backwards)

    def flipped(x):
        if x is None or not any(backwards):
            return x
        if all(backwards):
            return ops.flip(x, axis=1)
        return ops.where(ops.reshape(flags, (-1, *[1] * (len(x.shape) - 3))), ops.flip(x, 1), x)

    size = CHUNK if platform() == "cpu" else LARGE_CHUNK
    time = arrays[0].shape[1]
    if is_integer(time):
        size = min(size, 1 << (time - 1).bit_length())
    out, state = kernel.run(*map(flipped, arrays), state, chunk_size=size, **options)
    return flipped(out), state


def _kernel(implementation, q, k, v, mask):
    spec = spec_of(q, k, v, mask, dtype=keras.backend.standardize_dtype(q.dtype))
    return kernels("delta", spec.backend)[kernel_for("delta", spec, implementation)]


def _no_state(q, v):
    return ops.zeros((ops.shape(q)[0], q.shape[2], q.shape[3], v.shape[3]), wide(q))


def _by_token(name, x, q, sequence):
    """`x` [batch or 1, time, heads] in the dtype of the computation, and 0 at padding."""
    x = ops.convert_to_tensor(x)
    expected = ((1, q.shape[0]), (q.shape[1],), (q.shape[2],))
    fits = len(x.shape) == 3 and all(
        None in (size, *sizes) or size in sizes
        for size, sizes in zip(x.shape, expected, strict=True)
    )
    if not fits:
        raise InputError(
            f"{name} has the shape [batch or 1, time, heads] of q, {list(q.shape[:3])}. "
            f"Received: shape {list(x.shape)}"
        )
    x = ops.cast(x, wide(q))
    return x if sequence.segment is None else hide(x, sequence.segment[:, :, None] != 0)


def _gates(log_decay, q, sequence):
    if log_decay is None:
        return ops.zeros((1, ops.shape(q)[1], 1), wide(q))
    gates = _by_token("log_decay", log_decay, q, sequence)
    known = concrete(gates)
    if known is not None and (known > 0).any():
        raise InputError(
            "log_decay is at most 0, the logarithm of a factor of at most 1. "
            f"Received: {known[known > 0][0]}"
        )
    return gates


def _positions(sequence, offset, q):
    """The position of each token, and what all are below, for `rotate`."""
    offset = query_offsets(offset, False)
    if is_integer(offset) and offset == 0:
        return sequence.position, q.shape[1]
    check_batch("query_offset", ops.convert_to_tensor(offset), q.shape[0])
    return shifted(sequence, offset), None


def _documents(sequence, goes_on):
    """The document of each token, integers [batch or 1, time, 1]; None where there is one."""
    if sequence.document is None:
        return None
    # Padding before the first document does not part a state from it.
    document = ops.maximum(sequence.document, 1) if goes_on else sequence.document
    return document[:, :, None]
