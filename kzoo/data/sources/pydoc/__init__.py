"""Python's own documentation as a source: 2 MB of English, without a network."""

import functools
import gzip
from importlib import resources
from typing import Any

from kzoo.data.sources.base import Source, register


@register
class Pydoc(Source):
    """`"pydoc"`: the help topics, then the docstrings of the standard library by file.

    They are those of Python 3.11.7 under every Python, so that results can be compared: the text
    lies beside this module, under the licence of Python (`LICENSE.txt`), as documents that a NUL
    byte parts. `tests/test_pydoc.py` makes it.
    """

    name = "pydoc"

    def read(self) -> list[Any]:
        return _documents()


@functools.cache
def _documents():
    packed = resources.files(__package__).joinpath("documents.gz").read_bytes()
    return gzip.decompress(packed).split(b"\0")
