"""The text of `pydoc`: how it was made, and that it is what travels with kzoo.

Under Python 3.11.7 `gzip.compress(b"\\0".join(documents()), 9, mtime=0)` is its file.
"""

import ast
import hashlib
import json
import sys
import sysconfig
from pathlib import Path

from new_process import python

import kzoo.data.sources.pydoc as pydoc
from kzoo.data import sources

# Folders of the standard library that hold no documentation of it.
NO_DOCS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
NO_DOCS |= {"site-packages", "dist-packages", "encodings", "pydoc_data"}


def documents():
    """The help topics of the running Python, then the docstrings of its standard library by file,
    each once."""
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    found = [topics[name].strip() for name in sorted(topics)]
    for path in sorted(root.rglob("*.py")):
        if not NO_DOCS & set(path.relative_to(root).parts):
            found += docstrings(ast.parse(path.read_bytes()))
    return list(dict.fromkeys(document.encode() for document in found))


def docstrings(node):
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if docstring := ast.get_docstring(node):
            yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler)):
            yield from docstrings(child)


def test_the_text_is_that_of_python_3_11_7():
    """Versions of Python share most of it, so that any can tell whether it is Python's."""
    kept = sources.Pydoc().read()
    own = documents()
    if sys.version_info[:3] == (3, 11, 7):
        assert kept == own
    assert len(set(kept) & set(own)) > 0.6 * min(len(kept), len(own))
    assert all(document.strip() and document.decode() for document in kept)
    assert len(set(kept)) == len(kept)


def test_records_of_studies_are_of_this_text():
    sha256 = hashlib.sha256(b"\n\n".join(sources.Pydoc().read())).hexdigest()
    assert sha256 == sources.read("pydoc").sha256
    tuning = Path(pydoc.__file__).parents[3] / "studies" / "quick_tuning.jsonl"
    records = [json.loads(line) for line in tuning.read_text().splitlines()]
    assert {r["facts"]["sha256"] for r in records if r["data"] == "pydoc"} == {sha256}


def test_the_text_is_read_without_imports():
    code = (
        "import sys; from kzoo.data import sources; text = sources.read('pydoc').text; "
        "assert b'Return a shallow copy' in text and b'The \"for\" statement' in text; "
        "print(len(text), 'smtplib' in sys.modules, 'keras' in sys.modules, "
        "'tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    size, *imported = python(code).split()
    assert 2_000_000 < int(size) < 2_200_000 and imported == ["False"] * 4
