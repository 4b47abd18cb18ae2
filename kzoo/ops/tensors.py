"""Small functions on tensors that attention is made of."""

import keras
from keras import ops


def softmax_scale(q, scale):
    """The factor on q·k: `scale`, or 1/√dim where that is None."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def masked_softmax(scores, visible, bias=None):
    """Softmax over the visible keys; a query that sees none has weights of exactly 0.

    Gradients are finite.

    Args:
        scores: floats [batch, heads, query_time, key_time].
        visible: booleans that broadcast to the same shape.
        bias: floats that broadcast to the same shape, or None.
    """
    if bias is not None:
        scores = scores + ops.cast(bias, scores.dtype)
    low = ops.cast(-1e30, scores.dtype)
    scores = ops.where(visible, scores, low)
    highest = ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True))
    powers = hide(ops.exp(scores - highest), visible)
    return ratio(powers, ops.sum(powers, axis=-1, keepdims=True))


def hide(x, visible):
    """`x` with exact zeros where `visible` is False."""
    return ops.where(visible, x, ops.zeros_like(x))


def ratio(numerator, denominator):
    """numerator / denominator, exactly 0 with finite derivatives where the denominator is 0."""
    positive = denominator > 0
    denominator = ops.where(positive, denominator, ops.ones_like(denominator))
    if keras.backend.backend() == "jax":
        from kzoo.ops.kernels.derivatives import quotient
    else:
        quotient = ops.divide
    return hide(quotient(numerator, denominator), positive)


def zero_padding(x, sequence):
    """`x` [batch, time, heads, dim] with exact zeros where `sequence` has padding."""
    if sequence.segment is None:
        return x
    return hide(x, sequence.segment[:, :, None, None] != 0)


def repeat_heads(x, num_heads):
    """`x` [batch, time, kv_heads, dim] with each head as often as `num_heads` needs it."""
    repeats = num_heads // x.shape[2]
    return x if repeats == 1 else ops.repeat(x, repeats, axis=2)


def take_heads(x, index, axis=2):
    """The heads `index`, a list of integers, along `axis`.

    In slices with steps, as few as there are: the gradient of `take` is a scatter, and slow.
    """
    before = (slice(None),) * axis
    parts = [x[(*before, part)] for part in _steps(index)]
    return join(parts, axis)


def _steps(index):
    """Integers as slices, each as long as equal steps forward go."""
    parts, start = [], 0
    while start < len(index):
        end = start + 1
        step = max(1, index[end] - index[start]) if end < len(index) else 1
        while end < len(index) and index[end] - index[end - 1] == step:
            end += 1
        parts.append(slice(index[start], index[end - 1] + 1, step))
        start = end
    return parts


def join(parts, axis):
    """Tensors one after the other along `axis`; one alone as it is."""
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=axis)


def swap(x):
    """`x` [a, b, c, d] as [a, c, b, d]: time and heads change places."""
    return ops.transpose(x, (0, 2, 1, 3))
