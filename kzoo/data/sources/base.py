"""What a source is: where the texts and pairs come from that `kzoo.data.load` is given by name."""

import dataclasses
from typing import Any

from kzoo.registry import Part, Registry


class Source(Part):
    """Base of the sources that have names.

    The first field, if there is one, is what follows the colon: `"tfds:NAME"` is the source `tfds`
    with the field NAME. `{"tfds": {"dataset": NAME}}` says the same and can give further fields.

    Attributes:
        name: what stands before the colon.
    """

    def read(self) -> Any:
        """What the source holds, a list that is not empty:

        - documents of running text: bytes, UTF-8 each;
        - or examples: strings, or (source, target) pairs of strings.

        Instead of a list it can be `Records`, of which any can be read at any time, so that
        memory does not grow with them, or, of running text, a `Stored`.

        Where the source has splits of its own, a mapping of such to `"train"`, `"valid"` and
        `"test"`; the latter two may be missing. Empty texts and targets are then left out, and
        counted in the log.

        Raises:
            InputError: there is nothing of that name, or no text in it.
        """
        raise NotImplementedError

    @classmethod
    def lacks(cls) -> str:
        return "`read`" if cls.read is Source.read else ""

    @classmethod
    def of(cls, text: str) -> "Source":
        """The source of what follows the colon; by default it is the first field."""
        return cls(text)  # type: ignore[call-arg]

    @classmethod
    def form(cls) -> str:
        """How a string names such a source, for messages: `"tfds:DATASET"`."""
        fields = dataclasses.fields(cls)
        return f"{cls.name}:{fields[0].name.upper()}" if fields else cls.name

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """Strings that name such sources, for suggestions."""
        return () if dataclasses.fields(cls) else (cls.name,)


_registry = Registry("source", Source)
register, get = _registry.register, _registry.get


def names():
    """The names of the sources: a tuple."""
    return _registry.names


def classes():
    """The classes of the sources, in the order in which they were registered: a list."""
    return [_registry[name] for name in _registry.names]


def named(text: str) -> Source | None:
    """The source that a string names, or None: it is a path."""
    kind, colon, rest = text.partition(":")
    if kind not in _registry.names:
        return None
    cls = _registry[kind]
    if bool(colon) != bool(dataclasses.fields(cls)):
        return None
    return cls.of(rest) if colon else cls()
