"""Spans of a text, predicted from what is left of it."""

from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives.base import Examples, Objective, register
from kzoo.typing import Rng
from kzoo.values import is_number
from kzoo.vocabulary import BYTES, Vocabulary


@register
class SpanCorruption(Objective):
    """Spans that were cut out of a text, given the rest (T5; Raffel et al. 2020, arXiv:1910.10683,
    section 3.1.4).

    Of a text of n tokens round(rate · n) are cut out, in round(that / span) spans whose lengths,
    and the lengths of what stands between them, are drawn uniformly among all that add up: T5's
    `random_spans_noise_mask`. A text begins with tokens that stay and ends with a span. The source
    has a sentinel in the place of each span; the target is each sentinel and its span:

        text    a b c d e f g       source  a b <0> e <1>       target  <0> c d <1> f g

    It takes texts; pairs are learned by `prefix_lm`.

    Attributes:
        rate: the part of a text that is cut out, above 0, below 1.
        span: the mean length of a span in tokens, 1 or more.
    """

    rate: float = 0.15
    span: float = 3.0

    name = "span_corruption"
    has_source = True
    ends = True  # a target is whole also where a text goes on

    def __post_init__(self):
        if not (is_number(self.rate) and 0 < self.rate < 1):
            raise InputError(
                "the rate of span_corruption is a number above 0 and below 1; the usual one is "
                f"0.15. Received: {self.rate!r}"
            )
        if not (is_number(self.span) and self.span >= 1):
            raise InputError(
                "the span of span_corruption is a mean length in tokens, 1 or more; the usual one "
                f"is 3. Received: {self.span!r}"
            )

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens are cut out of a text of `length` tokens, and in how many spans."""
        # In float32, as the published code rounds.
        noise = np.rint(np.float32(max(length, 2)) * np.float32(self.rate))
        noise = int(np.clip(noise, 1, max(length, 2) - 1))
        spans = int(max(np.rint(np.float32(noise) / np.float32(self.span)), 1))
        return noise, min(spans, noise, max(length, 2) - noise)

    def lengths(self, source: int | None, target: int) -> tuple[int | None, int]:
        noise, spans = self.counts(target)
        return target - noise + spans, noise + spans

    def examples(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        room: int,
        rng: Rng,
        vocabulary: Vocabulary = BYTES,
    ) -> Examples:
        if sources is not None:
            raise InputError(
                "span_corruption is learned from texts; of pairs use the objective 'prefix_lm'. "
                "Received: sources and targets"
            )
        pairs = [self.cut(np.asarray(text[:room]), rng, vocabulary) for text in targets]
        return Examples([source for source, _ in pairs], [target for _, target in pairs])

    def cut(self, text: np.ndarray, rng: Rng, vocabulary: Vocabulary) -> tuple[Any, Any]:
        """A text's source and target: token arrays."""
        if len(text) < 2:
            raise InputError(
                "a text needs two tokens or more, to have a span and a rest. "
                f"Received: a text of {len(text)}"
            )
        noise, spans = self.counts(len(text))
        if spans > len(vocabulary.sentinels):
            raise InputError(
                f"each span has a sentinel of its own; the vocabulary has "
                f"{len(vocabulary.sentinels)}: use shorter texts or a larger span. "
                f"Received: {spans} spans in a text of {len(text)} tokens"
            )
        kept = _segments(len(text) - noise, spans, rng)
        return cut_out(text, kept, _segments(noise, spans, rng), vocabulary)


def cut_out(text: np.ndarray, kept: Any, spans: Any, vocabulary: Vocabulary) -> tuple[Any, Any]:
    """A text's source, with a sentinel for each span, and its target, each sentinel and its span.

    Args:
        text: token array.
        kept, spans: in turn the lengths of what stays and of what is cut out: two lists of integers
            that add up to the text's length.
        vocabulary: a `Vocabulary` with a sentinel for each.
    """
    lengths = np.stack([kept, spans], axis=1).reshape(-1)
    parts = np.split(text, np.cumsum(lengths)[:-1])
    marks = marked(vocabulary.sentinels[: len(spans)], text)[:, None]
    source = [part for pair in zip(parts[::2], marks, strict=True) for part in pair]
    target = [part for pair in zip(marks, parts[1::2], strict=True) for part in pair]
    return np.concatenate(source), np.concatenate(target)


def marked(ids: Any, text: np.ndarray) -> np.ndarray:
    """Ids that stand for no text as a token array like that of a text."""
    ids = np.array(ids, np.int32)
    return np.stack([ids, np.zeros_like(ids)], axis=-1) if text.ndim == 2 else ids


def _segments(count, parts, rng):
    """The lengths, 1 or more each, of `parts` segments of `count`: uniform among all."""
    begins = rng.permutation(np.arange(count - 1) < parts - 1)
    return np.bincount(np.cumsum(np.concatenate([[False], begins])), minlength=parts)
