"""Tables that are read where they lie: where each line begins, so that any can be read."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.data.sources import files, stored
from kzoo.errors import InputError

TSV = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
CSV = {"strict": True}
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")


def is_large(file: Path) -> bool:
    """Whether a table is read where it lies: it is large, and lines can be read alone."""
    return file.suffix.lower() in ENDINGS and file.stat().st_size > stored.LARGE


class Lines:
    """The lines of a table that are not empty. A quoted cell of CSV may hold line ends.

    Args:
        file: in CSV, TSV or JSON lines, by its ending; it is read once, to check its encoding and
            to find where lines begin.

    Attributes:
        sha256: of the file without a byte order mark, in hexadecimal.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._kind = file, file.suffix.lower()
        ends, self.sha256, begin, size = _ends(file, self._kind == ".csv")
        starts = np.concatenate([[begin], ends])
        ends = np.concatenate([ends, [size]])
        filled = ends - starts > _line_end(file)
        filled[-1] = ends[-1] > starts[-1]  # what no line end follows
        self._starts, self._ends = starts[filled], ends[filled]

    def __len__(self):
        return len(self._starts)

    def where(self, i: int) -> str:
        """What names a line in messages."""
        with open(self._file, "rb") as opened:
            left, breaks = int(self._starts[i]), 0
            while left:
                piece = opened.read(min(left, stored.CHUNK))
                left, breaks = left - len(piece), breaks + piece.count(b"\n")
        return f"line {breaks + 1}"

    def read(self, indices: Sequence[int]) -> list[Any]:
        """The cells of some lines: a list of strings each; or what JSON holds."""
        parse = _cells if self._kind in (".csv", ".tsv") else _object
        style = CSV if self._kind == ".csv" else TSV
        found = []
        for i, line in zip(indices, self._raw(indices), strict=True):
            try:
                found.append(parse(line.decode(), style))
            except (ValueError, csv.Error) as error:
                wanted = "CSV is quoted as in RFC 4180"
                if parse is _object:
                    wanted = "each line is one JSON object"
                raise InputError(
                    f"{wanted} ({error}). Received: {str(self._file)!r}, {self.where(i)}"
                ) from error
        return found

    def _raw(self, indices):
        starts, ends = self._starts[indices].tolist(), self._ends[indices].tolist()
        places = list(zip(starts, ends, strict=True))
        first, last = min(starts), max(ends)
        with open(self._file, "rb", buffering=0) as opened:
            if last - first < 2 * sum(b - a for a, b in places):  # neighbours: at once
                block = _read(opened, first, last)
                return [block[a - first : b - first] for a, b in places]
            return [_read(opened, a, b) for a, b in places]


def _read(opened, start, stop):
    opened.seek(start)
    return opened.read(stop - start)


def _cells(line, style):
    rows = list(csv.reader(io.StringIO(line, newline=""), **style))
    if len(rows) != 1:
        raise ValueError("a quote in a cell is doubled, and the cell quoted")
    return rows[0]


def _object(line, style):
    return json.loads(line)


def _ends(file, quoted):
    """Where lines end, within quotes left out; the file's hash; where text begins and ends."""
    found, quotes = [], 0

    def check(piece, path, at):
        nonlocal quotes
        files.check_encoding(piece, path, at)
        here = np.frombuffer(piece, np.uint8)
        ends = np.flatnonzero(here == ord("\n"))
        if quoted:
            marks = np.flatnonzero(here == ord('"'))
            outside = (quotes + np.searchsorted(marks, ends)) % 2 == 0
            ends, quotes = ends[outside], quotes + len(marks)
        found.append(ends + (at + 1))

    text = stored.scan([file], check, files.BOM)
    size = file.stat().st_size
    begin = size - len(text)
    ends = np.concatenate(found) if found else np.zeros(0, np.int64)
    return ends, text.sha256, begin, size


def _line_end(file):
    """How many bytes a line end has: two, as of Windows, or one."""
    with open(file, "rb") as opened:
        return 2 if b"\r\n" in opened.read(1 << 16) else 1
