"""Copying: what attention can look up."""

import random

from kzoo.data.tasks.base import Task, check_count, register
from kzoo.errors import InputError

SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"


@register
class Copy(Task):
    """Sources of random symbols, targets the same.

    How soon it is learned depends on the setting: learning rate and kind of positions decide
    between hundreds of steps and none of it in as many. All sources have one length, so that
    rotary positions allow a shortcut: to look back a fixed distance.

    Attributes:
        count: pairs, distinct ones.
        length: symbols of a source.
    """

    count: int = 20000
    length: int = 16

    name = "copy"

    def __post_init__(self):
        check_count(self, "count", "length")
        if self.count > len(SYMBOLS) ** self.length:
            raise InputError(
                f"there are {len(SYMBOLS) ** self.length} texts of that length. "
                f"Received: count={self.count}, length={self.length}"
            )

    def pairs(self) -> list[tuple[str, str]]:
        draw = random.Random(0)
        texts = {}  # as an ordered set
        while len(texts) < self.count:
            texts["".join(draw.choices(SYMBOLS, k=self.length))] = None
        return [(text, text) for text in texts]
