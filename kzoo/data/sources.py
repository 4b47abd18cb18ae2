"""Where examples come from: what `kzoo.data.load` takes as a source, read into memory."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import gc
import hashlib
import json
import logging
import os
import sys
import sysconfig
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

from kzoo.data import files, synthetic
from kzoo.errors import InputError, unknown

log = logging.getLogger("kzoo")

# Folders of the standard library that hold no documentation of it.
_NO_DOCS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_NO_DOCS |= {"site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a source holds: either running text or rows.

    Attributes:
        name: the source as the caller named it, or `"list"`.
        sha256: of the data, in hexadecimal (of a single file: the file's own, without a
            byte order mark).
        text: bytes, or None.
        rows: list of `(source, target)` pairs of strings (source None in plain text), or
            None.
    """

    name: str
    sha256: str
    text: bytes | None = None
    rows: list | None = None


def read(source):
    """Reads a source; `kzoo.data.load` says which there are.

    Returns:
        A `Corpus` without repeated documents or rows.

    Raises:
        InputError: nothing of that name, or data that is not text.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if name.startswith("synthetic:"):
            return _from_rows(name, _synthetic(name))
        if name == "pydoc":
            documents = _pydoc()
        elif name.startswith("tfds:"):
            documents = _tfds(name)
        else:
            documents = files.read(name)
        text = b"\n\n".join(_distinct(documents, name, "documents"))
        return Corpus(name, hashlib.sha256(text).hexdigest(), text=text)
    return _from_rows("list", _rows(source))


def _from_rows(name, rows):
    rows = _distinct(rows, name, "rows")
    return Corpus(name, hashlib.sha256(json.dumps(rows).encode()).hexdigest(), rows=rows)


def _distinct(items, name, kind):
    distinct = list(dict.fromkeys(items))
    if len(distinct) < len(items):
        log.info("%s: %d repeated %s left out", name, len(items) - len(distinct), kind)
    return distinct


WANTED = (
    "a source is a path, 'pydoc', 'tfds:NAME', 'synthetic:NAME', a list of strings, a list "
    "of (prompt, response) pairs or {'prompts': [...], 'responses': [...]}"
)


def _rows(source):
    """Rows of a list of strings, a list of pairs or a dict of prompts and responses."""
    if isinstance(source, Mapping):
        if set(source) != {"prompts", "responses"}:
            raise InputError(f"{WANTED}. Received: a mapping with {_names(source)}")
        prompts, responses = (
            _listed(source[name], f"{name} is a list of strings", f", as {name}")
            for name in ("prompts", "responses")
        )
        if len(prompts) != len(responses):
            raise InputError(
                "each prompt needs its response. "
                f"Received: {len(prompts)} prompts, {len(responses)} responses"
            )
        rows = list(zip(prompts, responses, strict=True))
    else:
        rows = _listed(source, WANTED)
    if not rows:
        raise InputError("the data is empty. Received: a list of 0 rows")
    # The first row says which form is meant; no message shows what a row holds.
    paired = not isinstance(rows[0], str)
    for i, row in enumerate(rows):
        whole = isinstance(row, list | tuple) and len(row) == 2
        if not (all(isinstance(text, str) for text in row) if whole else isinstance(row, str)):
            raise InputError(f"{WANTED}. Received: {_kind(row)} (row {i})")
        if whole != paired:
            raise InputError(
                "rows are all strings or all pairs. "
                f"Received: {_kind(rows[0])} (row 0), {_kind(row)} (row {i})"
            )
        _check_row(row if paired else [row], i)
    return [tuple(row) if paired else (None, row) for row in rows]


def _check_row(texts, i):
    if not texts[-1]:
        raise InputError(f"a text or response is empty. Received: '' (row {i})")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError(
            "a text is Unicode; half a surrogate pair is none, and text.encode('utf-8', 'replace')"
            f".decode() takes it out. Received: such a text (row {i})"
        ) from None


def _listed(source, wanted, place=""):
    """The items of a list, a tuple, a NumPy array or a pandas Series."""
    if isinstance(source, list | tuple):
        return list(source)
    if hasattr(source, "tolist") and getattr(source, "ndim", 0) in (1, 2):
        return source.tolist()
    hint = ""
    if hasattr(source, "columns"):
        hint = "; of a table, pass {'prompts': table[A], 'responses': table[B]} or table[A]"
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | bytearray):
        hint = "; list(...) makes a list of an iterable, sorted(...) of a set"
    raise InputError(f"{wanted}{hint}. Received: {_kind(source)}{place}")


def _kind(value):
    """What a value is, without what it holds."""
    if isinstance(value, list | tuple):
        inside = ", ".join(dict.fromkeys(_kind_of(item) for item in value))
        inside = f" of {len(value)} ({inside:.80})" if value else " of 0"
        return f"{type(value).__name__}{inside}"
    if isinstance(value, bytes | bytearray):
        return f"{type(value).__name__}, which .decode() makes a string"
    return _kind_of(value)


def _kind_of(value):
    return "None" if value is None else type(value).__name__


def _names(mapping):
    """The names of a mapping's fields: few and short, as names are, or how many."""
    names = sorted(map(str, mapping))
    short = len(names) <= 8 and all(len(name) <= 24 for name in names)
    return str(names) if short else f"{len(names)} fields"


def _synthetic(name):
    task = name.removeprefix("synthetic:")
    if task not in synthetic.TASKS:
        raise unknown("synthetic task", task, synthetic.TASKS)
    return synthetic.TASKS[task]()


@functools.cache
def _pydoc():
    """Python's own documentation: the help topics, then the library's docstrings by file.

    Nothing is imported but `pydoc_data.topics`; the docstrings are read from the sources.
    """
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    documents = [topics[name].strip() for name in sorted(topics)]
    collecting = gc.isenabled()
    gc.disable()  # half of the time would go to collecting trees that are in use
    try:
        for path in sorted(root.rglob("*.py")):
            if not _NO_DOCS & set(path.relative_to(root).parts):
                documents += _docstrings(ast.parse(path.read_bytes()))
    finally:
        if collecting:
            gc.enable()
    # Classes inherit docstrings, and modules copy them: that some repeat is no news.
    return list(dict.fromkeys(document.encode() for document in documents))


def _docstrings(node):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if docstring := ast.get_docstring(node):
            yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from _docstrings(child)


def _tfds(name):
    """The `text` feature of every example of a TFDS data set, all splits together.

    A data set that is one text file is read from TFDS's manual folder when it is there. Any
    other is read where TFDS keeps prepared data (`TFDS_DATA_DIR`, else
    `~/tensorflow_datasets`), and prepared first if need be, from the manual folder or the
    network. Reading either needs no TensorFlow; most of TFDS's builders do, to prepare.
    """
    import tensorflow_datasets as tfds

    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    manual = folder / "downloads" / "manual"
    try:
        builder = tfds.builder(name.removeprefix("tfds:"), data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = [f"tfds:{known}" for known in tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "tfds.list_builders() lists them."
        raise InputError(f"unknown TFDS data set; {hint} Received: {name!r}") from error
    if "text" not in builder.info.features:
        raise InputError(
            "the data set has no feature 'text'. "
            f"Received: {name!r}, with {', '.join(builder.info.features)}"
        )
    urls = builder.url_infos or {}
    checksums = {info.filename: info.checksum for info in urls.values()}
    missing = [file for file in checksums if not (manual / file).is_file()]
    put = f"put {', '.join(missing or checksums or ['its files'])} in {manual}"
    if not missing and len(checksums) == 1 and (text_file := [*checksums][0]).endswith(".txt"):
        (text,) = files.read(manual / text_file)
        if hashlib.sha256(text).hexdigest() != checksums[text_file]:
            raise InputError(
                f"not the file that TFDS knows under this name. Received: {manual / text_file}"
            )
        return [text]
    if not builder.is_prepared() and missing and not _reachable(next(iter(urls))):
        raise InputError(f"no network and no prepared data: {put}. Received: {name!r}")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints its progress
            builder.download_and_prepare(download_config=config, file_format="array_record")
            splits = [_examples(builder, split) for split in builder.info.splits]
    except Exception as error:  # builders run code of many authors
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"TFDS cannot prepare or read this data set here ({reason}); mend that, or {put}. "
            f"Received: {name!r}"
        ) from error
    if all(len(split) == 1 for split in splits):  # one text, cut into splits
        return [b"".join(text for (text,) in splits)]
    return [text for split in splits for text in split]


def _examples(builder, split):
    """The texts of a prepared split, in order."""
    if builder.info.file_format.value == "array_record":
        examples = builder.as_data_source(split)
    else:  # prepared earlier in TFDS's default format, which needs TensorFlow
        import tensorflow_datasets as tfds

        examples = tfds.as_numpy(builder.as_dataset(split))
    return [example["text"] for example in examples]


def _reachable(url):
    """Whether the server of `url` answers within two seconds."""
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=2)
        except urllib.error.HTTPError:
            pass  # an answer, if not a kind one
        except OSError:
            return
        answered.set()

    # A thread, since no timeout of urlopen covers looking up the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2)
    return answered.is_set()
