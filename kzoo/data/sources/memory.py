"""Examples in memory: lists, arrays and columns of strings and pairs."""

from collections.abc import Iterable, Mapping, Sequence

from kzoo.data.sources import official
from kzoo.data.sources.base import classes
from kzoo.data.sources.records import Records
from kzoo.data.sources.table import columns_named, kind_of, text_of
from kzoo.errors import InputError


def _wanted():
    """What a source may be, for messages."""
    named = ", ".join(cls.form() for cls in classes())
    return (
        f"a source is {named}, a list of strings, a list "
        "of (prompt, response) pairs or {'prompts': [...], 'responses': [...]}"
    )


def parts(source):
    """Of Hugging Face `datasets`: the splits of a `DatasetDict` (or another mapping of tables) by
    `"train"`, `"valid"` and `"test"`, and of a `Dataset` itself as `"train"`, each of them
    `Records` of the columns of known names. None for anything else."""
    if _has_rows(source):
        return {"train": _Rows(source)}
    if isinstance(source, Mapping) and source and all(map(_has_rows, source.values())):
        chosen = official.choose(source, "the mapping")
        return {part: _Rows(source[split]) for part, split in chosen.items()}
    return None


def _has_rows(table):
    return hasattr(table, "column_names") and hasattr(table, "__getitems__")


class _Rows(Records):
    """The rows of a Hugging Face data set, read by random access."""

    def __init__(self, table):
        names = list(table.column_names)
        self._columns = columns_named(names)
        if not self._columns:
            raise InputError(
                "a table has columns of the names prompt and response, source and target, input "
                "and output, question and answer, or text: table.rename_column(OLD, NEW) names "
                f"them so. Received: a {type(table).__name__} with {_names(names)}"
            )
        self._table = table
        of_columns = getattr(table, "features", None) or {}
        # Of a `ClassLabel`, whose cells are numbers, the names of the labels.
        self._labels = [getattr(of_columns.get(name), "names", None) for name in self._columns]
        self.size = getattr(getattr(table, "data", None), "nbytes", 0)
        fingerprint = getattr(table, "_fingerprint", None)
        self.identity = (str(fingerprint), *self._columns) if fingerprint else ()

    def __len__(self):
        return len(self._table)

    def __getitems__(self, indices):
        rows = self._table.__getitems__([int(i) for i in indices])
        return [self._example(i, row) for i, row in zip(indices, rows, strict=True)]

    def _example(self, i, row):
        cells = [row[name] for name in self._columns]
        pairs = zip(cells, self._labels, strict=True)
        texts = [
            text_of(cell) if labels is None else _label(cell, labels) for cell, labels in pairs
        ]
        if None in texts:
            kinds = ", ".join(map(kind_of, cells))
            raise InputError(
                f"the columns {', '.join(self._columns)} hold strings or numbers, and labels are "
                f"known. Received: {kinds} (example {int(i)})"
            )
        return tuple(texts) if len(texts) == 2 else texts[0]


def _label(cell, names):
    """The name of a label's number; None where it has none, such as -1 of unlabelled texts."""
    known = isinstance(cell, int) and 0 <= cell < len(names)
    return names[cell] if known else None


def examples(source):
    """Examples in memory: those of a list of strings, a list of pairs, or a dict of prompts and
    responses.

    Returns:
        A list of `(source, target)`, two strings each; source is None in plain text. A number or
        a truth value beside a string, such as a label, is one as it is written in CSV.

    Raises:
        InputError: for anything else; no message shows what a text holds.
    """
    source = _table(source)
    if isinstance(source, Mapping):
        if set(source) != {"prompts", "responses"}:
            raise InputError(f"{_wanted()}. Received: a mapping with {_names(source)}")
        prompts, responses = (
            _listed(source[name], f"{name} is a list of strings", f", as {name}")
            for name in ("prompts", "responses")
        )
        if len(prompts) != len(responses):
            raise InputError(
                "each prompt needs its response. "
                f"Received: {len(prompts)} prompts, {len(responses)} responses"
            )
        given = list(zip(prompts, responses, strict=True))
    else:
        given = _listed(source, _wanted())
    if not given:
        raise InputError("the data is empty. Received: a list of 0 examples")
    # The first says which form is meant.
    paired, found = not isinstance(given[0], str), []
    for i, example in enumerate(given):
        whole = isinstance(example, list | tuple) and len(example) == 2
        texts = example if whole else [example]
        if whole and any(isinstance(text, str) for text in texts):  # a label may be a number
            texts = [text_of(text) for text in texts]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{_wanted()}. Received: {_kind(example)} (example {i})")
        if whole != paired:
            raise InputError(
                "examples are all strings or all pairs. "
                f"Received: {_kind(given[0])} (example 0), {_kind(example)} (example {i})"
            )
        _check(texts, i)
        found.append(tuple(texts) if paired else (None, example))
    return found


def _table(source):
    """Of a table in memory (pandas, Hugging Face `datasets`) the columns of known names."""
    if isinstance(source, Mapping) or not hasattr(source, "__getitem__"):
        return source
    names = getattr(source, "column_names", getattr(source, "columns", None))
    found = [] if names is None else columns_named(list(names))
    if not found:
        return source
    columns = [source[name] for name in found]
    return (
        columns[0] if len(found) == 1 else dict(zip(("prompts", "responses"), columns, strict=True))
    )


def _check(texts, i):
    if not texts[-1]:
        raise InputError(f"a text or response is empty. Received: '' (example {i})")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError(
            "a text is Unicode; half a surrogate pair is none, and text.encode('utf-8', 'replace')"
            f".decode() takes it out. Received: such a text (example {i})"
        ) from None


def _listed(source, wanted, where=""):
    """The items of a list, a tuple, a NumPy array or a pandas Series."""
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
        return list(source)
    if hasattr(source, "tolist") and getattr(source, "ndim", 0) in (1, 2):
        return source.tolist()
    hint = ""
    if hasattr(source, "columns") or hasattr(source, "column_names"):
        hint = "; of a table, pass {'prompts': table[A], 'responses': table[B]} or table[A]"
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | bytearray):
        hint = "; list(...) makes a list of an iterable, sorted(...) of a set"
    raise InputError(f"{wanted}{hint}. Received: {_kind(source)}{where}")


def _kind(value):
    """What a value is, without what it holds."""
    if isinstance(value, list | tuple):
        inside = ", ".join(dict.fromkeys(kind_of(item) for item in value))
        inside = f" of {len(value)} ({inside:.80})" if value else " of 0"
        return f"{type(value).__name__}{inside}"
    if isinstance(value, bytes | bytearray):
        return f"{type(value).__name__}, which .decode() makes a string"
    return kind_of(value)


def _names(mapping):
    """The names of a mapping's fields: few and short, as names are, or how many."""
    names = sorted(map(str, mapping))
    short = len(names) <= 8 and all(len(name) <= 24 for name in names)
    return str(names) if short else f"{len(names)} fields"
