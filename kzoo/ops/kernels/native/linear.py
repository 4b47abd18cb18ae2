"""Linear attention in C++, in chunks."""

import functools

import jax.numpy as jnp
import numpy as np

from kzoo.ops.kernels.derivatives import by_hand
from kzoo.ops.kernels.native import calls
from kzoo.ops.kernels.native.calls import call, float32
from kzoo.ops.tensors import ratio

NAME, MECHANISM = "native", "linear"
ANY_DIRECTION = True
MOST_FEATURES = 256  # features of all time are held
MOST_CHUNK = 1024  # as `kMostChunk` in checks.h


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    if spec.features > MOST_FEATURES:
        return f"the native kernel takes at most {MOST_FEATURES} features: {spec.features}"
    return calls.unsupported_reason(spec, features=spec.features, value_dim=spec.value_dim)


def run(q, k, v, features, weights, tokens, initial_state, *, chunk_size, reverse=False):
    """As `kzoo.ops.kernels.chunked.run`, but features of all time are held.

    Here `reverse` may differ by head, booleans [heads], and a level need not ascend: it matters
    only which neighbours share it.
    """
    q, k, *norms = features(q, k, weights, tokens.sin_cos, tokens.shown)
    norms = [x for x in norms if x is not None]
    batch, _, heads, size = q.shape
    if initial_state is None:
        shapes = (batch, heads, size, v.shape[3]), (batch, heads, size)
        initial_state = tuple(jnp.zeros(shape, q.dtype) for shape in shapes)
    labels, static = prepared(q, tokens, chunk_size, reverse)
    return _attend(static, ((q, k, v, *norms), initial_state), labels)


def prepared(q, tokens, chunk_size, reverse):
    """What the C++ takes of `kzoo.ops.sorting.Tokens`: documents and levels, and what is static,
    the size of a chunk and the heads that go back."""
    time, heads = q.shape[1:3]
    document, level = tokens.document, tokens.level
    document = jnp.zeros((1, 1, time), "int32") if document is None else document
    level = jnp.arange(time, dtype="int32")[None, None] if level is None else level
    chunk = max(1, min(chunk_size, time, MOST_CHUNK))  # any size gives the same result
    static = chunk, tuple(np.broadcast_to(reverse, heads).tolist())
    return (document.astype("int32"), level.astype("int32")), static


def _forward(static, floats, labels):
    (q, k, v, *norms), state = floats
    batch, time, heads, _ = q.shape
    shapes = [float32(*v.shape), float32(batch, heads, time), *(float32(*x.shape) for x in state)]
    arrays = (q, k, v, *labels, *state, *norms)
    out, denominator, *after = call("kzoo_linear_forward", shapes, *arrays, **chunk_fields(static))
    return (out, tuple(after)), (out, denominator)


def _backward(static, floats, labels, saved, slopes):
    (q, k, v, *norms), state = floats
    slope, after = slopes
    shapes = [float32(*x.shape) for x in (q, k, v, *state, *norms)]
    arrays = (q, k, v, *labels, *state, *saved, slope, *after, *norms)
    results = call("kzoo_linear_backward", shapes, *arrays, **chunk_fields(static))
    dq, dk, dv, kv_state, k_sum, *dnorms = results
    return (dq, dk, dv, *dnorms), (kv_state, k_sum)


def _plain(static, floats, labels):
    (q, k, v, *norms), (kv_state, k_sum) = floats
    q_norm, k_norm = norms or (q, k)
    document, level = labels
    # Runs along time: of one document, and of one level in it, the groups that see each other.
    document, group = runs(document), runs(document, level)
    sign = np.where(static[1], -1, 1)[:, None].astype("int32")
    document, group = document * sign, group * sign  # time in the order of level
    visible = document[..., None, :] == document[..., :, None]
    visible &= group[..., None, :] <= group[..., :, None]

    def sums(q, k, visible):
        return jnp.where(visible, jnp.einsum("bqhd,bkhd->bhqk", q, k), 0)

    begun = document == document.min(-1, keepdims=True)  # what sees the state before
    ended = document == document.max(-1, keepdims=True)  # whose keys make the one after

    def of(x, tokens):  # [batch, time, heads, features] of these tokens, else 0
        return jnp.where(jnp.swapaxes(tokens, 1, 2)[..., None], x, 0)

    numerator = jnp.einsum("bhqk,bkhe->bqhe", sums(q, k, visible), v)
    numerator += jnp.einsum("bqhd,bhde->bqhe", of(q, begun), kv_state)
    denominator = jnp.swapaxes(sums(q_norm, k_norm, visible).sum(-1), 1, 2)
    denominator += jnp.einsum("bqhd,bhd->bqh", of(q_norm, begun), k_sum)
    out = ratio(numerator, denominator[..., None])
    goes_on = (begun & ended).all(-1)
    kv_state = jnp.where(goes_on[..., None, None], kv_state, 0)
    k_sum = jnp.where(goes_on[..., None], k_sum, 0)
    kv_state += jnp.einsum("bkhd,bkhe->bhde", of(k, ended), v)
    return out, (kv_state, k_sum + of(k_norm, ended).sum(1))


def runs(*labels):
    """Counts, along time, of the runs of equal labels: [batch or 1, heads or 1, time]."""
    changes = [label[..., 1:] != label[..., :-1] for label in labels]
    change = functools.reduce(jnp.logical_or, changes)
    return jnp.pad(jnp.cumsum(change, axis=-1, dtype="int32"), [(0, 0), (0, 0), (1, 0)])


_attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward, _plain)


def chunk_fields(static):
    """The attributes of a call, of what `prepared` says is static."""
    chunk, reverse = static
    return {"chunk": np.int64(chunk), "reverse": np.array(reverse, "int32")}
