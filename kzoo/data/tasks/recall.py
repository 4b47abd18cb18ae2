"""Recall: an answer that stands, or follows from what stands, earlier in the source."""

import math
import random

from kzoo.data.tasks.base import SYMBOLS, Task, check_count, check_sources, register
from kzoo.errors import InputError


@register
class Induction(Task):
    """Random symbols with a mark among them, and the mark again at the end: what followed it?

    Source: the induction heads task of Fu et al. 2022, arXiv:2212.14052, section 3.1.

    Attributes:
        count: pairs, distinct ones.
        length: symbols of a source, without the marks.
    """

    count: int = 20000
    length: int = 24

    name = "induction"

    def __post_init__(self):
        check_count(self, "count", "length")
        check_sources(self, self.length * len(SYMBOLS) ** self.length)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        text = "".join(rng.choices(SYMBOLS, k=self.length))
        at = rng.randrange(self.length)
        return f"{text[:at]}#{text[at:]}#", text[at]


@register
class Mapping(Task):
    """A new map of symbols to symbols in each example, of which some pairs are shown.

    Under `rule="random"` one of the pairs is asked for again: `"ab cd ef c"` is answered by
    `"d"`, by recall. Under `rule="shift"` all symbols move by one distance, and a symbol that was
    not shown is asked for: what is to be found in the context is the rule.

    Attributes:
        count: pairs, distinct ones.
        shots: pairs that are shown.
        rule: `"random"` or `"shift"`.
    """

    count: int = 20000
    shots: int = 8
    rule: str = "random"

    name = "mapping"

    def __post_init__(self):
        check_count(self, "count", "shots")
        if self.rule not in ("random", "shift"):
            raise InputError(
                f"rule of the task 'mapping' is 'random' or 'shift'. Received: {self.rule!r:.60}"
            )
        if self.shots >= len(SYMBOLS):
            raise InputError(
                f"shots of the task 'mapping' are fewer than its {len(SYMBOLS)} symbols. "
                f"Received: {self.shots}"
            )
        maps = len(SYMBOLS) ** (self.shots if self.rule == "random" else 1)
        check_sources(self, math.perm(len(SYMBOLS), self.shots) * maps)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        *shown, new = rng.sample(SYMBOLS, self.shots + 1)
        if self.rule == "random":
            answers = dict(zip(shown, rng.choices(SYMBOLS, k=self.shots), strict=True))
            asked = rng.choice(shown)
        else:
            by = rng.randrange(1, len(SYMBOLS))
            moved = SYMBOLS[by:] + SYMBOLS[:by]
            answers, asked = dict(zip(SYMBOLS, moved, strict=True)), new
        pairs = " ".join(f"{symbol}{answers[symbol]}" for symbol in shown)
        return f"{pairs} {asked}", answers[asked]
