"""Generated tasks: pairs of a source and its target, always the same rows.

To add one, write a function that returns rows and give it a name in `TASKS`.
"""

import random

SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"


def copy(rows=20000, length=16):
    """Sources of random symbols, targets the same: what attention can look up.

    How soon it is learned depends on the setting: learning rate and kind of positions decide
    between hundreds of steps and none of it in as many. All sources have one length, so that
    rotary positions allow a shortcut: to look back a fixed distance.

    Returns:
        A list of `rows` distinct `(source, target)` pairs of strings of `length`.
    """
    draw = random.Random(0)
    texts = {}  # as an ordered set
    while len(texts) < rows:
        texts["".join(draw.choices(SYMBOLS, k=length))] = None
    return [(text, text) for text in texts]


TASKS = {"copy": copy}
