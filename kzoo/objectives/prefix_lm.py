"""The next token of a target, given its source."""

from typing import Any

import numpy as np

from kzoo.errors import InputError, unknown
from kzoo.objectives.base import Examples, Objective, register
from kzoo.typing import Rng
from kzoo.vocabulary import BYTES, Vocabulary


@register
class PrefixLM(Objective):
    """The target's next token, given the source: in one stack under a prefix or causal mask
    (UniLM's sequence to sequence; GPT), or in a decoder whose encoder reads the source (T5).

    Plain text is cut in two at a boundary drawn uniformly, since a model memorises one
    that never moves (Raffel et al. 2020, arXiv:1910.10683, section 3.2.3, "prefix LM").

    Attributes:
        score: `"targets"`, or `"all"` to train on the source's tokens as well, which needs a
            single stack and a mask that does not show the source whole.
    """

    score: str = "targets"

    name = "prefix_lm"
    has_source = True

    def __post_init__(self):
        if self.score not in ("targets", "all"):
            raise unknown("score of prefix_lm", self.score, ["targets", "all"])

    def examples(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        room: int,
        rng: Rng,
        vocabulary: Vocabulary = BYTES,
    ) -> Examples:
        if sources is not None:
            return Examples(sources, targets)
        n = np.minimum([len(text) for text in targets], room)
        if n.min() < 2:
            raise InputError(
                "a text needs two tokens or more, to be cut into source and target. "
                f"Received: a text of {n.min()}"
            )
        pairs = cut(targets, n, rng.integers(1, n))  # uniform in 1..n-1
        return Examples([source for source, _ in pairs], [target for _, target in pairs])

    def lengths(self, source: int | None, target: int) -> tuple[int | None, int]:
        return (1, target - 1) if source is None else (source, target)

    def longest_parts(self, source: int | None, target: int) -> tuple[int | None, int]:
        return (target - 1, target - 1) if source is None else (source, target)

    def scored(self, held_out: bool = False) -> str:
        # Arms that train on more are measured on the same tokens.
        return "targets" if held_out else self.score

    def draws(self, paired: bool) -> bool:
        return not paired


def cut(texts: list[Any], ends: np.ndarray, cuts: np.ndarray) -> list[tuple[Any, Any]]:
    """Each text in two: what stands before its cut, and what stands from there to its end."""
    return [(text[:c], text[c:end]) for text, c, end in zip(texts, cuts, ends, strict=True)]
