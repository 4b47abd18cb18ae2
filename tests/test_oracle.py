"""The definition in NumPy, against the dense form on tensors; kernels are compared with both."""

import keras
import numpy as np
import pytest
from test_ops import ORDERS, operands

from kzoo import masks
from kzoo.ops import oracle, reference_attention

CASES = {
    "packed, padded and rotated": {"mask": ORDERS, "rotary": True},
    "a window of queries": {"mask": ORDERS, "rotary": True, "query_offset": 6},
    "keys shared by heads, no padding": {"mask": "causal", "padding_mask": None},
    "two sequences": {"mask": masks.half_heads(), "source_mask": None},
}


@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
@pytest.mark.parametrize("case", CASES)
def test_the_dense_form_equals_the_definition(mechanism, case):
    padded = CASES[case].get("padding_mask", True) is not None
    q, k, v, padding, source, _ = operands(13, kv_heads=2, poison=padded)
    kwargs = {"padding_mask": padding, "source_mask": source, **CASES[case]}
    if case == "two sequences":
        _, k, v, kwargs["key_padding_mask"], _, _ = operands(9, kv_heads=2)
    if "query_offset" in kwargs:
        q = q[:, 6:10]
    if mechanism == "softmax":
        bias = np.random.default_rng(1).normal(size=(1, 6, q.shape[1], k.shape[1]))
        kwargs |= {"scale": 0.3, "bias": bias}
    want = oracle.attention(q, k, v, mechanism=mechanism, **kwargs)
    got = reference_attention(q, k, v, mechanism=mechanism, return_weights=True, **kwargs)
    for ours, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), expected, atol=2e-5, rtol=2e-5)
