"""The studies of questions that nobody has run yet, and what stands beside them."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kzoo import data
from kzoo.errors import InputError
from kzoo.studies import Study, control, run
from kzoo.studies.metrics import METRICS

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "studies"
EVERY = sorted(FOLDER.glob("*/*.json"))
OPEN = ("q6-head-size", "q10-norm-placement", "q11-architecture-and-objective")
OPEN += ("q12-mixture-of-denoisers", "q13-examples-in-context", "q15-scaling")
SMALL = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16}


@pytest.fixture(scope="module", autouse=True)
def own_metrics():
    """What modules beside studies register and import is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METRICS, "_classes", dict(METRICS._classes))
        patch.setattr(sys, "path", [*sys.path])
        for name in ("in_context", "continuations"):
            patch.delitem(sys.modules, name, raising=False)
        yield
        for name in ("in_context", "continuations"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "".join(f"{i} sheep and {i * i} goats, {i % 7} of them lost. " for i in range(900))
    )
    return str(path)


def script(path):
    spec = importlib.util.spec_from_file_location(path.stem, FOLDER / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def study_of(folder):
    (path,) = (FOLDER / folder).glob("*.json")
    return path


@pytest.mark.parametrize("path", EVERY, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_studies_are_studies_at_every_size(path):
    given = Study.from_json(path)
    assert given.hypotheses or "stall" in path.stem
    assert given.tuning is None or not set(given.tuning.seeds) & set(given.seeds)
    if path.parent.name == "q15-scaling":
        with pytest.raises(InputError, match="compares sizes"):
            given.at(size="small")
    else:
        for size in ("tiny", "small", "base"):
            presets = {arm.preset for arm in given.at(size=size).arms.values()}
            assert all(preset.endswith(size) for preset in presets)


@pytest.mark.parametrize("folder", [*OPEN, "q8-cache-reuse"])
def test_a_page_says_what_is_asked_and_how(folder):
    page = (FOLDER / folder / "README.md").read_text()
    files = [path for path in (FOLDER / folder).iterdir() if path.suffix in (".json", ".py")]
    for file in files:
        assert file.name in page
    assert folder.startswith("q8") or "**Not run yet" in page
    if folder in OPEN:
        assert f"kzoo compare examples/studies/{folder}/{study_of(folder).name}" in page
        name = Study.from_json(study_of(folder)).name
        assert all(one == name for one in _named(page)), "runs/NAME is the study's"


def _named(page):
    """The folders of studies that the commands of a page name."""
    words = [word for line in page.splitlines() for word in line.split()]
    return [word.removeprefix("runs/") for word in words if word.startswith("runs/q")]


def shrunken(folder, text, **changes):
    """A study on a small text, with its hypotheses and its arms as they are."""
    fields = json.loads(study_of(folder).read_text())
    if fields["data"] == ["pydoc"]:
        fields["data"] = [text]
    few = {"steps": 2, "evaluations": 1, "batch_size": 4, "valid": 0.1, "tuning": None}
    fields |= few | changes
    Study.from_json(study_of(folder))  # imports what stands beside it
    return Study.from_dict({name: value for name, value in fields.items() if value is not None})


@pytest.mark.slow
@pytest.mark.parametrize("folder", OPEN)
def test_arms_are_equal_at_step_0_but_for_what_is_asked(folder, text):
    study = shrunken(folder, text)
    compared = control.compared(study)
    asked = {label for hypothesis in study.hypotheses for label in hypothesis.labels}
    assert {arm["arm"] for arm in compared["arms"]} == asked


@pytest.mark.slow
def test_examples_in_context_are_measured(text, tmp_path):
    arms = {"GPT": {"preset": "gpt_nano", "overrides": {"objective": "prefix_lm", **SMALL}}}
    source = "synthetic:linear_regression,count=40,dimensions=2,shots=2,queries=7"
    changes = {"arms": arms, "data": [source], "seeds": 1, "hypotheses": None}
    study = shrunken("q13-examples-in-context", text, **changes)
    (record,) = run(study, tmp_path, progress=False)
    errors = record["metrics"]["squared_error"]
    assert len(errors) == 7  # after 2, 3, … 8 points
    assert METRICS.get("gain_from_examples").value(record) == pytest.approx(errors[0] - errors[-1])


@pytest.mark.slow
def test_the_end_of_a_text_is_asked_for(text, monkeypatch):
    from kzoo import presets

    module = script(Path("q11-architecture-and-objective/continuations.py"))
    monkeypatch.setattr(module, "DATA", text)
    asked = module.questions(6)
    held_out = b"".join(
        bytes(ids[ids < 256].astype("uint8"))
        for x, _, _ in data.load(text, presets.config("gpt_nano"), batch_size=16, valid=0.03).valid
        for ids in x["token_ids"]
    ).decode()
    for question in asked:
        right = question["choices"][question["answer"]]
        assert f"{question['question']} {right}" in held_out
        assert len(set(question["choices"])) == 4
    monkeypatch.setattr(module, "QUESTIONS", 6)
    metric = METRICS.get("right_continuation")
    model = presets.load("t5_nano", objective="span_corruption", **SMALL)
    assert type(metric).__name__ == "RightContinuation" and metric.measured
    monkeypatch.setattr(module, "questions", lambda: asked)
    assert module.RightContinuation().measure(model, None) in np.arange(7) / 6


def test_the_power_law_that_is_there_is_found():
    rng = np.random.default_rng(0)
    records = [
        {"arm": f"half heads {width}", "status": "finished", "seed": seed}
        | {"parameters": width**2, "flops": width**3, "bits": 5 * width**-0.3 * noise}
        for seed in range(5)
        for width in (32, 64, 128)
        for noise in [np.exp(rng.normal() / 1000)]
    ]
    module = script(Path("q15-scaling/power_law.py"))
    found = module.exponents([*records, {"arm": "half heads 32", "status": "nan"}], "parameters")
    assert [*found] == ["half heads"]
    np.testing.assert_allclose(found["half heads"], [0.15] * 5, atol=0.003)
    *_, line = module.table(records).splitlines()
    assert line.startswith("| half heads | 0.150 (0.1") and "| 0.100 (0." in line


@pytest.mark.slow
def test_what_a_conversation_keeps():
    module = script(Path("q8-cache-reuse/conversation.py"))
    found = module.rows("nano", turns=2, repeats=1)
    change = {row["family"]: row["key_change"] for row in found if row["turn"] == 2}
    assert change["gpt"] == 0 and change["unilm"] > 0 and change["t5"] > 0
    assert module.table(found).count("\n") == 2 + 3 * 2
