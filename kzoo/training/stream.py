"""Batches for `fit`, with the position of each."""

import grain


def read_ahead(batches):
    """Batches of a `grain.MapDataset` read ahead by one thread: encoding one takes a
    millisecond, a step tens."""
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


class Stream(grain.IterDataset):
    """A dataset that knows the position after each batch, however far ahead it is read.

    Attributes:
        start: the position where the next iterator begins, or None: at the beginning.
        iterator: the newest one.
    """

    def __init__(self, dataset):
        super().__init__(dataset)
        self.start = self.iterator = None

    def __iter__(self):
        self.iterator = _Iterator(iter(self._parent), self.start)
        return self.iterator

    def position(self, count):
        """After `count` batches of the newest iterator: a dict that JSON can hold."""
        return self.start if self.iterator is None else self.iterator.positions[count]

    def is_end(self, position):
        """Whether no batch comes after it."""
        return _Iterator(iter(self._parent), position).ends_at(0)


class _Iterator(grain.DatasetIterator):
    """Reads one batch ahead, so that the last one is known for what it is."""

    def __init__(self, parent, start):
        super().__init__(parent)
        if start is not None:
            parent.set_state(start)
        self.count = 0
        self.positions = {0: parent.get_state()}  # by the count of batches
        self._ahead = self._read()

    def _read(self):
        try:
            return next(self._parent), self._parent.get_state()
        except StopIteration:
            return None

    def __next__(self):
        if self._ahead is None:
            raise StopIteration
        self.count += 1
        batch, self.positions[self.count] = self._ahead
        self._ahead = self._read()
        return batch

    def ends_at(self, count):
        """Whether the data have `count` batches."""
        return self._ahead is None and count == self.count

    def forget(self, count):
        """The positions before that after `count` batches."""
        for earlier in [known for known in self.positions if known < count]:
            del self.positions[earlier]

    # Grain asks for both.
    def get_state(self):
        return self.positions[self.count]

    def set_state(self, state):
        raise NotImplementedError("the position is set by Stream.start")
