"""Python's own documentation as a source: about 2 MB of English, without a network."""

import ast
import functools
import gc
import sysconfig
from pathlib import Path
from typing import Any

from kzoo.data.sources.base import Source, register

# Folders of the standard library that hold no documentation of it.
_NO_DOCS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_NO_DOCS |= {"site-packages", "dist-packages", "encodings", "pydoc_data"}


@register
class Pydoc(Source):
    """`"pydoc"`: the help topics, then the docstrings of the standard library by file."""

    name = "pydoc"
    text_follows = "the version of Python"

    def read(self) -> list[Any]:
        return _documents()


@functools.cache
def _documents():
    # Nothing is imported but `pydoc_data.topics`; the docstrings are read from the sources.
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
