import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from test_ops import ORDERS, by_definition, operands

from kzoo import masks
from kzoo.errors import InputError
from kzoo.ops.dispatch import Spec, spec_of
from kzoo.ops.qkv import prepare

if keras.backend.backend() != "jax":
    pytest.skip("splash is a kernel of JAX", allow_module_level=True)

import jax
import jax.extend

from kzoo.ops.kernels import splash as kernel

SCALE = 0.25
SIZES = {"query_time": 8, "key_time": 8, "num_heads": 2, "dim": 16, "value_dim": 16}


def attention(dtype="float32", platform="cpu", **kwargs):
    def run(q, k, v):
        q, k, v, mask, queries, keys = prepare(q, k, v, **kwargs)
        spec = spec_of(q, k, v, mask, dtype=dtype, platform=platform)
        return kernel.run(q, k, v, queries, keys, spec, scale=SCALE)

    return run


def assert_equals_oracle(arrays, cotangent, dtype="float32", **kwargs):
    # The oracle starts from the same rounded operands and computes in float64.
    arrays = [np.asarray(jax.numpy.asarray(x, dtype), "float64") for x in arrays]
    want, *want_gradients = by_definition("softmax", arrays, cotangent, scale=SCALE, **kwargs)
    got, gradients = value_and_gradients(attention(dtype, **kwargs), arrays, cotangent, dtype)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for a, b in zip([got, *gradients], [want, *want_gradients], strict=True):
        assert np.isfinite(a).all() and np.isfinite(b).all()
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))
    return got, gradients


def padded_and_packed(time, mask, dtype="float32", heads=6, batch=7):
    q, k, v, padding, source, cotangent = operands(
        time, heads, heads, dim=16, value_dim=24, batch=batch
    )
    kwargs = {"mask": mask, "padding_mask": padding}
    if masks.get(mask).needs_source:
        kwargs["source_mask"] = source
    value, gradients = assert_equals_oracle((q, k, v), cotangent, dtype, **kwargs)
    for x in (value, *gradients):
        assert (x[padding == 0] == 0).all()


@pytest.mark.parametrize(
    ("time", "dtype"),
    [
        (130, "float32"),
        pytest.param(100, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_every_order_packed_and_padded_equals_the_oracle(time, dtype):
    padded_and_packed(time, ORDERS, dtype)


@pytest.mark.parametrize(("time", "dtype"), [(128, "bfloat16"), (100, "float32")])
def test_half_the_heads_backward_equals_the_oracle(time, dtype):
    padded_and_packed(time, {"heads": ["causal", "reversed"]}, dtype, heads=4)


# Each order at each length and in each dtype, and each dtype at each length.
ONE_BY_ONE = [
    (mask, time, ("float32", "bfloat16")[(i + (time == 100)) % 2])
    for i, mask in enumerate(sorted(set(ORDERS.masks), key=str))
    for time in (128, 100)
]


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "time", "dtype"), ONE_BY_ONE, ids=str)
def test_one_order_in_all_heads_equals_the_oracle(mask, time, dtype):
    padded_and_packed(time, mask, dtype, heads=2)


@pytest.mark.parametrize("time", [128, pytest.param(100, marks=pytest.mark.slow)])
def test_every_order_without_padding_equals_the_oracle(time):
    q, k, v, _, source, cotangent = operands(time, dim=16, value_dim=24, poison=False, batch=2)
    assert_equals_oracle((q, k, v), cotangent, mask=ORDERS, source_mask=source)


@pytest.mark.parametrize(
    "mask",
    [
        {"heads": ["causal", "reversed"]},
        pytest.param({"heads": ["prefix", "permuted"]}, marks=pytest.mark.slow),
        pytest.param({"heads": [{"block": {"size": 3}}, "reversed"]}, marks=pytest.mark.slow),
        {"heads": [{"block": {"size": 150}}, {"block": {"size": 1000}}]},
    ],
    ids=str,
)
def test_hidden_tiles_are_skipped_and_no_others(monkeypatch, mask):
    monkeypatch.setattr(kernel, "TILES", (128,))
    padded_and_packed(300, mask, heads=2, batch=5)


def test_cross_attention_and_queries_that_see_no_key():
    q, _, _, padding, _, cotangent = operands(21, 2, 2, dim=16)
    _, k, v, key_padding, _, _ = operands(130, 2, 2, dim=16)
    key_padding[4] = np.where(key_padding[4] == 2, 0, key_padding[4])
    v[key_padding == 0] = np.nan
    value, _ = assert_equals_oracle(
        (q, k, v),
        cotangent,
        mask="bidirectional",
        padding_mask=padding,
        key_padding_mask=key_padding,
    )
    assert (padding[4] == 2).any() and (value[4][padding[4] == 2] == 0).all()


def test_queries_in_a_window_of_the_keys():
    q, k, v, padding, _, cotangent = operands(21, 2, 2, dim=16)
    window = slice(15, 19)
    kwargs = {"mask": "bidirectional", "padding_mask": padding, "query_offset": 15}
    assert_equals_oracle((q[:, window], k, v), cotangent[:, window], **kwargs)


@pytest.mark.parametrize(
    ("mask", "changes", "said"),
    [
        ("causal", {"bias": True}, "no bias"),
        ("causal", {"dim": 2048}, "at most 1024 dimensions"),
        ("causal", {"value_dim": 1025}, "at most 1024 dimensions"),
        ({"and": ["causal", {"block": {"size": 2}}]}, {}, "custom masks or &"),
        (masks.custom(lambda query, key: query == key), {}, "custom masks"),
        ("causal", {"same_sequence": False}, "Causal() inside one whole sequence"),
        ({"heads": ["bidirectional", "permuted"]}, {"same_sequence": False}, "Permuted("),
        (masks.half_heads(), {"query_time": 10**6, "key_time": 10**6}, "tables of tiles"),
        ("prefix", {"query_time": 10**6, "key_time": 10**6}, "tables of tiles"),
        ("causal", {}, None),
        (ORDERS, {"num_heads": 12, "padded": True}, None),
        ("bidirectional", {"same_sequence": False, "query_time": 3, "padded": True}, None),
        (masks.half_heads(), {"query_time": 65536, "key_time": 65536, "num_heads": 8}, None),
    ],
)
def test_refusals_say_why(mask, changes, said):
    reason = kernel.unsupported_reason(Spec(mask=masks.get(mask), **{**SIZES, **changes}))
    assert reason is None if said is None else said in reason


def test_heads_that_do_not_tile_are_an_error_with_every_kernel():
    with pytest.raises(InputError, match="does not tile 3 heads"):
        kernel.unsupported_reason(Spec(mask=masks.half_heads(), **{**SIZES, "num_heads": 3}))


def test_tiles_divide_the_padded_time():
    for time in (1, 128, 129, 512, 513, 640, 1000, 1024, 2100, 32896):
        tile = kernel._tile(time)
        padded = kernel._pad(np.zeros((1, time)), axis=1).shape[1]
        assert tile % 128 == 0 and padded % tile == 0 and tile <= 512
        assert time <= padded < 1.34 * time + 128


@pytest.mark.parametrize("mask", ["causal", {"heads": ["causal", "reversed"]}, "prefix"], ids=str)
def test_the_kernels_lower_for_a_tpu(mask):
    x = jax.ShapeDtypeStruct((2, 130, 2, 64), "bfloat16")
    rows = np.ones((2, 130), "int32")
    source = {"source_mask": rows} if mask == "prefix" else {}

    def loss(q, k, v):
        run = attention("bfloat16", platform="tpu", mask=mask, padding_mask=rows, **source)
        return run(q, k, v).astype("float32").sum()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = step.trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 3


@pytest.mark.slow
def test_heads_of_keys_and_16_bits_reach_it_as_they_are():
    """And values and gradients are those of repeated heads."""
    q, k, v, padding, source, cotangent = operands(130, 4, 2, dim=16, value_dim=24, batch=5)
    run = {"padding_mask": padding, "source_mask": source}
    for mask in ("causal", {"heads": ["causal", "prefix"]}):
        assert_equals_oracle((q, k, v), cotangent, "bfloat16", mask=mask, **run)

    def arrays(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                yield from (x.aval for x in equation.invars if x.aval.ndim == 4)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from arrays(inner)

    short = [jax.ShapeDtypeStruct(x.shape, "bfloat16") for x in (q, k, v)]
    made = jax.make_jaxpr(attention("bfloat16", mask="causal", padding_mask=padding))(*short)
    given = {(x.shape[1], str(x.dtype)) for x in arrays(made.jaxpr) if x.shape[-1] in (16, 24)}
    assert given == {(4, "bfloat16"), (2, "bfloat16")}


ON_A_MESH = """
import jax, keras, numpy as np
from autodiff import value_and_gradients
from test_splash import attention, operands
from kzoo import masks
from kzoo.errors import InputError
from kzoo.ops.context import current_mesh

assert current_mesh() is None
keras.distribution.set_distribution(keras.distribution.DataParallel())
assert current_mesh().axis_names == ("data",)  # Keras calls it "batch"
keras.distribution.set_distribution(None)
mask = masks.half_heads()
q, k, v, padding, _, cotangent = operands(130, 4, 4, dim=16, batch=4)
run = attention(mask=mask, padding_mask=padding)
want = value_and_gradients(run, (q, k, v), cotangent)

names = keras.distribution.list_devices()
devices = keras.distribution.DeviceMesh((4, 2), ("data", "model"), names)
layout = keras.distribution.LayoutMap(devices)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="data")
)
mesh = current_mesh()
assert dict(mesh.shape) == {"data": 4, "model": 2}
got = value_and_gradients(run, (q, k, v), cotangent)
for a, b in zip([got[0], *got[1]], [want[0], *want[1]], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)

x = jax.ShapeDtypeStruct(
    (4, 130, 4, 16), "float32",
    sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", None, "model")),
)
run = attention(mask=mask, padding_mask=padding, platform="tpu")
step = jax.jit(jax.grad(lambda q, k, v: run(q, k, v).sum(), argnums=(0, 1, 2)))
text = step.trace(x, x, x).lower(lowering_platforms=("tpu",)).as_text()
assert text.count("@tpu_custom_call") == 3

for batch, heads in ((3, 4), (4, 2)):
    try:
        attention(mask=mask)(q[:batch, :, :heads], k[:batch, :, :heads], v[:batch, :, :heads])
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_split_over_a_mesh():
    tests = Path(__file__).parent
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ON_A_MESH],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{tests}:{os.environ['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    batch, heads = result.stdout.splitlines()
    assert "a batch of 3 does not divide into 4" in batch
    assert "2 heads do not divide into 2" in heads
