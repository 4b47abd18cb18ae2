"""What a study holds equal, looked at in the programs and the arms themselves."""

import jax
import numpy as np
import pytest
from asked_study import SMALL

from kzoo.errors import InputError
from kzoo.studies import Study, control, programs, tuning
from kzoo.studies.metrics import example_losses
from kzoo.studies.runner import Trainer, _grouped, jobs_left

LINEAR = {"name": "Q", "kind": "difference", "arms": ["linear", "softmax"], "sign": "+"}
LINEAR |= {"differ_in": ["mechanism"]}
STUDY = {
    "arms": {
        "softmax": {"preset": "gpt_nano", "overrides": SMALL},
        "linear": {"preset": "gpt_nano", "overrides": {**SMALL, "mechanism": "linear"}},
    },
    "data": ["synthetic:copy"],
    "seeds": 5,
    "steps": 3,
    "evaluations": 1,
    "batch_size": 4,
    "valid": 0.001,
}


def study(**changes):
    return Study.from_dict({**STUDY, **changes})


def trained(asked, label, seed, path):
    trainer = Trainer(asked, "synthetic:copy", asked.arms[label])
    return trainer, trainer.run(seed, path, lambda step, loss: None)


def test_rates_and_seeds_share_one_program(tmp_path):
    """However many rates a grid has, and at whatever rate an arm ends up."""
    compiled = []

    def hear(name, seconds, **about):
        if "backend_compile" in name:
            compiled.append(name)

    grid = {"seeds": [7, 8], "grid": {"learning_rate": [0.001, 0.01, 0.1]}}
    asked = tuning.asked(study(tuning=grid), [])
    programs.forget()
    trainer, first = trained(asked, "softmax at 0.001", 7, tmp_path / "a")
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        records = [
            trained(asked, f"softmax at {rate}", seed, tmp_path / f"{rate} {seed}")[1]
            for rate in (0.01, 0.1)
            for seed in (7, 8)
        ]
        own = {"training": {"learning_rate": 0.02}}
        arms = {**STUDY["arms"], "softmax": {**STUDY["arms"]["softmax"], **own}}
        records.append(trained(study(arms=arms), "softmax", 0, tmp_path / "b")[1])
        again = trained(asked, "softmax at 0.001", 7, tmp_path / "c")[1]
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert compiled == []
    assert trainer.program.model.train_function.program._cache_size() == 1
    assert [r["training"]["learning_rate"] for r in records] == [0.01, 0.01, 0.1, 0.1, 0.02]
    assert again["train_loss"] == first["train_loss"] and again["bits"] == first["bits"]
    assert len({record["bits"] for record in [first, *records]}) == 6
    # Another schedule is another program.
    own = {"training": {"schedule": "wsd"}}
    arms = {"softmax": {**STUDY["arms"]["softmax"], **own}}
    other = Trainer(study(arms=arms), "synthetic:copy", study(arms=arms).arms["softmax"])
    assert other.program.model is not trainer.program.model
    for field in ("tokens_seen", "tokens_scored", "flops"):
        assert first[field] > 0
    arm = asked.arms["softmax at 0.001"]
    valid = control.load_splits(asked, "synthetic:copy", arm, 7).valid
    losses = np.array(example_losses(trainer.program.model, valid))
    scored_bytes = losses[:, 1].sum() - len(losses)  # all but the end token of each
    bits = losses[:, 0].sum() / np.log(2) / scored_bytes
    assert bits == pytest.approx(again["bits"], rel=1e-4)
    programs.forget()


def test_processes_take_the_runs_of_a_program_together():
    grid = {"seeds": [7, 8], "grid": {"learning_rate": [0.001, 0.01, 0.1]}}
    asked = tuning.asked(study(tuning=grid), [])
    jobs = jobs_left(asked, {})
    runs = [(source, label, [seed]) for source, label, seeds in jobs for seed in seeds]
    # Three rates on two seeds of each arm; the last arm is shared out, so that both end together.
    (softmax,), *linear = _grouped(asked, jobs, 2)
    assert softmax == runs[:6] and [len(half) for (half,) in linear] == [3, 3]
    assert sorted(sum((half for (half,) in linear), []), key=runs.index) == runs[6:]
    assert len(_grouped(asked, jobs, 4)) == 6
    assert sum((group for (group,) in _grouped(asked, jobs[:1], 8)), []) == runs[:2]


def test_arms_are_compared_at_step_0(monkeypatch):
    found = control.compared(study(hypotheses=[LINEAR]))
    assert found["seed"] == 0 and [arm["arm"] for arm in found["arms"]] == ["softmax", "linear"]
    one, other = ({k: v for k, v in arm.items() if k != "arm"} for arm in found["arms"])
    assert one == other
    assert control.compared(study()) is None

    build = control.presets.build

    def tampered(config):
        model = build(config)
        if config["mechanism"] == "linear":
            variable = model.trainable_variables[-1]
            variable.assign(variable + 1)
        return model

    monkeypatch.setattr(control.presets, "build", tampered)
    with pytest.raises(InputError, match="differ at step 0 in their initial values") as error:
        control.compared(study(hypotheses=[LINEAR]))
    assert "\n" not in str(error.value) and "'linear' and 'softmax'" in str(error.value)
    declared = {**LINEAR, "differ_in": ["mechanism", "initial_values"]}
    assert control.compared(study(hypotheses=[declared]))


@pytest.mark.parametrize("name", ["batches", "scored_tokens", "variables", "shapes"])
def test_an_undeclared_difference_at_step_0_is_named(name):
    same = {
        "variables": ["a", "b"],
        "shapes": {"a": [1], "b": [2]},
        "initial_values": {"a": "x", "b": "y"},
        "batches": [{"token_ids": "x"}],
        "scored_tokens": ["x"],
    }
    changed = {
        "batches": [{"token_ids": "y"}],
        "scored_tokens": ["y"],
        "variables": ["a", "b", "c"],
        "shapes": {"a": [1], "b": [3]},
    }
    masks = study(
        arms={
            "half": {"preset": "bert_mixed_heads_nano", "overrides": SMALL},
            "full": {"preset": "bert_nano", "overrides": SMALL},
        },
        hypotheses=[{**LINEAR, "arms": ["half", "full"], "differ_in": ["mask"]}],
    ).hypotheses[0]
    seen = {("synthetic:copy", "half"): same, ("synthetic:copy", "full"): same}
    control._compare(masks, "half", "full", seen)
    seen["synthetic:copy", "full"] = {**same, name: changed[name]}
    with pytest.raises(InputError, match=f"differ_in may name '{name}'"):
        control._compare(masks, "half", "full", seen)
