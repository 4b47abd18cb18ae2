"""What kzoo leaves behind in Keras, keras-hub, JAX and the process: nothing.

A child process does first what these libraries do by themselves, so that what they load and
count when they are first used is there; then, between two pictures, all that kzoo does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent

THEIRS = """
import json, os, sys, tempfile
import grain, keras, keras_hub, numpy as np
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt

def task():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=31, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=12)
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)

ids = np.ones((4, 12), "int32")
X = {"token_ids": ids, "padding_mask": ids}

def use(task):
    assert task(X).shape == (4, 12, 31) and set(task.input) == set(X)
    task.fit(X, ids, verbose=0)
    assert task.generate({**X, "padding_mask": ids * (np.arange(12) < 9)}, stop_token_ids=None)
    with tempfile.TemporaryDirectory() as folder:
        task.save(folder + "/task.keras")
        again = keras.saving.load_model(folder + "/task.keras")
    np.testing.assert_allclose(again.predict(X, verbose=0), task.predict(X, verbose=0), atol=1e-5)
    twin = type(task).from_config(task.get_config())
    assert twin(X).shape == (4, 12, 31)

before = task()
use(before)
keras.Model(x := keras.Input((3,)), keras.layers.Dense(2)(x))
plt.close(plt.figure())
matplotlib.path.Path.unit_circle(), matplotlib.path.Path.unit_rectangle()  # which it keeps
"""

OURS = """
import kzoo
from kzoo.models import BeamSampler
sampler = keras_hub.samplers.TopPSampler(seed=0)  # without a seed it takes one from `random`
small = dict(num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=16, max_sequence_length=32)
texts = [f"{i} and {i + 1}" for i in range(40)]
pairs = {"prompts": texts[:8], "responses": texts[8:16]}
with tempfile.TemporaryDirectory() as folder:
    for name, mechanism in (("t5_nano", "softmax"), ("bert_mixed_heads_nano", "linear"),
                            ("gpt_nano", "softmax")):
        model = kzoo.presets.load(name, mechanism=mechanism, **small)
        model.fit(pairs if "t5" in name else texts[:16], batch_size=8, verbose=0)
        model.score(pairs if "t5" in name else texts[:2])
        kzoo.presets.save(model, f"{folder}/{name}")
        kzoo.presets.load(f"{folder}/{name}")
        model.save(f"{folder}/{name}.keras")
        keras.saving.load_model(f"{folder}/{name}.keras")
        if "t5" in name:
            model.generate({"prompts": ["1", "2 a"]}, max_length=10, sampler=BeamSampler(2))
    model.generate({"prompts": "1"}, max_length=10, sampler=sampler)
    "".join(model.stream({"prompts": "1"}, max_length=10, sampler="greedy"))
    splits = kzoo.data.load(texts, model, batch_size=8)
    callback = kzoo.training.Checkpoints(f"{folder}/run", every=1)
    model.fit(splits.train, steps_per_epoch=2, epochs=1, callbacks=[callback], verbose=0)
    model.evaluate(splits.valid, verbose=0)
    x, *_ = model.preprocessor(texts[:8])
    kzoo.analysis.leaks(model, x)
    kzoo.analysis.collapse(model, x)
    kzoo.analysis.attention_spectrum(model, x)
    kzoo.check(model)
    arms = {"a": ("gpt_nano", small), "b": ("gpt_nano", {**small, "mechanism": "linear"})}
    results = kzoo.compare(arms, data="synthetic:copy", seeds=1, steps=2, batch_size=4, valid=0.001,
                           evaluations=1, directory=f"{folder}/study", progress=False)
    results.table(), results.plot(), results.report()
    plt.close("all")
"""


def child(code, tmp_path, **environment):
    (tmp_path / "tmp").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "TMPDIR": str(tmp_path / "tmp"),
            **environment,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_nothing_stays(tmp_path):
    code = f"""{THEIRS}
import traces
first = traces.picture()
{OURS}
import gc; gc.collect()
print(json.dumps(traces.changes(first, traces.picture())))
use(before)
use(task())
"""
    found = json.loads(child(code, tmp_path, KERAS_BACKEND="jax").splitlines()[-1])
    assert found == []
