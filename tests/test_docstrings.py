"""The examples of docstrings run, each in a folder of its own, with what `prepared` holds."""

import ast
import doctest
import functools
import importlib
import json
import shutil
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kzoo"
QUICK_STUDY = PACKAGE.parent / "examples" / "quick"
# These make models or train them; the others answer at once.
DEAR = ("analysis", "bench", "convert", "evaluation", "layers", "models", "ops", "presets")
DEAR += ("studies", "training")
QUICK = ("kzoo.studies.hypotheses", "kzoo.studies.protocol", "kzoo.studies.sentences")
QUICK += tuple(f"kzoo.evaluation.{x}" for x in ("examples", "prompts", "texts"))
QUICK += ("kzoo.studies.statistics", "kzoo.studies.study", "kzoo.studies.verdicts")
NETWORK, MINUTES = "needs a network", "takes minutes"
COMPILER = "needs the compiler for TPUs, and a minute"
TRAINS = "compiles for half a minute; the tests of studies and of README do the like"
PAGE = "draws the page of 50 runs; tests/test_report.py writes smaller ones"
SKIPPED = {
    "kzoo.bench.attention:bench_attention": MINUTES,
    "kzoo.bench.data:bench_data": MINUTES,
    "kzoo.bench.generate:bench_generate": MINUTES,
    "kzoo.bench.show:plot": MINUTES,
    "kzoo.bench.show:tables": MINUTES,
    "kzoo.bench.train:bench_train": MINUTES,
    "kzoo.convert.huggingface:to_huggingface": NETWORK,
    "kzoo.models.exporting:Exports.export": "loads TensorFlow",
    "kzoo.models.tokenizer_file:FileTokenizer": NETWORK,
    "kzoo.studies.analysis:analyse_study": TRAINS,
    "kzoo.studies.notebook:compare": TRAINS,
    "kzoo.studies.notebook:predict": TRAINS,
    "kzoo.studies.page.writing:index": PAGE,
    "kzoo.studies.page.writing:report": PAGE,
    "kzoo.studies.prediction:predict": TRAINS,
    "kzoo.studies.runner:run": TRAINS,
    "kzoo.training.compile_only:compile_only": COMPILER,
    "kzoo.training.compile_only:step_of_a_chip": COMPILER,
    "kzoo.training.distribution:distribute": "needs several devices",
    "kzoo.training.distribution:initialize": "needs several processes",
}


def examples():
    """The names of the docstrings that have examples: `(module, qualified name, text, line)`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        ahead = [(ast.parse(path.read_text()), "")]
        while ahead:
            node, name = ahead.pop(0)
            text = ast.get_docstring(node) or ""
            if ">>>" in text:
                yield module, name, text
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef):
                    ahead.append((child, f"{name}.{child.name}".lstrip(".")))


def cases():
    for module, name, text in examples():
        slow = module.split(".")[1] in DEAR and module not in QUICK
        marks = [pytest.mark.slow] if slow else []
        if (reason := SKIPPED.get(f"{module}:{name}")) is not None:
            marks.append(pytest.mark.skip(reason=reason))
        yield pytest.param(module, name, text, id=f"{module}:{name}", marks=marks)


class Checker(doctest.OutputChecker):
    """An example that shows no output may have any."""

    def check_output(self, want, got, flags):
        return want == "" or super().check_output(want, got, flags)


@pytest.fixture(scope="module")
def light():
    import dataclasses

    import numpy as np

    import kzoo

    return {"np": np, "kzoo": kzoo, "dataclasses": dataclasses}


@pytest.fixture(scope="module")
def figures_drawn_once():
    """Four examples draw the same figure, for some seconds each."""
    import vl_convert

    draw = vl_convert.vegalite_to_svg

    @functools.cache
    def drawn(spec, version):
        return draw(json.loads(spec), vl_version=version)

    def once(spec, vl_version):
        return drawn(json.dumps(spec), vl_version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", once)
        yield


@pytest.fixture(scope="module")
def prepared(light, figures_drawn_once):
    """What examples take as given: small tensors, a small model and its data."""
    import jax
    import keras

    import kzoo
    from kzoo.studies.records import read

    rng = light["np"].random.default_rng(0)
    names = {"jax": jax, "jnp": jax.numpy, "keras": keras, "ops": keras.ops}
    names |= {name: rng.normal(size=(2, 6, 2, 4)).astype("float32") for name in ("q", "k", "v")}
    names |= {name + "2": names[name] for name in ("q", "k", "v")}
    names["source_mask"] = light["np"].array([[1, 1, 0, 0, 0, 0]] * 2)
    names["first"] = names["second"] = rng.normal(size=(2, 6, 64)).astype("float32")
    sizes = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
    model = kzoo.presets.load("gpt_nano", **sizes)
    splits = kzoo.data.load("synthetic:copy", model, batch_size=4)
    splits = type(splits)(splits.train[:4], splits.valid[:2], splits.facts)
    names |= {"model": model, "splits": splits, "train": splits.train, "valid": splits.valid}
    _, records = read(QUICK_STUDY)
    names["results"] = kzoo.studies.Results(records, QUICK_STUDY)
    return light | names


@pytest.mark.parametrize("module, name, text", list(cases()))
def test_examples_run(module, name, text, request, tmp_path, monkeypatch):
    slow = any(mark.name == "slow" for mark in request.node.own_markers)
    names = dict(request.getfixturevalue("prepared" if slow else "light"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(QUICK_STUDY, "runs/quick")
    names = names | vars(importlib.import_module(module)) | {"__name__": "__main__"}
    test = doctest.DocTestParser().get_doctest(text, names, name, module, 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said = []
    doctest.DocTestRunner(Checker(), verbose=False, optionflags=flags).run(test, out=said.append)
    assert not said, "".join(said)


def test_few_examples_are_skipped():
    found = {f"{module}:{name}": text for module, name, text in examples()}
    assert set(SKIPPED) < set(found)
    assert len(found) > 100
    lines = [name for name, text in found.items() if "+SKIP" in text]  # of a network
    assert len(lines) <= 3, lines
