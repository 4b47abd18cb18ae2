"""Arithmetic in decimal digits."""

import random

from kzoo.data.tasks.base import Task, check_count, check_sources, register


@register
class Addition(Task):
    """`"27+905"` and `"932"`: sums of two numbers.

    Each number is drawn below 10, 100, ... or 10^digits, and which of these is drawn first, so that
    short ones are about as frequent as long ones. Reversed sums, least digit first, are learned
    from far fewer examples: every digit then follows from those before it (Lee et al. 2023,
    arXiv:2307.03381, section 3).

    Attributes:
        count: pairs, distinct ones.
        digits: of a summand, at most.
        reverse: whether the sum stands with its least digit first.
    """

    count: int = 20000
    digits: int = 4
    reverse: bool = False

    name = "addition"

    def __post_init__(self):
        check_count(self, "count", "digits")
        check_sources(self, 10 ** (2 * self.digits))

    def draw(self, rng: random.Random) -> tuple[str, str]:
        a, b = (rng.randrange(10 ** rng.randint(1, self.digits)) for _ in range(2))
        total = str(a + b)
        return f"{a}+{b}", total[::-1] if self.reverse else total
