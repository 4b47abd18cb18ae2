"""What a comparison rests on: arms differ in the field that is compared, and in nothing else."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from marks import once

import kzoo
from kzoo import presets

FAMILIES = ("gpt", "unilm", "bert", "bert_mixed_heads", "bert_mixed_layers")
MECHANISMS = ("softmax", "linear")
GOLDEN = json.loads((Path(__file__).parent / "golden" / "variables.json").read_text())
SIZES = {"d": 64, "f": 256, "v": 384, "t": 64}


def variables(model):
    return {v.path: ops.convert_to_numpy(v) for v in model.weights}


@pytest.fixture(scope="module")
def reference():
    return variables(presets.load("gpt_nano"))


# Variables ----------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", ["softmax", once("linear")])
@pytest.mark.parametrize("family", FAMILIES)
def test_arms_have_the_same_variables_and_initial_values(reference, family, mechanism):
    got = variables(presets.load(f"{family}_nano", mechanism=mechanism))
    assert [*got] == [*reference]
    for path, value in reference.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def test_the_seed_moves_every_drawn_value(reference):
    other = variables(presets.load("gpt_nano", seed=1))
    drawn = [path for path, value in reference.items() if np.ptp(value) > 0]
    assert {path.rpartition("/")[2] for path in drawn} == {"kernel", "embeddings"}
    assert all((other[path] != reference[path]).mean() > 0.99 for path in drawn)


def test_no_two_variables_share_their_draws(reference):
    heads = {value.ravel()[:16].tobytes() for value in reference.values() if np.ptp(value) > 0}
    assert len(heads) == sum(np.ptp(value) > 0 for value in reference.values())


@pytest.mark.parametrize(
    "overrides",
    [
        {"num_layers": 3},
        {"positions": "learned"},
        {"tie_embeddings": False},
        {"activation": "geglu"},
        {"normalization": "rms_norm"},
        {"norm_placement": "post"},
        {"dropout": 0.1},
        {"qk_norm": "rms", "output_norm": True, "output_gate": True, "short_convolution": 3},
        {"mechanism": {"gated_linear": {"gate": "softplus"}}},
        {"max_sequence_length": 128},
    ],
    ids=str,
)
def test_what_is_added_moves_no_other_initial_value(reference, overrides):
    got = variables(presets.load("gpt_nano", **overrides))
    shared = [path for path in reference if path in got]
    assert {path for path in reference if path.endswith("kernel")} <= {*shared}
    for path in shared:
        np.testing.assert_array_equal(got[path], reference[path], err_msg=path)


@pytest.mark.parametrize("name", GOLDEN)
def test_variable_paths_are_those_of_the_golden_file(name):
    """A changed path is a new `config_version`, with a migration of saved weights."""
    golden = GOLDEN[name]
    model = presets.load("gpt_nano", **golden["overrides"])
    shapes = {path: [SIZES[s] for s in shape] for path, shape in golden["variables"].items()}
    assert {v.path: list(v.shape) for v in model.weights} == shapes
    assert {v.path: list(v.shape) for v in model.backbone.weights} == shapes


# Batches ------------------------------------------------------------------------------------

OBJECTIVES = {
    "causal_lm": [("gpt", {})],
    "prefix_lm": [("gpt", {"objective": "prefix_lm"}), ("unilm", {})],
    "masked_lm": [("bert", {}), ("bert_mixed_heads", {}), ("bert_mixed_layers", {})],
}
TEXT = [f"{i} times {j} is {i * j}; and so on." for i in range(12) for j in range(12)]
PAIRS = [(f"{i} times {j}", f"{i * j}, of course") for i in range(12) for j in range(12)]


@pytest.mark.parametrize("rows", [TEXT, PAIRS], ids=["strings", "pairs"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_arms_of_an_objective_see_the_same_batches(objective, rows):
    splits = [
        kzoo.data.load(
            rows, presets.config(f"{family}_nano", mechanism=m, **overrides), batch_size=8
        )
        for family, overrides in OBJECTIVES[objective]
        for m in MECHANISMS
    ]
    first = splits[0]
    for other in splits[1:]:
        assert other.facts == first.facts
        for part in ("train", "valid"):
            a, b = getattr(first, part), getattr(other, part)
            assert len(a) == len(b)
            for i in (0, len(a) - 1):
                assert_same_tokens(a[i], b[i])


def test_held_out_tokens_are_the_same_whatever_is_trained_on():
    arms = [
        presets.config("unilm_nano"),
        presets.config("gpt_nano", objective={"prefix_lm": {"score": "all"}}),
    ]
    targets, everything = (kzoo.data.load(TEXT, config, batch_size=8) for config in arms)
    for i in range(len(targets.valid)):
        assert_same_tokens(targets.valid[i], everything.valid[i])
    x, _, weight = everything.train[0]
    assert (weight * x["padding_mask"]).sum() > targets.train[0][2].sum()


def assert_same_tokens(a, b):
    (x, *rest), (other_x, *others) = a, b
    for name in x.keys() & other_x.keys():
        np.testing.assert_array_equal(x[name], other_x[name])
    assert x.keys() ^ other_x.keys() <= {"source_mask"}
    for p, q in zip(rest, others, strict=True):
        np.testing.assert_array_equal(p, q)


# Loss ---------------------------------------------------------------------------------------


def test_losses_have_the_same_scale():
    """A model that knows nothing pays ln 384 nats per scored token, whatever is scored."""
    for family in FAMILIES:
        model = presets.load(f"{family}_nano", num_layers=2, max_sequence_length=32)
        assert model.loss.get_config() == presets.load("gpt_nano").loss.get_config()
        x, y, weight = kzoo.data.load(PAIRS, model, batch_size=8).train[0]
        logits = np.zeros((*y.shape, 384), "float32")
        np.testing.assert_allclose(float(model.loss(y, logits, weight)), np.log(384), rtol=1e-5)
        assert 0 < weight.sum() < weight.size


def test_gradients_have_the_same_scale_however_many_tokens_are_scored():
    """One scored token or all: a step of SGD on equal tokens is the same step."""

    small = {"num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 8}
    model = presets.load("gpt_nano", **small)
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    start = model.get_weights()
    ids = np.full((2, 4), 97, "int32")
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}

    def step(weight):
        model.set_weights(start)
        model.train_on_batch(x, ids + 1, weight)
        pairs = zip(model.get_weights(), start, strict=True)
        return np.concatenate([(after - before).ravel() for after, before in pairs])

    everything = np.ones((2, 4), "float32")
    one = np.zeros((2, 4), "float32")
    one[:, 0] = 1
    whole = step(everything)
    assert np.abs(whole).max() > 0.01
    for weight in (one, 0.5 * everything):
        np.testing.assert_allclose(step(weight), whole, atol=1e-6)
