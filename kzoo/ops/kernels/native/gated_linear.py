"""Gated linear attention in C++, in chunks."""

import jax.numpy as jnp
import numpy as np

from kzoo.ops.kernels import decays
from kzoo.ops.kernels.derivatives import by_hand
from kzoo.ops.kernels.native import calls
from kzoo.ops.kernels.native.calls import MOST_DIM, MULTIPLE, call, float32
from kzoo.ops.kernels.native.linear import MOST_FEATURES, chunk_fields, prepared, runs
from kzoo.ops.tensors import ratio

NAME, MECHANISM = "native", "gated_linear"
ANY_DIRECTION = True


def preferred(spec):
    """Whether "auto" takes it: wherever it can compute."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    if spec.features > MOST_FEATURES:
        return f"the native kernel takes at most {MOST_FEATURES} features: {spec.features}"
    most = MOST_DIM - MULTIPLE  # beside them there may be a column of ones
    if spec.value_dim > most:
        return f"the native kernel takes values of at most {most}: {spec.value_dim}"
    return calls.unsupported_reason(spec, features=spec.features, value_dim=spec.value_dim)


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
    """As `kzoo.ops.kernels.chunked.run`, but features of all time are held.

    `reverse` and levels are as in `kzoo.ops.kernels.native.linear`. A denominator is the sum of
    values that are 1: a column beside those of the others where its features are those of the
    numerator, else a call of its own.
    """
    q, k, q_norm, k_norm = features(q, k, weights, tokens.sin_cos, tokens.shown)
    labels, static = prepared(q, tokens, chunk_size, reverse)
    batch, time, heads, size = q.shape
    if log_decay is None:
        log_decay = jnp.zeros((1, time, heads), q.dtype)
    gates = jnp.broadcast_to(log_decay, (batch, time, heads))
    kv_state, k_sum = (None, None) if initial_state is None else initial_state

    def sums(q, k, v, state):
        if state is None:
            state = jnp.zeros((batch, heads, size, v.shape[3]), q.dtype)
        return _attend(static, ((q, k, v, gates), state), labels)

    if not normalize:
        out, kv_state = sums(q, k, v, kv_state)
        return out, (kv_state, None)
    ones = jnp.zeros((*v.shape[:3], MULTIPLE), v.dtype).at[..., 0].set(1)
    k_sum = None if k_sum is None else jnp.pad(k_sum[..., None], [(0, 0)] * 3 + [(0, MULTIPLE - 1)])
    if q_norm is not None:
        numerator, kv_state = sums(q, k, v, kv_state)
        denominator, k_sum = sums(q_norm, k_norm, ones, k_sum)
        return ratio(numerator, denominator[..., :1]), (kv_state, k_sum[..., 0])
    state = None if kv_state is None else jnp.concatenate([kv_state, k_sum], axis=-1)
    out, state = sums(q, k, jnp.concatenate([v, ones], axis=-1), state)
    end = v.shape[3]
    return ratio(out[..., :end], out[..., end : end + 1]), (state[..., :end], state[..., end])


def _forward(static, floats, labels):
    (q, k, v, gates), state = floats
    shapes = [float32(*x.shape) for x in (v, state)]
    results = call(
        "kzoo_gated_forward", shapes, q, k, v, gates, *labels, state, **chunk_fields(static)
    )
    return tuple(results), ()


def _backward(static, floats, labels, saved, slopes):
    (q, k, v, gates), state = floats
    shapes = [float32(*x.shape) for x in (q, k, v, gates, state)]
    arrays = (q, k, v, gates, *labels, state, *slopes)
    *gradients, of_state = call("kzoo_gated_backward", shapes, *arrays, **chunk_fields(static))
    return tuple(gradients), of_state


def _plain(static, floats, labels):
    arrays, state = floats
    reverse = np.array(static[1])

    def turned(x):  # heads that go back from the end of time, [batch, time, heads, ..]
        return jnp.where(reverse.reshape(-1, *[1] * (x.ndim - 3)), jnp.flip(x, 1), x)

    q, k, v, gates = map(turned, arrays)
    labels = [jnp.swapaxes(turned(jnp.swapaxes(x, 1, 2)), 1, 2) for x in labels]
    document, group = runs(labels[0]), runs(*labels)
    visible = document[..., None, :] == document[..., :, None]
    visible &= group[..., None, :] <= group[..., :, None]
    gates = jnp.swapaxes(gates, 1, 2)
    weights = jnp.einsum("bqhd,bkhd->bhqk", q, k) * decays.between(gates)
    out = jnp.einsum("bhqk,bkhe->bqhe", jnp.where(visible, weights, 0), v)

    def of(x, tokens, decay):  # [batch, time, heads, features] of these tokens, decayed, else 0
        decay = jnp.where(tokens, decay, 0)
        return x * jnp.swapaxes(decay, 1, 2)[..., None]

    begun = document == document[..., :1]  # what sees the state before
    ended = document == document[..., -1:]  # whose keys make the one after
    out += jnp.einsum("bqhd,bhde->bqhe", of(q, begun, decays.arriving(gates)), state)
    goes_on = (begun & ended).all(-1)[..., None, None]
    state = jnp.where(goes_on, state * decays.across(gates)[..., None], 0)
    own = jnp.einsum("bkhd,bkhe->bhde", of(k, ended, decays.leaving(gates)), v)
    return turned(out), state + own


_attend = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward, _plain)
