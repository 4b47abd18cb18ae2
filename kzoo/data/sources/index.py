"""Of examples that are not held in memory: their sizes, and which texts are the same."""

import functools
import hashlib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kzoo.data.sources import kept
from kzoo.data.sources.records import CHUNK, Records
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

_RULE: tuple[Any, ...] = (1,)  # by which examples are told apart; another one indexes anew
# Of each example: hashes of the whole, of its source and of its target (0: none, or nothing but
# white space), the latter two of `folded` texts; bytes of both; characters of the folded target.
ROW = np.dtype(
    [("whole", "u8"), ("source", "u8"), ("target", "u8")]
    + [("source_size", "u4"), ("target_size", "u4"), ("letters", "u4")]
)


def folded(string: str) -> str:
    """A text without what does not make it another: case, white space, Unicode form."""
    if not string.isascii():
        string = unicodedata.normalize("NFKC", string)
    return " ".join(string.casefold().split())


def hashed(string: str) -> int:
    """A 64-bit hash of a text, 0 of an empty one; the same in every process."""
    return _hash(string.encode()) if string else 0


def _hash(content):
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


class Indexed(Records):
    """Examples, `(source, target)` pairs of strings (source None in plain text), that are read
    when they are drawn, or some of them.

    Attributes:
        rows: the `ROW` of each example, an array.
        paired: whether they have sources.
    """

    def __init__(self, records: Records, rows: Any, which: Any, paired: bool, name: str) -> None:
        self._records, self._rows, self._which = records, rows, which
        self.paired, self._name = paired, name
        self._document = functools.lru_cache(64)(lambda i: records[int(which[i])])

    @property
    def rows(self) -> np.ndarray:
        return self._rows[self._which]

    def __len__(self):
        return len(self._which)

    def __getitems__(self, indices):
        items = self._records.__getitems__(self._which[np.asarray(indices, int)])
        return items if self.paired else [(None, item) for item in items]

    def read_bytes(self, i: int, start: int, stop: int) -> bytes:
        """The bytes of a document between two positions; the last ones read are remembered."""
        return self._document(i)[start:stop]

    @property
    def sizes(self) -> np.ndarray:
        """The bytes of each source, 0 where there is none, and target: int64 [examples, 2]."""
        rows = self.rows
        return np.column_stack([rows["source_size"], rows["target_size"]]).astype(np.int64)

    def token_counts(self, encode: Callable[[list[str]], list[Any]], digest: str) -> np.ndarray:
        """The tokens of each source, 0 where there is none, and target: int64 [examples, 2].

        All texts are read once, and the counts are kept as the index is.

        Args:
            encode: a tokenizer's, from strings to token arrays.
            digest: which says what tokenizer it is.
        """
        records = self._records

        def fill(counts):
            for start, items in _chunks(records):
                texts = [text for item in items for text in (item if self.paired else ("", item))]
                found = [len(tokens) for tokens in encode(texts)]
                counts[start : start + len(items)] = np.reshape(found, (-1, 2))
            return {}

        identity = records.identity and (*_RULE, *records.identity, "tokens", digest)
        doing = (self._name, "count their tokens")
        counts, _ = kept.rows(identity, (len(records), 2), np.dtype("u4"), fill, doing)
        return counts[self._which].astype(np.int64)

    def some(self, indices: Any) -> "Indexed":
        """The examples of some indices, an integer array."""
        return Indexed(self._records, self._rows, self._which[indices], self.paired, self._name)


def index(records: Records, name: str) -> tuple[Indexed, str, int]:
    """The examples of some records that are neither empty nor repeated, a hash of all, and how many
    repeat others.

    The first time all are read once. Where the records have an `identity`, what is found is kept
    in a folder of the user's cache, so that later runs begin at once.

    Args:
        records: texts or pairs of strings.
        name: of the source, for messages.
    """
    identity = records.identity and (*_RULE, *records.identity)
    fill = functools.partial(_fill, records=records)
    rows, facts = kept.rows(identity, (len(records),), ROW, fill, (name, "index them"))
    _, which = np.unique(rows["whole"], return_index=True)
    which.sort()
    empty = rows["target_size"][which] == 0
    full = which[~empty]
    if empty.any():
        log.warning("%s: %d empty texts or targets are left out", name, int(empty.sum()))
    if not len(full):
        raise InputError(f"the data is empty. Received: {name!r}, without a text in it")
    left = len(rows) - len(which)
    which = full.astype(np.uint32)
    return Indexed(records, rows, which, facts["paired"], name), facts["sha256"], left


def _fill(rows, records):
    """Fills the rows, and returns a hash of all and whether there are sources."""
    digest, paired = hashlib.sha256(), False
    for start, items in _chunks(records):
        paired = isinstance(items[0], tuple)
        rows[start : start + len(items)] = found = _rows(items)
        digest.update(found["whole"].tobytes())
    return {"sha256": digest.hexdigest(), "paired": paired}


def _chunks(records):
    """All records in pieces: the number of the first, and a list of them."""
    for start in range(0, len(records), CHUNK):
        yield start, records.__getitems__(range(start, min(start + CHUNK, len(records))))


def _rows(items: Iterable[Any]) -> np.ndarray:
    found = []
    for item in items:
        item = item.decode() if isinstance(item, bytes) else item
        source, target = item if isinstance(item, tuple) else ("", item)
        try:
            sizes = len(source.encode()), len(target.encode())
        except UnicodeEncodeError:
            raise InputError(
                "a text is Unicode without half a surrogate pair. Received: such a text "
                f"(of {len(target)} characters)"
            ) from None
        looks = folded(target)
        whole = _hash(f"{sizes[0]}:{source}{target}".encode())
        found.append((whole, hashed(folded(source)), hashed(looks), *sizes, len(looks)))
    return np.array(found, ROW)


def keys(examples: Sequence[Any]) -> np.ndarray:
    """The `ROW` of each example: of those in memory made here, of others as they were indexed."""
    if isinstance(examples, Indexed):
        return examples.rows
    return _rows(target if source is None else (source, target) for source, target in examples)
