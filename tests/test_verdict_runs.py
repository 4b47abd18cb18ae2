"""Studies with hypotheses, from their files to their verdicts; mostly on made-up records."""

import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from kzoo.data.pipeline import Splits
from kzoo.errors import InputError
from kzoo.studies import Study, amounts, planning, report, run
from kzoo.studies import runner as runner_module
from kzoo.studies.clock import Clock
from kzoo.studies.evidence import arm_facts, draw
from kzoo.studies.metrics import METRICS
from kzoo.studies.notebook import Results
from kzoo.studies.prediction import Prediction
from kzoo.studies.provenance import built_from
from kzoo.studies.records import read, read_tuning
from kzoo.studies.retuning import pack
from kzoo.studies.tuning import losses_by_rate

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 16,
    "max_sequence_length": 36,
}
DIFFERENCE = {"name": "Q1", "kind": "difference", "arms": ["linear", "softmax"], "sign": "+"}
DIFFERENCE |= {"differ_in": ["mechanism"]}
EQUAL = {**DIFFERENCE, "name": "Q2", "kind": "equivalence", "margin": 0.2}
del EQUAL["sign"]
STUDY = {
    "name": "asks",
    "arms": {
        "softmax": {"preset": "gpt_nano", "overrides": SMALL},
        "linear": {"preset": "gpt_nano", "overrides": {**SMALL, "mechanism": "linear"}},
    },
    "data": ["synthetic:copy"],
    "seeds": 5,
    "steps": 2,
    "evaluations": 1,
    "batch_size": 4,
    "valid": 0.001,
    "learning_rate": 0.003,
    "hypotheses": [DIFFERENCE],
}
NOISE = [0.01, -0.02, 0.005, 0.015, -0.01, 0.0, 0.008, -0.008, 0.012, -0.012]


def study(**changes):
    return Study.from_dict({**STUDY, **changes})


class Made:
    """In place of `runner.Trainer`: records that are made up, with a gap of 0.5 bits."""

    gap = 0.5
    made = []
    changes = {}

    def __init__(self, study, source, arm):
        self.study, self.source, self.arm = study, source, arm

    def run(self, seed, path, on_step):
        linear = self.arm.overrides.get("mechanism") == "linear"
        Made.made.append((linear, seed))
        bits = 3.0 + seed / 100 + linear * (self.gap + NOISE[seed % 10])
        return {
            "group": f"every next byte on {self.source}",
            "measure": "bits per byte",
            "status": "finished",
            "steps": 2,
            "train_loss": [3.0, 2.9],
            "held_out": [[2, bits]],
            "bits": bits,
            "scored_tokens": 10,
            "parameters": 100,
            "seconds": 1.0,
            "tokens_per_second": 10.0,
            "learning_rate": self.study.rate(self.arm, self.source),
            "batch_size": self.study.training(self.arm, self.source)["batch_size"],
            "training": {**self.study.training(self.arm, self.source), "steps": 2},
            "config": self.arm.config(seed),
            "overrides": self.arm.overrides,
            "spectrum": [],
            "facts": {"sha256": "ab", "unigram_entropy": 4.7, "bigram_entropy": 3.5},
            "provenance": {
                "commit": None,
                "dirty": None,
                "versions": {},
                "kernels": [],
                "processor": "EPYC",
                "started": "2026",
            },
            **self.changes,
        }


BATCH = {"padding_mask": np.ones((4, 9))}, np.zeros((4, 9)), np.ones((4, 9))
DATA = Splits([BATCH] * 3, [BATCH], {"sha256": "ab"})


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(runner_module, "Trainer", Made)
    monkeypatch.setattr(runner_module.control, "compared", lambda study: None)
    monkeypatch.setattr(amounts, "_load", lambda *key: DATA)
    amounts._counts.cache_clear()
    monkeypatch.setattr(Made, "made", [])
    return monkeypatch


def go(asked, directory):
    return run(asked, directory, progress=False, at_once=1)


def said(directory):
    return [
        verdict["text"]
        for verdict in json.loads((directory / "verdicts.json").read_text())["verdicts"]
    ]


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


def test_a_study_with_looks_stops_where_all_is_decided(made, tmp_path):
    records = go(study(seeds=10, looks=[5, 10]), tmp_path / "clear")
    assert len(records) == 10 and "97.5% interval" in said(tmp_path / "clear")[0]
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
    return {**run, "facts": {"bigram_entropy": 3.5}, "learning_rate": 0.01}


@pytest.mark.parametrize(
    "run, expected",
    [
        (curve(5, 4, 3, 2.5, 2.49), {}),
        (curve(5, 4, 3, 2.5, 2.4), {"still_falling": True}),
        (curve(5, 4, 3.9, 3.89, 3.89, bits=4.0), {"stalled": (0,), "above_bigram": True}),
        (curve(5, 4, 3.9, 3.89, 3.89, bits=4.0, data="synthetic:copy"), {}),
        (curve(5, 4, 3, 2.5, 2.49, bits=4.0), {"above_bigram": True}),
        ({**curve(5), "train_loss": [3.0, 2.0]}, {}),
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
    module.write_text("mechanisms = None\n")
    with pytest.raises(InputError, match="my_attention changed after the run"):
        go(asked, tmp_path / "out")


TUNED = {**STUDY, "tuning": {"seeds": [7, 8], "grid": {"learning_rate": [0.003, 0.01, 0.03]}}}
del TUNED["learning_rate"]


def tuned_by(best):
    """A made trainer whose bits grow with the distance of the rate from the best of its arm."""

    class ByRate(Made):
        def run(self, *arguments):
            record = super().run(*arguments)
            away = abs(math.log(record["learning_rate"] / best[len(self.arm.overrides) > 5]))
            return {**record, "bits": record["bits"] + away}

    return ByRate


def rates(records):
    return {record["arm"]: record["learning_rate"] for record in records}


def test_a_rate_that_suits_all_arms_is_shared(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.011]))
    asked = Study.from_dict(TUNED)
    records = go(asked, tmp_path)
    assert rates(records) == {"softmax": 0.01, "linear": 0.01}
    assert records[0]["rate_chosen"] == {
        "rate": 0.01,
        "grid": [0.003, 0.01, 0.03],
        "seeds": 2,
        "widened": 0,
        "at_edge": False,
        "shared": True,
    }
    tuning = read_tuning(tmp_path)
    assert len(tuning) == 12 and all(record["tuning"] for record in tuning)
    assert {record["arm"] for record in tuning} == {"softmax", "linear"}
    assert "; rate 0.01 chosen from {0.003, 0.01, 0.03} on 2 other seeds)." in said(tmp_path)[0]
    assert "leaves out the uncertainty of choosing the rates" in said(tmp_path)[0]
    page = report(tmp_path).read_text()
    assert "Loss against learning rate" in page and "learning rates chosen on other" in page
    count = len(Made.made)
    assert go(asked, tmp_path) == records and len(Made.made) == count


def test_a_hypothesis_that_came_after_tuning_is_post_hoc(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    go(Study.from_dict(TUNED), tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    go(Study.from_dict({**TUNED, "hypotheses": [DIFFERENCE, EQUAL]}), tmp_path)
    first, second = said(tmp_path)
    assert first.startswith("linear against") and second.startswith("Post hoc: linear against")


def test_arms_without_a_common_rate_take_their_own_and_grids_widen(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.09]))
    records = go(Study.from_dict(TUNED), tmp_path)
    assert rates(records) == {"softmax": 0.01, "linear": 0.09}
    count = len(Made.made)
    assert go(Study.from_dict(TUNED), tmp_path) == records and len(Made.made) == count
    choice = records[-1]["rate_chosen"]
    assert choice["grid"] == [0.003, 0.01, 0.03, 0.09, 0.27]
    assert choice["widened"] == 2 and not choice["at_edge"] and not choice["shared"]
    (sentence,) = said(tmp_path)
    assert "each arm its own: linear 0.09, softmax 0.01" in sentence
    assert "linear: the grid of rates was widened 2 times." in sentence


def test_a_best_rate_at_the_edge_of_a_wide_grid_is_named(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([3.0, 3.0]))
    records = go(Study.from_dict(TUNED), tmp_path)
    assert records[0]["rate_chosen"]["at_edge"] and records[0]["learning_rate"] == 0.27
    assert "the rate chosen, 0.27, is at the edge of its grid" in said(tmp_path)[0]


def test_arms_that_diverge_at_every_rate_do_not_share_one():
    runs = [
        {"data": "x", "arm": arm, "learning_rate": rate, "status": status, "bits": bits}
        for arm, status, bits in (("a", "nan", None), ("b", "finished", 3.0))
        for rate in (0.1, 0.2, 0.3)
    ]
    found = losses_by_rate(runs * 2)
    assert found["x", "a"][0.1] == (float("inf"), float("inf"))
    assert found["x", "b"][0.1] == (3.0, 0.0)


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


def both(field, values, **more):
    """The study, tuned over rates and another field."""
    grid = {"learning_rate": [0.003, 0.01, 0.03], field: values}
    return Study.from_dict({**TUNED, "tuning": {"seeds": [7, 8], "grid": grid}, **more})


def test_other_fields_are_tuned_beside_the_rate(made, tmp_path):
    class Trainer(tuned_by([0.01, 0.01])):
        def run(self, *arguments):
            record = super().run(*arguments)
            better = record["training"]["schedule"] == "wsd"
            return {**record, "bits": record["bits"] - 0.3 * better}

    made.setattr(runner_module, "Trainer", Trainer)
    records = go(both("schedule", ["cosine", "wsd"]), tmp_path)
    assert len(read_tuning(tmp_path)) == 2 * 2 * 3 * 2
    assert {record["training"]["schedule"] for record in records} == {"wsd"}
    others = records[0]["rate_chosen"]["others"]
    assert others == {
        "schedule": {"value": "wsd", "grid": ["cosine", "wsd"], "at_edge": False},
    }
    assert "schedule wsd chosen from {cosine, wsd})" in said(tmp_path)[0]
    assert losses_by_rate(read_tuning(tmp_path))["synthetic:copy", "softmax"][0.01][0] < 3.0
    records = go(both("batch_size", [2, 4]), tmp_path / "sizes")
    assert (
        records[0]["batch_size"] == 2
        and "batch_size chosen, 2, is at the edge" in said(tmp_path / "sizes")[0]
    )


def test_tuning_runs_are_reused_where_they_are_the_same(made, tmp_path, monkeypatch):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    go(Study.from_dict(TUNED), tmp_path / "first")
    assert pack(tmp_path / "first", tmp_path / "mine.jsonl") == 12
    with pytest.raises(InputError, match="is there already"):
        pack(tmp_path / "first", tmp_path / "mine.jsonl")
    assert "train_loss" not in (tmp_path / "mine.jsonl").read_text()
    (tmp_path / "study.json").write_text(
        json.dumps({**TUNED, "tuning": {**TUNED["tuning"], "records": "mine.jsonl"}})
    )
    asked = Study.from_json(tmp_path / "study.json")
    Made.made.clear()
    records = go(asked, tmp_path / "second")
    assert len(Made.made) == len(records) == 10 and rates(records)["linear"] == 0.01
    assert all(run["reused_from"] == "mine.jsonl" for run in read_tuning(tmp_path / "second"))
    (sentence,) = said(tmp_path / "second")
    assert "The runs that chose them were made before, on EPYC (mine.jsonl)." in sentence
    assert "Post hoc" not in sentence
    assert go(asked, tmp_path / "second") == records
    # Other data: all of them are made anew.
    changed = Splits(DATA.train, DATA.valid, {"sha256": "cd"})
    monkeypatch.setattr(amounts, "_load", lambda *key: changed)
    made.setattr(Made, "changes", {"facts": {"sha256": "cd", "bigram_entropy": 3.5}})
    Made.made.clear()
    go(asked, tmp_path / "third")
    assert len(Made.made) == 22
    assert not any("reused_from" in run for run in read_tuning(tmp_path / "third"))
    missing = {**TUNED, "tuning": {**TUNED["tuning"], "records": "nowhere.jsonl"}}
    with pytest.raises(InputError, match="a file beside the study's, or one of kzoo's own"):
        go(Study.from_dict(missing), tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()


def test_tuning_runs_travel_where_a_source_has_another_text(made, tmp_path, monkeypatch):
    """Python's documentation differs between versions of Python, and rates need not."""
    facts = {"source": "pydoc", "sha256": "ab", "row_length": 64, "bigram_entropy": 3.5}
    monkeypatch.setattr(amounts, "_load", lambda *key: Splits(DATA.train, DATA.valid, facts))
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    made.setattr(Made, "changes", {"facts": facts})
    go(Study.from_dict(TUNED), tmp_path / "first")
    pack(tmp_path / "first", tmp_path / "mine.jsonl")
    (tmp_path / "study.json").write_text(
        json.dumps({**TUNED, "tuning": {**TUNED["tuning"], "records": "mine.jsonl"}})
    )
    elsewhere = {**facts, "sha256": "cd", "train_rows": 9}
    monkeypatch.setattr(amounts, "_load", lambda *key: Splits(DATA.train, DATA.valid, elsewhere))
    made.setattr(Made, "changes", {"facts": elsewhere})
    Made.made.clear()
    go(Study.from_json(tmp_path / "study.json"), tmp_path / "second")
    assert len(Made.made) == 10
    (sentence,) = said(tmp_path / "second")
    assert (
        "made before, on EPYC (mine.jsonl), on another text, since this one follows the version "
        "of Python." in sentence
    )
    # The length of what a model sees is no matter of the text.
    longer = {**elsewhere, "row_length": 128}
    monkeypatch.setattr(amounts, "_load", lambda *key: Splits(DATA.train, DATA.valid, longer))
    Made.made.clear()
    go(Study.from_json(tmp_path / "study.json"), tmp_path / "third")
    assert len(Made.made) == 22


def test_tuning_is_made_anew(made, tmp_path):
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    asked = Study.from_dict(TUNED)
    go(asked, tmp_path)
    with pytest.raises(InputError, match="before the runs that use them"):
        run(asked, tmp_path, progress=False, at_once=1, retune=True)
    (tmp_path / "results.jsonl").write_text("")
    Made.made.clear()
    records = run(asked, tmp_path, progress=False, at_once=1, retune=True)
    assert len(Made.made) == 22
    assert len((tmp_path / "tuning-before.jsonl").read_text().splitlines()) == 12
    # Were its runs lost, others might choose another rate.
    (tmp_path / "tuning.jsonl").unlink()
    made.setattr(runner_module, "Trainer", tuned_by([0.003, 0.003]))
    with pytest.raises(InputError, match="choose other values than those of the run"):
        go(asked, tmp_path)
    assert len(records) == 10
    with pytest.raises(InputError, match="without a tuning"):
        run(study(), tmp_path / "untuned", progress=False, retune=True)


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


def test_what_is_not_equal_is_said(made, tmp_path):
    class Trainer(Made):
        def run(self, *arguments):
            linear = self.arm.overrides.get("mechanism") == "linear"
            return {**super().run(*arguments), "flops": 3e9 if linear else 4e9, "tokens_seen": 10}

    made.setattr(runner_module, "Trainer", Trainer)
    records = go(study(), tmp_path)
    note = "At equal steps these are not equal: FLOPs (linear 3e+09, softmax 4e+09)."
    assert said(tmp_path)[0].endswith(note)
    table = Results(records, tmp_path).table()
    assert dict(zip(table["arm"], table["flops"], strict=True)) == {"softmax": 4e9, "linear": 3e9}
    assert list(table["tokens_seen"]) == [10, 10] and table["steps"].tolist() == [2, 2]


def test_a_run_is_excluded_by_name_with_a_reason(made, tmp_path):
    go(study(seeds=6), tmp_path)
    excluded = {"synthetic:copy/linear/2": "its machine failed"}
    go(study(seeds=6, excluded=excluded), tmp_path)
    assert "5 paired seeds" in said(tmp_path)[0]
    assert "linear: seed 2 is excluded (its machine failed)." in said(tmp_path)[0]
    assert "its machine failed" in report(tmp_path).read_text()
    Made.made.clear()
    go(study(seeds=6, excluded=excluded), tmp_path / "new")
    assert (True, 2) not in Made.made and len(Made.made) == 11
    assert "5 paired seeds" in said(tmp_path / "new")[0]
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
        "undecided, since runs failed; the finished runs alone: confirmed"
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
