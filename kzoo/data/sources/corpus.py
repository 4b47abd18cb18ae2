"""What `kzoo.data.load` takes as a source, read into memory."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from kzoo.data.sources import memory
from kzoo.data.sources.base import Source, get, named, names
from kzoo.data.sources.files import Files
from kzoo.data.sources.table import Table, is_table

log = logging.getLogger("kzoo")
JOINT = b"\n\n"  # between the documents of running text


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a source holds: either running text or examples.

    Attributes:
        name: the source as the caller named it, or `"list"`.
        sha256: of the data, in hexadecimal (of a single file: the file's own, without a
            byte order mark).
        text: bytes, or None.
        examples: list of `(source, target)` pairs of strings (source None in plain text), or
            None.
        repeated: how many documents or examples were left out since they repeat others.
        sizes: of running text, the bytes of each document; `JOINT` stands between two of them.
    """

    name: str
    sha256: str
    text: bytes | None = None
    examples: list | None = None
    repeated: int = 0
    sizes: tuple[int, ...] = ()


def read(source: Any) -> Corpus:
    """Reads a source; `kzoo.data.load` says which there are.

    Returns:
        A `Corpus` without repeated documents or examples.

    Raises:
        InputError: nothing of that name, or data that is not text.
    """
    found = _source(source)
    if found is None:
        return _of_examples("list", source)
    name = (
        os.fsdecode(source)
        if isinstance(source, str | os.PathLike)
        else json.dumps(found.get_config())
    )
    held = found.read()
    if not isinstance(held[0], bytes):
        return _of_examples(name, held)
    documents = _distinct(held, name, "documents")
    text, repeated = JOINT.join(documents), len(held) - len(documents)
    digest = hashlib.sha256(text).hexdigest()
    return Corpus(name, digest, text=text, repeated=repeated, sizes=tuple(map(len, documents)))


def _source(spec):
    """The `Source` of a string, a path or JSON; None for what holds the examples themselves."""
    if isinstance(spec, str | os.PathLike):
        name = os.fsdecode(spec)
        return named(name) or (Table(name) if is_table(name) else Files(name))
    is_json = isinstance(spec, Mapping) and len(spec) == 1 and {*spec} <= {*names()}
    return get(spec) if is_json or isinstance(spec, Source) else None


def _of_examples(name, held):
    every = memory.examples(held)
    examples = _distinct(every, name, "examples")
    sha256 = hashlib.sha256(json.dumps(examples).encode()).hexdigest()
    return Corpus(name, sha256, examples=examples, repeated=len(every) - len(examples))


def _distinct(items, name, kind):
    distinct = list(dict.fromkeys(items))
    if len(distinct) < len(items):
        log.info("%s: %d repeated %s left out", name, len(items) - len(distinct), kind)
    return distinct
