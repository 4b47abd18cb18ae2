"""Models on many devices: layouts, and the same losses as on one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import many_devices
import numpy as np
import pytest

import kzoo
from kzoo import config, presets
from kzoo.errors import InputError
from kzoo.training.distribution import distribution, layout, layout_map

GOLDEN = json.loads((Path(__file__).parent / "golden" / "variables.json").read_text())
SIZES = {"d": 64, "f": 256, "v": 384, "t": 64}
MESH = {"data": 4, "model": 2}
D, M = "data", "model"

# What is written out here by the name of a variable is the whole of the golden file.
AXES = {
    r"attention/(query|key|value)/kernel": (D, M),
    r"attention/(query|key|value)/bias": (M,),
    r"attention/output_dense/kernel": (M, D),
    r"feed_forward/(intermediate|gate)/kernel": (D, M),
    r"feed_forward/(intermediate|gate)/bias": (M,),
    r"feed_forward/output_dense/kernel": (M, D),
    r"output_dense/bias|norm/(beta|gamma|scale)": (None,),
    r"token_embedding/embeddings": (M, D),
    r"token_embedding/reverse_embeddings": (D, M),
    r"position_embedding/embeddings": (None, D),
}


def mesh_of(**axes):
    """A mesh of devices that are not there."""
    size = 1
    for number in axes.values():
        size *= number
    names = [f"tpu:{i}" for i in range(size)]
    return keras.distribution.DeviceMesh(tuple(axes.values()), [*axes], names)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_variable_has_its_layout(name):
    for path, letters in GOLDEN[name]["variables"].items():
        shape = [SIZES[letter] for letter in letters]
        (expected,) = {axes for end, axes in AXES.items() if re.search(f"({end})$", path)}
        assert layout(path, shape, MESH, fsdp=True) == expected, path
        without = tuple(None if axis == D else axis for axis in expected)
        assert layout(path, shape, MESH) == without, path
        assert layout(path, shape, {"data": 8}) == (None,) * len(shape)
        for fsdp, axes in ((True, expected), (False, without)):
            found = layout_map(mesh_of(**MESH), fsdp)[path]
            assert (found.axes if found else (None,) * len(shape)) == axes


@pytest.mark.parametrize(
    "path, shape, expected",
    [
        ("encoder_block_0/attention/query/kernel", (8, 8), (D, M)),
        ("decoder_block_11/cross_attention/value/kernel", (8, 8), (D, M)),
        ("decoder_block_11/cross_attention/output_dense/kernel", (8, 8), (M, D)),
        ("decoder_block_11/cross_attention_norm/gamma", (8,), (None,)),
        ("my_model/block_0/attention/feature_map_query", (8, 4), (M, None)),
        ("block_0/attention/query/lora_kernel_a", (8, 2), (None, None)),
        ("block_0/attention/query/lora_kernel_b", (2, 8), (None, M)),
        ("relative_bias/embeddings", (32, 4), (None, M)),
        ("decoder_relative_bias/embeddings", (32, 4), (None, M)),
        ("head/bias", (384,), (M,)),
        ("head/dense/kernel", (8, 8), (D, None)),
        ("head/dense/bias", (8,), (None,)),
        ("head/norm/gamma", (8,), (None,)),
        ("pooler/kernel", (8, 8), (D, None)),
        ("segment_embedding/embeddings", (2, 8), (None, D)),
        # What does not divide is whole; another's variable of the same name is left alone.
        ("token_embedding/embeddings", (50257, 768), (None, D)),
        ("block_0/feed_forward/output_dense/kernel", (6, 6), (M, None)),
        ("block_0/attention/query/kernel", (64, 4, 16), (None, None, None)),
        ("seed_generator_3/seed_generator_state", (2,), (None,)),
    ],
    ids=str,
)
def test_layouts_of_what_the_golden_file_does_not_hold(path, shape, expected):
    assert layout(path, shape, MESH, fsdp=True) == expected


def test_a_distribution_over_devices_that_are_not_there():
    assert type(distribution(mesh_of(data=8))) is keras.distribution.DataParallel
    split = distribution(mesh_of(data=4, model=2), fsdp=True)
    assert isinstance(split, keras.distribution.ModelParallel)
    assert (split.batch_dim_name, split.auto_shard_dataset) == ("data", False)
    model = presets.load("gpt_nano", num_layers=1)
    model.optimizer.build(model.trainable_variables)
    layouts = {v.path: split.get_variable_layout(v).axes for v in model.variables}
    assert layouts["token_embedding/embeddings"] == ("model", "data")
    assert layouts["block_0/attention_norm/gamma"] == (None,)


@pytest.mark.parametrize(
    "overrides, model, said",
    [
        ({}, 3, "num_heads must be a multiple of 3, the number of devices along"),
        ({"kv_heads": 2}, 4, "kv_heads=2"),
        ({"intermediate_dim": 30}, 4, "intermediate_dim=30"),
        ({"mask": {"heads": ["causal", "prefix"]}}, 4, "whole repetitions of the pattern of heads"),
        ({"mask": {"layers": ["causal", {"heads": ["causal", "prefix"]}]}}, 4, "num_heads=4"),
    ],
    ids=str,
)
def test_what_a_mesh_does_not_divide(overrides, model, said):
    objective = "prefix_lm" if "mask" in overrides else "causal_lm"
    fields = {**presets.config("gpt_nano", objective=objective, **overrides)}
    with pytest.raises(InputError) as caught:
        config.check_split(fields, model)
    assert said in str(caught.value) and "Received: " in str(caught.value)
    config.check_split(fields, 2)
    with distribution(mesh_of(data=1, model=model)).scope(), pytest.raises(InputError, match=said):
        presets.load_backbone("gpt_nano", objective=objective, **overrides)


# Eight devices in a process of its own -------------------------------------------------------


def start(*arguments, devices=1, flags=""):
    """`many_devices.py` with these arguments, on so many devices of its own."""
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "KERAS_BACKEND": "jax",
    }
    command = [sys.executable, "-W", "ignore", many_devices.__file__, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def result(process):
    """What a process printed, once it is done."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Where the compiled train steps of `eight` are written."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def eight(programs):
    flags = f"--xla_dump_to={programs} --xla_dump_hlo_module_re=jit_train_step"
    return result(start("devices", devices=8, flags=flags))


@pytest.mark.slow
@pytest.mark.parametrize("family", many_devices.LAYOUTS)
def test_losses_are_those_of_one_device(eight, family):
    alone = many_devices.train(many_devices.make(family), slice(3))
    assert len(alone) == 3 and len({*alone}) == 3
    assert eight[family]
    for how, run in eight[family].items():
        np.testing.assert_allclose(run["losses"], alone, rtol=0, atol=1e-5, err_msg=how)
        sizes = json.loads(how)
        mesh = {"model": sizes.get("model", 1)}
        mesh["data"] = 8 // mesh["model"]
        for path, found in run["parts"].items():
            # Everything but vectors as wide as hidden states or one head, the positions' included.
            whole = re.search(r"norm/|_norm$|output_dense/bias", path)
            expected = 1 if whole else mesh["model"]
            matrix = re.search(r"(kernel|embeddings)$", path) and "relative" not in path
            expected *= mesh["data"] if sizes.get("fsdp") and matrix else 1
            assert found == [expected] * 2, (how, path)  # the variable, and AdamW's momentum


def test_no_batch_is_put_together(eight, programs):
    """Where parameters are split over "data", XLA might split features by it, and not rows."""
    texts = [path.read_text() for path in programs.glob("*after_optimizations.txt")]
    split = [text for text in texts if "num_partitions=8" in text]
    assert len(split) == sum(map(len, many_devices.LAYOUTS.values()))
    for text in split:
        exchanged = re.findall(r"= (.*) (?:all-|reduce-|collective-)\w+(?:-start)?\(", text)
        assert exchanged  # sums of gradients at least, but no hidden states or logits of all rows
        assert not re.findall(r"f32\[24,\d+,(?:16|32|384)\]", " ".join(exchanged))


def test_idle_devices_are_told_of_once(eight):
    (line,) = eight["told"]
    assert "one of 8 devices" in line and "kzoo.distribute()" in line


@pytest.mark.parametrize(
    "case, said",
    [
        ("arrays", "2 devices along the mesh axis 'data'"),
        ("arrays", "Received: a batch of 5 examples"),
        ("last", "Received: a batch of 3 examples"),
        ("dataset", "Received: a batch of 5 examples"),
        ("three", "model divides the number of devices. Received: data=None, model=3 and 8"),
        ("sixteen", "Received: data=16, model=1 and 8 devices"),
        ("zero", "positive integers"),
        ("late", "call kzoo.distribute() first, then make the model"),
    ],
)
def test_what_is_refused(eight, case, said):
    assert said in eight["refused"][case]


# Several processes ----------------------------------------------------------------------------


def start_processes(count, **arguments):
    """`count` processes of one run, as on several hosts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"port": port, "number": count, **arguments}
    return [
        start("process", json.dumps({**common, "process": process})) for process in range(count)
    ]


@pytest.fixture(scope="module")
def alone():
    """The losses of six steps on one device, as Keras shows them, and their sums."""
    means = many_devices.train(many_devices.make("gpt"), slice(6))
    return np.array(means), np.cumsum([1] * 6) * means


@pytest.mark.slow
def test_two_processes_one_is_killed_and_the_run_goes_on(alone, tmp_path):
    means, sums = alone
    state = str(tmp_path / "state.npz")
    run = start_processes(2, how={}, start=0, stop=1000, save=3, killed=4, state=state)
    assert run[1].wait(timeout=200) == -signal.SIGKILL
    killed = time.monotonic()
    _, said = run[0].communicate(timeout=60)  # it would train for minutes yet
    assert run[0].returncode != 0 and time.monotonic() - killed < 60
    assert "JaxRuntimeError" in said or "heartbeat" in said

    rest = {"how": {}, "start": 3, "stop": 6, "state": state}
    for process in [result(process) for process in start_processes(2, **rest)]:
        assert process["sizes"] == [24]  # a global batch, of which each process had its half
        expected = (sums[3:] - sums[2]) / [1, 2, 3]
        np.testing.assert_allclose(process["losses"], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count, how", [(4, {"model": 2})])
def test_losses_of_several_processes_are_those_of_one(alone, count, how):
    for process in [result(process) for process in start_processes(count, how=how, stop=3)]:
        assert process["sizes"] == [24]
        np.testing.assert_allclose(process["losses"], alone[0][:3], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_torch_in_two_processes():
    """The example's own loop, since Keras's `fit` cannot: against `fit` on JAX, in one process."""
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        + [str(root / "examples" / "torchrun.py"), "--steps", "3"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"step \d: (\S+) nats", run.stdout)]
    model = presets.load("gpt_nano")
    callback = many_devices.Losses(lambda step: None)
    dataset = kzoo.data.load("pydoc", model, batch_size=16).train[:3]
    model.fit(dataset, callbacks=[callback], verbose=0)
    alone = np.diff(np.multiply(callback.means, [1, 2, 3]), prepend=0)
    np.testing.assert_allclose(losses, alone, rtol=0, atol=2e-5)  # another backend's arithmetic


@pytest.mark.torch
def test_torch_finds_the_parameters_and_cannot_distribute():
    if keras.backend.backend() != "torch":
        pytest.skip("of torch")
    model = presets.load("gpt_nano")
    assert len(list(model.parameters())) == len(model.trainable_variables)
    with pytest.raises(InputError, match="torchrun"):
        kzoo.distribute()
