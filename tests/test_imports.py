"""What imports what, and what must not be imported at all."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kzoo"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each room and what it may import, one way: a room sees what stands on a line above it.
LEAVES = {"errors", "files", "migrations", "names", "registry", "typing", "values", "vocabulary"}
BELOW = {
    "errors": set(),
    "backend": set(),
    "load_keras": {"backend"},
    "load_keras_hub": {"backend", "load_keras"},
    "learning_rate": {"errors", "values"},
    "values": {"errors"},
    "files": {"errors"},
    "migrations": {"errors"},
    "names": set(),
    "registry": {"errors", "values"},
    "compilation_cache": set(),
    "precision": {"load_keras"},
    "vocabulary": set(),
    "tokenizer_json": {"errors"},
    "typing": set(),
    "sequence": {"errors", "load_keras", "typing", "values"},
    "levels": {"errors", "load_keras", "sequence"},
    "masks": {"errors", "load_keras", "sequence", "typing", "values", "levels"},
    "feature_maps": LEAVES | {"load_keras", "precision", "sequence"},
    "objectives": LEAVES,
    "encoder": LEAVES | {"objectives"},
    "config": LEAVES | {"masks", "mechanisms", "mixers", "objectives", "attention_options"},
    "data": LEAVES
    | {"masks", "objectives", "encoder", "config", "compilation_cache"}
    | {"tokenizer_json"},
    "ops": LEAVES
    | {"load_keras", "sequence", "masks", "compilation_cache", "precision", "feature_maps"},
}
BELOW["mechanisms"] = BELOW["ops"] | {"ops"}
BELOW["attention_options"] = LEAVES | {"masks"}
BELOW["mixers"] = LEAVES | {"masks", "mechanisms", "attention_options"}
BELOW["layers"] = BELOW["mechanisms"] | {"mechanisms", "attention_options"}
BELOW["models"] = BELOW["layers"] | {"layers", "mixers", "objectives", "encoder", "config"}
BELOW["models"] |= {"load_keras_hub", "backend", "learning_rate", "tokenizer_json"}
BELOW["convert"] = BELOW["models"] | {"models"}
BELOW["presets"] = BELOW["convert"] | {"convert"}
BELOW["training"] = BELOW["presets"] | {"presets", "data"}
BELOW["analysis"] = BELOW["training"] | {"training"}
BELOW["evaluation"] = BELOW["analysis"] | {"analysis"}
BELOW["bench"] = BELOW["presets"] | {"presets", "data"}
BELOW["studies"] = BELOW["evaluation"] | {"evaluation", "compilation_cache"}
BELOW["doctor"] = BELOW["training"] | {"training"}
BELOW["cli"] = BELOW["studies"] | {"studies", "bench", "doctor"}
BELOW["__main__"] = {"cli"}
KERAS = {"keras", "keras_hub", "jax", "torch", "tensorflow"}
# Rooms that answer without Keras, so that names and mistakes are told at once.
LIGHT = (
    *sorted(LEAVES),
    *("backend", "learning_rate", "precision", "masks", "feature_maps", "mechanisms", "mixers"),
    *("objectives", "encoder", "attention_options", "config", "data", "presets", "cli"),
    *("evaluation", "tokenizer_json"),
)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, everywhere=True):
    """The dotted names that a file imports; without `everywhere`, when it is imported."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else _outside_functions(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _outside_functions(node):
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _outside_functions(child)


def test_there_is_something_to_look_at():
    assert {"masks", "ops", "layers", "models", "presets"} <= {room(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    if here == "__init__":
        assert [*imports(path)] == ["importlib"]
        return
    assert here in BELOW, "a new room has a place among the others"
    rooms = set()
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "kzoo":
            rooms.add(rest.partition(".")[0])
    # `from kzoo import compare`-like names of the package itself are no rooms.
    assert rooms - {here, "__version__"} <= BELOW[here]


# Inside a package: what a file needs when it is imported, and what its functions import.


def module(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph):
    """The sets of more than one module that each reach all of the set."""

    def reached(start):
        seen, ahead = set(), [start]
        while ahead:
            for name in graph[ahead.pop()] - seen:
                seen.add(name)
                ahead.append(name)
        return seen

    beyond = {name: reached(name) for name in graph}
    found = {frozenset(m for m in beyond[name] if name in beyond[m]) for name in graph}
    return [set(circle) for circle in found if circle]


def test_no_circle_of_files():
    modules = {module(path): path for path in FILES}

    def file_of(name):
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {
        name: {file_of(other) for other in imports(path) if other.startswith("kzoo.")} - {"kzoo"}
        for name, path in modules.items()
    }
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert circles(graph) == []


def test_the_oracle_shares_nothing_with_the_kernels_but_the_mask():
    found = set(imports(PACKAGE / "ops" / "oracle.py"))
    assert found == {"numpy", "kzoo.masks", "kzoo.errors.unknown"}


def test_kernels_know_nothing_of_dispatch_and_of_where_they_run():
    above = {"kzoo.ops.dispatch", "kzoo.ops.context"}
    for path in (PACKAGE / "ops" / "kernels").rglob("*.py"):
        modules = {name if name in above else name.rpartition(".")[0] for name in imports(path)}
        assert not modules & above, path
        tested = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not tested & {"Order", "Heads", "Causal"}, f"{path} asks an order for its type"


@pytest.mark.parametrize("name", LIGHT)
def test_light_rooms_load_no_keras(name):
    for path in FILES:
        if room(path) == name:
            loaded = {found.partition(".")[0] for found in imports(path, everywhere=False)}
            assert not loaded & KERAS, path


def test_only_models_and_above_know_keras_hub_and_nobody_loads_tensorflow():
    for path in FILES:
        packages = {name.partition(".")[0] for name in imports(path)}
        assert "tensorflow" not in {n.partition(".")[0] for n in imports(path, everywhere=False)}
        if room(path) in ("masks", "ops", "layers", "objectives", "encoder", "config", "data"):
            assert "keras_hub" not in packages, path
        if room(path) in ("objectives", "encoder", "data", "config"):
            assert not packages & KERAS, path


def test_packages_that_import_keras_choose_its_backend_first():
    for path in FILES:
        if {name.partition(".")[0] for name in imports(path, everywhere=False)} & {"keras"}:
            first = (path.parent / "__init__.py").read_text().partition("import ")[2]
            while path.parent != PACKAGE and "kzoo.load_keras" not in first.split("\n")[0]:
                path = path.parent
                assert path != PACKAGE, path
                first = (path.parent / "__init__.py").read_text().partition("import ")[2]
        elif room(path) in LIGHT and path.name != "backend.py":
            # Inside functions Keras may not be there yet: its own choice would stand.
            names = {name.partition(".")[0] for name in imports(path)}
            assert "keras" not in names, f"{path}: from kzoo.load_keras import keras, ops"


@pytest.mark.slow
@pytest.mark.parametrize(
    "first_use",
    [
        "masks.get(Last())",  # an order's levels are tried
        "kzoo.feature_maps.get('relu').query(np.ones((1, 2, 1, 4), 'float32'))",
    ],
)
def test_whatever_loads_keras_first_takes_the_default_backend(first_use, tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    code = f"""
import dataclasses, sys, numpy as np, kzoo
from kzoo import masks

@dataclasses.dataclass(frozen=True)
class Last(masks.Order):
    name = "last"
    def level(self, sequence):
        return sequence.position

assert "keras" not in sys.modules
{first_use}
print(sys.modules["keras"].backend.backend())
"""
    home = {
        "KERAS_HOME": str(tmp_path),
        "KERAS_BACKEND": "",
        "PYTHONPATH": os.environ["PYTHONPATH"],
    }
    assert run(code, **home).endswith("jax\n")


def test_what_tensorflow_traces_assigns_in_statements():
    """AutoGraph reads no `:=`: it warns of the function, several lines for each."""
    for path in FILES:
        if room(path) in (BELOW["models"] | {"models"}) - {"objectives", "config", "encoder"}:
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.NamedExpr), f"{path}: line {node.lineno}"


def test_nothing_is_pickled():
    for path in FILES:
        packages = {name.partition(".")[0] for name in imports(path)}
        assert not packages & {"pickle", "cloudpickle", "dill", "shelve", "joblib", "marshal"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


# In a process of its own --------------------------------------------------------------------


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_importing_the_package_loads_no_framework():
    code = """
import sys, kzoo
from kzoo import config, errors, masks, mechanisms, objectives, presets, vocabulary
mechanisms.get({"linear": {"feature_map": "favor"}}).check([masks.causal()])
presets.names(), presets.config("unilm_base", mechanism="linear")
for name in ("keras", "keras_hub", "tensorflow", "torch", "jax", "grain"):
    assert name not in sys.modules, name
assert {"masks", "presets", "compare"} <= set(dir(kzoo))
try:
    kzoo.nothing
except AttributeError:
    print("fine")
"""
    assert run(code) == "fine\n"


BLOCKED = """
import socket, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_text", "tf_keras", "torch"):
            raise ImportError(name + " is not here")

def refuse(*args, **kwargs):
    raise OSError("there is no network")

sys.meta_path.insert(0, Blocker())
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.mark.slow
def test_core_paths_run_without_tensorflow_and_network(tmp_path):
    code = f"""{BLOCKED}
import numpy as np
import kzoo

small = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=16)
texts = [f"{{i}} and {{i + 1}}" for i in range(40)]
for name in ("unilm_nano", "bert_mixed_heads_nano"):
    model = kzoo.presets.load(name, mechanism="linear", **small)
    train, valid = kzoo.data.load(texts, model, batch_size=8)
    history = model.fit(train, epochs=1, steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    before = model.evaluate(valid, verbose=0, return_dict=True)["bits_per_byte"]
    nats = model.score(texts[:2], batch_size=8)["nats"]
    kzoo.presets.save(model, r"{tmp_path}/" + name)
    copy = kzoo.presets.load(r"{tmp_path}/" + name)
    np.testing.assert_allclose(copy.score(texts[:2], batch_size=8)["nats"], nats, rtol=1e-5)
    assert 0 < before < 20
assert not [m for m in sys.modules if m.partition(".")[0] in ("tensorflow", "torch")]
print("fine")
"""
    assert run(code, KERAS_BACKEND="jax").endswith("fine\n")
