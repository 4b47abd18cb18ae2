"""Batches in random order, of which a slice is a data set of its own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np


class _Sliceable(grain.MapDataset):
    """A data set of batches whose slices and repetitions keep to their examples."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        dataset, position = self.at(index if index >= 0 else index + len(self))
        return dataset[position]

    def slice(self, sl: slice) -> grain.MapDataset:
        return _Part(self, range(len(self))[sl])

    def repeat(
        self, num_epochs: int | None = None, *, reseed_each_epoch: bool = True
    ) -> grain.MapDataset:
        repeated = super().repeat(num_epochs, reseed_each_epoch=reseed_each_epoch)
        return _Part(self, range(len(repeated))) if reseed_each_epoch else repeated


class Batches(_Sliceable):
    """Batches of examples in random order, a new one in each epoch.

    Grain's own slice of a shuffled data set is a window on each epoch's new order, so that
    `dataset[:3].repeat()` sooner or later draws every example. Here a slice keeps its examples:
    `batches[a:b]` has the batches a to b - 1 of `batches`, and whatever follows (`repeat`,
    `shuffle`, `batch`, another slice) draws from these examples only, in a new order in each
    further epoch. `batches.repeat()[k:]` goes on at batch k of all epochs. Slice before `map`
    or `filter`: those are Grain's, and so are slices of them.

    Args:
        examples: their numbers, a sequence of integers.
        batch_size: examples of a batch; a remainder is left out.
        seed: of the orders and of what `encode` draws.
        encode: called with a list of their numbers and a `numpy.random.Generator`, which follows
            from the seed and the position of the batch; returns the batch.

    Example:
        >>> batches = Batches(range(6), 2, 0, lambda examples, rng: sorted(examples))
        >>> first = set(batches[0]) | set(batches[1])
        >>> all(set(batch) <= first for batch in batches[:2].repeat(9))
        True
    """

    def __init__(
        self,
        examples: Sequence[int],
        batch_size: int,
        seed: int,
        encode: Callable[[list[int], np.random.Generator], Any],
    ) -> None:
        order = grain.MapDataset.source(examples).seed(seed).shuffle()
        # Examples are drawn first and encoded a batch at a time: vectorised, and a batch's random
        # choices follow from its position alone.
        self._order = order.batch(batch_size, drop_remainder=True, batch_fn=list)
        super().__init__(self._order.random_map(encode))
        # The same of other examples, with other draws.
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.of = functools.partial(Batches, batch_size=batch_size, seed=seed, encode=encode)

    def __len__(self):
        return len(self._parent)

    def at(self, index: int) -> tuple[Any, int]:
        """The data set that makes a batch, and the batch's position in it."""
        return self._parent, index

    def examples(self, index: int) -> list[int]:
        """The numbers of a batch's examples."""
        return self._order[index]


class Mixed(_Sliceable):
    """The batches of several `Batches` in random order, a new one in each epoch.

    Args:
        parts: list of `Batches`.
        seed: of the orders.

    Example:
        >>> parts = [Batches(range(4), 2, 0, lambda rows, rng, n=n: (n, rows)) for n in "ab"]
        >>> sorted({n for n, _ in Mixed(parts, seed=0)})
        ['a', 'b']
    """

    def __init__(self, parts: list[Any], seed: int) -> None:
        super().__init__(parts)
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}  # of the epoch that was read last
        # Which part each batch of an epoch is of, before it is shuffled, and which of the part's.
        self._which = [(n, i) for n, part in enumerate(parts) for i in range(len(part))]

    def __len__(self):
        return len(self._which)

    def at(self, index: int) -> tuple[Any, int]:
        part, within = self._where(index)
        return self._parents[part].at(within)

    def examples(self, index: int) -> list[Any]:
        """The number of the part, and that of the example, of each in a batch."""
        part, within = self._where(index)
        return [(part, example) for example in self._parents[part].examples(within)]

    def of(self, examples: list[Any]) -> "Mixed":
        """The same of other examples, with other draws."""
        each = [[i for n, i in examples if n == part] for part in range(len(self._parents))]
        chosen = [part.of(own) for part, own in zip(self._parents, each, strict=True) if own]
        return Mixed(chosen, int(np.random.SeedSequence(self._seed).generate_state(1)[0]))

    def _where(self, index):
        epoch, position = divmod(index, len(self))
        part, within = self._which[self._order(epoch)[position]]
        return part, epoch * len(self._parents[part]) + within

    def _order(self, epoch):
        known = self._orders  # threads read too
        if epoch not in known:
            drawn = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            self._orders = known = {epoch: drawn}
        return known[epoch]


class _Part(_Sliceable):
    """The batches at some positions of a whole, and beyond its end their examples in new orders."""

    def __init__(self, whole, positions):
        super().__init__(whole)
        self._positions = positions
        self.of = whole.of

    def __len__(self):
        return len(self._positions)

    @functools.cached_property
    def _again(self):
        return self.of([i for position in self._positions for i in self._parent.examples(position)])

    def at(self, index):
        inside = index < len(self)
        return (self._parent, self._positions[index]) if inside else (self._again, index)

    def examples(self, index):
        dataset, position = self.at(index)
        return dataset.examples(position)
