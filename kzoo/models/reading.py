"""What Keras's methods are given, as lists of strings."""

import sys

import keras
import numpy as np

from kzoo.errors import InputError

PAIRS = {"prompts", "responses"}


def read(x, y=None):
    """Texts or pairs, in any form in which libraries hand strings over.

    Args:
        x: a string; a list, tuple, array or tensor of strings (bytes are UTF-8);
            `{"prompts": strings, "responses": strings}`; or a list of (prompt, response) pairs.
        y: None, or strings: the responses to the prompts in x.

    Returns:
        (prompts, texts): lists of strings; prompts is None where there are texts alone.

    Raises:
        InputError: for anything else, or prompts and responses of different numbers.
    """
    prompts, texts = _read(x, y)
    if not texts:
        raise InputError("there is at least one text. Received: none")
    return prompts, texts


def _read(x, y):
    if isinstance(x, dict):
        if set(x) != PAIRS:
            raise InputError(
                "pairs are {'prompts': [...], 'responses': [...]}. "
                f"Received: the keys {sorted(map(str, x))!r:.120}"
            )
        if y is not None:
            raise InputError("pairs bring their own responses. Received: pairs and y")
        return _paired(x["prompts"], x["responses"])
    if y is not None:
        return _paired(x, y)
    if is_pairs(x):
        return _paired([prompt for prompt, _ in x], [response for _, response in x])
    return None, strings(x)


def strings(x):
    """A string, or several in any form, as a list of strings."""
    x = x.numpy() if hasattr(x, "numpy") else x
    if isinstance(x, str | bytes):
        x = [x]
    x = x.tolist() if isinstance(x, np.ndarray) else x
    x = [x] if isinstance(x, str | bytes) else x  # an array without dimensions
    if not isinstance(x, list | tuple):
        raise InputError(f"texts are strings, or lists of them. Received: {type(x).__name__}")
    for i, text in enumerate(x):
        if not isinstance(text, str | bytes):
            raise InputError(f"texts are strings. Received: {type(text).__name__} (text {i})")
    return [_decoded(text) if isinstance(text, bytes) else text for text in x]


def is_pairs(x):
    """Whether x is a list of (prompt, response) pairs."""
    return (
        isinstance(x, list | tuple)
        and len(x) > 0
        and all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
            for pair in x
        )
    )


def is_tokens(x):
    """Whether a model's inputs are a batch of tokens already."""
    return isinstance(x, dict) and any(name.endswith("token_ids") for name in x)


def is_running_text(x):
    """Whether x is an array of token ids, integers [batch, tokens]."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    kind = str(dtype).rpartition(".")[2] if dtype is not None else ""
    return shape is not None and len(shape) == 2 and "int" in kind


def check_ids(ids, size, what="token ids"):
    """`InputError` unless integers of NumPy are in [0, size).

    A program would take another row of a table, or none, without a word.
    """
    if isinstance(ids, np.ndarray) and ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise InputError(f"{what} are in [0, {size}). Received: {what} from {low} to {high}")


def unpadded(ids, pad):
    """A sequence of ids without the padding at its end."""
    real = np.flatnonzero(ids != pad)
    return ids[: real[-1] + 1] if len(real) else ids[:0]


def read_weights(sample_weight, count):
    """How much each of `count` examples counts: float32 [count], or None.

    Raises:
        InputError: for another shape, or weights that are negative or not finite.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, "float32")
    if weights.shape != (count,):
        raise InputError(
            f"sample_weight of texts has one number for each, the shape ({count},). "
            f"Received: the shape {weights.shape}"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError("sample_weight is finite and not negative. Received: one that is not")
    return weights


def in_tf_graph(x):
    """Whether x holds symbolic tensors of TensorFlow, as inside `tf.data.Dataset.map`."""
    tf = sys.modules.get("tensorflow")
    leaves = keras.tree.flatten(x) if tf else []
    return any(tf.is_symbolic_tensor(leaf) for leaf in leaves if isinstance(leaf, tf.Tensor))


def _paired(prompts, responses):
    prompts, responses = strings(prompts), strings(responses)
    if len(prompts) != len(responses):
        raise InputError(
            f"there are as many prompts as responses. Received: {len(prompts)} and {len(responses)}"
        )
    return prompts, responses


def _decoded(text):
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"texts in bytes are UTF-8. Received: bytes that are not ({error.reason})"
        ) from None
