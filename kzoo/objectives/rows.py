"""Encoded examples in the rows of a batch: as long as they need, or several in one row.

A row of a single stack is one sequence; of an encoder and a decoder it is two, each with its own
length. An example is *packed* if it shares its row with others: `padding_mask` then numbers the
examples of a row 1, 2, 3, …, by which attention and positions know one document from another, in
cross-attention too.
"""

from typing import Any, NamedTuple

import numpy as np

from kzoo.vocabulary import BYTES, Vocabulary

Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


class Lengths(NamedTuple):
    """Tokens of a row, by the stack that reads it.

    Attributes:
        row: of a single stack.
        encoder, decoder: of an encoder and a decoder.
    """

    row: int
    encoder: int
    decoder: int


def trimmed(batch: Batch, lengths: Lengths) -> Batch:
    """Examples, one in a row, with nothing behind the columns that the longest of them needs.

    Args:
        batch: `(x, y, sample_weight)` of a layout.
        lengths: `Lengths`, each at least that of the longest example.

    Returns:
        The batch, with `lengths.row` columns; of two stacks with `lengths.encoder` and
        `lengths.decoder`.

    Example:
        >>> ids = np.ones((1, 9), "int32")
        >>> x = {"encoder_token_ids": ids, "decoder_token_ids": ids}
        >>> x, y, weight = trimmed((x, ids, ids), Lengths(9, 6, 4))
        >>> x["encoder_token_ids"].shape, y.shape
        ((1, 6), (1, 4))
    """
    x, y, weight = batch
    own = lengths.decoder if "decoder_token_ids" in x else lengths.row
    width = {name: lengths.encoder if _encodes(name) else own for name in x}
    x = {name: a[:, : width[name]] for name, a in x.items()}
    if y.ndim == 1:  # a label for each example
        return x, y, weight
    return x, y[:, :own], weight[:, :own]


def packed(
    batch: Batch,
    row: np.ndarray,
    count: int,
    lengths: Lengths,
    next_token: bool,
    vocabulary: Vocabulary = BYTES,
) -> Batch:
    """Examples packed into rows, in the order in which they come.

    The loss and its gradients are those of the examples one in a row: a token sees, and is
    predicted from, its own example alone. An end token that nothing follows is no input.

    Args:
        batch: `(x, y, sample_weight)` of a layout, one example in a row.
        row: integers [examples], ascending: the row in which each shall stand.
        count: the number of rows.
        lengths: `Lengths` of the rows; the examples of a row fit into it.
        next_token: whether labels are the next tokens (`Objective.next_token`).
        vocabulary: a `Vocabulary`.

    Returns:
        `(x, y, sample_weight)` of `count` rows.

    Example:
        >>> x = {"token_ids": np.array([[5, 6, 0], [7, 0, 0]])}
        >>> x["padding_mask"] = (x["token_ids"] > 0).astype("int32")
        >>> batch = x, x["token_ids"], x["padding_mask"].astype("float32")
        >>> x, _, _ = packed(batch, np.array([0, 0]), 1, Lengths(4, 4, 4), next_token=False)
        >>> x["padding_mask"].tolist()
        [[1, 1, 2, 0]]
    """
    x, y, weight = batch
    two = "decoder_token_ids" in x
    own = "decoder_" if two else ""
    # The last label of an example is scored, so that its columns end there.
    tokens = _last(weight) if next_token else _tokens(x[f"{own}padding_mask"])
    place = _placement(tokens, row, count, lengths.decoder if two else lengths.row)
    places = dict.fromkeys(x, place)
    if two:
        read = _tokens(x["encoder_padding_mask"])
        encoded = _placement(read, row, count, lengths.encoder)
        places |= {name: encoded for name in x if _encodes(name)}
    first = np.searchsorted(row, row)
    document = (np.arange(len(row)) - first + 1)[:, None]
    out = {}
    for name, array in x.items():
        fill = vocabulary.pad if name.endswith("token_ids") else 0
        array = array * document if name.endswith("padding_mask") else array
        out[name] = places[name](array, fill)
    return out, place(y, vocabulary.pad), place(weight, 0)


def _placement(tokens, row, count, width):
    """A function that puts the first `tokens` columns of each example into its row."""
    before = np.cumsum(tokens) - tokens
    begin = before - before[np.searchsorted(row, row)]  # columns of the row before the example
    column = np.arange(tokens.sum()) - np.repeat(before, tokens)
    example = np.repeat(np.arange(len(tokens)), tokens)
    at = np.repeat(row, tokens), np.repeat(begin, tokens) + column

    def place(array: np.ndarray, fill: Any) -> np.ndarray:
        out = np.full((count, width), fill, array.dtype)
        out[at] = array[example, column]
        return out

    return place


def _encodes(name):
    return name.startswith("encoder_")


def _tokens(padding_mask):
    return (padding_mask != 0).sum(1)


def _last(weight):
    """One more than the last column that has a weight: integers [batch]."""
    return weight.shape[1] - (weight[:, ::-1] != 0).argmax(1)
