"""Runs that survive: what is saved, what comes back, and what is said when it cannot."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import keras
import numpy as np
import pytest

from kzoo import presets
from kzoo.errors import InputError, Preempted
from kzoo.training import Checkpoints
from kzoo.training.checkpoint import Store
from kzoo.training.checkpoints import interval
from kzoo.training.preemption import Notice
from kzoo.training.stream import read_ahead

BATCHES = 3
X = np.random.default_rng(0).normal(size=(BATCHES, 8, 4)).astype("float32")


def data():
    return grain.MapDataset.range(BATCHES).map(lambda i: (X[i], X[i].sum(-1, keepdims=True)))


def model(width=8):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made


class Watch(keras.callbacks.Callback):
    """What a run logs; `at` is called after so many steps."""

    def __init__(self, after=None, at=None):
        super().__init__()
        self.steps, self.epochs, self.after, self.at = [], [], after, at

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(float(logs["loss"]))
        if len(self.steps) == self.after:
            self.at()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, logs))


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def fit(directory, dataset=None, watch=None, *, epochs=3, width=8, wrap=True, **kwargs):
    watch = watch or Watch()
    checkpoints = Checkpoints(directory, every=1, keep=2)
    dataset = data() if dataset is None else dataset
    try:
        model(width).fit(
            checkpoints.data(dataset) if wrap else dataset,
            epochs=epochs,
            callbacks=[watch, checkpoints],
            verbose=0,
            **kwargs,
        )
    finally:
        checkpoints.end()
    return watch


def values(directory, width=8):
    restored = model(width)
    Store(directory, 2).restore(restored, {})
    return [keras.ops.convert_to_numpy(variable) for variable in restored.variables]


@pytest.mark.parametrize(
    ("kind", "stopped_after"),
    [
        ("each epoch the same data", 2),
        pytest.param("a stream", 5, marks=pytest.mark.torch),
        ("an iterator", 5),
    ],
)
def test_fit_goes_on_where_it_stopped(tmp_path, kind, stopped_after):
    stream = data().seed(1).shuffle().repeat()
    dataset, settings = {
        "each epoch the same data": (data(), {}),
        "a stream": (stream, {"steps_per_epoch": 3, "validation_data": data()}),
        "an iterator": (read_ahead(stream), {"steps_per_epoch": 3}),
    }[kind]
    whole = fit(tmp_path / "whole", dataset, **settings)
    assert len(whole.steps) == 9
    watch = Watch(stopped_after, stop)
    with pytest.raises(Stopped):
        fit(tmp_path / "run", dataset, watch, **settings)
    rest = fit(tmp_path / "run", dataset, **settings)
    assert watch.steps[:-1] + rest.steps == whole.steps  # the last step was not saved
    assert watch.epochs + rest.epochs == whole.epochs
    expected, received = values(tmp_path / "whole"), values(tmp_path / "run")
    assert all(map(np.array_equal, received, expected))
    assert sorted(os.listdir(tmp_path / "run")) == ["8", "9"]


def test_a_finished_fit_goes_on_with_more_epochs(tmp_path):
    whole = fit(tmp_path / "whole", epochs=3)
    first = fit(tmp_path / "run", epochs=2)
    assert fit(tmp_path / "run", epochs=2).steps == []
    assert first.steps + fit(tmp_path / "run", epochs=3).steps == whole.steps


def test_data_of_unknown_position_begin_anew_and_it_is_said(tmp_path, caplog):
    with pytest.raises(InputError, match="position is known.*Received: generator"):
        Checkpoints(tmp_path).data(i for i in range(3))
    with pytest.raises(Stopped):
        fit(tmp_path, watch=Watch(6, stop), wrap=False)
    with caplog.at_level(logging.WARNING, "kzoo"):
        rest = fit(tmp_path, wrap=False)
    assert "epoch 2 begins anew, with the weights of step 5" in caplog.text
    assert [epoch for epoch, _ in rest.epochs] == [1, 2] and len(rest.steps) == 6


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    fit(directory, epochs=1)
    return directory


@pytest.mark.parametrize("item", ["state", "facts"])
@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    finished, tmp_path, caplog, damage, item
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    damage(largest_file(run / "3" / item))
    with caplog.at_level(logging.WARNING, "kzoo"):
        step, progress = Store(run, 2).restore(model(), {})
    assert (step, progress["batch"]) == (2, 2)
    assert "the checkpoint of step 3 is damaged" in caplog.text and item in caplog.text
    assert sorted(os.listdir(run)) == ["2", "3.damaged"]
    assert len(fit(run, epochs=1).steps) == 1  # and what comes after can be saved
    assert Store(run, 2).restore(model(), {})[0] == 3


def test_without_a_whole_checkpoint_nothing_is_touched(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    flip(largest_file(run / "2"))
    shutil.rmtree(run / "3" / "state")
    with pytest.raises(InputError, match="none of the checkpoints is whole.*Received") as error:
        fit(run)
    assert "state/sha256.json is missing" in str(error.value)
    assert sorted(os.listdir(run)) == ["2", "3"]


def test_checkpoints_of_another_model_are_refused(finished):
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))
    with pytest.raises(InputError, match=r"kernel is float32\[4, 9\] here and float32\[4, 8\]"):
        fit(finished, width=9)
    store, settings = Store(finished, 2), {"config": {"mask": "causal"}, "steps": 3}
    with pytest.raises(InputError, match='config is null there and {"mask": "causal"} here; steps'):
        store.restore(model(), settings)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*"))


def test_sigterm_saves_and_exits(tmp_path, caplog):
    before = signal.getsignal(signal.SIGTERM)
    whole = fit(tmp_path / "whole")
    watch = Watch(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match="step 5 is saved in") as stopped:
        fit(tmp_path / "run", watch=watch)
    assert stopped.value.code == 75
    assert "asked to end by SIGTERM" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert watch.steps + fit(tmp_path / "run").steps == whole.steps


def test_a_full_disk_is_said_and_nothing_is_lost(finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    usage = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    watch = Watch()
    with pytest.raises(InputError, match="too little space.* 1,000 are free") as error:
        fit(run, watch=watch)
    assert watch.steps == []  # it is said before the first
    assert str(error.value).endswith(f"Received: {run}") and "\n" not in str(error.value)
    monkeypatch.undo()
    assert sorted(os.listdir(run)) == ["2", "3"]
    assert len(fit(run).steps) == 6


@pytest.mark.parametrize("every", [0, -1, "0s", "5m", "s", 1.5, True, None])
def test_intervals_are_steps_or_seconds(every):
    with pytest.raises(InputError, match="Received"):
        Checkpoints("x", every=every)
    assert interval(3) == interval("3") == (3, None) and interval("3s") == (None, 3)


@pytest.mark.parametrize("keep", [0, True, 1.5])
def test_at_least_one_is_kept(keep):
    with pytest.raises(InputError, match="keep is a positive integer"):
        Checkpoints("x", keep=keep)


def test_facts_are_json(finished):
    facts = json.loads((finished / "3" / "facts" / "metadata").read_text())
    assert facts["variables"]["weight 0"] == "float32[4, 8]"
    assert set(facts["progress"]) == {"epoch", "batch", "data"}


# In processes of their own --------------------------------------------------------------------

HERE = Path(__file__).parent


def python(*arguments, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_checkpoints_restore_onto_other_numbers_of_devices(tmp_path):
    for epochs, count in enumerate([8, 1, 2], start=1):
        python(HERE / "on_devices.py", count, tmp_path / "run", epochs)
    for before, after in [(8, 1), (1, 2)]:
        left, found = (
            np.load(tmp_path / f"{name}.npz") for name in (f"left by {before}", f"found by {after}")
        )
        assert len(left.files) == len(found.files) > 8
        for name in left.files:
            np.testing.assert_array_equal(left[name], found[name])


@pytest.mark.slow
def test_a_run_killed_twenty_times_has_the_same_losses_to_the_last_bit(tmp_path):
    seen = json.loads(python(HERE / "killed.py", tmp_path, 20).stdout)
    assert seen["kills"] == 20 and seen["steps again"] > 0


SIZE = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy
from pathlib import Path
from kzoo.errors import InputError
from kzoo.training.checkpoint import Store
from test_checkpoints import model

large, store = model(1000), Store(Path(sys.argv[2]), 1)
store.save(1, large, {}, {})
store.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # bytes of a file
try:
    store.save(2, large, {}, {})
    store.close()
except InputError as error:
    print(error)
"""


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    done = python("-c", SIZE, HERE, tmp_path / "run")
    assert "the checkpoint of step 2 could not be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path / "run") == ["1"]
    assert Store(tmp_path / "run", 1).restore(model(1000), {})[0] == 1


def test_an_interrupt_that_was_dropped_comes_again(tmp_path):
    """Python drops what is raised while it collects garbage for JAX."""
    before, notice = signal.getsignal(signal.SIGINT), Notice()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        notice.begin()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert notice.interrupted
        notice.end()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    checkpoints = Checkpoints(tmp_path)
    checkpoints._notice.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        checkpoints.after_step(1, None, dict)


def test_a_backbone_alone(tmp_path):
    """Its `config` is an object and no JSON, unlike a task's."""
    sizes = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 8}
    backbone = presets.load_backbone("gpt_nano", **sizes)
    backbone.compile("sgd", "mse")
    x = {name: np.ones((2, 4), "int32") for name in ("token_ids", "padding_mask")}
    callbacks = [Checkpoints(tmp_path)]
    backbone.fit(x, np.zeros((2, 4, 8), "float32"), verbose=0, callbacks=callbacks)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    again = type(backbone).from_config(backbone.get_config())
    assert again.config == backbone.config
