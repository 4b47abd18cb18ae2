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
from collections.abc import Mapping
from pathlib import Path

from kzoo.data import synthetic
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
        sha256: of the data, in hexadecimal (of a single file: the file's own).
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
        name = str(source)
        if name.startswith("synthetic:"):
            return _from_rows(name, _synthetic(name))
        if name == "pydoc":
            documents = _pydoc()
        elif name.startswith("tfds:"):
            documents = _tfds(name)
        else:
            documents = _files(name)
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


def _rows(source):
    """Rows of a list of strings, a list of pairs or a dict of prompts and responses."""
    wanted = (
        "a source is a path, 'pydoc', 'tfds:NAME', 'synthetic:NAME', a list of strings, a list "
        "of (prompt, response) pairs or {'prompts': [...], 'responses': [...]}"
    )
    if isinstance(source, Mapping):
        if set(source) != {"prompts", "responses"}:
            raise InputError(f"{wanted}. Received: a mapping with {sorted(map(str, source))}")
        prompts, responses = list(source["prompts"]), list(source["responses"])
        if len(prompts) != len(responses):
            raise InputError(
                "each prompt needs its response. "
                f"Received: {len(prompts)} prompts, {len(responses)} responses"
            )
        source = list(zip(prompts, responses, strict=True))
    if not isinstance(source, (list, tuple)):
        raise InputError(f"{wanted}. Received: {type(source).__name__}")
    if not source:
        raise InputError("the data is empty. Received: a list of 0 rows")
    if all(isinstance(row, str) for row in source):
        rows = [(None, row) for row in source]
    else:
        for i, row in enumerate(source):
            if not (
                isinstance(row, (list, tuple))
                and len(row) == 2
                and all(isinstance(text, str) for text in row)
            ):
                raise InputError(f"{wanted}. Received: {row!r:.60} (row {i})")
        rows = [tuple(row) for row in source]
    for i, (_, target) in enumerate(rows):
        if not target:
            raise InputError(f"a text or response is empty. Received: '' (row {i})")
    return rows


def _synthetic(name):
    task = name.removeprefix("synthetic:")
    if task not in synthetic.TASKS:
        raise unknown("synthetic task", task, synthetic.TASKS)
    return synthetic.TASKS[task]()


def _files(name):
    """The text of a file, or of each file of a folder (hidden ones left out), sorted."""
    path = Path(name)
    # os.path answers False where Path raises: names too long, NUL.
    if os.path.isdir(path):
        files = [p for p in sorted(path.rglob("*")) if p.is_file()]
        files = [p for p in files if not any(x[0] == "." for x in p.relative_to(path).parts)]
    elif os.path.isfile(path):
        files = [path]
    else:
        known = ["pydoc", *(f"synthetic:{task}" for task in synthetic.TASKS)]
        if os.path.isdir(path.parent):
            known += [str(path.parent / p.name) for p in path.parent.iterdir()]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"no such file or folder{hint} Other sources: pydoc, tfds:NAME, synthetic:NAME. "
            f"Received: {name!r:.120}"
        )
    texts = [p.read_bytes() for p in files]
    for file, text in zip(files, texts, strict=True):
        try:
            text.decode()
        except UnicodeDecodeError:
            text = b"\0"
        if b"\0" in text:
            raise InputError(f"a text is UTF-8 without NUL bytes. Received: binary file {file}")
    if not any(text.strip() for text in texts):
        raise InputError(f"there is no text in it. Received: {name!r} ({len(files)} files, empty)")
    return texts


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
    files = {info.filename: info.checksum for info in urls.values()}
    missing = [file for file in files if not (manual / file).is_file()]
    put = f"put {', '.join(missing or files or ['its files'])} in {manual}"
    if not missing and len(files) == 1 and (text_file := [*files][0]).endswith(".txt"):
        (text,) = _files(manual / text_file)
        if hashlib.sha256(text).hexdigest() != files[text_file]:
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
