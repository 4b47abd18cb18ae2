"""The other backends, each in a process of its own: one process has one backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from small_models import SMALL

from kzoo import presets

ROOT = Path(__file__).resolve().parents[1]
CHILD = "KZOO_TESTS_OF_ONE_BACKEND"

in_child = pytest.mark.skipif(CHILD not in os.environ, reason="runs on the other backends")


def installed(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed (pip install kzoo[{backend}])")


def run(backend, file, *command):
    environment = {**os.environ, "KERAS_BACKEND": backend, CHILD: str(file)}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"on {backend}:\n{output[-6000:]}"
    return result.stdout


def three_steps():
    """Of training from the same weights, which NumPy draws: losses, and the weights at the end.

    Keras averages the losses over the epoch so far.
    """
    small = {**SMALL, "num_layers": 1, "max_sequence_length": 16}
    texts = ["to be", "or not to be", "that is", "the question"] * 2
    texts += ["'tis", "nobler", "in", "the"]
    results = {}
    for mechanism in ("softmax", "linear"):
        mask = {"heads": ["prefix", "causal"]}
        model = presets.load("unilm_nano", mechanism=mechanism, mask=mask, **small)
        # SGD: Adam would blow up what rounding leaves of gradients that are almost zero.
        # TensorFlow takes ten seconds a model to build a graph.
        eagerly = keras.backend.backend() == "tensorflow"
        model.compile(optimizer=keras.optimizers.SGD(0.1, 0.9), run_eagerly=eagerly)
        x, y, weight = model.preprocessor(texts)
        losses = []
        log = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda step, logs, to=losses: to.append(float(logs["loss"]))
        )
        rows = {"sample_weight": weight, "batch_size": 4, "shuffle": False}
        model.fit(x, y, verbose=0, callbacks=[log], **rows)
        results[mechanism + " losses"] = np.array(losses)
        for variable in model.weights:
            results[mechanism + " " + variable.path] = keras.ops.convert_to_numpy(variable)
    return results


@in_child
@pytest.mark.backends
def test_three_steps_are_kept_for_the_process_that_asked():
    np.savez(os.environ[CHILD], **three_steps())


@pytest.fixture(scope="module")
def on_jax():
    return three_steps()


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, marks", [("torch", ["backends", "torch"]), ("tensorflow", ["backends"])]
)
def test_tests_of_backends_pass_and_three_steps_are_jaxs(backend, marks, on_jax, tmp_path):
    installed(backend)
    # The other files would only be imported.
    files = [
        str(file)
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        if any(f"pytest.mark.{mark}" in file.read_text() for mark in marks)
    ]
    chosen = f"({' or '.join(marks)}) and not once"
    options = ["-q", "-m", chosen, "-p", "no:cacheprovider", "-n", "0"]
    options += ["-W", "ignore::DeprecationWarning"]  # of which torch gives fifteen thousand
    output = run(backend, tmp_path / "steps.npz", "-m", "pytest", *options, *files)
    assert " passed" in output
    losses = {name: array for name, array in on_jax.items() if name.endswith("losses")}
    assert len(losses) == 2
    assert all(len(loss) == 3 and loss[-1] < loss[0] for loss in losses.values())
    with np.load(tmp_path / "steps.npz") as arrays:
        assert set(arrays) == on_jax.keys()
        for name, want in on_jax.items():
            difference = np.linalg.norm(arrays[name] - want) / np.linalg.norm(want)
            assert difference < 1e-4, f"{name}: {difference:.1e}"
