"""What users call says what it takes, gives and is for."""

import ast
import importlib
import inspect
import re
import typing
from pathlib import Path

import pytest

# The packages whose `__all__` users read, and what DESIGN's list of names adds to them.
PACKAGES = ("masks", "ops", "layers", "presets", "data", "objectives", "mechanisms", "feature_maps")
PACKAGES += ("training", "analysis", "studies", "convert", "models", "evaluation")
OTHERS = ("kzoo:check", "kzoo:compare", "kzoo:distribute", "kzoo.models.conversation:Conversation")
OTHERS += ("kzoo.data.sources:Source", "kzoo.data.tasks:Task", "kzoo.encoder:Encoder")
OTHERS += ("kzoo.studies.verdicts:Verdict", "kzoo.ops.dispatch:register", "kzoo.config:Config")
# Classes beside the layers.
CALLED = ("kzoo.config.Config", "kzoo.models.BeamSampler", "kzoo.studies.Study")
CALLED += tuple(f"kzoo.models.{name}LM" for name in ("Causal", "Masked", "Seq2Seq"))
CALLED += tuple(f"kzoo.training.{x}" for x in ("Checkpoints", "Monitor", "WarmupStableDecay"))


def public():
    """Functions and classes that users name: `(name, object)`."""
    for package in PACKAGES:
        module = importlib.import_module(f"kzoo.{package}")
        names = getattr(module, "__all__", None)
        for name in names or [n for n, x in vars(module).items() if _is_own(n, x, module)]:
            found = getattr(module, name)
            if inspect.isclass(found) or inspect.isroutine(found):
                yield f"kzoo.{package}.{name}", found
    for other in OTHERS:
        module, _, name = other.partition(":")
        yield f"{module}.{name}", getattr(importlib.import_module(module), name)


def _is_own(name, found, module):
    return not name.startswith("_") and getattr(found, "__module__", None) == module.__name__


def functions(name, found):
    """The functions of what is public: itself, or the public methods that kzoo wrote."""
    if not inspect.isclass(found):
        yield name, found
        return
    for cls in found.__mro__:
        if cls.__module__.partition(".")[0] != "kzoo":
            continue
        for key, value in vars(cls).items():
            if isinstance(value, property):
                value = value.fget
            value = inspect.unwrap(getattr(value, "__func__", value))
            if key.startswith("_") and key not in ("__init__", "__call__"):
                continue
            if inspect.isfunction(value) and value.__module__.startswith("kzoo"):
                yield f"{cls.__module__}.{cls.__qualname__}.{key}", value


@pytest.fixture(scope="module")
def surface():
    return dict(public())


@pytest.fixture(scope="module")
def called(surface):
    return {each: f for name, found in surface.items() for each, f in functions(name, found)}


def test_the_surface_is_found(surface, called):
    assert len(surface) > 100 and len(called) > 400
    assert {"kzoo.masks.causal", "kzoo.presets.load", "kzoo.studies.run"} <= set(surface)


def _without_types(function):
    parameters = list(inspect.signature(function).parameters.values())
    for position, parameter in enumerate(parameters):
        if position == 0 and parameter.name in ("self", "cls"):
            continue
        if parameter.annotation is inspect.Parameter.empty:
            yield parameter.name
    if inspect.signature(function).return_annotation is inspect.Signature.empty:
        yield "the result"


def test_all_that_is_called_has_types(called):
    made = {name for name, f in called.items() if f.__code__.co_filename.startswith("<")}
    bare = {name: list(_without_types(f)) for name, f in called.items() if name not in made}
    assert {name: missing for name, missing in bare.items() if missing} == {}


@pytest.mark.parametrize("package", ["kzoo", "kzoo.data", "kzoo.evaluation", "kzoo.studies"])
def test_type_checkers_see_what_loads_when_it_is_named(package):
    module = importlib.import_module(package)
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text())
    imported = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.asname for node in imported for alias in node.names) == sorted(
        module.__all__
    )
    for node in imported:
        for alias in node.names:
            there = importlib.import_module(node.module)
            assert getattr(there, alias.name) is getattr(module, alias.asname)


def test_types_can_be_read_while_running(called):
    for name, function in called.items():
        assert typing.get_type_hints(function) is not None, name


def test_all_that_is_named_says_what_it_is(surface):
    bare = [name for name, found in surface.items() if not _own_docstring(found)]
    assert bare == []


def _own_docstring(found):
    text = found.__doc__ or ""
    return "" if inspect.isclass(found) and text.startswith(f"{found.__name__}(") else text


def test_arguments_are_told(surface):
    untold = {}
    for name, found in surface.items():
        if inspect.isclass(found):
            continue
        text, parameters = inspect.getdoc(found) or "", inspect.signature(found).parameters
        missing = [p for p in parameters if p != "self" and not re.search(rf"\b{p}\b", text)]
        if missing:
            untold[name] = missing
    assert untold == {}


def _is_called(name, found):
    """Whether users call it; of other classes they get objects from a function."""
    return not inspect.isclass(found) or name in CALLED or name.startswith("kzoo.layers.")


def test_what_is_called_has_an_example(surface):
    bare = [
        name
        for name, found in surface.items()
        if _is_called(name, found) and ">>>" not in (inspect.getdoc(found) or "")
    ]
    assert bare == []


def test_results_are_told(surface):
    bare = []
    for name, found in surface.items():
        if inspect.isclass(found):
            continue
        result = inspect.signature(found).return_annotation
        text = inspect.getdoc(found) or ""
        if result not in (None, "None") and "Args:" in text and "Return" not in text:
            bare.append(name)
    assert bare == []
