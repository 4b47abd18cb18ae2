"""Parts by name: JSON both ways, and what is refused."""

import dataclasses
import typing

import pytest

from kzoo import feature_maps, mechanisms, objectives
from kzoo.data import sources, tasks
from kzoo.errors import InputError
from kzoo.registry import Part, Registry
from kzoo.studies.metrics import METRICS


class Shape(Part):
    """The base of a kind for these tests."""


@pytest.fixture
def shapes():
    registry = Registry("shape", Shape)

    @registry.register
    class Square(Shape):
        name = "square"
        side: int = 1

    @registry.register
    class Pair(Shape):
        name = "pair"
        of: Shape
        names: tuple = ()

        def __post_init__(self):
            object.__setattr__(self, "of", registry.get(self.of))

    @registry.register
    class Point(Shape):
        name = "point"

    return registry


@pytest.mark.parametrize(
    "spec",
    [
        "square",
        "point",
        {"square": {"side": 3}},
        {"pair": {"of": "point"}},
        {"pair": {"of": {"square": {"side": 2}}, "names": ["a", "b"]}},
    ],
    ids=str,
)
def test_json_both_ways(shapes, spec):
    part = shapes.get(spec)
    assert shapes.get(part) is part
    assert part.get_config() == spec
    assert shapes.get(part.get_config()).get_config() == spec


def test_a_part_is_a_value(shapes):
    square = shapes.get({"square": {"side": 3}})
    assert square == shapes.get({"square": {"side": 3}}) != shapes.get("square")
    assert {square: 1}[shapes.get({"square": {"side": 3}})] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        square.side = 4
    assert shapes.get({"square": {}}).get_config() == "square"
    assert shapes.names == ("square", "pair", "point")


@pytest.mark.parametrize(
    "spec, said",
    [
        ("sqare", "did you mean 'square'?"),
        (None, "Received: None"),
        ({"square": {}, "point": {}}, "or one name with its fields"),
        ({"square": 3}, "takes a JSON object of side"),
        ({"point": {"side": 3}}, "takes no fields"),
        ({"square": {"sid": 3}}, "did you mean 'side'?"),
        ("pair", "needs the fields of"),
    ],
    ids=str,
)
def test_what_is_not_a_part_is_refused(shapes, spec, said):
    with pytest.raises(InputError) as caught:
        shapes.get(spec)
    assert said in str(caught.value) and "Received: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_registered(shapes):
    class Other(Part):
        name = "other"

    class Named(Shape):
        name: typing.ClassVar = "two words"

    class Square(Shape):
        name = "square"

    for cls, said in (
        (Other, "subclass of Shape"),
        (3, "subclass of Shape"),
        (Named, "letters, digits and underscores"),
        (Shape, "Received: None"),
        (Square, "a name of its own"),
    ):
        with pytest.raises(InputError, match=said):
            shapes.register(cls)


@pytest.mark.parametrize(
    "register, base, fields, said",
    [
        (mechanisms.register, mechanisms.Mechanism, {}, "`attend` or `attend_with_weights`"),
        (objectives.register, objectives.Objective, {"next_token": False}, "`hide`, where"),
        (sources.register, sources.Source, {}, "`read`"),
        (tasks.register, tasks.Task, {}, "`draw` and a field `count`, or `pairs`"),
        (tasks.register, tasks.Task, {"draw": None}, "`draw` and a field `count`, or `pairs`"),
        (feature_maps.REGISTRY.register, feature_maps.FeatureMap, {}, "`of_query`"),
        (METRICS.register, METRICS.base, {}, "`value`"),
        (METRICS.register, METRICS.base, {"measured": True}, "`measure`"),
    ],
)
def test_a_part_without_a_method_that_it_needs_is_not_registered(register, base, fields, said):
    cls = type("Mine", (base,), {"name": "mine", **fields})
    with pytest.raises(InputError) as caught:
        register(cls)
    assert f"defines {said}" in str(caught.value)


def test_a_class_that_is_made_anew_replaces_itself(shapes):
    def define(default):
        class Mine(Shape):
            name = "mine"
            size: int = default

        return shapes.register(Mine)

    define(1), define(2)
    assert shapes.get("mine").size == 2 and shapes.names.count("mine") == 1
