"""How examples stand in the rows of a batch, a registry: one in a row, or packed.

    "padded"        each example in a row of its own, as long as the longest needs
    "buckets"       the same, with examples of like length in a batch: a few shapes
    "first_fit"     several examples in a row, of one shape

`{"first_fit": {"long": "truncate"}}` says what becomes of examples that are longer than a row
(`kzoo.data.fitting.fit`). Which examples stand together depends on their lengths, the objective and
the seed, and on nothing in the model, so that all arms get the same batches.
"""

import dataclasses
from typing import Any

import numpy as np

from kzoo.data.fitting import check_long
from kzoo.errors import InputError
from kzoo.objectives.rows import Lengths
from kzoo.registry import Part, Registry
from kzoo.values import is_boolean, is_count

_SEED = 4783


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one shape.

    Attributes:
        order: their numbers, row by row; integers [examples] or a range.
        starts: integers [rows + 1]: row i holds `order[starts[i] : starts[i + 1]]`; None: one.
        lengths: `Lengths`, the tokens of a row.
        packed: whether several examples may stand in a row.
    """

    order: Any
    starts: np.ndarray | None
    lengths: Lengths
    packed: bool = False

    def __len__(self):
        return len(self.order) if self.starts is None else len(self.starts) - 1

    def members(self, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The examples of some rows, and for each the index in `rows` of its own."""
        if self.starts is None:
            return np.array([self.order[i] for i in rows]), np.arange(len(rows))
        counts = np.diff(self.starts)
        found = [self.order[self.starts[i] : self.starts[i + 1]] for i in rows]
        return np.concatenate(found), np.repeat(np.arange(len(rows)), counts[rows])


class Packing(Part):
    """Base of the ways in which examples stand in rows.

    Attributes:
        name: the name in JSON.
        long: what becomes of examples that are longer than a row: see `kzoo.data.fitting.fit`.
    """

    long: str = "truncate"

    def plan(
        self, sizes: np.ndarray, widest: Lengths, longest: int, batch_size: int, seed: int
    ) -> list[Rows]:
        """The rows of a set of examples.

        Args:
            sizes: integers [examples, 3], what each takes of the three lengths of a row.
            widest: `Lengths` that any example fits into, held-out ones too.
            longest: tokens of a row, the model's `max_sequence_length`.
            batch_size: rows of a batch.
            seed: of what the plan draws.

        Returns:
            A list of `Rows`, one of each shape, which hold every example once.
        """
        raise NotImplementedError


_registry = Registry("packing", Packing)
register, get = _registry.register, _registry.get


def names() -> tuple[str, ...]:
    """The names of the packings: a tuple."""
    return _registry.names


@register
class Padded(Packing):
    """Each example in a row of its own, behind it padding up to the length of the longest.

    Of an encoder and a decoder each sequence has a length of its own.

    Attributes:
        long: as in `Packing`.
        equal_lengths: whether an encoder's and a decoder's sequences are both as long as the
            longest example in one sequence, as all were in runs that were saved without a packing.
    """

    long: str = "truncate"
    equal_lengths: bool = False

    name = "padded"

    def __post_init__(self):
        check_long(self.long)
        if not is_boolean(self.equal_lengths):
            raise InputError(
                f"equal_lengths of padded is true or false. Received: {self.equal_lengths!r:.60}"
            )

    def plan(
        self, sizes: np.ndarray, widest: Lengths, longest: int, batch_size: int, seed: int
    ) -> list[Rows]:
        return [Rows(range(len(sizes)), None, self.lengths(widest))]

    def lengths(self, widest: Lengths) -> Lengths:
        """The lengths of rows for examples of which `widest` holds any."""
        return Lengths(*[widest.row] * 3) if self.equal_lengths else widest


@register
class Buckets(Packing):
    """Each example in a row of its own, in batches of examples of like length.

    Examples are sorted by length into buckets of about as many each. The batches of a bucket have
    one shape, and each shape is compiled once.

    Attributes:
        long: as in `Packing`.
        count: how many buckets there are, at most.
    """

    long: str = "truncate"
    count: int = 4

    name = "buckets"

    def __post_init__(self):
        check_long(self.long)
        _check_count(self, "count")

    def plan(
        self, sizes: np.ndarray, widest: Lengths, longest: int, batch_size: int, seed: int
    ) -> list[Rows]:
        inner = np.arange(1, self.count) / self.count
        edges = np.unique(np.quantile(sizes[:, 0], inner, method="higher"))
        bucket = np.searchsorted(edges, sizes[:, 0])
        found: list[np.ndarray] = []
        for i in np.unique(bucket):
            part = np.flatnonzero(bucket == i)
            few = found and min(len(found[-1]), len(part)) < batch_size
            found[len(found) - bool(few) :] = [np.concatenate([found[-1], part]) if few else part]
        return [Rows(part, None, Lengths(*sizes[part].max(0).tolist())) for part in found]


@register
class FirstFit(Packing):
    """Several examples in a row: each goes to the first of the open rows that has room for it.

    Rows have the model's `max_sequence_length` tokens; of an encoder and a decoder they share
    these as sources and targets do, and each is at least as long as the longest. A row is closed,
    the fullest first, when an example fits into none. The examples come in a random order that
    follows from the seed; the same ones stand together in every epoch, and rows are shuffled.

    Attributes:
        long: as in `Packing`; by default long texts are split, so that no token is lost.
        bins: how many rows are open at once.

    Example:
        >>> sizes = np.array([[5, 2, 4], [3, 2, 2], [4, 2, 3]])
        >>> (rows,) = FirstFit().plan(sizes, Lengths(5, 2, 4), longest=8, batch_size=1, seed=0)
        >>> len(rows), sorted(rows.order.tolist())
        (2, [0, 1, 2])
    """

    long: str = "split"
    bins: int = 128

    name = "first_fit"

    def __post_init__(self):
        check_long(self.long)
        _check_count(self, "bins")

    def plan(
        self, sizes: np.ndarray, widest: Lengths, longest: int, batch_size: int, seed: int
    ) -> list[Rows]:
        tokens, *parts = sizes.sum(0).tolist()
        shares = [-(-longest * part // tokens) for part in parts]
        lengths = Lengths(longest, *map(max, shares, widest[1:]))
        order = np.random.default_rng([seed, _SEED]).permutation(len(sizes))
        row = first_fit(sizes[order], lengths, self.bins)
        starts = np.searchsorted(np.sort(row), np.arange(row.max() + 2))
        return [Rows(order[np.argsort(row, kind="stable")], starts, lengths, packed=True)]


def first_fit(sizes: np.ndarray, room: Any, bins: int = 128) -> np.ndarray:
    """The row of each item, by first fit with `bins` open rows.

    Args:
        sizes: integers [items, dimensions], what each item takes of a row.
        room: integers [dimensions], what a row has; no item takes more.
        bins: how many rows are open at once.

    Returns:
        Integers [items]: rows are counted from 0 in the order of their first items.

    Example:
        >>> first_fit(np.array([[5], [4], [3]]), [8]).tolist()
        [0, 1, 0]
    """
    room = np.asarray(room)
    free = np.tile(room, (bins, 1))
    of_bin = np.full(bins, -1)
    rows, made = np.empty(len(sizes), np.int64), 0
    for i, size in enumerate(sizes):
        fits = (free >= size).all(1)
        at = int(fits.argmax())
        if not fits[at]:  # close the fullest
            at = int(free[:, 0].argmin())
            free[at], of_bin[at] = room, -1
        if of_bin[at] < 0:
            of_bin[at], made = made, made + 1
        rows[i] = of_bin[at]
        free[at] -= size
    return rows


def facts(packing: Packing, plan: list[Rows], sizes: np.ndarray, paired: bool) -> dict[str, Any]:
    """What a plan makes of examples: a dict that JSON can hold.

    Its `kind` is the packing's JSON; `rows`, how many there are; `row_length`, the tokens of the
    longest; and `fill`, the part of all tokens of all rows that examples fill. The same of an
    encoder and a decoder, where examples are `paired` with sources: `encoder_length`,
    `encoder_fill`, `decoder_length` and `decoder_fill`; where the objective draws how long a source
    is, these count the longest that it may be. `sizes` are those of all examples, or of a sample.
    """
    area = sum(len(rows) * np.array(rows.lengths) for rows in plan)
    whole = sum(len(rows.order) for rows in plan) / len(sizes)  # 1 but of a sample
    fill = sizes.sum(0) * whole / np.maximum(area, 1)
    longest = np.max([rows.lengths for rows in plan], axis=0).tolist()
    found = {"kind": packing.get_config(), "rows": sum(map(len, plan))}
    names = ("row", "encoder", "decoder") if paired else ("row",)
    for name, length, part in zip(names, longest, fill, strict=False):
        found[f"{name}_length"] = length
        found["fill" if name == "row" else f"{name}_fill"] = round(float(part), 4)
    return found


def _check_count(packing, field):
    value = getattr(packing, field)
    if not is_count(value):
        raise InputError(
            f"{field} of the packing {packing.name!r} is a positive integer. "
            f"Received: {value!r:.60}"
        )
