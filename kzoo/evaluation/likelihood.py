"""log p(continuation | context), as lm-evaluation-harness defines it."""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from kzoo.errors import InputError
from kzoo.evaluation.reading import Reader, Request
from kzoo.values import check_batch_size


def loglikelihood(
    model: Any,
    pairs: list[tuple[str, str]],
    *,
    batch_size: int = 32,
    separated: bool | None = None,
) -> dict[str, Any]:
    """log p(continuation | context) of pairs, under a model that predicts next tokens.

    A causal LM reads the two as one text, and the tokens of the continuation are those of the
    whole that the context alone does not have. Where the model's objective has a source, the
    context is the source and a separator stands between (UniLM, T5). The end of a continuation is
    not scored. A context that does not fit loses its beginning, with a warning that counts.

    Args:
        model: a `CausalLM` or `Seq2SeqLM`.
        pairs: list of (context, continuation), strings; a context may be empty.
        batch_size: sequences that the model sees at once. The results do not depend on it.
        separated: whether the context is a source, as the prompts of pairs are in `fit`. None:
            where the objective has a source. True for a causal LM that was trained on pairs.

    Returns:
        A dict of arrays [pairs]: `"loglikelihood"` (float64, nats); `"is_greedy"` (bool), whether
        each token of the continuation is the likeliest one given all before it, so that greedy
        decoding writes it; `"tokens"`, `"right"` and `"bytes"` (int64), how many there are, how
        many of them are the likeliest, and how many bytes of text they stand for: white space at
        the end of the context is among them, where the text runs on. And `"cut"`, how many
        contexts lost their beginning.

    Raises:
        InputError: for a model that predicts hidden tokens, an empty continuation, or one that
            does not fit in a sequence.

    Example:
        >>> found = loglikelihood(model, [("Call me", " Ishmael."), ("Call me", " Ahab.")])
        >>> found["loglikelihood"].shape
        (2,)
    """
    check_batch_size(batch_size)
    reader = Reader.of(model, separated)
    pairs = _checked(pairs)
    reader.encoder.tokenizer.say_loss([continuation for _, continuation in pairs])
    requests, cut = reader.fitted(reader.requests(pairs))
    return {**of_tokens(model, reader, requests, batch_size), "cut": cut}


def of_tokens(
    model: Any, reader: Reader, requests: list[Request], batch_size: int
) -> dict[str, np.ndarray]:
    """`loglikelihood` of requests that fit: the dict of arrays."""
    sizes = np.array([_bytes(target[given:]) for _, target, given in requests], int)
    nats, right, tokens = np.zeros(len(requests)), *np.zeros((2, len(requests)), int)
    widths = np.array([reader.width(request) for request in requests])
    for width in np.unique(widths):
        of_width = np.flatnonzero(widths == width)
        for start in range(0, len(of_width), batch_size):
            here = of_width[start : start + batch_size]
            filled = np.resize(here, batch_size)  # one shape, one program
            x, y, scored = reader.batch([requests[i] for i in filled], int(width))
            inputs = {name: x[name] for name in model.input}
            logits = np.asarray(model.predict_on_batch(inputs))[: len(here)]
            owner, time = np.nonzero(scored[: len(here)])
            chosen, labels = logits[owner, time].astype("float64"), y[owner, time]
            of_label = np.take_along_axis(chosen, labels[:, None], -1)[:, 0]
            np.add.at(nats, here[owner], logsumexp(chosen, axis=-1) - of_label)
            np.add.at(right, here[owner], chosen.argmax(-1) == labels)
            np.add.at(tokens, here[owner], 1)
    found = {"loglikelihood": -nats, "is_greedy": right == tokens, "tokens": tokens, "right": right}
    return {**found, "bytes": sizes}


def _bytes(tokens):
    """The bytes of the text of a token array."""
    return len(tokens) if np.ndim(tokens) < 2 else int(tokens[:, 1].sum())


def _checked(pairs):
    pairs = list(pairs)
    for pair in pairs:
        if not (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise InputError(
                f"pairs are (context, continuation), two strings each. Received: {pair!r:.80}"
            )
    if not pairs:
        raise InputError("there is at least one pair. Received: none")
    return pairs
