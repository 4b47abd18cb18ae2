"""Of examples that are not held in memory: their sizes, and which texts are the same."""

import functools
import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.compilation_cache import folder
from kzoo.data.sources.records import CHUNK, Records
from kzoo.errors import InputError
from kzoo.files import whole_folder

log = logging.getLogger("kzoo")

_RULE = 1  # by which examples are told apart; another one indexes anew
FILE, FACTS = "index.npy", "facts.json"
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

    def __init__(self, records: Records, rows: Any, which: Any, paired: bool) -> None:
        self._records, self._rows, self._which, self.paired = records, rows, which, paired
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

    def some(self, indices: Any) -> "Indexed":
        """The examples of some indices, an integer array."""
        return Indexed(self._records, self._rows, self._which[indices], self.paired)


def index(records: Records, name: str) -> tuple[Indexed, str, int]:
    """The examples of some records that are neither empty nor repeated, a hash of all, and how many
    repeat others.

    The first time all are read once. Where the records have an `identity`, what is found is kept
    in a folder of the user's cache, so that later runs begin at once.

    Args:
        records: texts or pairs of strings.
        name: of the source, for messages.
    """
    rows, facts = _kept(records, name)
    _, which = np.unique(rows["whole"], return_index=True)
    which.sort()
    empty = rows["target_size"][which] == 0
    full = which[~empty]
    if left := len(rows) - len(which):
        log.info("%s: %d repeated examples left out", name, left)
    if empty.any():
        log.warning("%s: %d empty texts or targets are left out", name, int(empty.sum()))
    if not len(full):
        raise InputError(f"the data is empty. Received: {name!r}, without a text in it")
    return Indexed(records, rows, full.astype(np.uint32), facts["paired"]), facts["sha256"], left


def _kept(records, name):
    """The rows and facts of records: those kept from an earlier time, or those found now."""
    if not records.identity:
        rows = np.empty(len(records), ROW)
        return rows, _fill(rows, records)
    identity = json.dumps([_RULE, *records.identity, len(records)])
    name_of = hashlib.sha256(identity.encode()).hexdigest()[:24]
    try:
        kept = folder("indices").parent / name_of
        if found := _read(kept, len(records)):
            return found
        log.info("%s: %d examples are read once, to index them", name, len(records))
        with whole_folder(kept, last=FACTS) as part:
            rows = np.lib.format.open_memmap(Path(part) / FILE, "w+", ROW, (len(records),))
            facts = _fill(rows, records)
            rows.flush()
            (Path(part) / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return np.load(kept / FILE, mmap_mode="r"), facts
    except OSError as error:
        log.warning("%s: its index is not kept and is made each time: %s", name, error)
        rows = np.empty(len(records), ROW)
        return rows, _fill(rows, records)


def _read(kept, count):
    """The rows and facts of a folder, or None where it does not hold them whole."""
    try:
        facts = json.loads((kept / FACTS).read_text("utf-8"))
        rows = np.load(kept / FILE, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return (rows, facts) if (rows.dtype, len(rows)) == (ROW, count) else None


def _fill(rows, records):
    """Fills the rows, and returns a hash of all and whether there are sources."""
    digest, paired = hashlib.sha256(), False
    for start in range(0, len(records), CHUNK):
        items = records.__getitems__(range(start, min(start + CHUNK, len(records))))
        paired = isinstance(items[0], tuple)
        rows[start : start + len(items)] = found = _rows(items)
        digest.update(found["whole"].tobytes())
    return {"sha256": digest.hexdigest(), "paired": paired}


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
