"""Running text that is read where it lies, by position, so that its size needs no memory."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.data.sources.records import Records
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

# Bytes above which a source is read where it lies. Below, passages that stand in both parts are cut
# out of what is trained on, which takes memory and time that grow with the text.
LARGE = 1 << 26
CHUNK = 1 << 22  # bytes that are read at once
BETWEEN = b"\n\n"  # documents


class Stored:
    """Running text made of stretches of documents, each of which can be read at any time.

    Args:
        read: `(document, start, stop)` to the bytes of a document between two positions.
        stretches: int64 [count, 3]: the number of a document, the first byte and the end. -1
            instead of a number is what stands between documents, a blank line.
        sha256: of the whole text, in hexadecimal.
        sizes: of its documents, in bytes.
        repeated: how many further ones were left out since they repeat others.

    Example:
        >>> text = Stored(lambda document, a, b: b"Call me Ishmael."[a:b], [[0, 0, 4], [0, 7, 16]])
        >>> len(text), text.read(2, 9)
        (13, b'll Ishm')
    """

    def __init__(
        self,
        read: Callable[[int, int, int], bytes],
        stretches: Any,
        sha256: str = "",
        sizes: Sequence[int] = (),
        repeated: int = 0,
    ) -> None:
        self._read, self.sha256, self.sizes, self.repeated = read, sha256, sizes, repeated
        stretches = np.asarray(stretches, np.int64).reshape(-1, 3)
        self._stretches = stretches[stretches[:, 2] > stretches[:, 1]]
        self._ends = np.cumsum(self._stretches[:, 2] - self._stretches[:, 1])

    def __len__(self):
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of the text between two positions."""
        pieces, i = [], int(np.searchsorted(self._ends, start, "right"))
        while start < stop and i < len(self._ends):
            document, begin, end = self._stretches[i].tolist()
            reaches = int(self._ends[i])
            a, b = start - reaches + end, min(stop - reaches, 0) + end
            pieces.append(BETWEEN[a:b] if document < 0 else self._read(document, a, b))
            start, i = reaches, i + 1
        return b"".join(pieces)

    def __getitem__(self, positions: slice) -> bytes:
        return self.read(*positions.indices(len(self))[:2])

    def find(self, what: bytes, start: int, stop: int) -> int:
        """Where `what` stands first between two positions, or -1."""
        at = self.read(start, min(stop, len(self))).find(what)
        return at if at < 0 else start + at

    def part(self, starts: Any, stops: Any) -> "Stored":
        """The text of some stretches of this text, in order: where they begin and end."""
        return Stored(self._read, self._between(np.asarray(starts), np.asarray(stops)))

    def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """The text in uint8 arrays of `size` bytes."""
        for start in range(0, len(self), size):
            yield np.frombuffer(self.read(start, min(start + size, len(self))), np.uint8)

    def sample(self, size: int, count: int = 64) -> "Stored":
        """About `size` bytes of the text, `count` runs evenly spread; all of a text that has
        fewer."""
        if len(self) <= size:
            return self
        starts = np.linspace(0, len(self) - size // count, count).astype(np.int64)
        return self.part(starts, starts + size // count)

    @property
    def mean_stretch(self) -> int:
        """The bytes that one reading gives, on average."""
        return len(self) // max(1, len(self._stretches))

    def _between(self, starts, stops):
        """The stretches of documents between positions of the text: int64 [count, 3]."""
        first = np.searchsorted(self._ends, starts, "right")
        count = np.maximum(np.searchsorted(self._ends, stops, "left") - first + 1, 0)
        which = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        which = np.minimum(which, len(self._ends) - 1)
        document, begin, end = self._stretches[which].T
        origin = self._ends[which] - (end - begin)
        return np.stack(
            [
                document,
                begin + np.maximum(np.repeat(starts, count) - origin, 0),
                np.minimum(end, begin + np.repeat(stops, count) - origin),
            ],
            axis=1,
        )


class Windows(Records):
    """The windows of a text that do not overlap, uint8 arrays; the rest is left out."""

    def __init__(self, text: Stored, size: int) -> None:
        self._text, self._size = text, size

    def __len__(self):
        return len(self._text) // self._size

    def __getitems__(self, indices):
        starts = [int(i) * self._size for i in indices]
        return [
            np.frombuffer(self._text.read(start, start + self._size), np.uint8) for start in starts
        ]


def documents(
    read: Callable[[int, int, int], bytes], sizes: Any, sha256: str, repeated: int = 0
) -> Stored:
    """The text of whole documents with a blank line between them.

    Args:
        read: as of `Stored`.
        sizes: int [documents], in bytes.
        sha256, repeated: as of `Stored`.
    """
    count = len(sizes)
    stretches = np.zeros((max(0, 2 * count - 1), 3), np.int64)
    stretches[::2, 0], stretches[::2, 2] = np.arange(count), sizes
    stretches[1::2, 0], stretches[1::2, 2] = -1, len(BETWEEN)
    return Stored(read, stretches, sha256, sizes, repeated)


class Unchanged:
    """A file that is read by position as long as it is the one that was looked through.

    Args:
        path: of the file, as it is now.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = _state(os.stat(path))

    def read(self, stretches: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes between some positions.

        Args:
            stretches: the first byte of each, and the end.

        Raises:
            InputError: if the file was written to or replaced.
        """
        found = []
        with open(self.path, "rb", buffering=0) as file:
            for start, stop in stretches:
                file.seek(start)
                found.append(file.read(stop - start))
            same = _state(os.fstat(file.fileno())) == self._state
        if not same or sum(map(len, found)) < sum(stop - start for start, stop in stretches):
            raise InputError(
                "a large file is read where it lies, so it does not change while it is used; "
                f"begin again. Received: {str(self.path)!r}, which changed"
            )
        return found


def _state(about):
    return about.st_size, about.st_mtime_ns


class FileReader:
    """Reads stretches of files.

    Args:
        files: list of `Unchanged`.
        skip: bytes at the beginning of each that are left out, such as its byte order mark.
    """

    def __init__(self, files: Sequence[Unchanged], skip: Sequence[int]) -> None:
        self._files, self._skip = files, skip

    def __call__(self, document: int, start: int, stop: int) -> bytes:
        skip = self._skip[document]
        return self._files[document].read([(skip + start, skip + stop)])[0]


def whole_characters(file: Any) -> Iterator[tuple[int, bytes]]:
    """A file in pieces of about 4 MB that end where a character of UTF-8 does: the position of
    each, and its bytes."""
    at, rest = file.tell(), b""
    while more := file.read(CHUNK):
        piece = rest + more
        kept = len(piece) - _begun(piece)
        yield at, piece[:kept]
        at, rest = at + kept, piece[kept:]
    if rest:
        yield at, rest


def _begun(piece):
    """How many bytes at the end of a piece begin a character that they do not finish."""
    for back in range(1, min(4, len(piece) + 1)):
        byte = piece[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


def scan(paths: Sequence[Path], check: Callable[[bytes, Path, int], None], mark: bytes) -> Stored:
    """Reads files once, to check them, and gives their text.

    Args:
        paths: of the files.
        check: called with a piece of a file, its path and the piece's position; raises
            `InputError` for what is no text.
        mark: left out at the beginning of a file.

    Returns:
        A `Stored` of the files that differ.
    """
    kept, skip, sizes, seen = [], [], [], {}
    for path in paths:
        unchanged = Unchanged(path)
        with open(path, "rb") as file:
            start = len(mark) if file.read(len(mark)) == mark else 0
            file.seek(start)
            digest, size = hashlib.sha256(), 0
            for at, piece in whole_characters(file):
                check(piece, path, at)
                digest.update(piece)
                size += len(piece)
        if seen.setdefault(digest.digest(), path) is not path:
            log.info("%s: the same as %s, and left out", path, seen[digest.digest()])
            continue
        kept, skip, sizes = [*kept, unchanged], [*skip, start], [*sizes, size]
    digests = list(seen)
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return documents(FileReader(kept, skip), sizes, whole.hex(), len(paths) - len(kept))
