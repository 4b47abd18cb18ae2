"""Associations of keys and values: many of them, and many of them asked for."""

import math
import random
import string

from kzoo.data.tasks.base import Task, check_count, check_sources, register
from kzoo.encoder import PartlyScored
from kzoo.errors import InputError
from kzoo.values import is_number

KEYS = string.ascii_letters
VALUES = string.digits + string.punctuation


@register
class MQAR(Task):
    """Multi-query associative recall: key-value pairs, then each key once more, among noise.

    Source: Arora et al. 2023, arXiv:2312.04927, section 3.1, by the rules of its code (zoology's
    `multiquery_ar`). Keys and values are different symbols, each at most once in an example; the
    sources are the pairs, and targets have slots of two tokens, in `num_pairs` of which stand a key
    and its value. The slot of each key is drawn without replacement, slot i = 1, 2, ... with a
    probability in proportion to i^(power - 1); a power of 1 makes them even. The other slots are
    random symbols. The values after the keys alone are scored.

    Three things differ from the code, since models here predict the next token: the value follows
    its key, where the code has a random symbol; a separator stands before the targets; and there
    are 52 keys and 42 values, each a byte, where the paper has 8192 tokens in all.

    Attributes:
        count: pairs of source and target, distinct ones.
        length: symbols of a source and its target, an even number; 60 fit in a nano model. The
            paper's are 64, with 4 pairs, to 512, with 64.
        num_pairs: keys and their values, 42 at most.
        num_passes: how many times the source has the pairs; twice, all of them can be read by
            a state that knows what to keep (just read twice: Arora et al. 2024, arXiv:2407.05483).
        power: of the power law.

    Example:
        >>> source, target = MQAR(count=2, length=20, num_pairs=3).pairs()[1]
        >>> source, target, target.scored
        ('w|B}u$', '&Lu$aUB}E>r1w|', (3, 7, 13))
    """

    count: int = 20000
    length: int = 60
    num_pairs: int = 8
    num_passes: int = 1
    power: float = 0.01

    name = "mqar"

    def __post_init__(self):
        check_count(self, "count", "length", "num_pairs", "num_passes")
        check_symbols(self, "num_pairs")
        least = 2 * self.num_pairs * (self.num_passes + 1)
        if self.length % 2 or self.length < least:
            raise InputError(
                "length of the task 'mqar' is an even number, at least 2 * num_pairs * "
                f"(num_passes + 1) = {least}. Received: {self.length}"
            )
        if not (is_number(self.power) and self.power > 0):
            raise InputError(
                "power of the task 'mqar' is a number above 0; 0.01 is the paper's, 1 makes the "
                f"distances even. Received: {self.power!r:.60}"
            )
        check_sources(self, _permutations(self.num_pairs))

    def draw(self, rng: random.Random) -> tuple[str, str]:
        keys, values = rng.sample(KEYS, self.num_pairs), rng.sample(VALUES, self.num_pairs)
        pairs = [key + value for key, value in zip(keys, values, strict=True)]
        source = "".join(pairs) * self.num_passes
        slots = (self.length - len(source)) // 2
        # In the order of exponential waiting times: drawn in turn, without replacement.
        waits = [rng.expovariate((i + 1) ** (self.power - 1)) for i in range(slots)]
        order = sorted(range(slots), key=waits.__getitem__)[: self.num_pairs]
        noise = rng.choices(KEYS + VALUES, k=2 * slots)
        target = [noise[2 * i] + noise[2 * i + 1] for i in range(slots)]
        for slot, pair in zip(order, pairs, strict=True):
            target[slot] = pair
        return source, PartlyScored("".join(target), scored=[2 * slot + 1 for slot in order])


@register
class Capacity(Task):
    """Key-value pairs, as many as a memory may hold, and a key or several: the value of each.

    Source: Schlag et al. 2021, arXiv:2102.11174, section 6.1. There are `symbols` keys and as many
    values. Without `updates` (setting 1) every key stands in a source once, with a value of its
    own. With `updates` (setting 2) sources are twice as long, keys and values drawn with
    replacement, and what counts is the last value of a key. Targets are keys, of a random position
    of the source each, every one followed by its value, which alone is scored.

    A linear attention whose keys have d features holds d orthogonal ones. The paper's sizes reach
    to 600 keys under d = 64; here to 42, which is more than the 16 of a nano model's heads.

    Attributes:
        count: pairs of source and target, distinct ones.
        symbols: different keys, and different values, 42 at most.
        queries: different keys that are asked for; the paper asks for one.
        updates: whether keys come again with other values.

    Example:
        >>> source, target = Capacity(count=1, symbols=4, queries=2).pairs()[0]
        >>> source, target, target.scored
        ('d3b1a2c0', 'a2c0', (1, 3))
    """

    count: int = 20000
    symbols: int = 20
    queries: int = 1
    updates: bool = False

    name = "capacity"

    def __post_init__(self):
        check_count(self, "count", "symbols", "queries")
        check_symbols(self, "symbols")
        if not isinstance(self.updates, bool):
            raise InputError(
                f"updates of the task 'capacity' is true or false. Received: {self.updates!r:.60}"
            )
        # With updates a source may have but one key.
        most = 1 if self.updates else self.symbols
        if self.queries > most:
            raise InputError(
                "queries of the task 'capacity' are different keys of a source, at most "
                f"{most} here. Received: queries={self.queries}, updates={self.updates}"
            )
        one = math.factorial(self.symbols)
        check_sources(self, self.symbols ** (4 * self.symbols) if self.updates else one * one)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        keys, values = KEYS[: self.symbols], VALUES[: self.symbols]
        if self.updates:
            length = 2 * self.symbols
            pairs = [*zip(rng.choices(keys, k=length), rng.choices(values, k=length), strict=True)]
        else:
            shuffled = (rng.sample(part, self.symbols) for part in (keys, values))
            pairs = [*zip(*shuffled, strict=True)]
        last = dict(pairs)
        asked = rng.sample([key for key, _ in pairs], self.queries)
        target = "".join(key + last[key] for key in asked)
        source = "".join(key + value for key, value in pairs)
        return source, PartlyScored(target, scored=range(1, len(target), 2))


def check_symbols(task, field: str) -> None:
    """`InputError` unless there are as many keys and values as a field of a task says."""
    if getattr(task, field) > len(VALUES):
        raise InputError(
            f"{field} of the task {task.name!r} is at most {len(VALUES)}, the number of its "
            f"values. Received: {getattr(task, field)}"
        )


def _permutations(pairs):
    """How many sequences of different keys, each with a value of its own, there are."""
    return math.perm(len(KEYS), pairs) * math.perm(len(VALUES), pairs)
