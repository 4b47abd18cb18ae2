import contextlib
import json

import keras
import numpy as np
import pytest

from kzoo import data, presets
from kzoo.errors import InputError
from kzoo.files import read_json
from kzoo.training import (
    Checkpoints,
    Monitor,
    adamw,
    learning_rate,
    muon,
    prepare,
    train,
    warmup_cosine,
    warmup_stable_decay,
)
from kzoo.training.monitor import overfits

SMALL = {
    "num_layers": 1,
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


# Log, best weights, overfitting ----------------------------------------------------------------


def lines_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_a_run_that_goes_on_has_each_line_once_and_keeps_its_best(program, tmp_path):
    whole = Monitor(tmp_path / "whole", tokens=4 * 32)
    train(fresh(program), splits(), STEPS, evaluations=3, monitor=whole)

    class Killed(Exception):
        pass

    def kill(step, loss):
        if step == 5:
            raise Killed

    for on_step in (kill, lambda step, loss: None):
        monitor = Monitor(tmp_path / "run", tokens=4 * 32, tensorboard=True)
        with contextlib.suppress(Killed):
            train(
                fresh(program),
                splits(),
                STEPS,
                evaluations=3,
                checkpoints=Checkpoints(tmp_path / "checkpoints", every=1),
                monitor=monitor,
                on_step=on_step,
            )
    lines, expected = lines_of(tmp_path / "run"), lines_of(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for name in ("step", "loss", "held_out_bits", "learning_rate"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in expected]
    assert monitor.best == whole.best == read_json(tmp_path / "run" / "best" / "best.json")
    assert [*(tmp_path / "run" / "tensorboard").glob("events*")]
    best = presets.load(tmp_path / "run" / "best")
    bits = best.evaluate(splits().valid, verbose=0, return_dict=True)["bits_per_byte"]
    assert bits == pytest.approx(monitor.best["held_out_bits"], rel=1e-5)


def test_fit_writes_a_line_an_epoch(tmp_path):
    model = presets.build(config())
    for epochs in (2, 3):  # the second one goes on from the checkpoint
        monitor = Monitor(tmp_path / "run")
        checkpoints = Checkpoints(tmp_path / "checkpoints", every=1)
        model.fit(
            checkpoints.data(splits().train.repeat()),
            steps_per_epoch=2,
            epochs=epochs,
            validation_data=splits().valid,
            callbacks=[monitor, checkpoints],
            verbose=0,
        )
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert monitor.best["held_out_bits"] == min(line["held_out_bits"] for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(learning_rate(16))
    assert lines[0]["seconds"] < lines[1]["seconds"] < lines[2]["seconds"]


def test_overfitting_is_said_once(tmp_path, caplog, program):
    monitor = Monitor(tmp_path)
    monitor.begin(0)
    for step, bits in enumerate([4.0, 3.0, 3.02, 3.1, 3.2, 3.3], start=1):
        monitor.write(program.model, step, 4.0 - step / 2, float(step), 0.1, bits)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "since step 2, from 3.000 to 3.200" in said[0]
    assert monitor.best == {"step": 2, "held_out_bits": 3.0}
    monitor.begin(6)  # nor again by a run that goes on
    monitor.write(program.model, 7, 0.4, 7.0, 0.1, 3.4)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize(
    "losses, bits",
    [
        ([3, 2, 1, 0.5], [4.0, 3.9, 3.8, 3.85]),  # once, and within the noise
        ([1, 2, 3, 4], [3.0, 3.5, 3.6, 3.7]),  # the training loss rises too
        ([3, 2], [3.0, 4.0]),
    ],
)
def test_what_is_no_overfitting(losses, bits):
    pairs = enumerate(zip(losses, bits, strict=True))
    lines = [{"step": i, "loss": loss, "held_out_bits": b} for i, (loss, b) in pairs]
    assert overfits(lines) is None


def test_learning_rates_fall_with_the_width_to_those_of_gpt3():
    assert [learning_rate(width) for width in (16, 64, 128)] == [0.01, 0.0063, 0.0031]
    # Brown et al. 2020, table 2.1
    for width, rate in {768: 6e-4, 1024: 3e-4, 1536: 2.5e-4, 2048: 2e-4, 2560: 1.6e-4}.items():
        assert 0.75 < learning_rate(width) / rate < 1.34


@pytest.mark.parametrize(
    "schedule, rates",
    [
        (warmup_cosine, [0.001, 0.0055, 0.01, 0.0055, 0.00106837, 0.001]),
        (warmup_stable_decay, [0.001, 0.0055, 0.01, 0.01, 0.0055, 0.001]),
    ],
)
def test_schedules_warm_up_and_decay(schedule, rates):
    rate = schedule(0.01, 100)
    steps = (0, 5, 10, 55, 95, 100)
    np.testing.assert_allclose([float(rate(step)) for step in steps], rates, rtol=1e-5)
    saved = keras.saving.serialize_keras_object(rate)
    copy = keras.saving.deserialize_keras_object(json.loads(json.dumps(saved)))
    assert [float(copy(step)) for step in steps] == [float(rate(step)) for step in steps]


FAMILIES = {
    "gpt_nano": {"tie_embeddings": False, "positions": "learned", "activation": "swiglu"},
    "bert_nano": {"output_transform": True, "num_segments": 2, "embedding_norm": True},
    "t5_nano": {"positions": "relative", "normalization": "rms_norm"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_which_variables_are_decayed_and_which_are_muons(name):
    size = {**SMALL, "num_layers": 1}
    variables = presets.build(presets.config(name, **size, **FAMILIES[name])).trainable_variables
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(muon(0.01, 100)))
    optimizer.build(variables)
    for variable in variables:
        matrix = len(variable.shape) == 2
        assert optimizer._use_weight_decay(variable) == matrix, variable.path
        kernel = variable.path.endswith("/kernel")
        assert optimizer._should_use_adamw(variable) == (not kernel), variable.path
        # Keras takes a matrix of any other rank to AdamW without a word.
        assert matrix or not kernel


def test_learned_feature_maps_are_adams():
    config = presets.config("gpt_nano", **SMALL, mechanism={"linear": {"feature_map": "hedgehog"}})
    optimizer = muon(0.01, 100)
    maps = [v for v in presets.build(config).trainable_variables if "feature_map" in v.path]
    assert maps and all(map(optimizer._should_use_adamw, maps))


def test_muon_steps_are_orthogonal_and_of_the_size_of_adams():
    kernel = keras.Variable(np.zeros((8, 32), "float32"), name="kernel")
    optimizer = muon(0.01, 100, weight_decay=0.0)
    gradient = np.random.default_rng(0).normal(size=(8, 32)).astype("float32")
    optimizer.apply([gradient], [kernel])
    step = -keras.ops.convert_to_numpy(kernel) / 0.001  # the first rate of the warmup
    values = np.linalg.svd(step, compute_uv=False) / (0.2 * 32**0.5)
    assert values.min() > 0.6 and values.max() < 1.3  # Newton-Schulz's are near 1


def test_adamw_clips_by_the_norm_of_all_and_decays_matrices_only():
    kernel = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    bias = keras.Variable(np.ones(2, "float32"), name="bias")
    optimizer = adamw(0.01, 100, weight_decay=0.5, clip=2.0)
    assert optimizer.global_clipnorm == 2.0
    zeros = [np.zeros((2, 2), "float32"), np.zeros(2, "float32")]
    optimizer.apply(zeros, [kernel, bias])
    np.testing.assert_allclose(kernel, np.full((2, 2), 1 - 0.5 * 0.001), rtol=1e-6)
    np.testing.assert_array_equal(bias, np.ones(2))


def test_unknown_optimizers_and_schedules_are_refused():
    with pytest.raises(InputError, match="did you mean 'cosine'.*Received: 'cosin'"):
        adamw(0.01, 100, "cosin")
    with pytest.raises(InputError, match="did you mean 'muon'"):
        prepare(None, 0.01, 100, "muon2")


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: adamw(-1, 100), "learning_rate is a positive number"),
        (lambda: muon(float("nan"), 100), "learning_rate is a positive number"),
        (lambda: adamw(0.01, 0), "steps is a positive integer"),
        (lambda: learning_rate(0), "a width is a positive integer"),
    ],
)
def test_rates_and_steps_are_positive(attempt, said):
    with pytest.raises(InputError, match=f"{said}.*Received: "):
        attempt()
