"""Programs for other machines, run by who knows neither kzoo nor Keras: plain TensorFlow."""

import importlib.util
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from kzoo import presets
from kzoo.errors import InputError

BACKEND = keras.backend.backend()
SMALL = {
    "num_layers": 1,
    "hidden_dim": 32,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 80,
}
SIZES = [(1, 9, 7), (3, 70, 66)]  # batch, time (of the encoder), of the decoder

jax_only = pytest.mark.skipif(BACKEND != "jax", reason="exports by way of JAX")

SERVE = """
import sys
import numpy as np
import tensorflow as tf

program = tf.saved_model.load(sys.argv[1])
for path in sys.argv[2:]:
    out = program.serve(dict(np.load(path)))
    out = out["decoder_sequence_output"] if isinstance(out, dict) else out
    np.save(path.replace(".npz", ".npy"), out)
assert "kzoo" not in sys.modules
"""


def load(family, **overrides):
    return presets.load(f"{family}_nano", **{**SMALL, **overrides})


def batch_of(model, batch, *times):
    rng = np.random.default_rng(batch)
    x = {}
    for name in model.input:
        time = times[name.startswith("decoder_")]
        x[name] = np.ones((batch, time), "int32")
        if name.endswith("token_ids"):
            x[name] = rng.integers(200, size=(batch, time)).astype("int32")
        elif name == "source_mask":
            x[name][:, time // 2 :] = 0
        else:
            x[name][0, -2:] = 0
    return x


def signature(model, batch, *times):
    x = batch_of(model, batch, *times)
    return [{name: keras.InputSpec(shape=a.shape, dtype="int32") for name, a in x.items()}]


def served(folder, batches):
    """What the program in `folder` makes of batches."""
    import tensorflow as tf

    program = tf.saved_model.load(folder)
    return [program.serve(x) for x in batches]


def served_elsewhere(folder, batches):
    """The same, in a process of its own."""
    paths = [folder / f"{i}.npz" for i in range(len(batches))]
    for path, x in zip(paths, batches, strict=True):
        np.savez(path, **x)
    command = [sys.executable, "-c", SERVE, str(folder), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return [np.load(path.with_suffix(".npy")) for path in paths]


def assert_served(model, folder, batches, serve=served):
    program = (folder / "saved_model.pb").read_bytes()
    assert b"StableHLO" in program or b"MLIR" in program  # as text in it, not compressed
    assert not re.findall(rb"kzoo_\w+", program)
    for x, out in zip(batches, serve(folder, batches), strict=True):
        want = model.predict(x, verbose=0)
        want = want["decoder_sequence_output"] if isinstance(want, dict) else want
        np.testing.assert_allclose(out, want, rtol=0, atol=1e-5)


@jax_only
@pytest.mark.slow
@pytest.mark.parametrize(
    "family, mechanism",
    [
        # Every stack with every mechanism; a shared one is an encoder and a decoder, too.
        ("unilm", "softmax"),
        ("bert_mixed_heads", "linear"),
        ("t5", "linear"),
        ("t5_shared", "softmax"),
    ],
)
def test_any_batch_and_time(tmp_path, family, mechanism):
    pytest.importorskip("tensorflow")
    model = load(family, mechanism=mechanism)
    model.export(tmp_path, verbose=False)
    assert_served(model, tmp_path, [batch_of(model, *sizes) for sizes in SIZES])


@jax_only
@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_fixed_sizes_hold_no_kernel_of_this_machine(tmp_path, mechanism):
    """At these sizes the native kernel runs here, wherever there is a compiler."""
    pytest.importorskip("tensorflow")
    model = load("unilm", mechanism=mechanism).backbone
    sizes = 2, 75, 75
    model.export(tmp_path, verbose=False, input_signature=signature(model, *sizes))
    assert_served(model, tmp_path, [batch_of(model, *sizes)], served_elsewhere)


# What cannot be written ---------------------------------------------------------------------


@jax_only
@pytest.mark.parametrize("format", ["onnx", "openvino", "litert", "torch", "tf"])
def test_formats_that_jax_has_not(tmp_path, format):
    with pytest.raises(InputError, match=f"tf_saved_model.*{format}"):
        load("gpt").export(tmp_path / "x", format)


@jax_only
def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install .*tensorflow"):
        load("gpt").export(tmp_path / "x")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's scan")
@pytest.mark.backends
def test_tensorflow_exports_softmax_alone(tmp_path):
    with pytest.raises(InputError, match="KERAS_BACKEND=jax"):
        load("gpt", mechanism="linear").export(tmp_path)
    model = load("gpt")
    model.export(tmp_path, verbose=False)
    x = batch_of(model, 2, 9)
    (out,) = served(tmp_path, [x])
    np.testing.assert_allclose(out, model.predict(x, verbose=0), rtol=0, atol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own format")
@pytest.mark.torch
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_torch_exports_fixed_sizes(tmp_path, mechanism):
    import torch

    model, path = load("gpt", mechanism=mechanism), tmp_path / "model.pt2"
    with pytest.raises(InputError, match="on torch.*torch"):
        model.export(tmp_path)
    with pytest.raises(InputError, match="input_signature"):
        model.export(path, "torch")
    model.export(path, "torch", verbose=False, input_signature=signature(model, 2, 9))
    x = batch_of(model, 2, 9)
    out = torch.export.load(path).module()({name: torch.tensor(a) for name, a in x.items()})
    np.testing.assert_allclose(out.detach(), model.predict(x, verbose=0), rtol=0, atol=1e-5)
