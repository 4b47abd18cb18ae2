"""From text to batches: the one way that `fit`, `evaluate`, `predict`, `score`, generation and
`kzoo.data.load` share.

A *token array* is what a tokenizer makes of a text: integers [tokens], the ids, where each stands
for one byte; or int32 [tokens, 2], each id and how many bytes of the original text it stands for,
which add up to the bytes of the text.
"""

import dataclasses

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives import Objective
from kzoo.vocabulary import BYTES


def utf8(text):
    """The bytes of a string, as they are: uint8 [bytes].

    Raises:
        InputError: for half of a surrogate pair, which no UTF-8 can say.

    Example:
        >>> utf8("é").tolist()
        [195, 169]
    """
    try:
        return np.frombuffer(text.encode(), np.uint8)
    except UnicodeEncodeError as error:
        raise InputError(
            "a text is Unicode, without halves of surrogate pairs. "
            f"Received: {text[error.start]!r} at character {error.start}"
        ) from None


class Bytes:
    """The tokenizer whose tokens are the bytes of UTF-8."""

    vocabulary = BYTES

    @staticmethod
    def encode(texts):
        """Strings as token arrays: a list."""
        return [utf8(text) for text in texts]


def ids(tokens):
    """The ids of a token array: [tokens]."""
    return tokens if np.ndim(tokens) < 2 else tokens[:, 0]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Text to the batches of one model.

    Attributes:
        objective: a `kzoo.objectives.Objective`.
        tokenizer: has `vocabulary` and `encode(texts)`, as `Bytes` has.
        source_mask: whether the model takes a `source_mask`.
        segments: the segment ids of texts and sources, and of the targets of pairs, where the
            model has segment embeddings; else None.
    """

    objective: Objective
    tokenizer: object = Bytes
    source_mask: bool = False
    segments: tuple | None = None

    @property
    def vocabulary(self):
        return self.tokenizer.vocabulary

    def tokens(self, texts):
        """Strings as token arrays: a list."""
        return self.tokenizer.encode(list(texts))

    def row_length(self, source, target, complete=True):
        """As `Objective.row_length`, of token arrays."""
        return self.objective.row_length(source, target, complete, self.vocabulary)

    def batch(self, sources, targets, length, rng, *, complete=True, held_out=False, weights=None):
        """Token arrays as `(x, y, sample_weight)`.

        Args:
            sources, targets, length, rng, complete, held_out: as `Objective.encode` takes them.
            weights: float [batch], how much each example counts; None if all count the same.

        Returns:
            As `Objective.encode`, with the inputs that the model takes. Where tokens are no bytes,
            `x` has besides `"label_bytes"`, int32 [batch, length]: the bytes of text that each
            label stands for, of which bits per byte are counted.
        """
        x, y, sample_weight = self.objective.encode(
            sources,
            targets,
            length,
            rng,
            complete=complete,
            held_out=held_out,
            vocabulary=self.vocabulary,
        )
        if not self.source_mask:
            x.pop("source_mask", None)
        in_target = x.pop("segment_ids", None)
        if self.segments is not None:
            x["segment_ids"] = np.array(self.segments, np.int32)[in_target]
        if weights is not None:
            sample_weight = sample_weight * np.asarray(weights, np.float32)[:, None]
        return x, y, sample_weight
