"""Parts of one kind by name, each a frozen dataclass that is JSON both ways.

The JSON of a part is its name, or its name with those fields that differ from their defaults:
`"linear"`, `{"linear": {"feature_map": "relu"}}`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, dataclass_transform

from kzoo.errors import InputError, unknown
from kzoo.values import plain


@dataclass_transform(frozen_default=True)
class Part:
    """Base of the parts that a `Registry` holds; a subclass is a frozen dataclass.

    Attributes:
        name: the name in JSON.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]  # of every subclass

    @classmethod
    def lacks(cls) -> str:
        """What a subclass must define and does not, for a message; "" where nothing is missing."""
        return ""

    def get_config(self) -> Any:
        """The shortest JSON from which the registry's `get` makes this part again."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        config = {name: value for name, value in fields.items() if value != defaults[name]}
        return {self.name: _json(config)} if config else self.name


_Part = TypeVar("_Part", bound=Part)


class Registry:
    """The parts of one kind.

    Args:
        kind: what a part is, for messages, e.g. `"objective"`.
        base: the class that all of them subclass, a subclass of `Part`.
    """

    def __init__(self, kind: str, base: type[Part]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[Part]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts, in the order in which they were registered: a tuple."""
        return tuple(self._classes)

    def __getitem__(self, name):
        """The class of a name, or `InputError` with the nearest valid one."""
        if not isinstance(name, str) or name not in self._classes:
            raise unknown(self.kind, name, self.names)
        return self._classes[name]

    def register(self, cls: type[_Part]) -> type[_Part]:
        """Add a class under its `name`; a decorator.

        Args:
            cls: a subclass of `base`, a frozen dataclass or to be made one. It is returned.

        Returns:
            The class.

        Raises:
            InputError: for what is no frozen dataclass of the kind, for a class without a method
                that every part of it defines, and for a name that another class has. A class that
                is made anew, as in a notebook, replaces itself.

        Example:
            >>> shapes = Registry("shape", Part)
            >>> @shapes.register
            ... class Circle(Part):
            ...     name = "circle"
            ...     radius: float = 1.0
            >>> shapes.get({"circle": {"radius": 2.0}})
            Circle(radius=2.0)
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise InputError(f"{self._a} is a subclass of {self.base.__name__}. Received: {cls!r}")
        if "__dataclass_params__" not in vars(cls):
            cls = dataclasses.dataclass(frozen=True)(cls)
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(
                f"{self._a} has a `name` of letters, digits and underscores. Received: {name!r}"
            )
        lacks = cls.lacks()
        if lacks:
            raise InputError(f"{self._a} defines {lacks}. Received: {cls!r} without it")
        known = self._classes.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise InputError(
                f"each {self.kind} has a name of its own; {name!r} is {known.__module__}."
                f"{known.__qualname__}. Received: {cls.__module__}.{cls.__qualname__}"
            )
        self._classes[name] = cls
        return cls

    def get(self, spec: Any) -> Any:
        """The part of a name, of JSON (`{name: {field: value}}`), or `spec` if it is one.

        Raises:
            InputError: for an unknown name or field, or a value that the part refuses.
        """
        if isinstance(spec, self.base):
            return spec
        name, fields = spec, {}
        if isinstance(spec, Mapping) and len(spec) == 1:
            ((name, fields),) = spec.items()
        elif isinstance(spec, Mapping):
            raise InputError(
                f"{self._a} is a name, or one name with its fields: {{name: {{field: value}}}}. "
                f"Received: {spec!r:.120}"
            )
        cls = self[name]
        valid = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, Mapping) or (fields and not valid):
            takes = f"a JSON object of {', '.join(valid)}" if valid else "no fields"
            raise InputError(f"the {self.kind} {name!r} takes {takes}. Received: {spec!r:.120}")
        for field in fields:
            if field not in valid:
                raise unknown(f"field of the {self.kind} {name!r}", field, valid)
        missing = [field for field in _required(cls) if field not in fields]
        if missing:
            raise InputError(
                f"the {self.kind} {name!r} needs the fields {', '.join(missing)}. "
                f"Received: {spec!r:.120}"
            )
        return cls(**plain(fields))

    @property
    def _a(self):
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"


def _required(cls):
    """The names of the fields of a part that have no default."""
    unset = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    return [f.name for f in fields if f.default is unset and f.default_factory is unset]


def _json(value):
    """A value with parts inside it as their JSON."""
    if isinstance(value, Part):
        return value.get_config()
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, tuple | list) else value
