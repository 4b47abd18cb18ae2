"""Batches in random order, of which a slice is a data set of its own."""

import functools

import grain
import numpy as np


class _Sliceable(grain.MapDataset):
    """A data set of batches whose slices and repetitions keep to their rows."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        dataset, place = self.at(index if index >= 0 else index + len(self))
        return dataset[place]

    def slice(self, sl):
        return _Part(self, range(len(self))[sl])

    def repeat(self, num_epochs=None, *, reseed_each_epoch=True):
        repeated = super().repeat(num_epochs, reseed_each_epoch=reseed_each_epoch)
        return _Part(self, range(len(repeated))) if reseed_each_epoch else repeated


class Batches(_Sliceable):
    """Batches of rows in random order, a new one in each epoch.

    Grain's own slice of a shuffled data set is a window on each epoch's new order, so that
    `dataset[:3].repeat()` sooner or later draws every row. Here a slice keeps its rows:
    `batches[a:b]` has the batches a to b - 1 of `batches`, and whatever follows (`repeat`,
    `shuffle`, `batch`, another slice) draws from these rows only, in a new order in each
    further epoch. `batches.repeat()[k:]` goes on at batch k of all epochs. Slice before `map`
    or `filter`: those are Grain's, and so are slices of them.

    Args:
        rows: the numbers of the rows, a sequence of integers.
        batch_size: rows of a batch; a remainder is left out.
        seed: of the orders and of what `encode` draws.
        encode: called with a list of row numbers and a `numpy.random.Generator`, which follows
            from the seed and the place of the batch; returns the batch.

    Example:
        >>> batches = Batches(range(6), 2, 0, lambda rows, rng: sorted(rows))
        >>> first = set(batches[0]) | set(batches[1])
        >>> all(set(batch) <= first for batch in batches[:2].repeat(9))
        True
    """

    def __init__(self, rows, batch_size, seed, encode):
        order = grain.MapDataset.source(rows).seed(seed).shuffle()
        # Rows are drawn first and encoded a batch at a time: vectorised, and a batch's random
        # choices follow from its place alone.
        self._order = order.batch(batch_size, drop_remainder=True, batch_fn=list)
        super().__init__(self._order.random_map(encode))
        # The same of other rows, with other draws.
        seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.of = functools.partial(Batches, batch_size=batch_size, seed=seed, encode=encode)

    def __len__(self):
        return len(self._parent)

    def at(self, index):
        """The data set that makes a batch, and the batch's place in it."""
        return self._parent, index

    def rows(self, index):
        """The numbers of a batch's rows."""
        return self._order[index]


class _Part(_Sliceable):
    """The batches at some places of a whole, and beyond its end their rows in new orders."""

    def __init__(self, whole, places):
        super().__init__(whole)
        self._places = places
        self.of = whole.of

    def __len__(self):
        return len(self._places)

    @functools.cached_property
    def _again(self):
        return self.of([row for place in self._places for row in self._parent.rows(place)])

    def at(self, index):
        inside = index < len(self)
        return (self._parent, self._places[index]) if inside else (self._again, index)

    def rows(self, index):
        dataset, place = self.at(index)
        return dataset.rows(place)
