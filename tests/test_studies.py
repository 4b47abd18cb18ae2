import dataclasses
import json
import os
import sys

import numpy as np
import pytest

import kzoo
from kzoo.errors import InputError
from kzoo.studies import QUICK, Study, bars, run
from kzoo.studies import runner as runner_module
from kzoo.studies.records import append, read
from kzoo.studies.study import measure
from kzoo.studies.workers import in_processes

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 36,
}
STUDY = {
    "name": "small",
    "arms": {
        "gpt": {"preset": "gpt_nano", "overrides": {**SMALL, "objective": "prefix_lm"}},
        "bert": {"preset": "bert_nano", "overrides": SMALL},
    },
    "data": ["synthetic:copy"],
    "seeds": 2,
    "steps": 4,
    "evaluations": 2,
    "batch_size": 4,
    "valid": 0.001,
}


def study(**changes):
    return Study.from_dict({**STUDY, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study") / "out"
    return directory, run(study(), directory, progress=False)


def without_clock(record):
    timed = ("seconds", "tokens_per_second", "provenance", "checksum")
    return {name: value for name, value in record.items() if name not in timed}


def test_the_quick_study_is_what_it_says():
    quick = Study.from_json(QUICK)
    assert quick.steps == 300 and len(quick.seeds) == 6 and len(quick.tuning.seeds) == 5
    assert quick.tuning.records_file().is_file()
    assert {hypothesis.question for hypothesis in quick.hypotheses} == {"Q1", "Q4", "Q5", "copying"}
    # Arms on one source differ in mask, mechanism, stack and objective, and in nothing else.
    for source in quick.data:
        configs = [arm.config(0) for arm in quick.arms.values() if source in arm.data]
        for config in configs:
            for field in ("mask", "mechanism", "stack", "objective"):
                del config[field]
        assert len(configs) > 3 and all(config == configs[0] for config in configs)
    assert Study.from_dict(quick.to_dict()) == quick


@pytest.mark.slow
def test_records_say_what_was_measured(finished):
    directory, records = finished
    assert [r["run"] for r in records] == [
        f"synthetic:copy/{arm}/{seed}" for arm in ("gpt", "bert") for seed in (0, 1)
    ]
    assert records == read(directory)[1]
    for record in records:
        assert record["status"] == "finished" and record["steps"] == 4
        assert len(record["train_loss"]) == 4
        assert [step for step, _ in record["held_out"]] == [2, 4]
        assert record["bits"] == record["held_out"][-1][1] > 0
        assert record["config"]["seed"] == record["seed"]
        assert len(record["spectrum"]) == 2  # heads of all layers
        origin = record["provenance"]
        assert origin["backend"] == "jax" and origin["versions"]["keras"]
        assert origin["kernels"] == ["dense"]
        assert origin["xla_flags"] == os.environ["XLA_FLAGS"]
        assert record["facts"]["sha256"]
    gpt, _, bert, _ = records
    assert gpt["group"] == "continuation on synthetic:copy"
    assert bert["measure"] == "bits per masked byte"
    assert not (directory / "checkpoints").exists()


def test_finished_runs_are_not_repeated(finished, monkeypatch):
    directory, records = finished
    monkeypatch.setattr(runner_module, "train", None)
    assert run(study(), directory, progress=False) == records


def test_a_log_without_a_terminal_has_a_line_for_each_run(capsys):
    with bars.Bars(True, runs=3, finished=1) as shown:
        shown.begin("copy/gpt/1", 300)
        shown.step("copy/gpt/1", 10, 3.2)
        shown.expect(2)
        shown.finished("copy/gpt/1")
    assert capsys.readouterr().err == "kzoo: 2 of 5 runs: copy/gpt/1\n"
    with bars.Bars(False, runs=3, finished=1) as shown:
        shown.begin("copy/gpt/1", 300)
        shown.finished("copy/gpt/1")
    assert capsys.readouterr().err == ""


def test_a_killed_study_goes_on_to_the_same_records(finished, monkeypatch, tmp_path):
    _, expected = finished

    class Killed(Exception):
        pass

    whole = runner_module.train
    calls = []

    def killed(*args, on_step, **kwargs):
        calls.append(1)

        def kill(step, loss):
            if len(calls) == 2 and step == 3:
                raise Killed
            on_step(step, loss)

        return whole(*args, on_step=kill, **kwargs)

    monkeypatch.setattr(runner_module, "train", killed)
    first = study(arms={"gpt": STUDY["arms"]["gpt"]})  # which knows nothing of another arm
    with pytest.raises(Killed):
        run(first, tmp_path, progress=False)
    assert len(read(tmp_path)[1]) == 1
    monkeypatch.setattr(runner_module, "train", whole)
    resumed = run(first, tmp_path, progress=False)
    assert list(map(without_clock, resumed)) == list(map(without_clock, expected[:2]))


@pytest.mark.slow
def test_programs_in_processes_of_their_own_give_the_same_records(finished, tmp_path, monkeypatch):
    _, expected = finished
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # nor do the processes load it then
    records = run(study(), tmp_path, progress=False, at_once=2)
    assert list(map(without_clock, records)) == list(map(without_clock, expected))
    assert read(tmp_path)[1] == records


def test_a_process_that_fails_stops_the_study(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    jobs = [("synthetic:copy", "no such arm", [0])]
    with pytest.raises(RuntimeError, match="KeyError: 'no such arm'"):
        in_processes(runner_module.run_program, study(), tmp_path, jobs, print, 1)


@pytest.mark.slow
def test_a_nan_stops_its_arm_and_not_the_others(monkeypatch, tmp_path):
    whole = runner_module.train

    def poisoned(program, *args, **kwargs):
        if not program.model.objective.next_token:
            variable = program.model.trainable_variables[0]
            variable.assign(variable * float("nan"))
        return whole(program, *args, **kwargs)

    monkeypatch.setattr(runner_module, "train", poisoned)
    arms = {"bert": STUDY["arms"]["bert"], "gpt": STUDY["arms"]["gpt"]}
    records = run(study(arms=arms, seeds=1), tmp_path, progress=False)
    assert [record["status"] for record in records] == ["nan", "finished"]
    assert records[0]["bits"] is None and records[0]["train_loss"] == []
    assert "The loss became NaN in 1 run" in kzoo.studies.report(tmp_path).read_text()
    assert read(tmp_path)[1] == records


def test_a_torn_line_is_cut_off(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(study().to_dict()))
    path = tmp_path / "results.jsonl"
    line = {"run": "r", "data": "synthetic:copy", "arm": "gpt", "seed": 0}
    append(tmp_path, line)
    path.write_bytes(path.read_bytes() + b'{"run": "to')
    append(tmp_path, {**line, "run": "s"})
    assert [record["run"] for record in read(tmp_path)[1]] == ["r", "s"]


@pytest.mark.slow
def test_another_studys_folder_is_refused(finished, tmp_path):
    directory, _ = finished
    before = sorted((path, path.stat().st_mtime_ns) for path in directory.iterdir())
    with pytest.raises(InputError, match="holds another study"):
        run(study(steps=5), directory, progress=False)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in directory.iterdir())
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        run(study(), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "positive integer.*such as 1"),
        ({"steps": "many"}, "positive integer"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": [-1]}, "seed"),
        ({"learning_rate": -1}, "positive number"),
        ({"data": 3}, "a source or a list"),
        ({"arms": {"a": {"preset": "gpt_nan"}}}, "did you mean 'gpt_nano'"),
        ({"arms": {"a": {"preset": "gpt_nano", "overrides": {"maks": 1}}}}, "did you mean 'mask'"),
        ({"arms": {"a": {"preset": "gpt_nano", "data": ["pydoc"]}}}, "Received: 'pydoc'"),
        ({"arms": {"a": {"preset": "gpt_nano", "overrides": {"seed": 1}}}}, "seeds are the study"),
    ],
)
def test_bad_studies_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        study(**changes)
    assert "Received" in str(error.value) and "\n" not in str(error.value)


def test_a_study_that_names_no_learning_rate_takes_each_arms_by_its_width(tmp_path):
    fields = {name: value for name, value in STUDY.items() if name != "learning_rate"}
    arms = {"nano": "gpt_nano", "tiny": "gpt_tiny", "unilm": "unilm_nano"}
    made = Study.from_dict({**fields, "arms": arms})
    assert [made.rate(arm) for arm in made.arms.values()] == [0.0063, 0.0031, 0.0063]
    assert Study.from_dict(made.to_dict()) == made
    # One that was begun when the default was another goes on with that.
    (tmp_path / "study.json").write_text(json.dumps({**made.to_dict(), "learning_rate": 0.01}))
    begun = runner_module.as_begun(made, tmp_path)
    assert begun.learning_rate == 0.01 and made.learning_rate is None
    runner_module.check_directory(begun, tmp_path)


NO_VALUES = [None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**30, "", "7", [], {}, [[]]]
NO_VALUES += [{"a": 1}, "a\nb", "../../evil", ".", "x" * 500]
# Which of them a field takes.
TAKEN = {
    "learning_rate": [None, 1.5, 10**30],
    "packing": [None],
    "warmup": [0],
    "examples": [True],
    "name": ["7"],
    "description": ["", "7", "a\nb", "../../evil", ".", "x" * 500],
    "data": ["7", "a\nb", "../../evil", ".", "x" * 500],
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Study)])
def test_every_field_takes_its_kind_of_value_and_no_other(field):
    arms = {"gpt": "gpt_nano"}
    for value in NO_VALUES:
        if any(value is taken for taken in TAKEN.get(field, [])):
            Study.from_dict({**STUDY, "arms": arms, field: value})
            continue
        with pytest.raises(InputError) as error:
            Study.from_dict({**STUDY, "arms": arms, field: value})
        message = str(error.value)
        assert "\n" not in message and "Received: " in message and len(message) < 500


def test_numpys_numbers_are_taken_and_written_as_json():
    numbers = {"steps": np.int64(3), "batch_size": np.int32(4), "seeds": np.arange(2)}
    numbers |= {"learning_rate": np.float32(0.5), "valid": np.float64(0.25)}
    overrides = {"num_layers": np.int64(1), "dropout": np.float32(0.5), "use_bias": np.bool_(False)}
    overrides |= {"mask": {"block": {"size": np.int8(4)}}, "objective": "masked_lm"}
    arms = {"gpt": {"preset": "bert_nano", "overrides": overrides}}
    made = study(**numbers, arms=arms)
    again = Study.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made and made.seeds == (0, 1)
    config = json.loads(json.dumps(made.arms["gpt"].config(0)))
    assert config["mask"] == {"block": {"size": 4}} and config["dropout"] == 0.5
    assert json.dumps([kzoo.masks.block(np.int64(4)).get_config()]) == '[{"block": {"size": 4}}]'


def test_unusable_data_write_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="synthetic"):
        run(study(data=["synthetic:cpy"]), out, progress=False)
    assert not out.exists()


def test_measures_name_their_group():
    assert measure("causal_lm", "x") == ("bits per byte", "every next byte on x")
    assert measure({"prefix_lm": {"score": "all"}}, "x") == measure("prefix_lm", "x")


def test_compare_in_a_notebook(tmp_path):
    results = kzoo.compare(
        {"softmax": ("gpt_nano", SMALL), "linear": ("gpt_nano", {**SMALL, "mechanism": "linear"})},
        data="synthetic:copy",
        seeds=1,
        steps=2,
        directory=tmp_path / "out",
        progress=False,
        batch_size=4,
        valid=0.001,
        evaluations=1,
    )
    assert list(results.table()["arm"]) == ["softmax", "linear"]
    assert results.plot().alternative.startswith("every next byte on synthetic:copy: Held-out")
    assert "<html" in results.report().read_text()
    assert repr(results) == f"Results(2 arms, 2 runs, directory={str(tmp_path / 'out')!r})"
    assert "<td>linear</td>" in results._repr_html_() and "2 runs in" in results._repr_html_()
    assert results.to_csv().count("\n") == 3 and results.to_csv(tmp_path / "runs.csv") is None
    assert (tmp_path / "runs.csv").read_text() == results.to_csv()
    with pytest.raises(InputError, match="arms are"):
        kzoo.compare("gpt_nano")


def test_a_name_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path):
    name = "a\u2028b\x85c"
    about = {"name": "lines", "description": "", "data": ["x"], "arms": {name: {}}, "seeds": [0]}
    about |= {"steps": 1, "batch_size": 1, "learning_rate": 0.1}
    (tmp_path / "study.json").write_text(json.dumps(about))
    for run_name in ("1", "2"):
        append(tmp_path, {"run": run_name, "data": "x", "arm": name, "seed": 0})
    assert [record["arm"] for record in read(tmp_path)[1]] == [name, name]
