"""What mechanisms say of themselves, without a layer."""

import json

import pytest

from kzoo import masks, mechanisms, mixers, presets
from kzoo.config import Config, count_parameters
from kzoo.errors import InputError

SIZES = mechanisms.HeadSizes(num_heads=4, kv_heads=2, head_dim=8)


@pytest.mark.parametrize(
    "spec",
    ["softmax", "linear", {"softmax": {"scale": 0.5}}, {"linear": {"feature_map": "relu"}}]
    + [{"linear": {"feature_map": {"favor": {"features": 8}}}}]
    + ["retention", {"retention": {"log_decay": [-0.1, 0], "feature_map": "elu1"}}]
    + ["gated_linear", {"gated_linear": {"gate": "softplus", "scale": 1.0}}],
    ids=str,
)
def test_json_both_ways(spec):
    mechanism = mechanisms.get(spec)
    assert mechanism.get_config() == spec
    assert mechanisms.get(json.loads(json.dumps(spec))) == mechanism
    assert len({mechanism, mechanisms.get(spec)}) == 1


def test_the_short_form_of_a_field():
    relu = mechanisms.get({"linear": {"feature_map": "relu"}})
    assert mechanisms.with_fields("linear", feature_map="relu", scale=None) == relu
    assert mechanisms.with_fields(relu, feature_map="relu") == relu


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: mechanisms.get("lineer"), "did you mean 'linear'"),
        (lambda: mechanisms.get({"linear": {"feature_mp": "relu"}}), "did you mean 'feature_map'"),
        (lambda: mechanisms.get({"softmax": {"scale": -1}}), "positive number"),
        (lambda: mechanisms.with_fields("softmax", feature_map="relu"), "belongs to linear"),
        (
            lambda: mechanisms.with_fields({"linear": {"feature_map": "exp"}}, feature_map="relu"),
            "feature_map is given once",
        ),
        (lambda: mechanisms.get({"retention": {"log_decay": [0.1]}}), "a number of at most 0"),
        (lambda: mechanisms.get({"retention": {"log_decay": "retnt"}}), "did you mean 'retnet'"),
        (lambda: mechanisms.get({"retention": {"normalize": True}}), "give a feature_map"),
        (lambda: mechanisms.get({"gated_linear": {"gate": "softmax"}}), "did you mean 'softplus'"),
        (
            lambda: mechanisms.get({"retention": {"log_decay": [-1]}}).check([masks.causal()] * 2),
            "log_decay has a number for each of the 2 heads",
        ),
        (lambda: mechanisms.get("retention").check([masks.permuted()]), "goes through time"),
        (lambda: mechanisms.get("gated_linear").check([masks.custom(max)]), "goes through time"),
        (
            lambda: mechanisms.get("linear").check([masks.causal()], bias=True),
            "needs a mechanism that has scores (softmax)",
        ),
    ],
)
def test_wrong_input_raises_one_line(attempt, said):
    with pytest.raises(InputError) as caught:
        attempt()
    message = str(caught.value)
    assert said in message and "Received: " in message and "\n" not in message


def test_what_they_cost():
    pairs = [masks.causal()] * 2 + [masks.bidirectional()] * 2
    assert mechanisms.get("softmax").flops(SIZES, pairs, 10) == 4 * 8 * 2 * (55 + 100)
    assert mechanisms.get("linear").flops(SIZES, pairs, 10) == 4 * 10 * 4 * 8 * 9
    # A second state under masks that show what stands behind; a decay, a key and a query each.
    assert mechanisms.get("retention").flops(SIZES, pairs, 10) == 6 * 10 * 5 * 8 * 8
    gated = mechanisms.get({"gated_linear": {"gate": "softplus"}})
    assert gated.parameters(SIZES, width=32) == 33 * 4 + 2 * 4
    hedgehog = mechanisms.get({"linear": {"feature_map": "hedgehog"}})
    assert hedgehog.parameters(SIZES, width=32) == 2 * 4 * 8 * 8
    shapes = {name: values.shape for name, values in hedgehog.variables(SIZES).items()}
    assert shapes == hedgehog.variable_shapes(SIZES)
    config = presets.config("gpt_nano")
    mixer = mixers.sequence_mixer(Config.get(config))
    more = count_parameters({**config, "num_layers": 3}) - count_parameters(config)
    ours = mixer.parameters() + mixers.channel_mixer(Config.get(config)).parameters()
    assert more == ours + 4 * config["hidden_dim"]  # and two norms
