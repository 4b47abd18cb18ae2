"""What `kzoo.data.load` takes as a source, read into memory."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kzoo.data.sources import memory, stored
from kzoo.data.sources.base import Source, get, named, names
from kzoo.data.sources.files import Files
from kzoo.data.sources.index import index
from kzoo.data.sources.records import Records
from kzoo.data.sources.stored import Stored, documents
from kzoo.data.sources.table import Table, is_table
from kzoo.errors import InputError

log = logging.getLogger("kzoo")
JOINT = stored.BETWEEN  # between the documents of running text
MANY = 0.05  # of all documents or examples: a warning says how many repeated ones are left out


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a source holds: either running text or examples.

    Attributes:
        name: the source as the caller named it, or `"list"`.
        sha256: of the data, in hexadecimal (of a single file: the file's own, without a
            byte order mark).
        text: bytes; a `Stored` of a source of 64 MB or more, which is not held in memory; or None.
        examples: list of `(source, target)` pairs of strings (source None in plain text), or
            `Indexed` of such, or None.
        official: of a source that keeps parts of its own apart, those that are not trained on:
            a `Corpus` each by `"valid"` and `"test"`.
        repeated: how many documents or examples were left out since they repeat others; of
            official parts those of the part that is trained on.
        sizes: of running text, the bytes of each document; `JOINT` stands between two of them.
    """

    name: str
    sha256: str
    text: Any = None
    examples: Any = None
    official: Mapping[str, "Corpus"] = dataclasses.field(default_factory=dict)
    repeated: int = 0
    sizes: Sequence[int] = ()


def read(source: Any) -> Corpus:
    """Reads a source; `kzoo.data.load` says which there are. A `Corpus` has been read already.

    Returns:
        A `Corpus` without repeated documents or examples.

    Raises:
        InputError: nothing of that name, or data that is not text.
    """
    if isinstance(source, Corpus):
        return source
    found = _source(source)
    if found is None:
        name, held = "list", memory.parts(source)
        if held is None:
            return _told(_of_examples(name, source))
    else:
        is_name = isinstance(source, str | os.PathLike)
        name = os.fsdecode(source) if is_name else json.dumps(found.get_config())
        held = found.read()
    if not isinstance(held, Mapping):
        return _told(_corpus(name, held))
    full = {part: _not_empty(name, part, items) for part, items in held.items()}
    parts = {
        part: _told(_corpus(f"{name}, {part}", items))
        for part, items in full.items()
        if len(items) or part == "train"
    }
    train = dataclasses.replace(parts.pop("train"), name=name)
    if not parts:
        return train
    all_of_them = train.sha256 + "".join(parts[part].sha256 for part in sorted(parts))
    sha256 = hashlib.sha256(all_of_them.encode()).hexdigest()
    return dataclasses.replace(train, sha256=sha256, official=parts)


def _source(spec):
    """The `Source` of a string, a path or JSON; None for what holds the examples themselves."""
    if isinstance(spec, str | os.PathLike):
        name = os.fsdecode(spec)
        return named(name) or (Table(name) if is_table(name) else Files(name))
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, fields),) = spec.items()
        if name in names() or isinstance(fields, Mapping):  # which no column or split is
            return get(spec)
    return spec if isinstance(spec, Source) else None


def _told(corpus):
    """The corpus, with a word on what was left out of it."""
    if not corpus.repeated:
        return corpus
    running = corpus.examples is None
    count = corpus.repeated + len(corpus.sizes if running else corpus.examples)
    log.log(
        logging.WARNING if corpus.repeated > MANY * count else logging.INFO,
        "%s: %d of %d %s repeat others and are left out",
        *(corpus.name, corpus.repeated, count, "documents" if running else "examples"),
    )
    return corpus


def _corpus(name, held):
    """The corpus of a list of documents or examples."""
    if isinstance(held, Stored):
        return Corpus(name, held.sha256, text=held, repeated=held.repeated, sizes=held.sizes)
    if isinstance(held, Records):
        if held.size > stored.LARGE:
            return _indexed(name, held)
        held = list(held)
    if not (len(held) and isinstance(held[0], bytes)):
        return _of_examples(name, held)
    kept = list(dict.fromkeys(held))
    text, repeated = JOINT.join(kept), len(held) - len(kept)
    digest = hashlib.sha256(text).hexdigest()
    return Corpus(name, digest, text=text, repeated=repeated, sizes=tuple(map(len, kept)))


def _indexed(name, records):
    """The corpus of records that are not held in memory."""
    found, sha256, repeated = index(records, name)
    if not isinstance(records[0], bytes):
        return Corpus(name, sha256, examples=found, repeated=repeated)
    text = documents(found.read_bytes, found.rows["target_size"], sha256)
    return Corpus(name, sha256, text=text, repeated=repeated, sizes=text.sizes)


def _not_empty(name, part, items: Sequence[Any]) -> Sequence[Any]:
    """The items of a published data set, which its reader cannot mend, without empty ones."""
    if isinstance(items, Records) and items.size > stored.LARGE:
        return items  # to index them leaves empty ones out
    kept = [item for item in items if (item[-1] if isinstance(item, tuple) else item)]
    if len(kept) < len(items):
        log.warning(
            "%s, %s: %d of %d texts or targets are empty and are left out",
            *(name, part, len(items) - len(kept), len(items)),
        )
    if not kept and part == "train":
        raise InputError(f"the data is empty. Received: {name!r}, without an example to train on")
    if not kept:
        log.warning("%s: its split %s is empty and is not read", name, part)
    return kept


def _of_examples(name, held):
    every = memory.examples(held)
    examples = list(dict.fromkeys(every))
    sha256 = hashlib.sha256(json.dumps(examples).encode()).hexdigest()
    return Corpus(name, sha256, examples=examples, repeated=len(every) - len(examples))
