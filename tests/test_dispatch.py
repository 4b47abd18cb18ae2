"""Which kernel is picked, what a kernel is, and kernels from outside."""

import types

import numpy as np
import pytest

from kzoo import masks
from kzoo.errors import InputError
from kzoo.ops import dispatch, gated_linear_attention, linear_attention, softmax_attention
from kzoo.ops.dispatch import Spec, kernel_for, kernels
from kzoo.ops.kernels import chunked


def spec(**changes):
    sizes = {"query_time": 512, "key_time": 512, "num_heads": 4, "dim": 32, "value_dim": 32}
    return Spec(**{"mask": masks.causal(), "features": 32, **sizes, **changes})


@pytest.mark.parametrize("backend", dispatch._OURS)
@pytest.mark.parametrize("mechanism", ["softmax", "linear", "gated_linear"])
def test_a_kernel_is_a_module_with_these_parts(mechanism, backend):
    if backend == "jax":
        pytest.importorskip("jax")
    for name, kernel in kernels(mechanism, backend).items():
        assert name == kernel.NAME and mechanism in dispatch._computed(kernel)
        assert name in kernel.__name__.split(".")
        assert all(hasattr(kernel, part) for part in dispatch._PARTS)
    assert kernels(mechanism, backend)


def test_it_depends_on_nothing_but_the_spec():
    for changes, softmax, linear in (
        ({"backend": "tensorflow"}, "dense", "chunked"),
        ({"backend": "torch"}, "sdpa", "chunked"),
        ({"platform": "tpu"}, "splash", "pallas"),
        ({"platform": "tpu", "features": 20}, "splash", "chunk_scan"),
        ({"platform": "gpu"}, "dense", "chunk_scan"),
        ({"platform": "gpu", "query_time": 2048, "key_time": 2048}, "blockwise", "chunk_scan"),
        ({"platform": "gpu", "dtype": "bfloat16"}, "cudnn", "chunk_scan"),
        ({"ahead_of_time": True}, "blockwise", "chunk_scan"),
        ({"ahead_of_time": True, "batch": None}, "dense", "chunk_scan"),
        ({"dim": 20, "features": 20}, "blockwise", "chunk_scan"),
    ):
        assert kernel_for("softmax", spec(**changes)) == softmax
        assert kernel_for("linear", spec(**changes)) == linear


def test_what_no_kernel_computes_is_refused_with_the_reasons():
    custom = masks.custom(lambda query, key: query == key)
    with pytest.raises(InputError, match="no kernel computes this linear attention on jax.*orders"):
        kernel_for("linear", spec(mask=custom))
    with pytest.raises(InputError, match="did you mean 'softmax'"):
        kernel_for("softmacs", spec())


def toy(name="toy", mechanism="softmax", **changes):
    parts = {
        "preferred": lambda spec: spec.query_time == 3,
        "unsupported_reason": lambda spec: "toys have one head" if spec.num_heads > 1 else None,
        "run": lambda q, k, v, queries, keys, spec, *, scale, bias: v * 2,
    }
    return types.SimpleNamespace(**{"NAME": name, "MECHANISM": mechanism, **parts, **changes})


def test_a_kernel_from_outside(monkeypatch):
    monkeypatch.setattr(dispatch, "_registered", {})
    ours = dispatch.register(toy())
    x = np.ones((1, 3, 1, 16), "float32")
    np.testing.assert_array_equal(softmax_attention(x, x, x), 2 * x)  # it is tried first
    np.testing.assert_allclose(softmax_attention(x[:, :2], x, x), x[:, :2])  # not preferred
    with pytest.raises(InputError, match="toys have one head"):
        kernel_for("softmax", spec(), "toy")
    dispatch.register(toy("other", mechanism="sums"))
    assert kernel_for("sums", spec(num_heads=1, query_time=3)) == "other"
    assert dispatch.register(ours) is ours  # again, as in a notebook
    with pytest.raises(InputError, match="kzoo has one called 'dense'"):
        dispatch.register(toy("dense"))
    for mechanism in (["softmax"], (), 3):
        with pytest.raises(InputError, match="name of a mechanism, or a tuple of names"):
            dispatch.register(toy(mechanism=mechanism))
    part = toy()
    del part.run
    with pytest.raises(InputError, match="without run"):
        dispatch.register(part)


@pytest.mark.parametrize("mechanism", ["linear", "gated_linear"])
def test_a_linear_kernel_from_outside_has_five_parts(mechanism, monkeypatch):
    monkeypatch.setattr(dispatch, "_registered", {})
    dispatch.register(toy("mine", mechanism, unsupported_reason=lambda _: None, run=chunked.run))
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 16)).astype("float32")
    arguments = (x, x, x) if mechanism == "linear" else (x, x, x, -np.ones((1, 5, 2), "float32"))
    attend = {"linear": linear_attention, "gated_linear": gated_linear_attention}[mechanism]
    for mask in ("causal", "half_heads", "prefix"):
        both = [
            attend(
                *arguments, mask=mask, source_mask=np.array([[1, 1, 0, 0, 0]]), implementation=of
            )
            for of in ("mine", "chunked")
        ]
        np.testing.assert_array_equal(*both)
