"""cuDNN's kernel without a GPU: its values through XLA, its programs lowered for CUDA."""

import keras
import numpy as np
import pytest
from autodiff import value_and_gradients
from test_ops import ORDERS, _round, operands

from kzoo import masks
from kzoo.ops import reference_attention, softmax_attention
from kzoo.ops.context import compiling_for
from kzoo.ops.dispatch import Spec, kernel_for

HALF = {"heads": ["causal", "reversed"]}


@pytest.mark.parametrize(
    ("mask", "padded"),
    [
        (ORDERS, True),
        (ORDERS, False),
        ("causal", False),
        ("causal", True),
        ("bidirectional", False),
    ],
    ids=lambda x: x if isinstance(x, str | bool) else "orders",
)
def test_it_equals_the_oracle(mask, padded):
    q, k, v, padding_mask, source_mask, cotangent = operands(
        24, dim=8, value_dim=8, poison=padded, batch=7 if padded else 2
    )
    kwargs = {"mask": mask, "source_mask": source_mask if mask is ORDERS else None}
    if padded:
        kwargs["padding_mask"] = padding_mask
    arrays = [_round(x, "bfloat16") for x in (q, k, v)]
    expected, slopes = value_and_gradients(
        lambda *x: reference_attention(*x, mechanism="softmax", dtype="float64", **kwargs),
        arrays,
        cotangent,
        "float64",
    )
    value, gradients = value_and_gradients(
        lambda *x: softmax_attention(*x, implementation="cudnn", **kwargs),
        arrays,
        cotangent,
        "bfloat16",
    )
    for got, want in zip([value, *gradients], [expected, *slopes], strict=True):
        np.testing.assert_allclose(got, want, rtol=4e-2, atol=4e-2 * max(1, np.abs(want).max()))
        if padded:
            assert (got[padding_mask == 0] == 0).all()


@pytest.mark.parametrize(
    ("mask", "padded", "flag"),
    [("causal", False, "CAUSAL"), ("bidirectional", False, "NO_MASK"), (HALF, True, "NO_MASK")],
)
def test_jax_takes_it_for_cuda(monkeypatch, mask, padded, flag):
    import jax
    import jax.numpy as jnp
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    # What JAX asks of the machine; the shapes and dtypes it checks itself.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: capability == "8.0")

    def loss(q, k, v, padding_mask):
        kwargs = {"padding_mask": padding_mask} if padded else {}
        return softmax_attention(q, k, v, mask, **kwargs).astype("float32").sum()

    q, k = (jnp.ones((2, 64, heads, 32), "bfloat16") for heads in (4, 2))
    with compiling_for("gpu"):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
            q, k, k, jnp.ones((2, 64), "int32")
        )
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kind = "ScaleBiasSoftmax" if padded else "Softmax"
    assert f"__cudnn$fmha{kind}" in text and f"__cudnn$fmha{kind}Backward" in text
    assert f"\\22mask_type\\22: \\22{flag}\\22" in text
    # q, k and v as they were given: 16 bits, heads of keys and values not repeated.
    given = "(tensor<2x64x4x32xbf16>, tensor<2x64x2x32xbf16>, tensor<2x64x2x32xbf16>"
    assert text.count(given) == 2
    assert "2x64x2x32xf32" not in text


def test_where_it_runs():
    def spec(mask="causal", dtype="bfloat16", time=64, dim=64, **kwargs):
        kwargs = {"dtype": dtype, "platform": "gpu", **kwargs}
        return Spec(time, time, 4, dim, dim, masks.get(mask), **kwargs)

    assert kernel_for("softmax", spec()) == "cudnn"
    assert kernel_for("softmax", spec(HALF, padded=True)) == "cudnn"
    assert kernel_for("softmax", spec(time=63)) == "cudnn"  # a flag says the mask
    assert kernel_for("softmax", spec(backend="torch")) == "sdpa"
    for other, reason in [
        (spec(dtype="float32"), "float16 or bfloat16, not in float32"),
        (spec(bias=True), "bias"),
        (spec(dim=160), "128 dimensions"),
        (spec(dim=20), "128 dimensions"),
        (spec(time=63, padded=True), "even times"),
    ]:
        assert kernel_for("softmax", other) == "dense"
        with pytest.raises(ValueError, match=reason):
            kernel_for("softmax", other, "cudnn")


def test_layers_say_so():
    import kzoo

    layer = kzoo.layers.SoftmaxAttention(4, 8, mask="prefix", dtype="mixed_bfloat16", name="a")
    x = keras.Input((64, 32))
    model = keras.Model(x, layer(x, source_mask=keras.ops.ones((1, 64), "int32")))
    assert kzoo.layers.kernels(model, (2, 64), "gpu") == {"a": "cudnn"}
