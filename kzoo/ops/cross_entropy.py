"""Cross-entropy from hidden states, which never holds the logits of all tokens at once."""

import keras
from keras import ops

from kzoo.errors import InputError
from kzoo.precision import float32_products
from kzoo.typing import Tensor


def cross_entropy(
    hidden: Tensor,
    kernel: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    tokens_at_once: int,
) -> Tensor:
    """Σ w·nll over all tokens, nll = −log softmax(hidden · kernelᵀ)[label], in chunks of tokens.

    Only the logits of one chunk exist at a time, in float32. Float32 hidden states are multiplied
    in float32 (`kzoo.precision`); products of 16-bit ones are exact as they are. Since the loss is
    one number, its gradient is known up to a factor as soon as a chunk's logits are: the forward
    pass sums the gradients and the backward pass scales them, so that nothing is computed twice
    (on TensorFlow the backward pass computes the logits again). Without gradients only the loss is
    computed. Derivatives of the gradient hold the logits of all tokens at once.
    Source: Hsu et al. 2024, arXiv:2410.10989 (fused linear cross-entropy).

    Args:
        hidden: floats [batch, time, width].
        kernel: floats [vocabulary, width], the output matrix.
        labels: integers [batch, time] in [0, vocabulary); where the weight is 0, any integer.
        weights: floats [batch, time], 1 by default; they get no gradient.
        tokens_at_once: the number of tokens in a chunk. A chunk holds all examples at one or more
            positions, so that a batch that is sharded over devices stays so: there are never more
            than max(tokens_at_once, batch) · vocabulary logits at once.

    Returns:
        The sum, a float32 scalar, in nats; and its terms w·nll, float32 [batch, time], which
        carry no gradient.

    Raises:
        InputError: if shapes disagree or tokens_at_once is not positive.

    Example:
        >>> hidden, kernel, labels = np.zeros((2, 3, 8)), np.zeros((256, 8)), np.ones((2, 3), int)
        >>> total, nats = cross_entropy(hidden, kernel, labels, tokens_at_once=256)
        >>> round(float(total / np.log(2)), 3)  # 8 bits for each of 6 tokens
        48.0
    """
    hidden, kernel = (ops.convert_to_tensor(x) for x in (hidden, kernel))
    dtype = keras.backend.standardize_dtype(hidden.dtype)
    hidden, kernel = (ops.cast(x, "float32") for x in (hidden, kernel))
    labels = ops.cast(ops.convert_to_tensor(labels), "int32")
    weights = ops.ones_like(labels) if weights is None else ops.convert_to_tensor(weights)
    weights = ops.stop_gradient(ops.cast(weights, "float32"))
    shapes = [tuple(x.shape) for x in (hidden, kernel, labels, weights)]
    if not _agree(*shapes):
        raise InputError(
            "hidden must be [batch, time, width], kernel [vocabulary, width], labels and weights "
            f"[batch, time]. Received: {', '.join(map(str, shapes))}"
        )
    if tokens_at_once < 1:
        raise InputError(f"tokens_at_once must be a positive integer. Received: {tokens_at_once!r}")
    labels = ops.where(weights != 0, labels, 0)
    with float32_products(dtype):
        total, nats = _kernel()(hidden, kernel, labels, weights, tokens_at_once)
    return total, ops.stop_gradient(nats)


def _kernel():
    backend = keras.backend.backend()
    if backend == "jax":
        from kzoo.ops.kernels.cross_entropy_jax import cross_entropy
    elif backend == "torch":
        from kzoo.ops.kernels.cross_entropy_torch import cross_entropy
    else:
        from kzoo.ops.kernels.cross_entropy_tensorflow import cross_entropy
    return cross_entropy


def _agree(hidden, kernel, labels, weights):
    """Whether the shapes agree; a size that TensorFlow does not know yet agrees with any."""
    if (len(hidden), len(kernel), len(labels), len(weights)) != (3, 2, 2, 2):
        return False
    pairs = [*zip(hidden[:2], labels, strict=True), *zip(labels, weights, strict=True)]
    pairs.append((hidden[2], kernel[1]))
    return all(a == b or None in (a, b) for a, b in pairs)
