import dataclasses
import json
import math

import keras
import numpy as np
import pytest
from autodiff import numpy, value_and_gradients
from keras import ops

from kzoo import feature_maps, masks
from kzoo.errors import InputError

pytestmark = pytest.mark.backends

BATCH, TIME, HEADS, DIM = 6, 12, 2, 5
# Rows: one document, padded right, padded left, packed with gaps and a hole, ids from 3 on, all
# padding.
SEGMENT = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 2, 2, 0, 2, 0, 3, 3, 3, 0],
        [3, 3, 3, 3, 3, 5, 7, 7, 7, 7, 7, 7],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
SPECS = [*feature_maps.names(), {"favor": {"features": 13, "seed": 3}}]


def heads_of(*shape, seed=0):
    shape = shape or (BATCH, TIME, HEADS, DIM)
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def weights_of(phi, seed=1):
    rng = np.random.default_rng(seed)
    shapes = phi.weight_shapes(HEADS, DIM)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


# Features against their formulas --------------------------------------------------------------


def favor_key(x, phi):
    y, omega = x / DIM**0.25, phi.directions(DIM)
    return np.exp(y @ omega.T - (y**2).sum(-1, keepdims=True) / 2) / math.sqrt(phi.features)


def favor_query(x, phi):
    return favor_key(x, phi) / favor_key(x, phi).sum(-1, keepdims=True)


def taylor2(x, phi):
    products = np.einsum("...i,...j->...ij", x, x) / math.sqrt(2 * DIM)
    products = products * np.where(np.eye(DIM), 1, math.sqrt(2))
    products = np.stack([products[..., i, j] for i in range(DIM) for j in range(i, DIM)], -1)
    return np.concatenate([np.ones_like(x[..., :1]), x / DIM**0.25, products], -1)


def hedgehog(kernel):
    def features(x, phi):
        x = np.einsum("bthd,hdf->bthf", x, weights_of(phi)[kernel])
        return np.concatenate([softmax(x, -1), softmax(-x, -1)], -1)

    return features


FORMULAS = {
    "elu1": lambda x, phi: np.where(x > 0, x + 1, np.exp(x)),
    "relu": lambda x, phi: np.maximum(x, 0),
    "squared_relu": lambda x, phi: np.maximum(x, 0) ** 2,
    "exp": (lambda x, phi: softmax(x, -1), lambda x, phi: np.exp(x)),
    "softmax": (lambda x, phi: softmax(x, -1), lambda x, phi: softmax(x, 1)),
    "taylor2": taylor2,
    "favor": (favor_query, favor_key),
    "hedgehog": (hedgehog("query_kernel"), hedgehog("key_kernel")),
}


def test_every_map_has_its_formula():
    assert tuple(FORMULAS) == feature_maps.names()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_features_equal_their_formula(spec):
    phi, x = feature_maps.get(spec), heads_of()
    weights = weights_of(phi) or None
    formulas = FORMULAS[phi.name]
    formulas = formulas if isinstance(formulas, tuple) else (formulas, formulas)
    got = phi.query(x, weights), phi.key(x, weights)
    for features, formula in zip(got, formulas, strict=True):
        assert tuple(features.shape) == (BATCH, TIME, HEADS, phi.size(DIM))
        want = formula(x.astype("float64"), phi)
        np.testing.assert_allclose(numpy(features), want, rtol=1e-5, atol=1e-6)
        assert (numpy(features) >= 0).all() or phi.name == "taylor2"


@pytest.mark.parametrize("spec", feature_maps.names())
def test_low_precision_comes_back_but_is_not_computed_in(spec):
    phi = feature_maps.get(spec)
    x = ops.cast(heads_of(), "bfloat16")
    weights = weights_of(phi)
    for features in (phi.query, phi.key):
        got = features(x, weights)
        assert keras.backend.standardize_dtype(got.dtype) == "bfloat16"
        want = features(ops.cast(x, "float32"), weights)
        np.testing.assert_allclose(numpy(got), numpy(want), rtol=2**-8)


@pytest.mark.parametrize("spec", feature_maps.names())
def test_gradients_are_finite_where_values_are_far(spec):
    phi = feature_maps.get(spec)
    rows = heads_of(4, 3, HEADS, DIM) * np.array([0, 1, 30, 1]).reshape(-1, 1, 1, 1)
    rows[3] = np.sign(rows[3]) * 30
    segment, weights = np.array([[1, 0, 1]]), phi.initial_weights(HEADS, DIM)
    cotangent = heads_of(4, 3, HEADS, phi.size(DIM))
    for features in (phi.query, lambda x, w: phi.key(x, w, segment)):
        value, (gradient,) = value_and_gradients(
            lambda x, run=features: run(x, weights), [rows], cotangent
        )
        assert np.isfinite(value).all() and np.isfinite(gradient).all()


def test_elu1_is_smooth_at_0_and_never_0():
    phi = feature_maps.get("elu1")
    x = np.array([0.0, -1e-6, -20, -60]).reshape(1, 4, 1, 1)
    value, (gradient,) = value_and_gradients(phi.key, [x], np.ones_like(x))
    np.testing.assert_allclose(value, np.exp(x), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.exp(x), rtol=1e-5)


# Kernels ------------------------------------------------------------------------------------


def products(q, k):
    return np.einsum("bqhf,bkhf->bhqk", numpy(q), numpy(k))


def test_taylor2_is_exp_to_the_second_order():
    phi, q, k = feature_maps.get("taylor2"), heads_of(seed=1), heads_of(seed=2)
    s = products(q, k) / math.sqrt(DIM)
    kernel = products(phi.query(q), phi.key(k))
    np.testing.assert_allclose(kernel, 1 + s + s**2 / 2, rtol=1e-5, atol=1e-5)
    assert kernel.min() > 0.49


@pytest.mark.once
def test_favor_estimates_exp_without_bias():
    q, k = 0.7 * heads_of(1, 4, 1, DIM, seed=1), 0.7 * heads_of(1, 4, 1, DIM, seed=2)
    estimates = []
    for seed in range(300):
        phi = feature_maps.get({"favor": {"features": 13, "seed": seed}})
        estimates.append(products(phi.key(q), phi.key(k)))  # a query's features are scaled
    error = np.std(estimates, axis=0) / math.sqrt(len(estimates))
    exact = np.exp(products(q, k) / math.sqrt(DIM))
    assert (error < 0.1 * exact).all()
    assert (np.abs(np.mean(estimates, axis=0) - exact) < 4 * error).all()


@pytest.mark.parametrize("features", [3, DIM, 13])
def test_favor_directions_are_orthogonal_in_blocks_and_as_long_as_normal_vectors(features):
    phi = feature_maps.Favor(features, seed=2)
    omega = phi.directions(DIM)
    assert omega.shape == (features, DIM) and omega.dtype == "float64"
    for start in range(0, features, DIM):
        block = omega[start : start + DIM]
        gram = block @ block.T
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12)
    np.testing.assert_array_equal(omega, feature_maps.Favor(features, seed=2).directions(DIM))
    assert not np.allclose(omega, feature_maps.Favor(features, seed=3).directions(DIM))


@pytest.mark.once  # NumPy draws them
def test_favor_directions_are_distributed_like_normal_vectors():
    omega = feature_maps.Favor(features=20_000).directions(4)
    np.testing.assert_allclose(np.cov(omega.T), np.eye(4), atol=0.04)
    np.testing.assert_allclose(omega.mean(0), 0, atol=0.03)
    squares = (omega**2).sum(1)  # chi-squared: mean 4, variance 8
    np.testing.assert_allclose([squares.mean(), squares.var()], [4, 8], rtol=0.05)


@pytest.mark.parametrize("name", [n for n in feature_maps.names() if n != "softmax"])
def test_no_feature_sees_another_position(name):
    phi = feature_maps.get(name)
    weights = phi.initial_weights(HEADS, DIM)
    x, changed = heads_of(), heads_of()
    changed[:, 6:] = 40  # the largest keys there are, later than the rest
    assert not phi.whole_sequence
    for features in (phi.query, phi.key):
        before, after = numpy(features(x, weights)), numpy(features(changed, weights))
        np.testing.assert_array_equal(before[:, :6], after[:, :6])


# Softmax over time ------------------------------------------------------------------------------


def test_softmax_of_packed_documents_is_that_of_each_alone():
    phi, x = feature_maps.get("softmax"), heads_of()
    # A document whose entries lie far below those of its neighbour must not underflow.
    x[3, :3] -= 300
    x[3, 8:] += 300
    x[SEGMENT == 0] = 1e30
    got = numpy(phi.key(x, segment=SEGMENT))
    want = np.zeros_like(got)
    for row, ids in enumerate(SEGMENT):
        for document in set(ids) - {0}:
            want[row, ids == document] = softmax(x[row, ids == document].astype("float64"), 0)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-7)
    shared = numpy(phi.key(x[:2], segment=SEGMENT[3:4]))  # one row of documents for all
    np.testing.assert_allclose(shared[1], numpy(phi.key(x[1:2], segment=SEGMENT[3:4]))[0])


def test_gradients_of_the_softmax_stay_inside_the_document():
    phi, x, cotangent = feature_maps.get("softmax"), heads_of(), heads_of(seed=1)
    _, (gradient,) = value_and_gradients(lambda x: phi.key(x, segment=SEGMENT), [x], cotangent)
    want = np.zeros_like(gradient)
    for row, ids in enumerate(SEGMENT):
        for document in set(ids) - {0}:
            here = row, ids == document
            p = softmax(x[here].astype("float64"), 0)
            want[here] = p * (cotangent[here] - (p * cotangent[here]).sum(0))
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-6)


def test_softmax_needs_no_normaliser():
    phi, q, k = feature_maps.get("softmax"), heads_of(seed=1), heads_of(seed=2)
    weights = products(phi.query(q), phi.key(k, segment=SEGMENT))
    same = (SEGMENT[:, :, None] == SEGMENT[:, None, :]) & (SEGMENT[:, None, :] != 0)
    total = (weights * same[:, None]).sum(-1)
    np.testing.assert_allclose(total, np.broadcast_to((SEGMENT != 0)[:, None], total.shape), 1e-5)


def test_softmax_over_a_long_time_takes_no_matrix_of_it():
    phi, documents, size = feature_maps.get("softmax"), 4, 16_384  # time squared: 17 GB in float32
    x, cotangent = heads_of(1, documents * size, 1, 2), heads_of(1, documents * size, 1, 2, seed=1)
    segment = 1 + np.arange(documents * size)[None] // size
    value, (gradient,) = value_and_gradients(lambda x: phi.key(x, segment=segment), [x], cotangent)
    np.testing.assert_allclose(value.reshape(documents, size, 2).sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(gradient.reshape(documents, size, 2).sum(1), 0, atol=1e-4)


def test_only_softmax_refuses_masks_and_says_why():
    orders = [masks.causal(), masks.bidirectional(), masks.prefix(), masks.reversed()]
    for name in feature_maps.names():
        phi = feature_maps.get(name)
        phi.check([masks.bidirectional()])
        if not phi.whole_sequence:
            phi.check(orders)
    for order in (*orders[:1], *orders[2:], masks.custom(lambda query, key: query == key)):
        with pytest.raises(InputError, match="depend on later keys.*bidirectional.*Received"):
            feature_maps.get("softmax").check([masks.bidirectional(), order])


# Hedgehog ---------------------------------------------------------------------------------------


def test_hedgehog_begins_as_the_identity():
    phi, x = feature_maps.get("hedgehog"), heads_of()
    weights = phi.initial_weights(HEADS, DIM)
    assert {n: w.shape for n, w in weights.items()} == phi.weight_shapes(HEADS, DIM)
    want = np.concatenate([softmax(x, -1), softmax(-x, -1)], -1)
    for features in (phi.query, phi.key):
        np.testing.assert_allclose(numpy(features(x, weights)), want, rtol=1e-5)


def test_hedgehog_learns_a_kernel_for_queries_and_one_for_keys():
    phi, x = feature_maps.get("hedgehog"), heads_of()
    weights = weights_of(phi)

    def both(query_kernel, key_kernel):
        w = {"query_kernel": query_kernel, "key_kernel": key_kernel}
        return phi.query(x, w) + 2 * phi.key(x, w)

    kernels = [weights["query_kernel"], weights["key_kernel"]]
    cotangent = heads_of(BATCH, TIME, HEADS, phi.size(DIM))
    _, gradients = value_and_gradients(both, kernels, cotangent)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0.01 for g in gradients)


# In an attention ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", feature_maps.names())
def test_a_dense_attention_on_it_averages_values(name):
    phi, segment = feature_maps.get(name), SEGMENT[3:4]
    weights = phi.initial_weights(HEADS, DIM)
    visible = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] != 0)

    def attend(q, k, v):
        scores = ops.einsum("bqhf,bkhf->bhqk", phi.query(q, weights), phi.key(k, weights, segment))
        scores = ops.where(visible[:, None], scores, ops.zeros_like(scores))
        total = ops.sum(scores, axis=-1, keepdims=True)
        normalised = scores / ops.where(total > 0, total, ops.ones_like(total))
        return ops.einsum("bhqk,bkhd->bqhd", normalised, v)

    q, k = heads_of(1, TIME, HEADS, DIM, seed=1), heads_of(1, TIME, HEADS, DIM, seed=2)
    v, cotangent = np.ones_like(q), heads_of(1, TIME, HEADS, DIM, seed=3)
    out, gradients = value_and_gradients(attend, [q, k, v], cotangent)
    real = (segment != 0)[0]
    np.testing.assert_allclose(out[0, real][out[0, real] != 0], 1, rtol=1e-5)
    assert (out[0, ~real] == 0).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (gradient[0, ~real] == 0).all()
    np.testing.assert_allclose(gradients[0], 0, atol=1e-5)  # equal values: no query matters


# Specs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_map_is_json_hashable_and_comparable(spec):
    phi = feature_maps.get(spec)
    assert feature_maps.get(phi) is phi
    copy = feature_maps.get(json.loads(json.dumps(phi.get_config())))
    assert copy == phi and hash(copy) == hash(phi) and len({copy, phi}) == 1
    others = [feature_maps.get(other) for other in SPECS if other != spec]
    assert phi not in others and len({phi, *others}) == len(SPECS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        phi.name = "another"


def test_a_name_is_a_map_with_its_defaults():
    assert feature_maps.get("favor") == feature_maps.get({"favor": {}})
    assert feature_maps.get({"favor": {"features": 64}}).get_config() == "favor"
    assert feature_maps.get({"elu1": {}}).get_config() == "elu1"


X = np.zeros((1, 2, HEADS, DIM), "float32")
EYE = np.eye(DIM)[None].repeat(HEADS, 0)
WRONG = [
    (lambda: feature_maps.get("elu_1"), "did you mean 'elu1'.*Received: 'elu_1'"),
    (lambda: feature_maps.get({"fvaor": {}}), "did you mean 'favor'"),
    (lambda: feature_maps.get(None), "Valid: elu1.*Received: None"),
    (lambda: feature_maps.get(["elu1"]), "Valid: elu1"),
    (lambda: feature_maps.get({"favor": {"feature": 8}}), "did you mean 'features'"),
    (lambda: feature_maps.get({"favor": 8}), "JSON object of features, seed.*Received"),
    (lambda: feature_maps.get({"elu1": {"seed": 8}}), "takes no fields.*Received"),
    (lambda: feature_maps.get({"favor": {"features": 0}}), "features.*at least 1.*Received: 0"),
    (lambda: feature_maps.get({"favor": {"seed": 0.5}}), "seed.*at least 0.*Received: 0.5"),
    (lambda: feature_maps.get("hedgehog").query(X), "key_kernel.*Received: \\[\\]"),
    (lambda: feature_maps.get("elu1").key(X, {"key_kernel": EYE}), "takes the weights \\[\\]"),
    (lambda: feature_maps.get("elu1").key(X[0]), "batch, time, heads, dim.*Received"),
    (lambda: feature_maps.get("elu1").key(X.astype("int32")), "floats.*Received: int32"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case[1][:30])
def test_wrong_input_is_refused_in_one_line(case):
    run, message = case
    with pytest.raises(InputError, match=message) as error:
        run()
    assert "\n" not in str(error.value)
