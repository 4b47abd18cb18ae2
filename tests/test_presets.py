import json
import logging
from pathlib import Path

import pytest

from kzoo import config, masks, names, objectives, presets
from kzoo.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "presets"
FAMILIES = ("bert", "bert_mixed_heads", "bert_mixed_layers", "gpt", "unilm")
TWO_STACKS = ("t5", "t5_causal_encoder", "t5_mixed_encoder", "t5_shared")
# Millions of parameters; what a size promises.
SIZES = {"nano": 0.125, "tiny": 0.85, "small": 31.7, "base": 85.3, "large": 302.7, "1b": 1209}
SMALL = {"num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}


def test_names():
    families = sorted([*FAMILIES, *TWO_STACKS])
    assert presets.names() == [f"{family}_{size}" for family in families for size in SIZES]


@pytest.mark.parametrize("name", presets.names())
def test_every_config_is_complete(name):
    complete = presets.config(name)
    assert tuple(complete) == config.Config.field_names()
    resolved = config.Config.get(complete)
    assert resolved.get_config() == complete == json.loads(json.dumps(complete))
    assert config.Config.get(resolved) is resolved
    # None: a decoder is as deep as the encoder, or there is none.
    assert [field for field, value in complete.items() if value is None] == ["decoder_layers"]
    family, _, size = name.rpartition("_")
    millions = config.count_parameters(complete) / 1e6
    low, high = (1.2, 2.4) if family in TWO_STACKS else (0.97, 1.03)
    assert low < millions / SIZES[size] < high
    described = presets.describe(name)
    assert described.keys() == {"description", "paper"} and all(described.values())


@pytest.mark.parametrize("size", SIZES)
def test_families_of_a_size_differ_in_mask_and_objective_only(size):
    first, *others = (presets.config(f"{family}_{size}") for family in FAMILIES)
    for other in others:
        assert {field for field in first if first[field] != other[field]} <= {"mask", "objective"}


def test_files_of_families_say_the_choices_and_no_sizes():
    files = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert files.pop("sizes").keys() == SIZES.keys()
    assert set(files) == {*FAMILIES, *TWO_STACKS}
    configs = {family: file["config"] for family, file in files.items()}
    for family, fields in configs.items():
        assert list(files[family]) == ["description", "paper", "config"]
        assert list(fields) == ["mask", "mechanism", "stack", "objective", "config_version"]
        assert fields["mechanism"] == "softmax"
        assert (fields["stack"] == "single") == (family in FAMILIES)
    unilm, t5 = configs["unilm"], configs["t5"]
    assert {field for field in unilm if unilm[field] != t5[field]} == {"mask", "stack"}


def test_the_controlled_families_share_the_defaults():
    complete = presets.config("gpt_nano")
    for field, value in {
        "positions": "rotary",
        "norm_placement": "pre",
        "normalization": "layer_norm",
        "activation": "gelu",
        "tie_embeddings": True,
        "dropout": 0.0,
        "tokenizer": "bytes",
        "seed": 0,
        "vocabulary_size": 384,
    }.items():
        assert complete[field] == getattr(config.Config, field) == value


def test_overrides():
    complete = presets.config(
        "bert_base", mechanism="linear", mask={"heads": ["causal", "reversed"]}, num_layers=2
    )
    assert complete["mask"] == {"heads": ["causal", "reversed"]} and complete["num_layers"] == 2
    assert presets.config("bert_base")["num_layers"] == 12  # the preset itself is untouched
    assert presets.config("bert_base", mask="half_heads")["mask"] == complete["mask"]
    assert presets.config("bert_base", mask=masks.half_heads())["mask"] == complete["mask"]
    score = {"prefix_lm": {"score": "targets"}}
    assert presets.config("unilm_nano", objective=score)["objective"] == "prefix_lm"
    assert presets.config("gpt_nano", hidden_dim=48)["head_dim"] == 12
    assert presets.config("gpt_nano", head_dim=10)["head_dim"] == 10
    assert presets.config("gpt_nano", kv_heads=2)["kv_heads"] == 2


@pytest.mark.parametrize(
    "name, overrides, said",
    [
        ("gpt_nan", {}, "did you mean 'gpt_nano'?"),
        ("bert_mixed_head_tiny", {}, "did you mean 'bert_mixed_heads_tiny'?"),
        ("gpt", {}, "a family and a size, such as 'gpt_nano'"),
        ("runs/nothing", {}, "no such folder of a model"),
        ("gpt_nano", {"num_layer": 2}, "did you mean 'num_layers'?"),
        ("gpt_nano", {"mechanism": "lineal"}, "did you mean 'linear'?"),
        ("gpt_nano", {"mechanism": None}, "retention, softmax"),
        ("gpt_nano", {"mechanism": ["linear"]}, "retention, softmax"),
        ("gpt_nano", {"mechanism": {"linear": {"feature_map": "elu_1"}}}, "did you mean 'elu1'?"),
        ("gpt_nano", {"mechanism": {"linear": {"map": "relu"}}}, "Valid: feature_map"),
        ("gpt_nano", {"feature_map": "relu"}, "{'linear': {'feature_map': 'relu'}}"),
        ("gpt_nano", {"attention_scale": 1.0}, "--set mechanism.softmax.scale=VALUE"),
        ("gpt_nano", {"loss_rows": 8}, "is 'loss_tokens' now"),
        ("gpt_nano", {"prediction": "mask"}, "is 'prediction_site' now"),
        ("gpt_nano", {"objective": "continuation"}, "is 'prefix_lm' now"),
        ("gpt_nano", {"positions": "rotery"}, "did you mean 'rotary'?"),
        ("gpt_nano", {"normalization": "layernorm"}, "did you mean 'layer_norm'?"),
        ("gpt_nano", {"norm_placement": "before"}, "pre, post"),
        ("gpt_nano", {"activation": "gelu_new"}, "did you mean 'gelu_tanh'?"),
        ("gpt_nano", {"stack": "double"}, "single"),
        ("gpt_nano", {"tokenizer": "byte"}, "did you mean 'bytes'?"),
        ("gpt_nano", {"config_version": 1}, "Valid: 2"),
        ("gpt_nano", {"mask": "casual"}, "did you mean 'causal'?"),
        ("gpt_nano", {"objective": "causal_ml"}, "did you mean 'causal_lm'?"),
        ("gpt_nano", {"mask": "bidirectional"}, "would show a next-token loss its answer"),
        ("gpt_nano", {"mask": "prefix"}, "use the objective 'prefix_lm'"),
        ("bert_nano", {"num_heads": 5}, "the nearest is 4"),
        ("bert_nano", {"num_heads": 0}, "positive integer"),
        ("bert_nano", {"num_heads": True}, "positive integer"),
        ("bert_nano", {"kv_heads": 3}, "kv_heads must divide num_heads=4"),
        ("bert_nano", {"kv_heads": 0}, "positive integer"),
        ("bert_nano", {"head_dim": 7}, "even head_dim"),
        ("bert_nano", {"head_dim": -2}, "positive integer"),
        ("bert_nano", {"hidden_dim": 64.0}, "positive integer"),
        ("bert_nano", {"num_layers": "2"}, "positive integer"),
        ("bert_nano", {"max_sequence_length": 0}, "positive integer"),
        ("bert_nano", {"vocabulary_size": 256}, "384 or more"),
        ("bert_nano", {"dropout": 1}, "[0, 1)"),
        ("bert_nano", {"dropout": "0.1"}, "[0, 1)"),
        ("bert_nano", {"seed": -1}, "[0, 2^31)"),
        ("bert_nano", {"seed": 0.5}, "[0, 2^31)"),
        ("bert_nano", {"tie_embeddings": 1}, "true or false"),
        ("bert_mixed_heads_nano", {"num_heads": 1}, "use a multiple of 2"),
        ("bert_mixed_layers_nano", {"num_layers": 3}, "use a multiple of 2"),
        ("bert_nano", {"mask": {"and": ["causal", "reversed"]}, "mechanism": "linear"}, "softmax"),
    ],
    ids=str,
)
def test_wrong_names_and_values(name, overrides, said):
    for attempt in (presets.config, presets.load):
        with pytest.raises(InputError) as caught:
            attempt(name, **overrides)
        message = str(caught.value)
        assert said in message and "Received: " in message and "\n" not in message


def test_a_missing_field():
    with pytest.raises(InputError, match="needs the fields num_layers, num_heads"):
        config.Config.get({"mask": "causal", "objective": "causal_lm"})


def test_choices_are_what_layers_accept():
    from kzoo.layers import feed_forward, normalization

    assert set(names.NORMALIZATIONS) == set(normalization.NORMALIZATIONS)
    functions = {activation.function for activation in names.ACTIVATIONS.values()}
    assert functions == set(feed_forward.FUNCTIONS)


def test_load_builds_what_the_config_says(caplog):
    with caplog.at_level(logging.INFO, logger="kzoo"):
        model = presets.load("unilm_nano", mechanism="linear", seed=4, **SMALL)
    assert model.config == presets.config("unilm_nano", mechanism="linear", seed=4, **SMALL)
    assert f"{model.count_params():,} parameters, weights random (seed 4)" in caplog.text
    assert objectives.get(model.config["objective"]) == model.objective
    assert model.preprocessor.sequence_length == 64
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert type(model.optimizer).__name__ == "AdamW"
    backbone = presets.load_backbone("unilm_nano", mechanism="linear", seed=4, **SMALL)
    assert backbone.get_config() | {"name": ""} == model.backbone.get_config() | {"name": ""}


@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_parameters_are_those_that_are_counted(size):
    complete = presets.config(f"gpt_{size}")
    assert presets.load(f"gpt_{size}").count_params() == config.count_parameters(complete)


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("gpt_nano", {}),
        ("bert_nano", {"mask": "half_heads"}),
        ("bert_nano", {"mask": {"layers": ["bidirectional", "reversed"]}}),
        ("t5_nano", {}),
    ],
)
def test_a_feature_map_of_whole_sequences_needs_a_mask_that_shows_them(name, overrides):
    """Before anything is made: a study of such an arm would find out in its midst."""
    linear = {"mechanism": {"linear": {"feature_map": "softmax"}}}
    with pytest.raises(InputError, match="needs a bidirectional mask"):
        presets.config(name, **linear, **overrides)
    presets.config("bert_nano", **linear)


def test_only_a_model_is_saved(tmp_path):
    with pytest.raises(InputError, match="Received: str"):
        presets.save("gpt_nano", tmp_path / "model")
    assert not [*tmp_path.iterdir()]
