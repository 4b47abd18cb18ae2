"""Studies that choose learning rates and other fields, on made-up records."""

import json

import pytest
from asked_study import (
    DIFFERENCE,
    EQUAL,
    TUNED,
    Made,
    go,
    made_splits,
    rates,
    said,
    study,
    tuned_by,
    without_training,
)

from kzoo.errors import InputError
from kzoo.studies import Study, amounts, report, run, tuning
from kzoo.studies import runner as runner_module
from kzoo.studies.records import read_tuning
from kzoo.studies.retuning import pack
from kzoo.studies.tuning import losses_by_rate


@pytest.fixture
def made(monkeypatch):
    return without_training(monkeypatch)


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


@pytest.mark.parametrize(
    "edge, inner, rate", [(0.03, 0.01, 0.09), (0.003, 0.01, 0.0009), (0.01, 1e6, 0.001)]
)
def test_a_grid_is_widened_by_a_factor_of_ten_at_most(edge, inner, rate):
    assert tuning._beyond(edge, inner) == rate


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
    changed = {"sha256": "cd"}
    monkeypatch.setattr(amounts, "_load", lambda *key: made_splits(key[3], changed))
    made.setattr(Made, "changes", {"facts": {"sha256": "cd", "bigram_entropy": 3.5}})
    Made.made.clear()
    go(asked, tmp_path / "third")
    assert len(Made.made) == 22
    assert not any("reused_from" in run for run in read_tuning(tmp_path / "third"))
    missing = {**TUNED, "tuning": {**TUNED["tuning"], "records": "nowhere.jsonl"}}
    with pytest.raises(InputError, match="a file beside the study's, or one of kzoo's own"):
        go(Study.from_dict(missing), tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()


def test_tuning_runs_of_another_text_choose_no_rate(made, tmp_path, monkeypatch):
    facts = {"source": "book.txt", "sha256": "ab", "row_length": 64, "bigram_entropy": 3.5}
    monkeypatch.setattr(amounts, "_load", lambda *key: made_splits(key[3], facts))
    made.setattr(runner_module, "Trainer", tuned_by([0.01, 0.01]))
    made.setattr(Made, "changes", {"facts": facts})
    go(Study.from_dict(TUNED), tmp_path / "first")
    pack(tmp_path / "first", tmp_path / "mine.jsonl")
    (tmp_path / "study.json").write_text(
        json.dumps({**TUNED, "tuning": {**TUNED["tuning"], "records": "mine.jsonl"}})
    )
    for number, change in enumerate(({}, {"sha256": "cd"}, {"row_length": 128})):
        changed = {**facts, **change}
        monkeypatch.setattr(amounts, "_load", lambda *key, it=changed: made_splits(key[3], it))
        made.setattr(Made, "changes", {"facts": changed})
        Made.made.clear()
        go(Study.from_json(tmp_path / "study.json"), tmp_path / str(number))
        assert len(Made.made) == (22 if change else 10)


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
