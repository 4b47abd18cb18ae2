"""The other backends, each in a process of its own: one process has one backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
CHILD = "KZOO_TESTS_OF_ONE_BACKEND"

pytestmark = pytest.mark.skipif(CHILD in os.environ, reason="this process tests one backend")


def installed(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed (pip install kzoo[{backend}])")


def run(backend, *command):
    environment = {**os.environ, "KERAS_BACKEND": backend, CHILD: "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"on {backend}:\n{output[-6000:]}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, marks", [("torch", ["backends", "torch"]), ("tensorflow", ["backends"])]
)
def test_tests_of_backends_pass(backend, marks):
    installed(backend)
    # The other files would only be imported.
    files = [
        str(file)
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        if any(f"pytest.mark.{mark}" in file.read_text() for mark in marks)
    ]
    options = ["-q", "-m", " or ".join(marks), "-p", "no:cacheprovider", "-n", "0"]
    assert " passed" in run(backend, "-m", "pytest", *options, *files)


# Three steps of training from the same weights, which NumPy draws: losses after each step
# (Keras averages them over the epoch so far) and the weights at the end.
STEPS = """
import sys
import keras
import numpy as np
from kzoo import presets

small = dict(num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=32, max_sequence_length=16)
texts = ["to be", "or not to be", "that is", "the question"] * 2 + ["'tis", "nobler", "in", "the"]
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
        on_train_batch_end=lambda step, logs: losses.append(float(logs["loss"]))
    )
    model.fit(x, y, sample_weight=weight, batch_size=4, shuffle=False, verbose=0, callbacks=[log])
    results[mechanism + " losses"] = np.array(losses)
    for variable in model.weights:
        results[mechanism + " " + variable.path] = keras.ops.convert_to_numpy(variable)
np.savez(sys.argv[1], **results)
"""


@pytest.mark.slow
def test_three_steps_of_training_agree_across_backends(tmp_path):
    results = {}
    for backend in ("jax", "torch", "tensorflow"):
        installed(backend)
        file = tmp_path / f"{backend}.npz"
        run(backend, "-c", STEPS, str(file))
        with np.load(file) as arrays:
            results[backend] = dict(arrays)
    reference = results.pop("jax")
    losses = {name: array for name, array in reference.items() if name.endswith("losses")}
    assert len(losses) == 2
    assert all(len(loss) == 3 and loss[-1] < loss[0] for loss in losses.values())
    for backend, arrays in results.items():
        assert arrays.keys() == reference.keys()
        for name, want in reference.items():
            difference = np.linalg.norm(arrays[name] - want) / np.linalg.norm(want)
            assert difference < 1e-4, f"{name} on {backend}: {difference:.1e}"
