"""Studies with hypotheses, from their files to their verdicts; mostly on made-up records."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from asked_study import (
    DIFFERENCE,
    EQUAL,
    NOISE,
    STUDY,
    TUNED,
    Made,
    go,
    made_splits,
    said,
    study,
    tuned_by,
    without_training,
)

from kzoo.cli import compare
from kzoo.errors import InputError
from kzoo.studies import Study, amounts, planning, report, run
from kzoo.studies import runner as runner_module
from kzoo.studies.clock import Clock
from kzoo.studies.evidence import arm_facts, draw
from kzoo.studies.metrics import METRICS
from kzoo.studies.notebook import Results
from kzoo.studies.page.forest import forest
from kzoo.studies.prediction import Prediction
from kzoo.studies.provenance import built_from
from kzoo.studies.records import read


@pytest.fixture
def made(monkeypatch):
    return without_training(monkeypatch)


def test_a_study_ends_in_the_sentences_of_its_verdicts(made, tmp_path):
    asked = study()
    records = go(asked, tmp_path)
    assert all(record["hypotheses"] == {"Q1": asked.hypotheses[0].hash} for record in records)
    (sentence,) = said(tmp_path)
    assert sentence == (
        "linear against softmax on every next byte of synthetic:copy, at 2 steps: confirmed, "
        "higher (+0.500 bits, 95% interval 0.482 to 0.518, 5 paired seeds; untuned, rate 0.003)."
    )
    results = Results(records, tmp_path)
    assert [str(verdict) for verdict in results.verdicts()] == [sentence]
    page = report(tmp_path).read_text()
    verdict = page.index('Q1: <span class="outcome">confirmed</span>')
    assert verdict < page.index('<h2 id="results">') < page.index('<h2 id="equal">')
    assert "draws no verdicts" not in page and "+0.500 bits" in page


def test_seeds_can_be_added_which_is_said(made, tmp_path):
    go(study(), tmp_path)
    records = go(study(seeds=6), tmp_path)
    assert len(records) == 12 and len(Made.made) == 12
    (sentence,) = said(tmp_path)
    assert "6 paired seeds" in sentence and "Post hoc" not in sentence
    assert "99.167% interval" in sentence  # a sixth of 5% for the sixth seed
    assert "added after verdicts at 5 seeds, which counts as a look: the interval is" in sentence
    assert "the error of all together up to 5.8%." in sentence
    for other in (study(), study(seeds=[1, 2, 3, 4, 5, 6]), study(seeds=6, hypotheses=[EQUAL])):
        with pytest.raises(InputError, match="holds another study"):
            go(other, tmp_path)


def test_runs_on_other_data_are_not_put_beside_finished_ones(made, tmp_path, monkeypatch):
    go(study(), tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:-1]))
    other = {"sha256": "cd"}
    monkeypatch.setattr(amounts, "_load", lambda *key: made_splits(key[3], other))
    said = "all runs of an arm have the same data.*'synthetic:copy' changed after.*sha256 is"
    with pytest.raises(InputError, match=said):
        go(study(), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "".join(lines[:-1])


def test_the_figure_tells_seeds_that_a_verdict_leaves_out(made, tmp_path):
    values = {"facts": {"sha256": "ab", "bigram_entropy": 0.5}, "held_out": [[1, 9.0], [2, 2.0]]}
    made.setattr(Made, "changes", values)
    records = go(study(data=["pydoc"]), tmp_path)
    records[0]["held_out"] = [[1, records[0]["bits"]], [2, records[0]["bits"]]]  # one that stalled
    (found,) = draw(read(tmp_path)[0], records)
    assert found.seeds == (1, 2, 3, 4)
    figure = forest("verdicts", [("Q1", found, records)])
    chart = json.loads(figure.save(tmp_path / "verdicts.json").read_text())
    counts = {row["seed"]: row["counts"] for row in rows_with(chart, "counts")}
    assert counts == {0: False, 1: True, 2: True, 3: True, 4: True}


def rows_with(node, name):
    """The rows of a figure's JSON that have a value by that name."""
    if isinstance(node, dict):
        own = [node] if name in node else []
        return own + [row for value in node.values() for row in rows_with(value, name)]
    return [row for each in node for row in rows_with(each, name)] if isinstance(node, list) else []


def test_a_changed_hypothesis_is_named_with_what_changed(made, tmp_path):
    go(study(hypotheses=[DIFFERENCE, EQUAL]), tmp_path)
    changed = {**EQUAL, "margin": 0.3}
    with pytest.raises(InputError, match=r"hypotheses\.Q2\.margin is 0\.2 there and 0\.3 here\)"):
        go(study(hypotheses=[DIFFERENCE, changed]), tmp_path)


def test_an_interrupted_study_counts_no_run_twice(made, tmp_path, monkeypatch):
    go(study(), tmp_path / "out")
    folder = runner_module.checkpoint_folder
    for name in ("synthetic:copy/linear/0", "synthetic:copy/linear/9"):  # finished, and not
        (folder(tmp_path / "out", name) / "1").mkdir(parents=True)
    monkeypatch.setattr(compare, "_read", lambda options: (study(), tmp_path / "out"))
    assert "10 of 10 runs are finished, 1 more has a checkpoint" in compare._saved(None)


def test_a_hypothesis_that_came_later_is_post_hoc(made, tmp_path):
    go(study(), tmp_path)
    go(study(hypotheses=[DIFFERENCE, EQUAL]), tmp_path)
    first, second = said(tmp_path)
    assert first.startswith("linear against") and second.startswith("Post hoc: linear against")
    assert len(Made.made) == 10
    assert len(read(tmp_path)[0]["hypotheses"]) == 2
    bare = {field: value for field, value in STUDY.items() if field != "hypotheses"}
    assert "hypotheses" not in go(Study.from_dict(bare), tmp_path / "bare")[0]
    go(study(), tmp_path / "bare")
    assert said(tmp_path / "bare")[0].startswith("Post hoc: linear against")


def test_a_study_with_looks_stops_where_all_is_decided(made, tmp_path, caplog):
    caplog.set_level("INFO", "kzoo")
    records = go(study(seeds=10, looks=[5, 10]), tmp_path / "clear")
    assert len(records) == 10 and "97.5% interval" in said(tmp_path / "clear")[0]
    assert "5 of 10 seeds decide all hypotheses" in caplog.text
    page = report(tmp_path / "clear").read_text()
    assert "stopped at\n5 of 10 seeds" in page and "is incomplete" not in page
    assert go(study(seeds=10, looks=[5, 10]), tmp_path / "clear") == records
    made.setattr(Made, "gap", 0.0)
    assert len(go(study(seeds=10, looks=[5, 10]), tmp_path / "open")) == 20
    assert "undecided" in said(tmp_path / "open")[0] and "10 paired" in said(tmp_path / "open")[0]


def test_looks_keep_those_that_were_taken(made, tmp_path):
    go(study(), tmp_path)
    with pytest.raises(InputError, match="hold those that were taken, here at 5 seeds"):
        go(study(seeds=8, looks=[8]), tmp_path)
    made.setattr(Made, "gap", 0.0)
    go(study(seeds=8, looks=[5, 8]), tmp_path)
    assert "Seeds were added" not in said(tmp_path)[0]


def test_a_diverged_run_leaves_its_hypothesis_undecided(made, tmp_path):
    made.setattr(Made, "changes", {"status": "nan", "bits": None})
    go(study(), tmp_path)
    assert "undecided, with fewer than 5 finished pairs" in said(tmp_path)[0]
    assert "Failed runs: seeds 0, 1, 2, 3, 4 of linear diverged" in said(tmp_path)[0]


def curve(*values, bits=3.0, data="pydoc"):
    losses = np.repeat(values, 20).tolist()
    run = {"seed": 0, "status": "finished", "train_loss": losses, "bits": bits, "data": data}
    run |= {"held_out": [[len(losses), bits]]}
    return {**run, "facts": {"bigram_entropy": 3.5}, "learning_rate": 0.01}


ABOVE = {"above_bigram": True}


@pytest.mark.parametrize(
    "run, expected",
    [
        (curve(5, 4, 3, 2.5, 2.49), {}),
        (curve(5, 4, 3, 2.5, 2.4), {"still_falling": True}),
        (curve(5, 4, 3.9, 3.89, 3.89, bits=4.0), {"stalled": (0,), "above_bigram": True}),
        (curve(5, 4, 3.9, 3.89, 3.89, bits=4.0, data="synthetic:copy"), {}),
        (curve(5, 4, 3, 2.5, 2.49, bits=4.0), {"above_bigram": True}),
        ({**curve(5), "train_loss": [3.0, 2.0]}, {}),
        # Held-out losses, where there are any, tell a noisy batch from a run that stands still.
        ({**curve(4, 4, 4, 4, 4, bits=4.0), "held_out": [[50, 4.3], [100, 4.0]]}, ABOVE),
        (
            {**curve(6, 5, 4.5, 4.2, 4, bits=4.0), "held_out": [[50, 4.01], [100, 4.0]]},
            {"stalled": (0,), "still_falling": True, **ABOVE},
        ),
        ({**curve(5), "status": "nan", "bits": None}, {"diverged": (0,)}),
    ],
)
def test_doubtful_runs_are_seen_in_their_records(run, expected):
    facts = arm_facts([run], {})
    fields = ("stalled", "above_bigram", "still_falling", "diverged")
    assert {name: getattr(facts, name) for name in fields if getattr(facts, name)} == expected
    assert facts.rate == 0.01


def test_modules_of_imports_are_hashed_and_may_not_change(made, tmp_path, monkeypatch):
    made.setattr("sys.path", list(sys.path))
    made.setattr("sys.modules", dict(sys.modules))
    module = tmp_path / "my_attention.py"
    module.write_text("from kzoo import mechanisms\n")
    (tmp_path / "study.json").write_text(json.dumps({**STUDY, "imports": ["my_attention"]}))
    asked = Study.from_json(tmp_path / "study.json")  # the module stands beside it
    records = go(asked, tmp_path / "out")
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    assert all(record["imports"] == {"my_attention": digest} for record in records)
    # A command that starts anew, such as `kzoo report`, has imported nothing yet.
    shutil.copytree(tmp_path / "out", tmp_path / "runs" / "mine")
    for folder in (tmp_path / "out", tmp_path / "runs" / "mine"):
        made.setattr("sys.path", [path for path in sys.path if path != str(tmp_path)])
        del sys.modules["my_attention"]
        read(folder)
        assert "my_attention" in sys.modules
    module.write_text("mechanisms = None\n")
    with pytest.raises(InputError, match="my_attention changed after the run"):
        go(asked, tmp_path / "out")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({**TUNED, "learning_rate": 0.01}, "names a learning_rate or tunes it"),
        ({"tuning": {**TUNED["tuning"], "seeds": [7]}, "learning_rate": None}, "needs two seeds"),
        (
            {"hypotheses": [{**DIFFERENCE, "metric": "acuracy"}]},
            "'Q1': unknown metric; did you mean 'accuracy'",
        ),
        (
            {"hypotheses": [{**DIFFERENCE, "metric": {"steps_to": {"bits": -1}}}]},
            "'Q1': steps_to takes bits above 0",
        ),
        (
            {"hypotheses": [{**DIFFERENCE, "metric": {"steps_to": {"bits": 2.5}}}]},
            "needs 2 evaluations or more",
        ),
        ({"excluded": {"synthetic:copy/linear/9": "why"}}, "did you mean 'synthetic:copy/linear/"),
        ({"excluded": {"synthetic:copy/linear/1": ""}}, "names of runs and reasons"),
        ({"metrics": ["acc"]}, "unknown metric; did you mean 'accuracy'"),
        ({"failed_runs": "ignored"}, "unknown failed_runs"),
    ],
)
def test_what_cannot_decide_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)


def test_arms_have_training_fields_of_their_own_which_are_declared(made, tmp_path):
    arms = {**STUDY["arms"], "linear": {**STUDY["arms"]["linear"], "training": {"batch_size": 2}}}
    with pytest.raises(InputError, match="differ in \\['mechanism', 'batch_size'\\]"):
        study(arms=arms)
    declared = {**DIFFERENCE, "differ_in": ["mechanism", "batch_size"]}
    asked = study(arms=arms, hypotheses=[declared])
    assert Study.from_dict(asked.to_dict()) == asked
    records = go(asked, tmp_path)
    assert {r["arm"]: r["batch_size"] for r in records} == {"softmax": 4, "linear": 2}
    arms["linear"] = {**arms["linear"], "training": {"rate": 3}}
    with pytest.raises(InputError, match="unknown training field of the arm 'linear'"):
        study(arms=arms)
    arms["linear"] = {**arms["linear"], "training": {"optimizer": "sgd"}}
    with pytest.raises(InputError, match="unknown optimizer. Valid: adamw, muon"):
        study(arms=arms)
    arms["linear"] = {**arms["linear"], "training": {"learning_rate": 0.1}}
    declared = {**DIFFERENCE, "differ_in": ["mechanism", "learning_rate"]}
    with pytest.raises(InputError, match="'linear' names its learning_rate or tunes it"):
        Study.from_dict({**TUNED, "arms": arms, "hypotheses": [declared]})


def test_a_budget_gives_arms_their_steps(made, tmp_path):
    arms = {**STUDY["arms"], "linear": {**STUDY["arms"]["linear"], "training": {"batch_size": 2}}}
    declared = {**DIFFERENCE, "differ_in": ["mechanism", "batch_size"]}
    asked = study(arms=arms, hypotheses=[declared], budget="flops", steps=10)
    plan = {row["arm"]: row for row in amounts.planned(amounts.with_steps(asked, asked))}
    assert plan["softmax"]["steps"] == 10 and 18 <= plan["linear"]["steps"] <= 24
    ratio = plan["linear"]["flops"] / plan["softmax"]["flops"]
    assert abs(ratio - 1) < 0.03
    go(asked, tmp_path)
    assert "at equal FLOPs (" in said(tmp_path)[0]
    # Three batches of 4 × 9 scored tokens an epoch.
    assert amounts.tokens(asked, "synthetic:copy", asked.arms["softmax"], 7) == (7 * 36, 7 * 36)


def test_equal_tokens_are_those_of_all_seeds(made):
    """Seeds cut the texts at other places, and short runs see few of them."""
    small = {**STUDY["arms"]["linear"], "training": {"batch_size": 2}}
    arms = {"softmax": STUDY["arms"]["softmax"], "small": small}
    declared = {**DIFFERENCE, "arms": ["small", "softmax"]}
    declared |= {"differ_in": ["mechanism", "batch_size"]}
    varying = {"budget": "scored_tokens", "steps": 8, "hypotheses": [declared], "arms": arms}

    def scored_at_random(*key):
        one = made_splits(key[3])
        draws = np.random.default_rng(key[5]).random((20, key[3], 9)) < 0.5
        train = [(*one.valid[0][:2], weight) for weight in draws]
        return dataclasses.replace(one, train=train)

    made.setattr(amounts, "_load", scored_at_random)
    asked = study(**varying)
    settled = amounts.with_steps(asked, asked)
    source = "synthetic:copy"

    def scored(label, steps):
        arm = settled.arms[label]
        each = [amounts.tokens(settled, source, arm, steps, seed)[1] for seed in settled.seeds]
        return np.mean(each)

    steps = {label: settled.steps_of(arm, source) for _, label, arm in settled.runs()}
    wanted = scored("softmax", 8)
    off = {steps: abs(scored("small", steps) - wanted) for steps in range(1, 40)}
    assert steps == {"softmax": 8, "small": min(off, key=off.get)}


def test_what_is_not_equal_is_said(made, tmp_path):
    class Trainer(Made):
        def run(self, *arguments):
            linear = self.arm.overrides.get("mechanism") == "linear"
            return {**super().run(*arguments), "flops": 3e9 if linear else 4e9, "tokens_seen": 10}

    made.setattr(runner_module, "Trainer", Trainer)
    records = go(study(), tmp_path)
    note = "At equal steps these are not equal: FLOPs (linear 3e+09, softmax 4e+09)."
    assert said(tmp_path)[0].endswith(note)
    for record in records:  # what failed does not change with which run the others are compared
        record["tokens_seen"] = 10 + record["seed"]
        record["status"] = "nan" if (record["arm"], record["seed"]) == ("linear", 4) else "finished"
    (verdict,) = draw(study().to_dict(), records)
    assert "FLOPs" in str(verdict) and "tokens seen" not in str(verdict)
    records = go(study(), tmp_path)
    table = Results(records, tmp_path).table()
    assert dict(zip(table["arm"], table["flops"], strict=True)) == {"softmax": 4e9, "linear": 3e9}
    assert list(table["tokens_seen"]) == [10, 10] and table["steps"].tolist() == [2, 2]


def test_a_run_is_excluded_by_name_with_a_reason(made, tmp_path):
    go(study(seeds=6), tmp_path)
    excluded = {"synthetic:copy/linear/2": "its machine failed"}
    go(study(seeds=6, excluded=excluded), tmp_path)
    assert "5 paired seeds" in said(tmp_path)[0]
    late = "was asked when its result was there"
    assert f"seed 2 is excluded (its machine failed), which {late}." in said(tmp_path)[0]
    assert f"its machine failed; this {late}" in report(tmp_path).read_text()
    Made.made.clear()
    go(study(seeds=6, excluded=excluded), tmp_path / "new")
    assert (True, 2) not in Made.made and len(Made.made) == 11
    assert "5 paired seeds" in said(tmp_path / "new")[0]
    assert "linear: seed 2 is excluded (its machine failed)." in said(tmp_path / "new")[0]
    page = report(tmp_path / "new").read_text()
    assert "its machine failed" in page and "study is incomplete" not in page


def test_failed_runs_may_be_left_out(made, tmp_path):
    class Trainer(Made):
        def run(self, seed, *arguments):
            record = super().run(seed, *arguments)
            return {**record, "status": "nan", "bits": None} if seed == 3 else record

    made.setattr(runner_module, "Trainer", Trainer)
    go(study(seeds=6), tmp_path / "strict")
    assert (
        "undecided, since runs failed or stalled; the others alone: confirmed"
        in said(tmp_path / "strict")[0]
    )
    go(study(seeds=6, failed_runs="left out"), tmp_path / "lenient")
    assert ": confirmed, higher (" in said(tmp_path / "lenient")[0]
    assert (
        "Failed runs: seed 3 of linear diverged; seed 3 of softmax" in said(tmp_path / "lenient")[0]
    )


def test_a_study_stops_after_its_minutes_and_goes_on(made, tmp_path):
    now = iter(range(0, 10_000, 60))  # a minute at each question
    made.setattr(runner_module, "Clock", lambda minutes: Clock(minutes, lambda: next(now)))
    records = run(study(), tmp_path, progress=False, at_once=1, minutes=9)
    assert 0 < len(records) < 10 and said(tmp_path) == []
    made.setattr(runner_module, "Clock", Clock)
    assert len(go(study(), tmp_path)) == len(Made.made) == 10
    assert len(said(tmp_path)) == 1


def test_an_edited_record_is_detected(made, tmp_path):
    go(study(), tmp_path)
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"bits": 3.0,', '"bits": 2.0,'))
    with pytest.raises(InputError, match="records stay what was written.*line 1") as error:
        go(study(), tmp_path)
    assert "\n" not in str(error.value)
    lines = [json.loads(line) for line in whole.splitlines()]
    older = [{k: v for k, v in line.items() if k != "checksum"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*older[:3], *lines[3:]]))
    assert len(go(study(), tmp_path)) == 10  # older records have none
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:3], *older[3:]]))
    with pytest.raises(InputError, match="line 4"):
        read(tmp_path)


def test_metrics_are_told_from_records():
    record = {"held_out": [[100, 3.0], [200, 2.0], [300, 1.8]], "bits": 1.8}
    metric = METRICS.get({"steps_to": {"bits": 2.5}})
    assert metric.value(record) == 150 and metric.about == "steps to 2.5 bits"
    assert METRICS.get({"steps_to": {"bits": 4}}).value(record) == 100
    assert METRICS.get({"steps_to": {"bits": 1}}).value(record) is None
    assert METRICS.get("area_under_curve").value(record) == pytest.approx(2.2)
    asked = study(evaluations=2, hypotheses=[{**DIFFERENCE, "metric": {"steps_to": {"bits": 1}}}])
    runs = [
        {"run": f"{arm}{seed}", "arm": arm, "data": "synthetic:copy", "seed": seed, **record}
        | {"status": "finished", "group": "g", "train_loss": [], "facts": {}}
        for arm in ("softmax", "linear")
        for seed in range(5)
    ]
    (verdict,) = draw(asked.to_dict(), runs)
    assert "linear against softmax in steps to 1 bits" in str(verdict)
    assert "seeds 0, 1, 2, 3, 4 of linear have no steps to 1 bits" in str(verdict)


def test_a_wheel_says_its_commit(tmp_path, monkeypatch):
    (tmp_path / "_build.json").write_text('{"commit": "abc", "dirty": false}')
    assert built_from(tmp_path / "_build.json") == {"commit": "abc", "dirty": False}
    assert built_from(tmp_path / "none") == {"commit": None, "dirty": None}
    interface = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    plugin = types.ModuleType("hatchling.builders.hooks.plugin")
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("build_commit", root / "build_commit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hook = module.CommitHook()
    hook.root, data = str(root), {"force_include": {}}
    hook.initialize("standard", data)
    if shutil.which("git") is None or not (root / ".git").exists():
        assert data == {"force_include": {}}
        return
    ((written, place),) = data["force_include"].items()
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert place == "kzoo/_build.json"
    assert built_from(written)["commit"] == head.stdout.strip()
    shutil.rmtree(Path(written).parent)


def test_the_page_shows_verdicts_on_every_metric(made, tmp_path):
    made.setattr(Made, "changes", {"held_out": [[1, 5.0], [2, 3.0]]})
    metrics = [{"steps_to": {"bits": 4}}, "area_under_curve", "bits"]
    asked = [{**DIFFERENCE, "name": f"M{i}", "metric": each} for i, each in enumerate(metrics)]
    go(study(evaluations=2, hypotheses=asked), tmp_path)
    page = report(tmp_path).read_text()
    assert "linear against softmax in steps to 4 bits" in page and "in area under curve" in page


def test_a_plan_tells_what_seeds_detect(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    asked = Study.from_dict({**TUNED, "hypotheses": [DIFFERENCE, EQUAL]})
    made.setattr(planning.prediction, "predict", lambda *arguments: Prediction(2.0, 22, 1, {}))
    blind = planning.plan(asked, tmp_path)
    assert blind.tuning_runs == 12 and not list(tmp_path.iterdir())
    assert "5 paired seeds see 1.68 times the standard deviation" in str(blind)
    go(asked, tmp_path)
    known = planning.plan(asked, tmp_path)
    assert known.tuning_runs == 0 and known.effects["Q1"]["spread"] == pytest.approx(
        np.std(NOISE[:5], ddof=1)
    )
    assert json.loads(json.dumps(known.to_dict()))["effects"]["Q1"]["unit"] == "bits"


@pytest.mark.slow
def test_a_real_study_ends_in_a_verdict(tmp_path):
    """In processes of their own, which import what the study imports."""
    asked = study(imports=["kzoo.masks"], hypotheses=[EQUAL])
    records = run(asked, tmp_path, progress=False, at_once=2)
    assert len(records) == 10
    assert all(record["learning_rate"] == 0.003 for record in records)
    assert "5 paired seeds; untuned, rate 0.003" in said(tmp_path)[0]
