"""Tables of examples: a column of texts, or two of sources and targets."""

import csv
import functools
import gzip
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kzoo.data.sources import files, lines, stored, unpacked
from kzoo.data.sources.base import Source, register
from kzoo.data.sources.records import Records
from kzoo.errors import InputError, unknown
from kzoo.values import is_integer, shown

log = logging.getLogger("kzoo")

SEPARATED = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# The names by which columns are found when none are given.
PAIRS = (
    ("prompts", "responses"),
    ("prompt", "response"),
    ("source", "target"),
    ("input", "output"),
    ("question", "answer"),
)
TEXT = "text"


@register
class Table(Source):
    """The rows of a file in CSV, TSV, JSON lines, JSON or Parquet, also compressed by gzip.

    `"table:e2e.csv:mr:ref"` names the columns of sources and of targets, and
    `"table:reviews.jsonl:body"` one of texts. Numbers, from 0 on, are columns of Parquet in their
    order, and of CSV or TSV without a line of names, whose first line is an example too. Where
    none are given, columns of the names `prompt` and `response`, `source` and `target`, `input`
    and `output`, `question` and `answer`, or `text` are taken.

    Cells hold strings, or numbers and truth values, which are taken as they are written in CSV:
    `3`, `0.5`, `True`. CSV is quoted as in RFC 4180; in TSV a quote is a character like any other.

    Attributes:
        path: of the file; `~` is the home folder.
        target: the column of targets, or of texts: its name or number.
        source: the column of sources, or None for texts.
    """

    path: str
    target: str | int | None = None
    source: str | int | None = None

    name = "table"

    def __post_init__(self):
        for field in ("target", "source"):
            column = getattr(self, field)
            if column is not None and not (isinstance(column, str) or is_integer(column)):
                raise InputError(
                    f"{field} of a table is the name or the number of a column. "
                    f"Received: {shown(column)}"
                )
        if self.source is not None and self.target is None:
            raise InputError(
                "a table with a column of sources has one of targets: source and target. "
                f"Received: source={self.source!r} alone"
            )

    @classmethod
    def of(cls, text: str) -> "Table":
        path, *columns = text.rsplit(":", 2) if text.count(":") > 1 else text.split(":")
        names = [int(column) if column.isdecimal() else column for column in columns]
        return cls(path, *reversed(names))

    @classmethod
    def form(cls) -> str:
        return "table:FILE:SOURCE:TARGET"

    def read(self) -> Sequence[Any]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise files.missing(self.path, file)
        if unpacked.size(file) > stored.LARGE:
            if by_position := self._by_position(file):
                return _Rows(*by_position)
            log.warning("%s is held in memory; JSON lines are read where they lie", file)
        kind, content = _content(file)
        names, rows = READERS[kind](file, content, self._numbered)
        columns = self._columns(file, names)
        if self._numbered and kind in SEPARATED:
            _check_first(file, [rows[0][1][column] for column in columns], self.path)
        found = [_example(file, where, [row[column] for column in columns]) for where, row in rows]
        if not found:
            raise _empty(file)
        return found

    def _by_position(self, file):
        """The table of the file, or of one with the same rows, in which each row can be read alone,
        and that file; or None."""
        if file.name.lower().endswith(".gz") and _ending(file) in lines.ENDINGS:
            return self, unpacked.gunzipped(file)
        if file.suffix.lower() == ".parquet":
            with unpacked.parquet(file) as opened:
                names = opened.schema_arrow.names
            at = self._columns(file, [*range(len(names))] if self._numbered else names)
            columns = [names[i] for i in at]
            named = Table(self.path, *columns[::-1])
            named._columns(file, names)  # whether they have names of their own
            check = functools.partial(_example, file)
            return named, unpacked.as_json_lines(file, columns, check)
        return (self, file) if file.suffix.lower() in lines.ENDINGS else None

    @property
    def _numbered(self):
        return is_integer(self.target)

    def _columns(self, file, names):
        """The positions of the columns among `names`: one, or two, the source first."""
        asked = [column for column in (self.source, self.target) if column is not None]
        if len({is_integer(column) for column in asked}) > 1:
            raise InputError(
                "columns are both named or both numbered. "
                f"Received: {self.source!r} and {self.target!r}"
            )
        asked = asked or columns_named(names)
        # Of JSON, where numbers can be names, as those of a table of pandas without names are.
        asked = [str(column) if str(column) in names else column for column in asked]
        if not asked:
            raise InputError(
                "which columns are source and target, or the text, is to be said: "
                f"'table:FILE:SOURCE:TARGET' or 'table:FILE:TEXT', by names or, in Parquet "
                f"and in CSV without a line of names, by numbers from 0. Received: {str(file)!r}, "
                f"with {len(names)} columns"
            )
        for column in asked:
            if is_integer(column) and names and isinstance(names[0], str):
                raise InputError(
                    f"columns of JSON have names, not numbers: {', '.join(names):.200}. "
                    f"Received: {column} ({str(file)!r})"
                )
            if column not in names:
                raise unknown(f"column of {str(file)!r}", column, names)
            if names.count(column) > 1:
                raise InputError(
                    "a column that is read has a name that no other column has; rename one. "
                    f"Received: {names.count(column)} columns named {column!r} ({str(file)!r})"
                )
        return [names.index(column) for column in asked]


class _Rows(Records):
    """The examples of a table that is read where it lies."""

    def __init__(self, table, file):
        self._file, self._lines = file, lines.Lines(file)
        if not len(self._lines):
            raise _empty(file)
        (first,) = self._lines.read([0])
        self._is_json = file.suffix.lower() in JSON_LINES
        if self._is_json:
            _check_object(file, "line 1", first)
        self._count = len(first)
        self._skip = not self._is_json and not table._numbered  # the line of names
        names = list(first) if self._is_json or self._skip else list(range(len(first)))
        at = table._columns(file, names)
        self._columns = [names[i] for i in at] if self._is_json else at
        if not self._is_json and not self._skip:
            _check_first(file, [first[column] for column in at], table.path)
        self.size = file.stat().st_size
        self.identity = (file.suffix.lower(), self._lines.sha256, *map(str, self._columns))

    def __len__(self):
        return len(self._lines) - self._skip

    def __getitems__(self, indices):
        numbers = [int(i) + self._skip for i in indices]
        return [
            self._example(number, cells)
            for number, cells in zip(numbers, self._lines.read(numbers), strict=True)
        ]

    def _example(self, number, cells):
        try:
            if self._is_json:
                _check_object(self._file, "this line", cells)
                found = [cells.get(name) for name in self._columns]
            else:
                _check_count(self._file, "this line", cells, self._count)
                found = [cells[column] for column in self._columns]
            return _example(self._file, "this line", found)
        except InputError as error:  # to count lines takes long, so that it is done here alone
            where = self._lines.where(number)
            raise InputError(str(error).replace("this line", where)) from None


def is_table(name: str) -> bool:
    """Whether a path is that of a table, by its ending."""
    return name.lower().removesuffix(".gz").endswith(ENDINGS)


def columns_named(names: Sequence[Any]) -> list[str]:
    """The columns of the source and the target, or of the text, among some names; or none.

    Example:
        >>> columns_named(["id", "question", "answer"])
        ['question', 'answer']
    """
    for columns in (*PAIRS, (TEXT,)):
        if all(column in names for column in columns):
            return list(columns)
    return []


def text_of(cell: Any) -> Any:
    """A cell as text: a string as it is; a number or a truth value as it is written in CSV; of
    anything else, such as a cell that is missing, None.

    Example:
        >>> text_of(3), text_of(True), text_of(0.5), text_of(None)
        ('3', 'True', '0.5', None)
    """
    if isinstance(cell, str):
        return cell
    number = isinstance(cell, int) or isinstance(cell, float) and math.isfinite(cell)
    return str(cell) if number else None


def _example(file, where, cells):
    """A text, or a pair of texts, of one row."""
    texts = [*map(text_of, cells)]
    for cell, text in zip(cells, texts, strict=True):
        if text is None:
            raise InputError(
                "the columns of examples hold strings or numbers. "
                f"Received: {kind_of(cell)} ({str(file)!r}, {where})"
            )
    if not texts[-1]:
        raise InputError(f"a text or response is empty. Received: '' ({str(file)!r}, {where})")
    return texts[0] if len(texts) == 1 else tuple(texts)


def kind_of(value: Any) -> str:
    """What a value is, without what it holds; a float that is no number is named."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return type(value).__name__


def _check_first(file, cells, path):
    """Columns by number are for tables without a line of names, so that the first line is an
    example: `InputError` if it holds known names, and a word if it may hold others."""
    known = {name for names in (*PAIRS, (TEXT,)) for name in names}
    given = [cell.strip() for cell in cells]
    if all(cell.lower() in known for cell in given):
        raise InputError(
            "columns by number are for tables without a line of names; name them, "
            f"'table:{path}:{':'.join(given)}', or take that line out. Received: {str(file)!r}, "
            "whose first line has these names"
        )
    if all(cell.isidentifier() for cell in given):
        log.warning(
            "%s: as columns are numbered, its first line is taken as an example; if it holds "
            "names, say the columns by them",
            file,
        )


# Reading: names of the columns, and rows with where each stands -------------------------------


def _content(file):
    """The ending of a table without `.gz`, and its bytes, decompressed."""
    content, name = file.read_bytes(), file.name.lower()
    if name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except unpacked.GZIP_ERRORS as error:
            raise unpacked.not_gzip(file, error) from error
    ending = _ending(file)
    if ending not in ENDINGS:
        raise InputError(
            f"a table ends in {', '.join(ENDINGS)}, and then .gz if it is compressed. "
            f"Received: {str(file)!r}"
        )
    if ending != ".parquet":
        content = content.removeprefix(files.BOM)
        files.check_encoding(content, file)
    return ending, content


def _ending(file):
    """What says how a table is written: `".csv"` of `a.csv.gz`."""
    return os.path.splitext(file.name.lower().removesuffix(".gz"))[1]


def _separated(file, content, numbered):
    """CSV or TSV."""
    style = lines.TSV if _ending(file) == ".tsv" else lines.CSV
    with lines.long_cells():
        rows = list(_lines(file, csv.reader(io.StringIO(content.decode(), newline=""), **style)))
    if not rows:
        raise _empty(file)
    _, first = rows[0]
    return (list(range(len(first))), rows) if numbered else (first, rows[1:])


def _lines(file, reader):
    """`(where, cells)` of the lines that are not empty; all have as many cells as the first."""
    count, start = None, 1
    try:
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not cells:
                continue
            count = len(cells) if count is None else count
            _check_count(file, where, cells, count)
            yield where, cells
    except csv.Error as error:
        raise InputError(
            f"CSV is quoted as in RFC 4180 ({error}). Received: {str(file)!r}, line {start}"
        ) from error


def _check_count(file, where, cells, count):
    if len(cells) != count:
        raise InputError(
            f"all lines of a table have as many cells as its first, {count}; a cell with "
            f"a separator in it is quoted in CSV. Received: {len(cells)} cells "
            f"({str(file)!r}, {where})"
        )


def _json_lines(file, content, numbered):
    """JSON lines, or one JSON list: objects with the same columns as the first."""
    text = content.decode()
    whole = text.lstrip().startswith("[")
    objects = []
    for number, line in [(1, text)] if whole else enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                objects.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                raise InputError(
                    f"each line is one JSON object, or the file one list of them ({error}). "
                    f"Received: {str(file)!r}, line {number}"
                ) from error
    if whole:
        objects = [(f"item {i}", item) for i, item in enumerate(objects[0][1])]
    return _of_objects(file, objects)


def _of_objects(file, objects):
    for where, item in objects:
        _check_object(file, where, item)
    if not objects:
        raise _empty(file)
    names = list(objects[0][1])
    return names, ((where, [item.get(name) for name in names]) for where, item in objects)


def _check_object(file, where, item):
    if not isinstance(item, dict):
        raise InputError(
            "each example is a JSON object, whose fields are the columns. "
            f"Received: {type(item).__name__} ({str(file)!r}, {where})"
        )


def _empty(file):
    return InputError(f"there is no example in it. Received: {str(file)!r}")


def _parquet(file, content, numbered):
    with unpacked.parquet(file, content) as opened:
        table = opened.read()
    columns = zip(*(column.to_pylist() for column in table.columns), strict=True)
    names = [*range(table.num_columns)] if numbered else table.column_names
    return names, ((f"row {i}", cells) for i, cells in enumerate(columns))


READERS = {
    ".csv": _separated,
    ".tsv": _separated,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}
