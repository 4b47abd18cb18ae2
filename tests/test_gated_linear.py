"""Gated linear attention as a function, against its definition."""

import numpy as np
import pytest
from autodiff import computed, value_and_gradients
from keras import ops
from marks import once
from test_ops import operands

from kzoo import masks
from kzoo.ops import gated_linear_attention, oracle, reference_attention

pytestmark = pytest.mark.backends

ORDERS = ("bidirectional", "causal", "reversed", "prefix", {"block": {"size": 3}})
FORMS = {
    "as they are": {},
    "normalised": {"feature_map": "elu1", "normalize": True, "rotary": True},
    "of a map": {"feature_map": "relu", "scale": 0.7, "rotary": True},
}


def gates_of(padding_mask, heads, seed=1):
    """Gates between -3 and 0; at padding no number."""
    gates = -np.random.default_rng(seed).gamma(0.3, 1.0, size=(*padding_mask.shape, heads))
    gates[padding_mask == 0] = np.nan
    return np.maximum(gates, -3.0)


def case(time, heads=5, kv_heads=5, **kwargs):
    q, k, v, padding_mask, source_mask, cotangent = operands(time, heads, kv_heads, **kwargs)
    arrays = (q, k, v, gates_of(padding_mask, heads))
    return arrays, {"padding_mask": padding_mask, "source_mask": source_mask}, cotangent


def rounded(arrays, dtype):
    arrays = [ops.cast(ops.cast(x, dtype), "float32") for x in arrays]
    return [ops.convert_to_numpy(x).astype("float64") for x in arrays]


def assert_equals_the_definition(arrays, cotangent, dtype="float32", ours=None, **kwargs):
    arrays = rounded(arrays, dtype)

    def dense(q, k, v, gates):
        own = {"mechanism": "gated_linear", "dtype": "float64", "feature_map": None}
        own["normalize"] = False
        return reference_attention(q, k, v, log_decay=gates, **{**own, **kwargs})

    def attend(q, k, v, gates):
        return gated_linear_attention(q, k, v, gates, **kwargs, **(ours or {"chunk_size": 8}))

    expected = value_and_gradients(dense, arrays, cotangent, "float64")
    got = value_and_gradients(attend, arrays, cotangent, dtype)
    tolerance = {"float32": 2e-5, "bfloat16": 2e-2}[dtype]
    for one, other in zip([got[0], *got[1]], [expected[0], *expected[1]], strict=True):
        assert np.isfinite(one).all()
        scale = max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * scale)
    return got


def test_the_dense_form_equals_the_definition():
    (q, k, v, gates), sequence, _ = case(21, heads=10, kv_heads=5)
    maps = {None: None, "elu1": oracle.elu1, "relu": lambda x: np.maximum(x, 0)}
    forms = [{"feature_map": None, "normalize": False, **form} for form in FORMS.values()]
    own = {"mask": masks.heads(*ORDERS), "mechanism": "gated_linear", "log_decay": gates}
    arrays = [np.float32(x) for x in (q, k, v)]

    @computed
    def found():
        own["return_weights"] = True
        return [reference_attention(*arrays, **own, **form, **sequence) for form in forms]

    del own["return_weights"]
    for got, form in zip(found, forms, strict=True):
        form = {**form, "feature_map": maps[form["feature_map"]]}
        want = oracle.attention(q, k, v, **own, **form, **sequence)
        for one, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, time",
    [once("float32", 24), ("float32", 21), once("float32", 5), once("float32", 1)]
    + [once("bfloat16", 21)],
)
def test_every_order_packed_and_padded_equals_the_definition(dtype, time):
    arrays, sequence, cotangent = case(time)
    value, gradients = assert_equals_the_definition(
        arrays, cotangent, dtype, mask=masks.heads(*ORDERS), **sequence
    )
    padded = sequence["padding_mask"] == 0
    for x in (value, *gradients):
        assert (x[padded] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_one_order_in_all_heads_that_share_keys_equals_the_definition(form):
    mask = {"normalised": "prefix", "as they are": "causal"}.get(form, "bidirectional")
    arrays, sequence, cotangent = case(21, 2, 1, batch=1, poison=False)
    source = {"source_mask": sequence["source_mask"]} if mask == "prefix" else {}
    assert_equals_the_definition(arrays, cotangent, mask=mask, **source, **FORMS[form])


def test_chunks_of_any_size_and_both_forms_give_the_same():
    arrays, sequence, _ = case(21)
    arrays = [np.float32(x) for x in arrays]

    def attend(**kwargs):
        mask = masks.heads(*ORDERS)
        return gated_linear_attention(*arrays, mask, **kwargs, **sequence)

    def all_of_them():
        return [attend(), *(attend(chunk_size=s, implementation="chunked") for s in (1, 4))]

    expected, *others = computed(all_of_them)
    for got in others:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_small_gates_are_exact_behind_large_ones():
    """100 gates of -50 and then -0.01: a difference of cumulative sums loses 1e-4 of it."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 130, 1, 4)).astype("float32") for _ in range(3))
    gates = np.full((1, 130, 1), -50, "float32")
    gates[:, 100:] = -0.01
    for mask in ("causal", "bidirectional"):
        expected, _ = oracle.attention(
            q,
            k,
            v,
            mask,
            mechanism="gated_linear",
            log_decay=gates,
            normalize=False,
            feature_map=None,
        )
        got = computed(lambda mask=mask: gated_linear_attention(q, k, v, gates, mask))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["causal", once("prefix")])
def test_split_and_resumed_equals_the_whole(mask):
    (q, k, v, gates), sequence, cotangent = case(12, 2, 1, batch=3, poison=False)
    gates = np.where(np.isfinite(gates), gates, 0)
    source = {"source_mask": np.repeat([[1, 1, 1, *[0] * 9]], 3, 0)} if mask == "prefix" else {}
    options = {"mask": mask, "feature_map": "elu1", "normalize": True, "rotary": True}
    by_token = {"padding_mask": np.repeat([[0, *[1] * 9, 0, 1]], 3, 0), **source}

    def whole(*arrays):
        return gated_linear_attention(*arrays, **options, **by_token)

    def parts(*arrays):
        outs, state = [], None
        for start, end in ((0, 4), (4, 12)):
            part = [x[:, start:end] for x in arrays]
            own = {name: x[:, start:end] for name, x in by_token.items()}
            own["query_offset"] = max(start - 1, 0)
            out, state = gated_linear_attention(
                *part, **options, **own, initial_state=state, return_state=True
            )
            outs.append(out)
        return ops.concatenate(outs, axis=1)

    arrays = rounded((q, k, v, gates), "float32")
    expected = value_and_gradients(whole, arrays, cotangent, "float32")
    got = value_and_gradients(parts, arrays, cotangent, "float32")
    for one, other in zip([got[0], *got[1]], [expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_over_a_second_sequence_nothing_decays():
    (q, _, _, gates), _, _ = case(5, 2, 1, batch=2, poison=False)
    _, k, v, padding, _, _ = operands(7, 2, 1, batch=2)
    q, k, v = (np.float32(x) for x in (q, k, v))
    other = {"key_padding_mask": padding}
    got = computed(lambda: gated_linear_attention(q, k, v, None, "bidirectional", **other))
    expected, _ = oracle.attention(
        q,
        k,
        v,
        mechanism="gated_linear",
        normalize=False,
        feature_map=None,
        key_padding_mask=padding,
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="log_decay is None"):
        gated_linear_attention(q, k, v, gates, "bidirectional", key_padding_mask=padding)


X = np.zeros((2, 6, 2, 4), "float32")
G = np.zeros((2, 6, 2), "float32")


@pytest.mark.parametrize(
    ("gates", "kwargs", "message"),
    [
        (G[:, :5], {}, "log_decay is of floats, of the shape"),
        (G[..., 0], {}, "log_decay is of floats, of the shape"),
        (np.zeros(G.shape, "int32"), {}, "log_decay is of floats"),
        (G + 0.1, {}, "a log_decay is at most 0"),
        (G, {"mask": "permuted"}, "goes through time"),
        (G, {"mask": masks.custom(lambda q, k: q >= k)}, "goes through time"),
        (G, {"normalize": True}, "give a feature_map"),
        (G, {"chunk_size": 0}, "chunk_size is an integer"),
        (G, {"initial_state": {"k_sum": 1}}, "initial_state is a dict of 'kv_state'"),
        (G, {"mask": "reversed", "return_state": True}, "a state sums keys"),
    ],
)
def test_bad_input_is_refused(gates, kwargs, message):
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(X, X, X, gates, **kwargs)
