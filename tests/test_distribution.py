"""Models on many devices: layouts, and the same losses as on one."""

import json
import re
from pathlib import Path

import keras
import pytest

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
        ({}, 3, "num_heads divides into the 3 devices along the mesh axis 'model'"),
        ({"kv_heads": 2}, 4, "kv_heads=2"),
        ({"intermediate_dim": 30}, 4, "intermediate_dim=30"),
        ({"mask": {"heads": ["causal", "prefix"]}}, 4, "whole repetitions of the pattern of heads"),
        ({"mask": {"layers": ["causal", {"heads": ["causal", "prefix"]}]}}, 4, "num_heads=4"),
    ],
    ids=str,
)
def test_what_a_mesh_does_not_divide(overrides, model, said):
    objective = "continuation" if "mask" in overrides else "causal_lm"
    fields = {**presets.config("gpt_nano", objective=objective, **overrides)}
    with pytest.raises(InputError) as caught:
        config.check_split(fields, model)
    assert said in str(caught.value) and "Received: " in str(caught.value)
    config.check_split(fields, 2)
    with distribution(mesh_of(data=1, model=model)).scope(), pytest.raises(InputError, match=said):
        presets.load_backbone("gpt_nano", objective=objective, **overrides)
