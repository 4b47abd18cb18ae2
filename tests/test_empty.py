"""No examples, no tokens, no heads: every kernel gives nothing alike, or refuses alike."""

import functools

import keras
import numpy as np
import pytest
from blocks import block as make_block
from keras import ops

from kzoo import layers
from kzoo.errors import InputError
from kzoo.ops import linear_attention, reference_attention, softmax_attention
from kzoo.ops.dispatch import kernels

pytestmark = pytest.mark.backends

FUNCTIONS = {"softmax": softmax_attention, "linear": linear_attention}
ATTENTIONS = [
    (mechanism, kernel)
    for mechanism in FUNCTIONS
    for kernel in ("auto", *kernels(mechanism, keras.backend.backend()), "reference")
]


def attention(mechanism, kernel):
    if kernel == "reference":
        return functools.partial(reference_attention, mechanism=mechanism)
    return functools.partial(FUNCTIONS[mechanism], implementation=kernel)


def zeros(*shape):
    return np.zeros(shape, "float32")


@pytest.mark.parametrize("mechanism, kernel", ATTENTIONS)
def test_nothing_gives_nothing(mechanism, kernel):
    attend = attention(mechanism, kernel)
    for batch, queries, keys in ((0, 3, 3), (2, 0, 0), (0, 0, 0), (2, 3, 0), (2, 0, 3), (0, 3, 5)):
        q, k = np.ones((batch, queries, 4, 16), "float32"), zeros(batch, keys, 2, 16)
        padding = {"padding_mask": np.ones((batch, keys), "int32")}
        for rows in ({}, padding) if queries == keys else ({},):
            for mask in ("bidirectional", "causal", "half_heads"):
                out = attend(q, k, k[..., :8], mask, **rows)
                np.testing.assert_array_equal(
                    ops.convert_to_numpy(out), zeros(batch, queries, 4, 8)
                )


@pytest.mark.parametrize("mechanism, kernel", ATTENTIONS)
def test_wrong_ranks_and_no_heads_are_refused(mechanism, kernel):
    attend = attention(mechanism, kernel)
    refused = {
        "shape [batch, time, heads, dim]": (zeros(2, 3, 16), zeros(2, 3, 16)),
        "[batch, time, heads, dim]. Received": (zeros(2, 2, 3, 2, 16), zeros(2, 2, 3, 2, 16)),
        "have heads": (zeros(2, 3, 0, 16), zeros(2, 3, 0, 16)),
        "heads have entries": (zeros(2, 3, 2, 0), zeros(2, 3, 2, 0)),
        "and heads have entries. Received": (zeros(2, 3, 2, 16), zeros(2, 3, 0, 16)),
    }
    for said, (q, k) in refused.items():
        with pytest.raises(InputError) as caught:
            attend(q, k, k, "causal")
        assert said in str(caught.value)


def test_states_of_nothing():
    k = zeros(2, 0, 2, 4)
    out, state = linear_attention(k, k, k, "causal", return_state=True)
    assert out.shape == (2, 0, 2, 4) and not ops.convert_to_numpy(state["kv_state"]).any()
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4)).astype("float32")
    want = ops.convert_to_numpy(linear_attention(x, x, x, "causal"))
    got = linear_attention(x, x, x, "causal", initial_state=state)
    np.testing.assert_allclose(ops.convert_to_numpy(got), want, atol=1e-6)
    _, after = linear_attention(x, x, x, "causal", return_state=True)
    _, same = linear_attention(k, k, k, "causal", initial_state=after, return_state=True)
    assert same is after


@pytest.mark.parametrize("mechanism", FUNCTIONS)
def test_layers_of_nothing(mechanism):
    attention = layers.Attention(2, 4, mechanism, "causal", rotary=True)
    block = make_block(2, 4, 16, mechanism=mechanism, mask="causal", rotary=True)
    for shape in ((0, 3, 8), (2, 0, 8)):
        assert tuple(attention(zeros(*shape)).shape) == shape
        assert tuple(block(zeros(*shape)).shape) == shape
        _, scores = attention(zeros(*shape), return_attention_scores=True)
        assert tuple(scores.shape) == (shape[0], 2, shape[1], shape[1])
    out = attention(np.ones((2, 3, 8), "float32"), zeros(2, 0, 8))  # queries that see no key
    np.testing.assert_array_equal(
        ops.convert_to_numpy(out),
        np.tile(ops.convert_to_numpy(attention.output_dense.bias), (2, 3, 1)),
    )
