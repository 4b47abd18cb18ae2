"""The encoder and the decoder: T5, shared stacks, and the encoder's masks."""

import itertools

import grain
import keras
import keras_hub
import numpy as np
import pytest
from autodiff import computed
from keras import ops
from marks import once

import kzoo
from kzoo import config, objectives, presets
from kzoo.encoder import Encoder
from kzoo.errors import InputError
from kzoo.objectives import layouts
from kzoo.vocabulary import BOS, EOS, PAD, SEP

FAMILIES = ("t5", "t5_shared", "t5_causal_encoder", "t5_mixed_encoder")
MECHANISMS = ("softmax", "linear")
TIME = 16
SMALL = {
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": TIME,
}
PAIRS = {
    "prompts": ["to", "or not", "", "the"],
    "responses": ["be", "to be", "that is", "question"],
}


def load(family, **overrides):
    return presets.load(f"{family}_nano", **{**SMALL, **overrides})


def logits(model, x):
    return ops.convert_to_numpy(model.predict_on_batch(x))


def variables(model):
    return {v.path: ops.convert_to_numpy(v) for v in model.weights}


def tokens(model, x=PAIRS):
    return model.preprocessor(x)


# Objective ----------------------------------------------------------------------------------


def test_the_layout_splits_an_example_over_two_sequences():
    encoder = Encoder(objectives.get("prefix_lm"), layouts.EncoderDecoder())
    source, target = np.array([97, 98]), np.array([99, 100, 101])
    x, y, weight = encoder.batch([source], [target], 8)
    assert x["encoder_token_ids"].tolist() == [[BOS, 97, 98, SEP, PAD, PAD, PAD, PAD]]
    assert x["encoder_padding_mask"].tolist() == [[1] * 4 + [0] * 4]
    assert x["decoder_token_ids"].tolist() == [[BOS, 99, 100, 101, EOS, PAD, PAD, PAD]]
    assert x["decoder_padding_mask"].tolist() == [[1] * 5 + [0] * 3]
    assert y.tolist() == [[99, 100, 101, EOS, PAD, PAD, PAD, PAD]]
    assert weight.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_every_stack_scores_the_same_tokens_of_an_objective(kind):
    data = {
        "text": "".join(f"{i} times {i} is {i * i}; and so on. " for i in range(90)),
        "pairs": [(f"{i} times {i + 3}", f"{i * (i + 3)}, of course") for i in range(40)],
    }[kind]
    data = [data[i : i + 40] for i in range(0, len(data), 40)] if kind == "text" else data
    arms = [presets.config("unilm_nano"), presets.config("t5_nano")]
    one, two = (kzoo.data.load(data, arm, batch_size=8) for arm in arms)
    assert one.facts == two.facts
    for (x, y, w), (p, q, v) in itertools.chain(
        zip(one.train, two.train, strict=True), zip(one.valid, two.valid, strict=True)
    ):
        np.testing.assert_array_equal(w.sum(1), v.sum(1))
        np.testing.assert_array_equal(y[w > 0], q[v > 0])
        source = x["source_mask"] * x["padding_mask"] > 0
        read = p["encoder_padding_mask"] > 0
        np.testing.assert_array_equal(x["token_ids"][source], p["encoder_token_ids"][read])


# Control ------------------------------------------------------------------------------------


def test_the_encoders_mask_is_all_that_these_families_differ_in():
    t5, *others = (presets.config(f"{family}_nano") for family in FAMILIES if family != "t5_shared")
    for other in others:
        assert {field for field in t5 if t5[field] != other[field]} == {"mask"}
    gpt, unilm = presets.config("gpt_nano"), presets.config("unilm_nano")
    assert {f for f in t5 if t5[f] != unilm[f]} == {"mask", "stack"}
    assert {f for f in t5 if t5[f] != gpt[f]} == {"mask", "stack", "objective"}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_initial_values_depend_on_neither_mask_nor_mechanism(mechanism):
    reference = variables(load("t5"))
    for family in ("t5", "t5_causal_encoder", "t5_mixed_encoder"):
        got = variables(load(family, mechanism=mechanism))
        assert [*got] == [*reference]
        for path, value in reference.items():
            np.testing.assert_array_equal(got[path], value, err_msg=path)
    shared = variables(load("t5_shared", mechanism=mechanism))
    assert shared.keys() < reference.keys()
    assert all((shared[path] == reference[path]).all() for path in shared)
    own = {path.split("/")[1] for path in reference.keys() & shared.keys() if "decoder" in path}
    assert own == {"cross_attention", "cross_attention_norm"}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_two_stacks_with_equal_values_are_the_shared_one(mechanism):
    apart, shared = (load(family, mechanism=mechanism) for family in ("t5", "t5_shared"))
    values = variables(apart)
    for variable in apart.weights:
        path = variable.path.replace("decoder_", "encoder_", 1)
        if "cross_attention" not in path and path in values:
            variable.assign(values[path])
    x, *_ = tokens(apart)
    np.testing.assert_allclose(logits(apart, x), logits(shared, x), atol=1e-6)
    # And so they are after a step: the shared parameters move by both stacks' gradients.
    before = variables(shared)
    shared.compile(optimizer=keras.optimizers.SGD(0.1), weighted_metrics=[])
    shared.train_on_batch(*tokens(shared))
    still = [path for path, value in variables(shared).items() if (value == before[path]).all()]
    assert not [path for path in still if not path.endswith("key/bias")]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_that_are_counted(family):
    for fields in ({}, {"positions": "learned"}, {"positions": "relative", "use_bias": False}):
        fields = fields | {"normalization": "rms_norm"} if fields else fields
        model = presets.load(f"{family}_nano", **fields)
        assert model.count_params() == config.count_parameters(model.config)


# Who sees whom ------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_depend_on_what_the_masks_show_and_on_nothing_else(family, mechanism):
    """One layer, so that the encoder's mask is not blurred by a second."""
    model = load(family, mechanism=mechanism, num_layers=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (1, 6)).astype("int32")
    mask = np.array([[1, 1, 1, 1, 1, 0]], "int32")
    x = {
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids[:, ::-1].copy(),
        "decoder_padding_mask": mask,
    }

    def moved(name):
        """Rows of which the i-th has another token at i, and what the plain row gives."""
        rows = {key: np.repeat(value, 7, axis=0) for key, value in x.items()}
        rows[name][np.arange(6), np.arange(6)] = (x[name][0] + 1) % 256
        out = model.backbone.predict_on_batch(rows)
        out = {key: ops.convert_to_numpy(value) for key, value in out.items()}
        return {key: np.abs(value[:6] - value[6]).max(-1).T > 1e-6 for key, value in out.items()}

    real = mask[0, :, None] * mask[0, None] > 0
    encoder, decoder = moved("encoder_token_ids"), moved("decoder_token_ids")
    mask = model.backbone.mask.dense(6, num_heads=2)
    visible = np.asarray(ops.convert_to_numpy(mask))[0].any(0) & real | np.eye(6, dtype=bool)
    np.testing.assert_array_equal(encoder["encoder_sequence_output"][:5], visible[:5])
    assert not decoder["encoder_sequence_output"].any()
    np.testing.assert_array_equal(
        decoder["decoder_sequence_output"][:5], (np.tril(np.ones((6, 6), bool)) & real)[:5]
    )
    # The decoder sees all of the source, wherever it stands, and no padding.
    assert encoder["decoder_sequence_output"][:5, :5].all()
    assert not encoder["decoder_sequence_output"][:5, 5].any()


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_analyses_cover_both_stacks(mechanism):
    model = load("t5_mixed_encoder", mechanism=mechanism)
    x, *_ = tokens(model)
    x = {name: array[:, :8] for name, array in x.items()}
    found = kzoo.analysis.leaks(model, x)
    assert [(leak.stack, leak.layer) for leak in found] == [
        ("encoder", 0),
        ("encoder", 1),
        ("decoder", 0),
        ("decoder", 1),
    ]
    assert not any(leak.hidden or leak.unused for leak in found)
    heads = kzoo.analysis.attention_spectrum(model, x)
    masks = [(head["stack"], head["mask"]) for head in heads]
    both = [("encoder", "causal"), ("encoder", "reversed")]
    assert masks == 2 * both + 4 * [("decoder", "causal")]
    assert len(kzoo.analysis.collapse(model, x)) == 6


def test_linear_cross_attention_is_one_state():
    """Its kernel in the log, its values against the dense form."""
    model = load("t5", mechanism="linear", num_layers=1)
    block = model.backbone.stacks["decoder"].blocks[0]
    assert set(kzoo.layers.kernels(model, (4, 64), "cpu").values()) == {"chunk_scan"}
    rng = np.random.default_rng(0)
    x, source = (rng.normal(size=(2, n, 16)).astype("float32") for n in (5, 7))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3], "int32")

    @computed
    def results():
        attention = block.cross_attention
        weights = attention.attention_weights(x, source, key_padding_mask=mask)
        return attention.attend(x, source, key_padding_mask=mask), weights, attention.value(source)

    got, weights, v = results
    want = np.einsum("bhqk,bkhd->bqhd", weights, v.reshape(2, 7, 2, 8))
    np.testing.assert_allclose(got, want, atol=1e-5)


# Tasks --------------------------------------------------------------------------------------


@pytest.mark.torch
def test_fit_takes_strings_pairs_token_batches_and_grain():
    model = load("t5", mechanism="linear", num_layers=1)
    model.compile(optimizer=keras.optimizers.SGD(0.0), weighted_metrics=[])
    x, y, weight = tokens(model)
    rows = grain.MapDataset.source([(x, y, weight)])
    histories = [
        model.fit(PAIRS, batch_size=4, verbose=0),
        model.fit(x, y, 4, weight, verbose=0),
        model.fit(rows.to_iter_dataset(), verbose=0),
    ]
    losses = [history.history["loss"][0] for history in histories]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)
    assert np.isfinite(model.fit(["to be or not to be"] * 4, verbose=0).history["loss"][0])


def test_score_is_the_loss_of_the_response():
    model = load("t5", num_layers=1)
    x, y, weight = tokens(model)
    out = logits(model, x).astype("float64")
    out -= np.log(np.exp(out).sum(-1, keepdims=True))
    nats = -(np.take_along_axis(out, y[..., None], -1)[..., 0] * weight).sum(1)
    np.testing.assert_allclose(model.score(PAIRS)["nats"], nats, rtol=1e-5)
    by_rows = load("t5", num_layers=1, loss_tokens=5)
    np.testing.assert_allclose(by_rows.score(PAIRS)["nats"], nats, rtol=1e-5)
    a, b = (m.evaluate(x, y, sample_weight=weight, verbose=0) for m in (model, by_rows))
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_saved_models_come_back(tmp_path):
    model = load("t5_shared", mechanism="linear")
    x, *_ = tokens(model)
    model.fit(PAIRS, verbose=0)
    presets.save(model, tmp_path / "preset")
    model.save(tmp_path / "model.keras")
    task = keras_hub.models.Seq2SeqLM.from_preset(str(tmp_path / "preset"))
    again = [
        presets.load(tmp_path / "preset"),
        task,
        keras.saving.load_model(tmp_path / "model.keras"),
    ]
    for other in again:
        assert other.config == model.config
        assert variables(other).keys() == variables(model).keys()
        np.testing.assert_allclose(logits(other, x), logits(model, x), atol=1e-6)
    # Files of config_version 1 call the objective of an encoder and a decoder "seq2seq".
    for name in ("task.json", "preprocessor.json"):
        path = tmp_path / "preset" / name
        assert '"prefix_lm"' in path.read_text()
        path.write_text(path.read_text().replace('"prefix_lm"', '"seq2seq"'))
    assert keras_hub.models.Seq2SeqLM.from_preset(str(tmp_path / "preset")).config == model.config
    softmax = presets.load(tmp_path / "preset", mechanism="softmax", mask="causal")
    assert softmax.objective == softmax.preprocessor.objective == model.objective
    assert all(
        (a == b).all() for a, b in zip(softmax.get_weights(), model.get_weights(), strict=True)
    )


# Wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"mask": "prefix"}, "the mask is the encoder's"),
        ({"objective": {"prefix_lm": {"score": "all"}}}, "scores targets alone"),
        ({"objective": "masked_lm"}, "such as 'prefix_lm'"),
        ({"objective": "causal_lm"}, "an encoder reads the source"),
        ({"stack": "single"}, "show a next-token loss its answer"),
        ({"stack": "encoder"}, "encoder_decoder"),
        ({"num_segments": 2}, "only a single stack"),
        ({"pooler": True}, "only a single stack"),
        ({"positions": "relative", "mechanism": "linear"}, "needs a mechanism that has scores"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, said):
    with pytest.raises(InputError) as caught:
        load("t5", **overrides)
    assert said in str(caught.value) and "Received: " in str(caught.value)


def test_packed_examples_and_missing_inputs_are_refused():
    model = load("t5")
    x, y, weight = tokens(model)
    packed = {**x, "decoder_padding_mask": x["decoder_padding_mask"] * 2}
    with pytest.raises(InputError, match="one document per sequence"):
        model.fit(packed, y, verbose=0)
    del x["encoder_padding_mask"]
    with pytest.raises(InputError, match="encoder_padding_mask is missing"):
        model.evaluate(x, y, sample_weight=weight, verbose=0)
