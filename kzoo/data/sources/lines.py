"""Tables that are read where they lie: where each line begins, so that any can be read."""

import contextlib
import csv
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.data.sources import files, stored
from kzoo.errors import InputError

TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
CSV = {"strict": True}
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")
_LIMIT = threading.Lock()


@contextlib.contextmanager
def long_cells():
    """A context in which cells of CSV may have more characters than 131,072, the limit of `csv`,
    which is one for the whole process."""
    with _LIMIT:
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


class Lines:
    """The lines of a table that are not empty. A quoted cell of CSV may hold line ends.

    Args:
        file: in CSV, TSV or JSON lines, by its ending; it is read once, to check its encoding and
            to find where lines begin.

    Attributes:
        sha256: of the file without a byte order mark, in hexadecimal.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._kind = stored.Unchanged(file), file.suffix.lower()
        self._starts, self._ends, self.sha256 = _lines(file, self._kind)

    def __len__(self):
        return len(self._starts)

    def where(self, i: int) -> str:
        """What names a line in messages."""
        start, breaks = int(self._starts[i]), 0
        for at in range(0, start, stored.CHUNK):
            (piece,) = self._file.read([(at, min(start, at + stored.CHUNK))])
            breaks += piece.count(b"\n")
        return f"line {breaks + 1}"

    def read(self, indices: Sequence[int]) -> list[Any]:
        """The cells of some lines: a list of strings each; or what JSON holds."""
        parse = _cells if self._kind in (".csv", ".tsv") else _object
        style = CSV if self._kind == ".csv" else TSV
        found = []
        with long_cells():
            for i, line in zip(indices, self._raw(indices), strict=True):
                try:
                    found.append(parse(line.decode(), style))
                except (ValueError, csv.Error) as error:
                    wanted = "CSV is quoted as in RFC 4180"
                    if parse is _object:
                        wanted = "each line is one JSON object"
                    raise InputError(
                        f"{wanted} ({error}). Received: {str(self._file.path)!r}, {self.where(i)}"
                    ) from error
        return found

    def _raw(self, indices):
        starts, ends = self._starts[indices].tolist(), self._ends[indices].tolist()
        places = list(zip(starts, ends, strict=True))
        first, last = min(starts), max(ends)
        if last - first < 2 * sum(b - a for a, b in places):  # neighbours: at once
            (block,) = self._file.read([(first, last)])
            return [block[a - first : b - first] for a, b in places]
        return self._file.read(places)


def _cells(line, style):
    rows = list(csv.reader(io.StringIO(line, newline=""), **style))
    if len(rows) != 1:
        alone = "\r" in line.rstrip("\r\n")
        raise ValueError(
            "a cell with a carriage return alone is quoted"
            if alone
            else "a quote in a cell is doubled, and the cell quoted"
        )
    return rows[0]


def _object(line, style):
    return json.loads(line)


def _lines(file, kind):
    """The first byte of each line with something in it, and the end; the file's hash. A line end
    within quotes of CSV ends no line."""
    ends, written, quotes, begin, total = [], [], 0, None, 0
    # What an empty line may have; of JSON also white space.
    solid = ~np.isin(np.arange(256), list(b"\r\n" if kind in (".csv", ".tsv") else b"\r\n\t "))

    def check(piece, path, at):
        nonlocal quotes, begin, total
        files.check_encoding(piece, path, at)
        here = np.frombuffer(piece, np.uint8)
        found = np.flatnonzero(here == ord("\n"))
        if kind == ".csv":
            marks = np.flatnonzero(here == ord('"'))
            outside = (quotes + np.searchsorted(marks, found)) % 2 == 0
            found, quotes = found[outside], quotes + len(marks)
        so_far = np.cumsum(solid[here]) + total
        written.append(so_far[found])
        ends.append(found + (at + 1))
        begin, total = at if begin is None else begin, int(so_far[-1])

    text = stored.scan([file], check, files.BOM)
    begin = begin or 0
    # The last line may have no end.
    bounds = np.concatenate([[begin], *ends, [begin + len(text)]])
    filled = np.diff(np.concatenate([[0], *written, [total]])) > 0
    return bounds[:-1][filled], bounds[1:][filled], text.sha256
