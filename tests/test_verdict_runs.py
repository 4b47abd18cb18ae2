"""Studies with hypotheses, from their files to their verdicts; mostly on made-up records."""

import hashlib
import json
import math
import sys

import numpy as np
import pytest

from kzoo.data.pipeline import Splits
from kzoo.errors import InputError
from kzoo.studies import Study, report, run
from kzoo.studies import amounts
from kzoo.studies import runner as runner_module
from kzoo.studies.evidence import arm_facts
from kzoo.studies.notebook import Results
from kzoo.studies.records import read, read_tuning
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
    assert page.index("Q1: confirmed") < page.index("What is held equal")
    assert "draws no verdicts" not in page and "+0.500 bits" in page


def test_seeds_can_be_added_which_is_said(made, tmp_path):
    go(study(), tmp_path)
    records = go(study(seeds=6), tmp_path)
    assert len(records) == 12 and len(Made.made) == 12
    (sentence,) = said(tmp_path)
    assert "6 paired seeds" in sentence and "Post hoc" not in sentence
    assert "Seeds were added after verdicts at 5 seeds, a look that the interval" in sentence
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
            {"tuning": {"seeds": [7, 8], "grid": {"batch_size": [4, 8]}}, "learning_rate": None},
            "chooses the learning_rate and no other field",
        ),
        ({"budget": "flops"}, "the budgets 'scored_tokens' and 'flops' are not there yet"),
        (
            {"hypotheses": [{**DIFFERENCE, "metric": "accuracy"}]},
            "unknown metric of the hypothesis",
        ),
    ],
)
def test_what_does_not_act_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)


@pytest.mark.slow
def test_a_real_study_ends_in_a_verdict(tmp_path):
    """In processes of their own, which import what the study imports."""
    asked = study(imports=["kzoo.masks"], hypotheses=[EQUAL])
    records = run(asked, tmp_path, progress=False, at_once=2)
    assert len(records) == 10
    assert all(record["learning_rate"] == 0.003 for record in records)
    assert "5 paired seeds; untuned, rate 0.003" in said(tmp_path)[0]
