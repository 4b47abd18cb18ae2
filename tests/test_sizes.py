"""Studies at another size and of another length, and the hours that they would take on TPUs."""

import json
import re

import keras
import pytest

from kzoo import cli
from kzoo.errors import InputError
from kzoo.studies import QUICK, Study, sizes
from kzoo.studies.folder import as_begun, check_directory
from kzoo.studies.records import STUDY_FILE

GRID = [0.001, 0.01]
STUDY = {
    "name": "widths-nano",
    "description": "Is it the width?",
    "data": ["synthetic:copy,count=64"],
    "steps": 300,
    "seeds": 5,
    "batch_size": 4,
    "valid": 0.2,
    "arms": {
        "GPT": {"preset": "gpt_nano", "overrides": {"objective": "prefix_lm"}},
        "wide": {
            "preset": "gpt_nano",
            "overrides": {"objective": "prefix_lm", "hidden_dim": 96, "intermediate_dim": 384},
        },
        "T5": {
            "preset": "t5_nano",
            "overrides": {"head_dim": 8, "kv_heads": 2, "decoder_layers": 4, "num_layers": 2},
            "training": {"warmup": 0.2},
        },
    },
    "tuning": {
        "seeds": [7, 8],
        "grid": {"learning_rate": GRID},
        "arms": {"T5": {"learning_rate": [0.002, 0.02], "schedule": ["cosine", "wsd"]}},
    },
    "hypotheses": [
        {"name": "width", "kind": "difference", "arms": ["wide", "GPT"], "sign": "-"}
        | {"differ_in": ["hidden_dim", "intermediate_dim", "head_dim"]}
    ],
}


def study(**changes):
    return Study.from_dict({**STUDY, **changes})


def test_arms_take_the_size_and_overrides_keep_their_ratio_to_it():
    given = study(excluded={"synthetic:copy,count=64/GPT/3": "a crash"})
    small = given.at(size="small", steps=2000)
    assert small.name == "widths-small-2000-steps" and small.steps == 2000
    assert small.description == (
        "widths-nano at small size in place of nano, 2,000 steps in place of 300. "
        "As it was written: Is it the width?"
    )
    assert [arm.preset for arm in small.arms.values()] == ["gpt_small", "gpt_small", "t5_small"]
    wide, t5 = (small.arms[label].config(0) for label in ("wide", "T5"))
    assert (wide["hidden_dim"], wide["intermediate_dim"]) == (768, 3072)
    assert (t5["head_dim"], t5["kv_heads"]) == (32, 4)  # half of the size's 64 and of its 8
    assert (t5["num_layers"], t5["decoder_layers"]) == (10, 20)
    assert {config["max_sequence_length"] for config in (wide, t5)} == {512}
    assert small.tuning.grid == {"learning_rate": (0.00013, 0.0013)}
    assert small.tuning.of("T5") == {
        "learning_rate": (0.00025, 0.0025),
        "schedule": ("cosine", "wsd"),
    }
    assert small.hypotheses == given.hypotheses and small.seeds == given.seeds
    assert small.arms["T5"].training == {"warmup": 0.2} and not small.excluded
    said = sizes.changes(given, small)
    assert "wide: hidden_dim 96 becomes 768, in its ratio to the size's" in said
    assert "the grid of rates 0.001, 0.01 becomes 0.00013, 0.0013, by the width" in said
    assert len(said) == 2 + 4 + 2  # of the two arms, and of the two grids
    assert Study.from_dict(small.to_dict()) == small


def test_rates_that_are_given_follow_the_width():
    fields = {name: value for name, value in STUDY.items() if name != "tuning"}
    arms = {**STUDY["arms"], "T5": {"preset": "t5_nano", "training": {"learning_rate": 0.004}}}
    tiny = Study.from_dict({**fields, "arms": arms, "learning_rate": 0.003}).at(size="tiny")
    assert tiny.learning_rate == 0.0015 and tiny.steps == 300
    assert tiny.rate(tiny.arms["T5"]) == 0.002
    left_open = Study.from_dict(fields).at(size="tiny")
    assert left_open.learning_rate is None and left_open.rate(left_open.arms["GPT"]) == 0.0031


def test_the_size_and_steps_that_it_has_change_nothing():
    given = study()
    assert given.at(size="nano", steps=300) == given.at() == given
    assert given.at(steps=10).name == "widths-nano-10-steps"


def test_a_file_of_tuning_records_is_still_found():
    quick = Study.from_json(QUICK).at(size="base")
    assert quick.name == "quick-base" and quick.tuning.records_file().is_file()


def test_a_family_of_ones_own_takes_a_size(tmp_path):
    family = {"config": {"mask": "causal", "stack": "single", "objective": "causal_lm"}}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(family))
    fields = {"arms": {"mine": {"preset": f"{file}:nano"}}, "data": "pydoc", "steps": 3}
    mine = Study.from_dict(fields).at(size="1b")
    assert mine.arms["mine"].preset == f"{file}:1b"
    assert mine.arms["mine"].config(0)["hidden_dim"] == 2048
    family["config"]["num_layers"] = 3
    file.write_text(json.dumps(family))
    with pytest.raises(InputError, match="sets num_layers itself, at every size"):
        Study.from_dict(fields).at(size="small")


@pytest.mark.parametrize(
    ("arms", "size", "said"),
    [
        ({"a": "gpt_nano"}, "tinny", "unknown size; did you mean 'tiny'?"),
        ({"a": "gpt_nano", "b": "gpt_tiny"}, "small", "of one size.* nano (a), tiny (b)"),
        (
            {"a": {"preset": "gpt_tiny", "overrides": {"num_layers": 3}}},
            "nano",
            "the arm 'a' sets num_layers to 3 where its size has 4, .* no whole number; 2 is near",
        ),
    ],
)
def test_what_takes_no_size_is_refused_in_one_line(arms, size, said, tmp_path, capsys):
    file = tmp_path / "study.json"
    file.write_text(json.dumps({"data": "pydoc", "steps": 3, "arms": arms}))
    assert cli.main(["compare", str(file), "--size", size]) == 2
    error = capsys.readouterr().err
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), error) and error.count("\n") == 1


def test_a_folder_of_another_size_is_not_gone_on_with(tmp_path):
    (tmp_path / STUDY_FILE).write_text(json.dumps(study().at(size="tiny").to_dict()))
    check_directory(as_begun(study().at(size="tiny"), tmp_path), tmp_path)
    with pytest.raises(InputError, match='another study .*"gpt_tiny" there and "gpt_small" here'):
        check_directory(as_begun(study().at(size="small"), tmp_path), tmp_path)


# Hours ------------------------------------------------------------------------------------------


on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX compiles for TPUs")
STEP = {"fits": True, "flops": {"seconds": 0.01}, "roofline_seconds": 0.02, "dtype": "float32"}
STEP |= {"parameters": 20_000_000, "seconds": {"trace": 20.0, "compile": 40.0}}


@pytest.fixture
def compiled(monkeypatch):
    """The configs that were compiled, by a compiler that makes up what a step takes."""
    from kzoo.studies import on_tpu

    seen, made = [], dict(STEP)

    def step_of_a_chip(config, chip, batch, **how):
        seen.append((config, chip, batch, how))
        return made

    monkeypatch.setattr(on_tpu, "step_of_a_chip", step_of_a_chip)
    monkeypatch.setattr(on_tpu, "_spectrum", lambda config, known: 5.0)
    return seen, made


@on_jax
def test_hours_are_those_of_all_runs_each_on_a_chip(compiled):
    from kzoo.studies import on_tpu

    found = on_tpu.hours(study(), "v5e:2x2", dtype="float32")
    seen, _ = compiled
    assert [config["hidden_dim"] for config, *_ in seen] == [64, 96, 64]
    assert {(chip, batch) for _, chip, batch, _ in seen} == {("v5e", 4)}
    # Two rates, of T5 with two schedules, on two seeds; and five seeds of each arm.
    assert (found.tuning_runs, found.runs, found.chips) == (4 + 4 + 8, 16 + 15, 4)
    step = 0.02 / on_tpu.OF_ROOFLINE  # more than Python takes for four chips
    run = found.programs[0]["run"]
    assert run == pytest.approx(300 * step + 5 + 5 * 3 * step / 3, rel=0.05)
    assert 31 / 4 * run <= 3600 * found.hours < (31 / 4 + 5) * run  # a job is five runs at most
    words = str(found)
    assert "hours on 4 chips (v5e:2x2)" in words and "31 runs, 16 of them to choose" in words
    assert f"{on_tpu.OF_ROOFLINE:.0%} of its roofline" in words
    assert json.loads(json.dumps(found.to_dict()))["runs"] == 31
    quick = on_tpu.hours(study(), "v5e:4x4", quick=True)
    assert quick.programs[0]["step"] == pytest.approx(16 * on_tpu.CALL_SECONDS)  # Python's turn
    assert "--ray" in str(quick) and "products at the peak" in str(quick)


@on_jax
def test_a_study_that_does_not_fit_has_no_hours(compiled, capsys, tmp_path):
    _, made = compiled
    made.update({"fits": False, "over": 2**30})
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY))
    assert cli.main(["compile", str(file), "--topology", "v5e:1x1", "--size", "1b"]) == 0
    out = capsys.readouterr().out
    assert "does not fit" in out and "widths-1b: no hours" in out
    assert "T5: needs 1.0 GiB more than a chip has" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("STUDY --topology v5e:2x4 --batch 8", "each has one chip; .* Received: --batch"),
        ("STUDY --topology v5e:2x4 --set num_layers=1", "Received: --set"),
        ("STUDY --topology v5p:2x2x1", "compiled for v5e and v6e"),
        ("STUDY --topology v5e:2x3", "unknown topology"),
        ("STUDY --topology v5e:2x4 --size smal", "unknown size; did you mean 'small'"),
        ("gpt_nano --topology v5e:2x4 --batch 8 --size tiny", "are of a study"),
        ("gpt_nano --topology v5e:2x4", "needs --batch"),
    ],
)
def test_what_compile_refuses(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    file = tmp_path / "study.json"
    file.write_text(json.dumps(STUDY))
    assert cli.main(["compile", *arguments.replace("STUDY", str(file)).split()]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1
