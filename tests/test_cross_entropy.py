import keras
import numpy as np
import pytest
from autodiff import numpy, value_and_gradients
from keras import ops

from kzoo import presets
from kzoo.errors import InputError
from kzoo.models.loss import BitsPerByte
from kzoo.ops.cross_entropy import cross_entropy

BACKEND = keras.backend.backend()
BATCH, TIME, WIDTH, VOCABULARY = 3, 7, 5, 11
# One step of time a chunk (one row is less than a batch), two and a rest, all in one.
ROWS = [1, 7, 21, 1000]
SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 16,
}
TEXTS = ["to be", "or not to be", "that is", "the question"]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    weights = rng.random((BATCH, TIME)) + 0.5
    weights[0, 3:] = weights[1, 0] = weights[:, 6] = 0
    labels = rng.integers(VOCABULARY, size=(BATCH, TIME))
    labels[weights == 0] = -100
    hidden, kernel = rng.normal(size=(BATCH, TIME, WIDTH)), rng.normal(size=(VOCABULARY, WIDTH))
    return hidden, kernel * 3, labels, weights


def plain(hidden, kernel, labels, weights):
    logits = ops.matmul(hidden, ops.transpose(kernel))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    loss.dtype_policy = keras.DTypePolicy(keras.backend.standardize_dtype(logits.dtype))
    return loss(np.maximum(labels, 0), logits, ops.cast(weights, logits.dtype))


def near(got, want, tolerance=1e-6):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))


# The function -------------------------------------------------------------------------------


@pytest.mark.backends
@pytest.mark.parametrize("tokens_at_once", ROWS)
def test_value_and_gradients_are_those_of_the_plain_loss(inputs, tokens_at_once):
    *floats, labels, weights = inputs
    floats = [x.astype("float32").astype("float64") for x in floats]
    cotangent = np.array(0.3)

    def chunked(hidden, kernel):
        return cross_entropy(hidden, kernel, labels, weights, tokens_at_once=tokens_at_once)[0]

    def oracle(hidden, kernel):
        return plain(hidden, kernel, labels, weights)

    value, gradients = value_and_gradients(chunked, floats, cotangent)
    expected, expected_gradients = value_and_gradients(oracle, floats, cotangent, "float64")
    near(value, expected)
    for got, want in zip(gradients, expected_gradients, strict=True):
        near(got, want)
    assert (gradients[0][weights == 0] == 0).all()


@pytest.mark.backends
@pytest.mark.parametrize("tokens_at_once", [6, 1000])
def test_derivatives_of_the_gradient(inputs, tokens_at_once):
    """Against differences of a gradient that is written down here, in float64."""
    *floats, labels, weights = inputs
    draws = np.random.default_rng(1)
    directions = [draws.normal(size=x.shape) for x in floats]

    def gradients(hidden, kernel):
        logits = hidden @ kernel.T
        slopes = np.exp(logits - logits.max(-1, keepdims=True))
        slopes /= slopes.sum(-1, keepdims=True)
        slopes = weights[..., None] * (slopes - (labels[..., None] == np.arange(VOCABULARY)))
        return slopes @ kernel, np.einsum("btv,btw->vw", slopes, hidden)

    ahead, behind = (
        gradients(*(x + step * d for x, d in zip(floats, directions, strict=True)))
        for step in (1e-5, -1e-5)
    )
    want = [0.3 * (a - b) / 2e-5 for a, b in zip(ahead, behind, strict=True)]
    for got, expected in zip(
        second_derivatives(inputs, directions, tokens_at_once), want, strict=True
    ):
        near(got, expected, 1e-5)


def second_derivatives(inputs, directions, tokens_at_once):
    """The derivative of ⟨directions, gradient of 0.3 · the loss⟩ by hidden states and kernel."""
    *floats, labels, weights = inputs
    floats, directions = (
        [ops.convert_to_tensor(x, "float32") for x in arrays] for arrays in (floats, directions)
    )

    def loss(hidden, kernel):
        return (
            0.3 * cross_entropy(hidden, kernel, labels, weights, tokens_at_once=tokens_at_once)[0]
        )

    def along(gradients):
        return sum(ops.sum(x * d) for x, d in zip(gradients, directions, strict=True))

    if BACKEND == "jax":
        import jax

        slopes = jax.grad(lambda *x: along(jax.grad(loss, (0, 1))(*x)), (0, 1))(*floats)
    elif BACKEND == "torch":
        import torch

        floats = [x.requires_grad_() for x in floats]
        first = torch.autograd.grad(loss(*floats), floats, create_graph=True)
        slopes = torch.autograd.grad(along(first), floats)
    else:
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(floats)
            with tf.GradientTape() as inner:
                inner.watch(floats)
                value = loss(*floats)
            total = along(inner.gradient(value, floats))
        slopes = outer.gradient(total, floats)
    return [numpy(x) for x in slopes]


@pytest.mark.backends
def test_terms_are_float32_and_zero_where_the_weight_is(inputs):
    hidden, kernel, labels, weights = inputs
    total, nats = cross_entropy(hidden, kernel, labels, weights, tokens_at_once=6)
    assert {keras.backend.standardize_dtype(x.dtype) for x in (total, nats)} == {"float32"}
    total, nats = numpy(total), numpy(nats)
    assert nats.shape == weights.shape and (nats[weights == 0] == 0).all()
    logits = hidden @ kernel.T
    chosen = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    near(nats, weights * (np.log(np.exp(logits).sum(-1)) - chosen))
    near(total, nats.sum())
    unweighted, nats = cross_entropy(hidden, kernel, np.maximum(labels, 0), tokens_at_once=6)
    near(numpy(unweighted), numpy(nats).sum())
    assert (numpy(nats) > 0).all()


@pytest.mark.backends
def test_logits_of_any_size(inputs):
    hidden, kernel, labels, weights = inputs
    near(
        numpy(cross_entropy(hidden * 1e4, kernel, labels, weights, tokens_at_once=6)[0]),
        numpy(plain(hidden * 1e4, kernel, labels, weights)),
    )


@pytest.mark.backends
def test_bfloat16_hidden_states_have_float32_logits(inputs):
    *floats, labels, weights = inputs

    def run(loss):
        def function(hidden, kernel):
            return loss(ops.cast(hidden, "bfloat16"), kernel)

        return value_and_gradients(function, floats, np.array(1.0))

    value, (hidden, kernel) = run(
        lambda h, k: cross_entropy(h, k, labels, weights, tokens_at_once=6)[0]
    )
    expected, (expected_hidden, expected_kernel) = run(
        lambda h, k: plain(ops.cast(h, "float32"), k, labels, weights)
    )
    near(value, expected)
    near(kernel, expected_kernel)
    near(hidden, expected_hidden, 2**-8)  # both were rounded to bfloat16


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sizes that are not known")
@pytest.mark.backends
def test_a_graph_of_unknown_batch_and_time(inputs):
    import tensorflow as tf

    *floats, labels, weights = inputs
    hidden, kernel = (tf.constant(x, "float32") for x in floats)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, WIDTH)),
            tf.TensorSpec((None, None), "int32"),
            tf.TensorSpec((None, None)),
        ]
    )
    def gradients(hidden, labels, weights):
        with tf.GradientTape() as tape:
            tape.watch([hidden, kernel])
            total, _ = cross_entropy(hidden, kernel, labels, weights, tokens_at_once=6)
        return tape.gradient(total, [hidden, kernel])

    def oracle(hidden, kernel):
        return plain(hidden, kernel, labels, weights)

    _, expected = value_and_gradients(oracle, floats, np.array(1.0))
    got = gradients(hidden, tf.constant(labels, "int32"), tf.constant(weights, "float32"))
    for a, b in zip(got, expected, strict=True):
        near(numpy(a), b)


@pytest.mark.parametrize("which", range(4))
def test_shapes_that_disagree(inputs, which):
    arrays = list(inputs)
    arrays[which] = arrays[which][:, 1:]
    with pytest.raises(InputError, match=r"\[batch, time, width\].*Received: \("):
        cross_entropy(*arrays, tokens_at_once=4)


def test_no_tokens_at_once(inputs):
    with pytest.raises(InputError, match="tokens_at_once must be a positive integer"):
        cross_entropy(*inputs, tokens_at_once=0)


# The option of a task -----------------------------------------------------------------------


def load(family, **overrides):
    return presets.load(f"{family}_nano", **{**SMALL, **overrides})


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    "family, variant", [("gpt", {"dropout": 0.2}), ("bert", {"tie_embeddings": False})]
)
def test_a_task_trains_evaluates_and_scores_alike(family, variant):
    results = []
    for tokens_at_once in (0, 24):
        model = load(family, loss_tokens=tokens_at_once, **variant)
        x, y, weight = model.preprocessor(TEXTS)
        # TensorFlow takes ten seconds to build a graph.
        model.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=BACKEND == "tensorflow")
        logs = [model.train_on_batch(x, y, weight, return_dict=True) for _ in range(3)]
        assert logs[2]["loss"] < logs[0]["loss"]
        if family == "gpt":
            logs.append(model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True))
            logs.append(model.score(TEXTS))
            assert model.predict_on_batch(x).shape == model(x).shape == (4, 16, 384)
        results.append(logs)
    for without, with_ in zip(*results, strict=True):
        assert without.keys() == with_.keys()
        for name, value in without.items():
            np.testing.assert_allclose(with_[name], value, rtol=1e-6)


@pytest.mark.torch
def test_the_option_is_saved_and_changes_no_weight(tmp_path):
    model, other = load("gpt", loss_tokens=32), load("gpt")
    assert [v.path for v in model.weights] == [v.path for v in other.weights]
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    presets.save(model, tmp_path / "preset")
    assert presets.load(tmp_path / "preset").config == model.config
    assert presets.load(tmp_path / "preset", loss_tokens=0).config == other.config
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").config == model.config


def test_loss_tokens_in_a_config():
    assert presets.config("gpt_nano")["loss_tokens"] == 0
    assert presets.config("bert_nano", loss_tokens=256)["loss_tokens"] == 256
    for bad in (-1, 2.0, True, None, "64"):
        with pytest.raises(InputError, match="loss_tokens must be an integer, 0 or more"):
            presets.config("gpt_nano", loss_tokens=bad)


def test_what_needs_logits_is_refused():
    model = load("gpt", loss_tokens=32)
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    for arguments in (
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        {"weighted_metrics": [BitsPerByte(), accuracy]},
        {"metrics": [accuracy]},
    ):
        with pytest.raises(InputError, match="others need loss_tokens=0. Received: "):
            model.compile(**arguments)


@pytest.mark.skipif(BACKEND != "jax", reason="asks XLA")
def test_a_compiled_step_holds_a_few_logits_at_once():
    import jax

    shape = (8, 64)
    arrays = np.ones(shape, "int32")
    batch = {"token_ids": arrays, "padding_mask": arrays}, arrays, np.ones(shape, "float32")
    logits = 4 * arrays.size * 8192
    sizes = []
    for tokens_at_once in (0, 32):
        model = load(
            "gpt", vocabulary_size=8192, max_sequence_length=64, loss_tokens=tokens_at_once
        )
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        model._symbolic_build(data_batch=batch)
        *fixed, optimizer, metrics = (
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        steps = {model.train_step: (*fixed, optimizer, metrics), model.test_step: (*fixed, metrics)}
        for step, state in steps.items():
            memory = jax.jit(step).lower(state, batch).compile().memory_analysis()
            sizes.append(memory.temp_size_in_bytes)
    assert min(sizes[:2]) > logits and max(sizes[2:]) < logits / 3
