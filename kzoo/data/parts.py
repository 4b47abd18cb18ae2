"""The parts of the data as token arrays: in memory, or encoded when they are drawn."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from kzoo.data.fitting import Fitted
from kzoo.data.sources.index import Indexed
from kzoo.data.sources.records import Records, take
from kzoo.data.splits import SAMPLED, sample
from kzoo.encoder import Encoder, utf8

SEED = 9529  # of the draws for held-out examples
AT_ONCE = 256  # held-out examples that are encoded together where there are too many for one go


@dataclasses.dataclass(frozen=True)
class Part:
    """The tokens of one part of the data.

    Attributes:
        sources: token arrays, or None for plain text.
        targets: token arrays.
        complete: whether EOS follows, all of them or each: a bool, or bool [examples].
        sizes: integers [examples, 3], what each takes of a row of a single stack, of an encoder's
            and of a decoder's, at most.
        text: the bytes of the targets, a uint8 array or a `Stored`.
        sampled: what some examples take, evenly spread, where `sizes` say that all take the most.
    """

    sources: Sequence[Any] | None
    targets: Sequence[Any]
    complete: bool | np.ndarray
    text: Any
    sizes: np.ndarray
    sampled: np.ndarray | None = None

    def __len__(self):
        return len(self.targets)

    def take(self, indices: Sequence[int]) -> tuple[list | None, list]:
        """The sources and the targets of some examples."""
        sources = None if self.sources is None else take(self.sources, indices)
        return sources, take(self.targets, indices)

    def ends(self, indices: Sequence[int]) -> Any:
        """Whether EOS follows some examples: a bool, or one for each."""
        return self.complete if isinstance(self.complete, bool) else self.complete[list(indices)]

    @property
    def in_memory(self) -> bool:
        """Whether the tokens are; else they are read when they are drawn."""
        return not isinstance(self.targets, Records)

    @property
    def shortest(self) -> int:
        """An example with the shortest target."""
        if not self.in_memory:  # windows of one size
            return 0
        return min(range(len(self.targets)), key=lambda i: len(self.targets[i]))


class Drawn:
    """A part of examples that are not held in memory: they are read and made tokens when they are
    drawn.

    Args:
        examples: an `Indexed`.
        encoder: an `Encoder`, which makes tokens of their strings.
        sizes, sampled: as of `Part`.
        fitted: a `Fitted`, which says what of them stands in a row; None: all of each.
    """

    in_memory = False

    def __init__(
        self,
        examples: Indexed,
        encoder: Encoder,
        sizes: np.ndarray,
        fitted: Fitted | None = None,
        sampled: np.ndarray | None = None,
    ) -> None:
        self.sizes, self.sampled = sizes, sampled
        self._examples, self._encoder, self._fitted = examples, encoder, fitted
        self.text = _Targets(examples)

    def __len__(self):
        return len(self.sizes)

    def take(self, indices: Sequence[int]) -> tuple[list | None, list]:
        """The sources and the targets of some examples."""
        chosen = indices if self._fitted is None else self._fitted.example[np.asarray(indices)]
        pairs = self._examples.__getitems__(chosen)
        sources = None
        targets = self._encoder.targets([target for _, target in pairs])
        if self._examples.paired:
            sources = self._encoder.tokens([source for source, _ in pairs])
        return (
            (sources, targets)
            if self._fitted is None
            else self._fitted.cut(indices, sources, targets)
        )

    def ends(self, indices: Sequence[int]) -> Any:
        """Whether EOS follows some examples: a bool, or one for each."""
        return True if self._fitted is None else self._fitted.complete[np.asarray(indices)]

    @property
    def shortest(self) -> int:
        """An example with the shortest target, in bytes, or in tokens where these are counted."""
        if self._fitted is not None:
            return int((self._fitted.stop - self._fitted.start).argmin())
        return int(self._examples.rows["target_size"].argmin())


class _Targets:
    """The bytes of the targets of examples that are not held in memory."""

    def __init__(self, examples):
        self._examples = examples

    def __len__(self):
        return int(self._examples.rows["target_size"].sum(dtype=np.int64))

    def chunks(self):
        """Those of a sample."""
        chosen = sample(self._examples, SAMPLED)
        yield np.concatenate([utf8(target) for _, target in chosen])


def held_out(
    encode: Callable[..., Any], part: Part | Drawn, batch_size: int, pad: int
) -> grain.MapDataset:
    """The batches of a part that is not trained on, the same whatever the seed of a run.

    The draws do not depend on the batch size: all examples are encoded at once, or, of a part that
    is not held in memory, 256 at a time.

    Args:
        encode: `(part, indices, rng, held_out=True)` to a batch, as `Encoder.batch` gives it.
        part: the part.
        batch_size: examples of a batch.
        pad: the id that fills the last batch, at weight zero.
    """
    count = len(part)
    if part.in_memory:
        rng = np.random.default_rng(SEED)
        encoded = encode(part, range(count), rng, held_out=True)
        return _dataset(lambda start, stop: _rows(encoded, start, stop), count, batch_size, pad)

    @functools.lru_cache(2)
    def block(number):
        rng = np.random.default_rng((SEED, number))
        indices = range(number * AT_ONCE, min(count, (number + 1) * AT_ONCE))
        return encode(part, indices, rng, held_out=True)

    def between(start, stop):
        numbers = range(start // AT_ONCE, (stop - 1) // AT_ONCE + 1)
        blocks = [
            _rows(block(k), max(0, start - k * AT_ONCE), min(AT_ONCE, stop - k * AT_ONCE))
            for k in numbers
        ]
        return blocks[0] if len(blocks) == 1 else _joined(blocks)

    return _dataset(between, count, batch_size, pad)


def _dataset(between, count, batch_size, pad):
    def batch(start):
        return _filled(between(start, min(count, start + batch_size)), batch_size, pad)

    return grain.MapDataset.range(0, count, batch_size).map(batch)


def _rows(encoded, start, stop):
    x, y, sample_weight = encoded
    return {n: a[start:stop] for n, a in x.items()}, y[start:stop], sample_weight[start:stop]


def _joined(blocks):
    x = {name: np.concatenate([block[0][name] for block in blocks]) for name in blocks[0][0]}
    return x, *(np.concatenate([block[i] for block in blocks]) for i in (1, 2))


def _filled(encoded, batch_size, pad):
    """A batch filled with padding of zero weight."""
    x, y, sample_weight = encoded
    missing = batch_size - len(y)
    if not missing:
        return encoded

    def filled(array, value=0):
        ends = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, ends, constant_values=value)

    x = {name: filled(a, pad if name.endswith("token_ids") else 0) for name, a in x.items()}
    return x, filled(y, pad if y.ndim > 1 else 0), filled(sample_weight)
