"""The tokens of running text that is not held in memory: made once, kept in the user's cache."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.data.sources.kept import FACTS, place
from kzoo.data.sources.records import Records
from kzoo.data.sources.stored import Unchanged
from kzoo.data.text import windows
from kzoo.files import whole_folder

log = logging.getLogger("kzoo")

FILE = "tokens.bin"
DTYPE = np.dtype("<i4")
PIECES = 64  # strings that become tokens at once


class TokenWindows(Records):
    """The windows of the tokens of a file that do not overlap; the rest is left out.

    Args:
        path: of the file, which holds nothing but tokens.
        shape: of a window.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file, self._shape = Unchanged(path), shape
        self._width = int(np.prod(shape)) * DTYPE.itemsize
        self.size = path.stat().st_size

    def __len__(self):
        return self.size // self._width

    def __getitems__(self, indices):
        starts = [int(i) * self._width for i in indices]
        read = self._file.read([(start, start + self._width) for start in starts])
        return [np.frombuffer(one, DTYPE).reshape(self._shape) for one in read]


def token_windows(
    strings: Callable[[], Iterable[str]],
    encode: Callable[[Sequence[str]], list[np.ndarray]],
    size: int,
    identity: Sequence[Any],
    name: str,
) -> Sequence[np.ndarray]:
    """The windows of a text's tokens, which are written to a file in the user's cache, or found
    there; in memory, with a warning, where there is no such folder.

    Args:
        strings: gives the text in pieces, from its beginning.
        encode: makes token arrays of some of them.
        size: tokens of a window.
        identity: JSON values that say which tokens of which text these are.
        name: of the text, for messages.
    """
    try:
        kept = place("texts", identity)
        facts = _read(kept)
        if facts is None:
            log.info("%s: its tokens are made once, and kept in %s", name, kept)
            facts = _write(kept, _encoded(strings(), encode))
        return TokenWindows(kept / FILE, (size, *facts["of_token"]))
    except OSError as error:
        log.warning("%s: its tokens are held in memory: %s", name, error)
        return windows(np.concatenate(list(_encoded(strings(), encode))), size)


def _encoded(strings, encode) -> Iterator[np.ndarray]:
    some: list[str] = []
    for string in strings:
        some.append(string)
        if len(some) == PIECES:
            yield from encode(some)
            some = []
    yield from encode(some)


def _write(kept, arrays):
    """Writes tokens, and returns what `_read` will."""
    of_token: tuple[int, ...] = ()
    with whole_folder(kept, last=FACTS) as part:
        with open(Path(part) / FILE, "wb") as file:
            for tokens in arrays:
                of_token = tokens.shape[1:]
                file.write(tokens.astype(DTYPE).tobytes())
            facts = {"bytes": file.tell(), "of_token": of_token}
        (Path(part) / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _read(kept):
    """The facts of the tokens in a folder, or None where some are missing."""
    try:
        facts = json.loads((kept / FACTS).read_text("utf-8"))
        return facts if (kept / FILE).stat().st_size == facts["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None
