"""Where examples come from: the sources that `kzoo.data.load` takes, a registry.

A source of one's own is one class, and then `kzoo.data.load("numbers:100", ...)` reads it:

    @kzoo.data.sources.register
    class Numbers(kzoo.data.sources.Source):
        name = "numbers"
        count: str

        def read(self):
            return [(f"{i} + 1", f"{i + 1}") for i in range(int(self.count))]
"""

from kzoo.data.sources.base import Source, named, register

# In the order in which messages name them.
from kzoo.data.sources.files import Files  # isort: skip
from kzoo.data.sources.table import Table  # isort: skip
from kzoo.data.sources.pydoc import Pydoc  # isort: skip
from kzoo.data.sources.tfds import Tfds  # isort: skip
from kzoo.data.sources.synthetic import Synthetic  # isort: skip
from kzoo.data.sources.corpus import Corpus, read  # isort: skip

__all__ = [
    "Corpus",
    "Files",
    "Pydoc",
    "Source",
    "Synthetic",
    "Table",
    "Tfds",
    "named",
    "read",
    "register",
]
