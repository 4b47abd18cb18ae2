"""The words for what records hold: configs, heads and sources, short enough for a table."""

import json
from collections.abc import Callable, Iterable

ENCODER = " (encoder)"  # follows the mask of models that have one


def by(records, field):
    """Records by the value of a field, in the order of first appearance: a dict of lists."""
    groups = {}
    for record in records:
        groups.setdefault(record[field], []).append(record)
    return groups


def spec(value):
    """A part of a config as text: a name as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def mechanism(config):
    """The mechanism of a config in words.

    Example:
        >>> mechanism({"mechanism": {"linear": {"feature_map": "relu"}}})
        'linear (relu)'
    """
    value = config["mechanism"]
    if isinstance(value, str):
        return value
    ((name, options),) = value.items()
    return f"{name} ({', '.join(map(spec, options.values()))})"


def mask(config):
    """The mask of a config in words; an encoder's says that it is one."""
    return spec(config["mask"]) + (ENCODER if config["stack"] != "single" else "")


def layer(head):
    """The layer of a head in a spectrum, in words."""
    return f"{head['stack']} {head['layer']}".strip()


def shortened(sources: Iterable[str]) -> dict[str, str]:
    """Source -> a name of it that is short and still its own.

    A path is named by its last part, and by more of them where two end alike.

    Example:
        >>> shortened(["/data/english/book.txt", "/data/german/book.txt", "synthetic:copy"])
        {'/data/english/book.txt': 'english/book.txt', '/data/german/book.txt': 'german/book.txt', \
'synthetic:copy': 'synthetic:copy'}
    """
    sources = list(dict.fromkeys(sources))
    parts = {source: source.replace("\\", "/").rstrip("/").split("/") for source in sources}
    found, number = {}, 1
    while len(found) < len(sources):
        tails = {s: "/".join(p[-number:]) for s, p in parts.items() if s not in found}
        for source, tail in tails.items():
            alone = sum(tail == other for other in tails.values()) == 1
            if (alone and tail not in found.values()) or number >= len(parts[source]):
                found[source] = tail if alone and tail else source
        number += 1
    return {source: found[source] for source in sources}


def shortener(sources: Iterable[str]) -> Callable[[str], str]:
    """A function that names the group of a record with the short name of its source.

    Example:
        >>> shortener(["/data/book.txt"])("continuation on /data/book.txt")
        'continuation on book.txt'
    """
    names = shortened(sources)

    def short(group):
        for source, name in names.items():
            if group == source:
                return name
            if group.endswith(f" on {source}"):
                return f"{group.removesuffix(source)}{name}"
        return group

    return short


def in_words(names: Iterable[object]) -> str:
    """A list in words.

    Example:
        >>> in_words(["a", "b", "c"])
        'a, b and c'
    """
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last
