"""UniLM's pretraining: hidden tokens, from what stands on either side, or both, or in a source."""

from typing import Any

import numpy as np

from kzoo.objectives.base import Examples, register
from kzoo.objectives.masked_lm import MaskedLM
from kzoo.objectives.prefix_lm import cut
from kzoo.typing import Rng
from kzoo.vocabulary import BYTES, Vocabulary

BOTH, TO_SOURCE, LEFT_TO_RIGHT, RIGHT_TO_LEFT = range(4)
SHARES = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
VISIBLE = ("all", "source", "none", "none")


@register
class UniLM(MaskedLM):
    """Masked LM in four directions under one prefix mask (Dong et al. 2019, arXiv:1905.03197,
    section 2.3).

    A third of the examples show all of their tokens to each other, a third a source to its target
    (a text is cut in two at a boundary drawn uniformly), and a sixth each what stands to the left
    or, with the tokens in reversed order, to the right. Hidden tokens are chosen everywhere, 80%
    of the runs of one token and 20% of two or three, and predicted where they stand.

    Under another mask than a prefix the model sees what that mask shows, with the same tokens
    hidden.

    Attributes:
        rate, longest, whole_words: as in `MaskedLM`; runs of up to 3 tokens by default.
    """

    rate: float = 0.15
    longest: int = 3
    whole_words: bool = False

    name = "unilm"
    has_source = True

    def examples(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        room: int,
        rng: Rng,
        vocabulary: Vocabulary = BYTES,
    ) -> Examples:
        directions = rng.choice(len(SHARES), p=SHARES, size=len(targets))
        given = [None] * len(targets) if sources is None else sources
        ends = np.minimum([len(text) for text in targets], room)
        halves = cut(targets, ends, rng.integers(1, np.maximum(ends, 2)))
        pairs = []
        for i, direction in enumerate(directions):
            source, target = given[i], targets[i]
            if direction == TO_SOURCE and source is None and len(target) > 1:
                source, target = halves[i]
            if direction == RIGHT_TO_LEFT:
                turned = [part[::-1] for part in (target, source) if part is not None]
                source, target = turned if source is not None else (None, *turned)
            pairs.append((source, target))
        visible = [VISIBLE[direction] for direction in directions]
        return Examples([source for source, _ in pairs], [target for _, target in pairs], visible)

    def lengths(self, source: int | None, target: int) -> tuple[int | None, int]:
        return (1, max(1, target - 1)) if source is None else (source, target)

    def longest_parts(self, source: int | None, target: int) -> tuple[int | None, int]:
        return (max(1, target - 1), target) if source is None else (source, target)

    def draws(self, paired: bool) -> bool:
        return True
