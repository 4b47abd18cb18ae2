"""Batches that come one by one: generators, Keras's datasets and torch's loaders."""

import sys
import types

import keras

from kzoo.errors import InputError
from kzoo.models.reading import is_pairs


def is_stream(x):
    """Whether batches come one by one, from what keras-hub cannot map a preprocessor over."""
    return (
        isinstance(x, types.GeneratorType)
        or isinstance(x, keras.utils.PyDataset)
        or is_torch_loader(x)
    )


def is_torch_loader(x):
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and isinstance(x, torch_data.DataLoader)


def mapped(stream, read):
    """A stream of the same kind, of what `read(x, y, sample_weight)` makes of its batches."""
    if isinstance(stream, keras.utils.PyDataset):
        return _Mapped(stream, read)
    if is_torch_loader(stream):
        return _torch_loader(stream, read)
    return (_element(batch, read) for batch in stream)


def _element(batch, read):
    batch = read(*parts(batch))
    return batch if isinstance(batch, tuple) else (batch,)


def parts(batch):
    """A batch of a stream: a tuple is Keras's (x, y, sample_weight), anything else an x."""
    if not isinstance(batch, tuple) or isinstance(batch[0], str | bytes):
        return batch, None, None
    if len(batch) > 3:  # of which Keras's message would print all
        raise InputError(f"a batch is x, (x, y) or (x, y, weights). Received: {len(batch)} parts")
    return keras.utils.unpack_x_y_sample_weight(batch)


def held_out_parts(data):
    """`validation_data` as (x, y, sample_weight): a list of strings or of pairs is an x."""
    if isinstance(data, list) and (is_pairs(data) or all(isinstance(x, str) for x in data)):
        return data, None, None
    return parts(tuple(data) if isinstance(data, list) else data)


class _Mapped(keras.utils.PyDataset):
    """A `PyDataset` with what `read` makes of each batch."""

    def __init__(self, dataset, read):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._read = dataset, read

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __getitem__(self, index):
        return _element(self._dataset[index], self._read)

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


def slices(x, y, sample_weight, batch_size, read):
    """Arrays as a `PyDataset` of batches."""

    class Slices(keras.utils.PyDataset):
        count = len(next(leaf for leaf in keras.tree.flatten(x)))
        num_batches = -(-count // batch_size)

        def __getitem__(self, index):
            at = slice(index * batch_size, (index + 1) * batch_size)
            batch = keras.tree.map_structure(
                lambda leaf: None if leaf is None else leaf[at], (x, y, sample_weight)
            )
            return _element(batch, read)

    return Slices()


def _torch_loader(loader, read):
    from torch.utils.data import DataLoader, IterableDataset

    class Mapped(IterableDataset):
        def __iter__(self):
            for batch in loader:
                # The columns of pairs come as a list, which elsewhere is a list of examples.
                if isinstance(batch, list) and not isinstance(batch[0], str | bytes):
                    batch = tuple(batch)
                yield _element(keras.tree.map_structure(_numpy, batch), read)

    class Counted(Mapped):
        def __len__(self):
            return len(loader)

    counted = hasattr(loader.dataset, "__len__")
    return DataLoader(Counted() if counted else Mapped(), batch_size=None)


def _numpy(leaf):
    return leaf.numpy() if hasattr(leaf, "detach") else leaf
