"""What is found of each of many records by reading all of them once: kept in the user's cache."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kzoo.compilation_cache import folder
from kzoo.files import whole_folder

log = logging.getLogger("kzoo")

FILE, FACTS = "index.npy", "facts.json"


def place(kind: str, identity: Sequence[Any]) -> Path:
    """The folder in the user's cache for what is found of some data, which may not be there.

    Args:
        kind: what is found, the name of the folder around it.
        identity: JSON values that say what is found of which data.

    Raises:
        OSError: if the user has no home directory.
    """
    digest = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()
    return folder(kind).parent / digest[:24]


def rows(
    identity: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: np.dtype,
    fill: Callable[[np.ndarray], dict],
    doing: tuple[str, str],
) -> tuple[np.ndarray, dict]:
    """A row for each record, and facts of all: those kept from an earlier time, or made now.

    Args:
        identity: JSON values that say what is found of which records; none: nothing is kept.
        shape: of an array of a row for each record, the number of records first.
        dtype: of that array.
        fill: fills it, and returns the facts, which JSON can hold.
        doing: the name of the source, and what is done, for messages.
    """
    if not identity:
        return _made(shape, dtype, fill)
    try:
        kept = place("indices", [*identity, shape[0]])
        if found := _read(kept, shape, dtype):
            return found
        log.info("%s: %d examples are read once, to %s", doing[0], shape[0], doing[1])
        with whole_folder(kept, last=FACTS) as part:
            made = np.lib.format.open_memmap(Path(part) / FILE, "w+", dtype, shape)
            facts = fill(made)
            made.flush()
            (Path(part) / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return np.load(kept / FILE, mmap_mode="r"), facts
    except OSError as error:
        log.warning("%s: its index is not kept and is made each time: %s", doing[0], error)
        return _made(shape, dtype, fill)


def _made(shape, dtype, fill):
    made = np.empty(shape, dtype)
    return made, fill(made)


def _read(kept, shape, dtype):
    """The rows and facts of a folder, or None where it does not hold them whole."""
    try:
        facts = json.loads((kept / FACTS).read_text("utf-8"))
        found = np.load(kept / FILE, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return (found, facts) if (found.dtype, found.shape) == (dtype, shape) else None
