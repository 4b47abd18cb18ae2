"""From text to batches: the one way that `fit`, `evaluate`, `predict`, `score`, generation and
`kzoo.data.load` share.

A *token array* is what a tokenizer makes of a text: integers [tokens], the ids, where each stands
for one byte; or int32 [tokens, 2], each id and how many bytes of the original text it stands for,
which add up to the bytes of the text.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives import Objective, layouts
from kzoo.objectives.layouts import EncoderDecoder, Single
from kzoo.typing import Rng
from kzoo.vocabulary import BYTES, Vocabulary


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
        layout: how the model's stack reads examples, of `kzoo.objectives.layouts`.
        tokenizer: has `vocabulary` and `encode(texts)`, as `Bytes` has.

    Raises:
        InputError: if the layout's stack cannot learn the objective.

    Example:
        >>> from kzoo import objectives
        >>> encoder = Encoder(objectives.get("prefix_lm"))
        >>> x, y, weight = encoder.batch(encoder.tokens(["a"]), encoder.tokens(["bc"]), 6)
        >>> x["token_ids"].tolist(), y.tolist(), weight.tolist()
        ([[257, 97, 260, 98, 99, 258]], [[97, 260, 98, 99, 258, 256]], [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
    """  # noqa: E501

    objective: Objective
    layout: Single | EncoderDecoder = Single()
    tokenizer: Any = Bytes

    def __post_init__(self):
        self.layout.check(self.objective)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def tokens(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Strings as token arrays: a list."""
        return self.tokenizer.encode(list(texts))

    def example_length(
        self, source: np.ndarray | None, target: np.ndarray, complete: bool = True
    ) -> int:
        """The `length` at which `batch` keeps an example whole, in tokens.

        Args:
            source, target: token arrays; source is None for plain text.
            complete: whether EOS follows the target.
        """
        length = None if source is None else len(source)
        return layouts.example_length(
            self.objective, length, len(target), complete, self.vocabulary
        )

    def window(self, length: int) -> int:
        """How many tokens of running text fill an example of `length` tokens (no EOS)."""
        return layouts.window(self.objective, length, self.vocabulary)

    def batch(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        length: int,
        rng: Rng = None,
        *,
        complete: bool = True,
        held_out: bool = False,
        weights: np.ndarray | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Token arrays as `(x, y, sample_weight)`.

        Args:
            sources: list of `batch` token arrays, or None for plain text.
            targets: list of `batch` token arrays, none empty (one array of them will do). What
                does not fit is cut: the target's end (down to one token), then the source's end;
                callers count with `example_length` and say so.
            length: tokens of a sequence.
            rng: `numpy.random.Generator` of what the objective draws, such as boundaries and
                masked positions. The result depends on the arguments and its state, on nothing
                else. None will do where the objective draws nothing.
            complete: whether targets are whole and EOS follows. Windows of running text are not.
            held_out: score what held-out examples score (`prefix_lm`: targets only, whatever is
                trained on, so that arms are measured on the same tokens).
            weights: float [batch], how much each example counts; None if all count the same.

        Returns:
            `x`, a dict of int32 [batch, length], the model's inputs as the layout writes them;
            where tokens are no bytes it has besides `"label_bytes"`, int32 [batch, length]: the
            bytes of text that each label stands for, of which bits per byte are counted. `y`,
            int32 [batch, length]: the ids to predict. `sample_weight`, float32 [batch, length]:
            1, or the example's weight, where they are scored.

        Raises:
            InputError: a target is empty, or a text too short for the objective.
        """
        room = self.window(length)
        x, y, sample_weight = self.layout.batch(
            self.objective,
            self.objective.examples(sources, targets, room, rng, self.vocabulary),
            length,
            rng,
            complete=complete or self.objective.ends,
            scored=self.objective.scored(held_out),
            vocabulary=self.vocabulary,
        )
        if weights is not None:
            sample_weight = sample_weight * np.asarray(weights, np.float32)[:, None]
        return x, y, sample_weight

    def prompts(self, texts: list[Any], as_source: bool) -> Any:
        """The inputs of a model that is to go on from some texts: see the layout's `prompts`."""
        return self.layout.prompts(texts, as_source, self.vocabulary)
