"""The official splits of a data set: which is trained on, which are held out."""

import logging
from collections.abc import Iterable

from kzoo.errors import InputError, unknown

log = logging.getLogger("kzoo")

# What splits are called, the most usual first.
NAMES = {
    "train": ("train", "training"),
    "valid": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def choose(known: Iterable[str], name: str, **asked: str | None) -> dict[str, str]:
    """The splits of a data set by what they are for.

    Args:
        known: the names of its splits. A single one is trained on, whatever its name.
        name: of the data set, for messages.
        asked: the split to take as `train`, `valid` or `test`, instead of the one of that name;
            of TFDS also a part of one, such as `"train[:10%]"`.

    Returns:
        A dict with `"train"`, and `"valid"` and `"test"` where there are such splits.

    Raises:
        InputError: none is trained on, or there is none of a name asked for.

    Example:
        >>> choose(["test", "train", "unsupervised"], "imdb_reviews")
        {'train': 'train', 'test': 'test'}
        >>> choose(["train"], "wiki", valid="train[90%:]", train="train[:90%]")
        {'train': 'train[:90%]', 'valid': 'train[90%:]'}
    """
    known = list(known)
    found: dict[str, str] = {}
    for part, usual in NAMES.items():
        split = asked.get(part)
        if split is not None:
            check(split, known, name)
        else:
            split = next((one for one in usual if one in known), None)
        if split is None and part == "train" and len(known) == 1:
            split = known[0]
        if split is not None:
            found[part] = split
    if "train" not in found:
        raise InputError(
            "which split is trained on is to be said: train='SPLIT'. "
            f"Received: {name!r}, with {', '.join(known) or 'no splits'}"
        )
    read = {one for split in found.values() for one in names(split)}
    left = [one for one in known if one not in read]
    if left:
        log.info("%s: not read are its splits %s", name, ", ".join(left))
    return found


def check(split: str, known: Iterable[str], name: str) -> None:
    """`InputError` unless all splits of an expression such as `"train[:10%]+test"` are known."""
    known = list(known)
    for one in names(split):
        if one not in known:
            raise unknown(f"split of {name!r}", one, known)


def names(split: str) -> list[str]:
    """The splits of which an expression takes parts.

    Example:
        >>> names("train[:10%]+test")
        ['train', 'test']
    """
    return [one.partition("[")[0].strip() for one in split.split("+")]
