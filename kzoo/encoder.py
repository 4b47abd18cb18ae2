"""From text to batches, in one way for `fit`, `evaluate`, `predict`, `score`, `generate` and
`kzoo.data.load`.

A *token array* is a tokenized text. If each token is one byte, it is integers [tokens], the ids.
Else it is int32 [tokens, 2]: each id, and how many bytes of the text it stands for; their sum is
the size of the text. Of a `PartlyScored` text it is int32 [tokens, 3]: these two, and 1 for tokens
that are scored, 0 for others.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives import Objective, layouts
from kzoo.objectives.layouts import EncoderDecoder, Single
from kzoo.typing import Rng
from kzoo.vocabulary import BYTES, NUM_BYTES, Vocabulary


def utf8(text):
    """A string in UTF-8: uint8 [bytes].

    Raises:
        InputError: for a lone surrogate, which UTF-8 cannot encode.

    Example:
        >>> utf8("é").tolist()
        [195, 169]
    """
    try:
        return np.frombuffer(text.encode(), np.uint8)
    except UnicodeEncodeError as error:
        raise InputError(
            "a text must be Unicode without lone surrogates. "
            f"Received: {text[error.start]!r} at character {error.start}"
        ) from None


class PartlyScored(str):
    """A target of which only some characters are scored, such as the answers in a row of queries.

    It is a string wherever strings are read, in pairs and in lists. A token is scored if one of its
    characters is; the end token is, if all of them are. Objectives that hide tokens, such as
    `masked_lm`, refuse it.

    Args:
        text: a string.
        scored: the indices of the characters that are scored, integers.

    Raises:
        InputError: no index, or one outside the text.

    Example:
        >>> encoder = Encoder(kzoo.objectives.get("prefix_lm"))
        >>> target = PartlyScored("b2a1", scored=[1, 3])
        >>> _, y, weight = encoder.batch(encoder.tokens(["a1b2"]), encoder.tokens([target]), 10)
        >>> bytes(y[weight > 0].tolist())
        b'21'
    """

    scored: tuple[int, ...]

    def __new__(cls, text: str, scored: Iterable[int]) -> "PartlyScored":
        self = super().__new__(cls, text)
        self.scored = tuple(sorted({*scored}))
        if not self.scored or self.scored[0] < 0 or self.scored[-1] >= len(text):
            raise InputError(
                f"scored are indices of the {len(text)} characters of a text, one or more. "
                f"Received: {self.scored!r:.60}"
            )
        return self

    def __getnewargs__(self) -> tuple:  # pickled, between processes
        return str(self), self.scored


class Bytes:
    """The tokenizer whose tokens are bytes in UTF-8."""

    vocabulary = BYTES

    @staticmethod
    def encode(texts: list[str]) -> list[np.ndarray]:
        """Strings as token arrays: a list."""
        return [utf8(text) for text in texts]

    @staticmethod
    def detokenize(ids: Iterable[int]) -> str:
        """The text of some ids, reserved ones left out."""
        return bytes(i for i in map(int, ids) if i < NUM_BYTES).decode("utf-8", "replace")


def ids(tokens):
    """The ids of a token array: [tokens]."""
    return tokens if np.ndim(tokens) < 2 else tokens[:, 0]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns text into the batches of one model.

    Attributes:
        objective: a `kzoo.objectives.Objective`.
        layout: of `kzoo.objectives.layouts`; how examples become inputs of the model's stack.
        tokenizer: has `vocabulary` and `encode(texts)`, as `Bytes` has.

    Raises:
        InputError: if the objective does not fit the layout's stack.

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
        texts = list(texts)
        arrays = self.tokenizer.encode(texts)
        if not any(isinstance(text, PartlyScored) for text in texts):
            return arrays
        return [_told(text, tokens) for text, tokens in zip(texts, arrays, strict=True)]

    def targets(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Targets as token arrays, a list; of a classifier each is the class of a label, [1].

        Raises:
            InputError: for a label that the objective does not have.
        """
        if self.objective.labels is None:
            return self.tokens(texts)
        return [np.array([self.objective.index(text)], np.int32) for text in texts]

    def example_length(
        self, source: np.ndarray | None, target: np.ndarray, complete: bool = True
    ) -> int:
        """The smallest `length`, in tokens, at which `batch` does not truncate an example.

        Args:
            source, target: token arrays; source is None for plain text.
            complete: whether EOS follows the target.
        """
        length = None if source is None else len(source)
        if self.objective.labels is not None:  # a label takes no token
            return layouts.example_length(self.objective, length, 0, False, self.vocabulary)
        return layouts.example_length(
            self.objective, length, len(target), complete, self.vocabulary
        )

    def part_lengths(
        self, source: int | None, target: int, length: int, complete: bool = True
    ) -> tuple[int, int]:
        """The most columns of an encoder's, and of a decoder's, sequence that an example takes.

        Args:
            source, target: numbers of tokens; source is None for plain text.
            length: tokens to which a longer example is truncated.
            complete: whether EOS follows the target.
        """
        if self.objective.labels is not None:  # a label takes no token
            needed = layouts.example_length(self.objective, source, 0, False, self.vocabulary)
            return 0, min(length, needed)
        return layouts.part_lengths(
            self.objective, source, target, length, complete, self.vocabulary
        )

    def window(self, length: int) -> int:
        """How many tokens of running text fill an example of `length` tokens, without EOS."""
        return layouts.window(self.objective, length, self.vocabulary)

    def batch(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        length: int,
        rng: Rng = None,
        *,
        complete: bool | np.ndarray = True,
        held_out: bool = False,
        weights: np.ndarray | None = None,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Token arrays as `(x, y, sample_weight)`.

        Args:
            sources: list of `batch` token arrays, or None for plain text.
            targets: list of `batch` token arrays (or one array of them), none empty. An example
                that is too long is truncated: the end of the target (down to one token), then the
                end of the source. Callers find out with `example_length`, and warn.
            length: tokens of a sequence.
            rng: `numpy.random.Generator` for the objective's draws, such as boundaries and masked
                positions. The result depends only on the arguments and its state. It can be None
                for an objective that draws nothing.
            complete: whether targets are complete, so that EOS follows; windows of running text
                are not. A bool, or bool [batch].
            held_out: score the tokens that held-out examples score (for `prefix_lm` only the
                target, whatever is trained on, so that all arms are measured on the same tokens).
            weights: float [batch], the weight of each example; None for equal weights.

        Returns:
            `x`, a dict of int32 [batch, length], the model's inputs. If tokens are not bytes, it
            also has `"label_bytes"`, int32 [batch, length]: how many bytes of text each label
            stands for, which bits per byte need. `y`, int32 [batch, length]: the labels.
            `sample_weight`, float32 [batch, length]: 1, or the example's weight, at scored
            tokens, and 0 elsewhere.

        Raises:
            InputError: if a target is empty, or a text too short for the objective.
        """
        if self.objective.labels is not None:
            return self._labelled(sources, targets, length, weights)
        room = self.window(length)
        x, y, sample_weight = self.layout.batch(
            self.objective,
            self.objective.examples(sources, targets, room, rng, self.vocabulary),
            length,
            rng,
            complete=np.logical_or(complete, self.objective.ends),
            scored=self.objective.scored(held_out),
            vocabulary=self.vocabulary,
        )
        if weights is not None:
            sample_weight = sample_weight * np.asarray(weights, np.float32)[:, None]
        return x, y, sample_weight

    def _labelled(self, texts, targets, length, weights):
        """`batch` of a classifier: texts as prompts of `length` tokens, and of each text one label
        and one weight, [batch]. An end of a text that does not fit is truncated."""
        room = length - self.example_length(texts[0][:0], None)
        x = self.prompts([ids(text)[:room] for text in texts], as_source=True)
        missing = length - x["token_ids"].shape[1]
        pad = {name: self.vocabulary.pad if name == "token_ids" else 0 for name in x}
        x = {
            name: np.pad(array, [(0, 0), (0, missing)], constant_values=pad[name])
            for name, array in x.items()
        }
        y = np.concatenate(targets).astype(np.int32)
        return x, y, np.ones(len(y), np.float32) if weights is None else weights

    def prompts(self, texts: list[Any], as_source: bool) -> Any:
        """A model's inputs for generation from prompts: see `prompts` of the layout."""
        return self.layout.prompts(texts, as_source, self.vocabulary)


def _told(text, tokens):
    """A token array as int32 [tokens, 3], with whether each token is scored."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim == 1:
        tokens = np.stack([tokens, np.ones_like(tokens)], axis=1)
    scored = np.ones(len(text), bool)
    if isinstance(text, PartlyScored):
        scored[:] = False
        scored[list(text.scored)] = True
    if not text.isascii():
        scored = np.repeat(scored, [len(character.encode()) for character in text])
    seen, end = np.concatenate([[0], np.cumsum(scored)]), np.cumsum(tokens[:, 1])
    told = seen[end] > seen[end - tokens[:, 1]]
    return np.column_stack([tokens, told.astype(np.int32)])
