"""What a trained model writes for held-out pairs, as a study measures it."""

import logging
from typing import Any, NamedTuple

import numpy as np

from kzoo.evaluation.generation import answers

log = logging.getLogger("kzoo")

MOST = 128  # pairs for which a run writes; spread evenly over those that are held out


class Texts(NamedTuple):
    """What was written, and what is right.

    Attributes:
        predictions, references: lists of strings.
        counts: a dict of `pairs`, how many these are, and `of`, how many are held out whole.
    """

    predictions: list[str]
    references: list[str]
    counts: dict[str, int]


def write(model: Any, valid: Any) -> Texts:
    """What a model writes, greedily, for the sources of held-out pairs.

    An answer may be one token longer than the longest target, so that none is cut to a right one.

    Args:
        model: a task that predicts the next token.
        valid: the held-out batches, `(x, y, weight)`, of pairs.

    Returns:
        `Texts`. Pairs that were cut to fit in a sequence are left out: their answers are not all
        there.
    """
    tokenizer = model.preprocessor.tokenizer
    found = [pair for batch in valid for pair in pairs_of(batch, tokenizer.vocabulary)]
    chosen = np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)
    sources, targets = zip(*(found[i] for i in chosen), strict=True)
    sizes = [len(target) for target in targets]
    log.info("answers to %d of %d held-out pairs are written", len(chosen), len(found))
    predictions = answers(
        model,
        [tokenizer.detokenize(source) for source in sources],
        max_tokens=min(max(sizes) + 1, model.longest_sequence() - 1),
        room=sizes,
        separated=True,
    )
    references = [tokenizer.detokenize(target) for target in targets]
    return Texts(predictions, references, {"pairs": len(chosen), "of": len(found)})


def pairs_of(batch: Any, vocabulary: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs of a batch, arrays of ids without reserved ones, as far as their targets end.

    Args:
        batch: `(x, y, weight)`, arrays [batch, time] as `kzoo.encoder.Encoder.batch` makes them.
        vocabulary: a `Vocabulary`.

    Returns:
        A list of (source, target).
    """
    x, y, _ = batch
    read, written = ("encoder_", "decoder_") if "encoder_token_ids" in x else ("", "")
    found = []
    for row in range(len(y)):
        documents = x[f"{written}padding_mask"][row]
        for document in np.unique(documents[documents > 0]):
            here = documents == document
            source = x[f"{read}token_ids"][row][x[f"{read}padding_mask"][row] == document]
            separator = np.flatnonzero(source == vocabulary.sep)[:1]
            target = y[row][here]
            if not read and len(separator):  # one sequence: the labels from the separator on
                target = target[separator[0] :]
            if len(separator) and vocabulary.eos in target:
                source = source[: separator[0]]
                end = np.flatnonzero(target == vocabulary.eos)[0]
                found.append((source[vocabulary.is_text(source)], target[:end]))
    return found
