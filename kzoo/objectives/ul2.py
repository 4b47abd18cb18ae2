"""A mixture of denoisers: short spans, long or many spans, and the text's end."""

from typing import Any, ClassVar

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives.base import Examples, Objective, register
from kzoo.objectives.span_corruption import SpanCorruption, cut_out, marked
from kzoo.typing import Rng
from kzoo.values import shown
from kzoo.vocabulary import BYTES, Vocabulary

R, S, X = range(3)
# The spans of each denoiser, and its mode token; S cuts the text's end instead.
DENOISERS = (
    (R, SpanCorruption(rate=0.15, span=3.0)),
    (R, SpanCorruption(rate=0.15, span=8.0)),
    (S, None),
    (X, SpanCorruption(rate=0.5, span=3.0)),
    (X, SpanCorruption(rate=0.5, span=8.0)),
    (X, SpanCorruption(rate=0.15, span=64.0)),
    (X, SpanCorruption(rate=0.5, span=64.0)),
)


@register
class UL2(Objective):
    """Each text through one of seven denoisers, equally likely (Tay et al. 2022, arXiv:2205.05131,
    section 3.1 and table 1).

    R cuts out short spans, 15% of a text, of 3 or 8 tokens on average; X much of the text or long
    spans: half of it in spans of 3, 8 or 64, or 15% in spans of 64; S its end, of 1 to half of its
    tokens, a quarter on average. Source and target are written as in `span_corruption`, the end as
    one span; a mode token before the source names R, S or X.

    Attributes:
        mode_tokens: whether mode tokens stand there. The tokenizers of files have none.
    """

    mode_tokens: bool = True

    name = "ul2"
    has_source = True
    ends = True

    denoisers: ClassVar[tuple] = DENOISERS

    def __post_init__(self):
        if not isinstance(self.mode_tokens, bool):
            raise InputError(
                f"mode_tokens of ul2 is true or false. Received: {shown(self.mode_tokens)}"
            )

    def lengths(self, source: int | None, target: int) -> tuple[int | None, int]:
        def length(spans):  # of the end: a sentinel in the place of a token, and both
            return spans.lengths(None, target) if spans else (target, 2)

        source, target = max((length(spans) for _, spans in self.denoisers), key=sum)
        return source + self.mode_tokens, target

    def longest_parts(self, source: int | None, target: int) -> tuple[int | None, int]:
        known = [spans.lengths(None, target) for _, spans in self.denoisers if spans]
        # Of the end: all but a token and its sentinel, and half of the text and its sentinel.
        source, target = (max(each) for each in zip(*known, (target, target // 2 + 1), strict=True))
        return source + self.mode_tokens, target

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
                "ul2 is learned from texts; of pairs use the objective 'prefix_lm'. "
                "Received: sources and targets"
            )
        if self.mode_tokens and not vocabulary.modes:
            raise InputError(
                "the mode tokens of ul2 stand in the vocabulary of bytes; use "
                "{'ul2': {'mode_tokens': False}}. Received: a vocabulary without them"
            )
        drawn = rng.integers(len(self.denoisers), size=len(targets))
        pairs = [
            self._denoise(np.asarray(text[:room]), self.denoisers[index], rng, vocabulary)
            for text, index in zip(targets, drawn, strict=True)
        ]
        return Examples([source for source, _ in pairs], [target for _, target in pairs])

    def _denoise(self, text, denoiser, rng, vocabulary):
        """A text's source and target under one denoiser: token arrays."""
        mode, spans = denoiser
        if spans is None and len(text) > 1:
            end = rng.integers(1, max(1, len(text) // 2), endpoint=True)
            source, target = cut_out(text, [len(text) - end], [end], vocabulary)
        else:
            source, target = (spans or DENOISERS[0][1]).cut(text, rng, vocabulary)
        if self.mode_tokens:
            source = np.concatenate([marked(vocabulary.modes[mode : mode + 1], text), source])
        return source, target
