"""The cross-entropy of one chunk of tokens, and its slope, for the kernels of all backends."""

from keras import ops


def terms(hidden, kernel, labels, weights):
    """The terms w·nll [tokens] of one chunk: hidden [tokens, width], labels, weights [tokens]."""
    return _terms(hidden, kernel, labels, weights)[0]


def terms_and_slopes(hidden, kernel, labels, weights):
    """`terms`, and the gradient of their sum with respect to the logits: [tokens, vocabulary].

    Each backend multiplies it by `kernel` and by `hidden` in the way that is fastest there.
    """
    nats, powers, total = _terms(hidden, kernel, labels, weights)
    weights = weights[:, None]
    chosen = labels[:, None] == ops.arange(kernel.shape[0], dtype="int32")
    return nats, powers * (weights / total) - ops.where(chosen, weights, 0.0)


def _terms(hidden, kernel, labels, weights):
    logits = ops.matmul(hidden, ops.transpose(kernel))
    highest = ops.max(logits, axis=-1, keepdims=True)
    powers = ops.exp(logits - highest)
    total = ops.sum(powers, axis=-1, keepdims=True)
    chosen = ops.take_along_axis(logits, labels[:, None], axis=-1)
    return weights * (ops.log(total) + highest - chosen)[:, 0], powers, total
