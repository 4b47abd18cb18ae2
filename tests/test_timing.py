"""How long it will take, found without moving anything."""

import contextlib
import json

import keras
import numpy as np

import kzoo
from kzoo.studies import Study, prediction
from kzoo.studies.prediction import Prediction, predict
from kzoo.studies.records import append
from kzoo.training import Timing, adamw, measure

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 36,
}


def test_measuring_takes_its_steps_back():
    losses = []
    for first in (False, True):
        keras.utils.set_random_seed(0)
        model = kzoo.presets.load("gpt_nano", **SMALL, dropout=0.1)
        splits = kzoo.data.load("synthetic:copy", model, batch_size=4, valid=0.001)
        model.compile(optimizer=adamw(0.01, 6))
        if first:
            timing = measure(model, splits.train, splits.valid, steps=6)
            assert min(timing.step, timing.evaluation) >= 0 and timing.compiling > 0
            assert int(model.optimizer.iterations.value) == 0
        history = model.fit(splits.train[:6], validation_data=splits.valid, verbose=0).history
        losses.append([history["loss"], history["val_loss"]])
    np.testing.assert_array_equal(losses[0], losses[1])


def test_minutes_add_up():
    assert Timing(compiling=90.0, step=0.2, evaluation=3.0).minutes(600, evaluations=10) == 2.5


def study(**changes):
    arms = {name: {"preset": name, "overrides": SMALL} for name in ("gpt_nano", "bert_nano")}
    fields = {"arms": arms, "data": ["synthetic:copy"], "steps": 3, "batch_size": 4}
    return Study.from_dict({**fields, "seeds": 2, "evaluations": 1, "valid": 0.001, **changes})


def test_a_study_is_measured():
    found = predict(study())
    assert found.runs == 4 and found.minutes > 0
    assert {*found.seconds} == {("synthetic:copy", name) for name in ("gpt_nano", "bert_nano")}
    total = 2 * sum(found.seconds.values()) / 60
    assert found.devices > 1 or found.minutes >= total


def test_runs_are_shared_out_and_finished_ones_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_measured", lambda study, source, label: (60.0, 120.0))
    for places, minutes in ((1, 10), (2, 5), (4, 3), (8, 3)):
        monkeypatch.setattr(prediction, "devices", lambda places=places: [None] * places)
        monkeypatch.setattr(prediction, "on_the_first", contextlib.nullcontext)
        found = predict(study())
        assert (found.minutes, found.runs, found.devices) == (minutes, 4, min(places, 4))
    assert str(found) == "about 3 minutes for 4 runs on 4 devices, compilation included"

    monkeypatch.setattr(prediction, "devices", list)
    (tmp_path / "study.json").write_text(json.dumps(study().to_dict()))
    append(
        tmp_path,
        {
            "run": "synthetic:copy/gpt_nano/1",
            "arm": "gpt_nano",
            "data": "synthetic:copy",
            "seed": 1,
        },
    )
    found = predict(study(), tmp_path)
    assert (found.minutes, found.runs) == (8, 3)
    assert str(Prediction(0.0, 0, 1, {})).startswith("about 0 minutes for 0 runs on 1 device")
