import json

import keras
import numpy as np
import pytest

from kzoo import data, presets
from kzoo.training import Checkpoints, adamw, prepare, train

SMALL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 32,
}
TEXTS = [f"{i} green bottles hanging on the wall" for i in range(40)]
STEPS = 6


def config(seed=0, **overrides):
    return presets.config("unilm_nano", **SMALL, seed=seed, **overrides)


def splits(seed=0):
    return data.load(TEXTS, config(seed), batch_size=4, valid=0.2, seed=seed)


@pytest.fixture(scope="module")
def program():
    return prepare(presets.build(config(dropout=0.1)), 0.01, STEPS)


def fresh(program, seed=0):
    program.restart(presets.build(config(seed, dropout=0.1)))
    return program


def test_losses_are_each_batchs_own(program):
    outcome = train(fresh(program), splits(), STEPS, evaluations=2)
    model = fresh(program).model
    losses = []
    for batch in range(STEPS):
        x, y, weight = splits().train.repeat()[batch]
        model.reset_metrics()
        logs = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
        losses.append(float(logs["loss"]))
    np.testing.assert_allclose(outcome.train_loss, losses, rtol=1e-5)
    assert [step for step, _ in outcome.held_out] == [3, 6]
    assert outcome.held_out[-1][1] == pytest.approx(program.bits(splits().valid), rel=1e-6)


def test_a_seed_gives_the_same_bits_after_another_seed(program):
    first = train(fresh(program, 1), splits(1), STEPS)
    train(fresh(program, 2), splits(2), STEPS)
    again = train(fresh(program, 1), splits(1), STEPS)
    assert first.train_loss == again.train_loss and first.held_out == again.held_out


def test_a_killed_run_resumes_to_the_same_bits(program, tmp_path):
    whole = train(fresh(program), splits(), STEPS, evaluations=3)

    class Killed(Exception):
        pass

    def kill(step, loss):
        if step == 5:  # in the last segment
            raise Killed

    with pytest.raises(Killed):
        train(
            fresh(program),
            splits(),
            STEPS,
            evaluations=3,
            checkpoints=Checkpoints(tmp_path, every=1),
            on_step=kill,
        )
    steps = []
    resumed = train(
        fresh(program, 7),  # whatever the model holds, the checkpoint decides
        splits(),
        STEPS,
        evaluations=3,
        checkpoints=Checkpoints(tmp_path, every=1),
        on_step=lambda step, loss: steps.append(step),
    )
    assert steps == [5, 6]
    assert resumed.train_loss == whole.train_loss
    assert resumed.held_out == whole.held_out


def test_a_loss_that_is_not_finite_stops_the_run(program):
    variable = fresh(program).model.trainable_variables[0]
    variable.assign(np.full(variable.shape, np.nan))
    outcome = train(program, splits(), STEPS)
    assert outcome.steps == 1 and not outcome.finite and outcome.held_out == []
    assert json.dumps(outcome.train_loss) == "[NaN]"


def test_the_schedule_warms_up_and_decays():
    optimizer = adamw(0.01, 100)
    rate = [float(optimizer._learning_rate(step)) for step in range(101)]
    assert rate[0] == pytest.approx(0.001) and rate[10] == pytest.approx(0.01)
    assert max(rate) == rate[10] and rate[100] == pytest.approx(0.001)
    model = keras.Sequential([keras.layers.Dense(2), keras.layers.LayerNormalization()])
    model.build((None, 3))
    optimizer.build(model.trainable_variables)
    decayed = [v.path for v in model.trainable_variables if optimizer._use_weight_decay(v)]
    assert decayed == [model.layers[0].kernel.path]
