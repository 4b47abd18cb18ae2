"""What version 1 of configs saved, as `tests/data/version_1.zip` holds it, is read as it was.

Its models have one layer of width 8: `gpt` linear attention with the feature map relu; `unilm` the
objective {"continuation": {"score": "all"}} under a causal mask, a scale of softmax attention and
`loss_rows`, saved as a folder and as a `.keras` file; `t5` linear attention and the objective
`seq2seq`. `run` is the folder of a finished `kzoo train` (FAVOR features), `study` that of a
`kzoo compare` of two arms, and `checkpoints` were written by a `fit` of the gpt. `scores.json`
holds the nats of a text under each model.
"""

import json
import logging
import zipfile
from pathlib import Path

import keras
import keras_hub
import pytest

from kzoo import migrations, presets
from kzoo.errors import InputError
from kzoo.studies import Study, records
from kzoo.studies.runner import check_directory
from kzoo.training import Checkpoints

ARCHIVE = Path(__file__).parent / "data" / "version_1.zip"
PAIR = {"prompts": ["to be "], "responses": ["or not"]}
TEXTS = {"gpt": ["to be or not"], "run": ["to be or not"], "unilm": PAIR, "t5": PAIR}
SMALL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
RELU = {"linear": {"feature_map": "relu"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("version_1")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def assert_scores(model, name, saved):
    scores = json.loads((saved / "scores.json").read_text())
    assert model.score(TEXTS[name])["nats"] == pytest.approx([scores[name]], rel=1e-6)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("gpt", {"mechanism": RELU, "objective": "causal_lm"}),
        ("run", {"mechanism": {"linear": {"feature_map": {"favor": {"features": 8}}}}}),
        (
            "unilm",
            {
                "mechanism": {"softmax": {"scale": 0.5}},
                "objective": {"prefix_lm": {"score": "all"}},
                "loss_tokens": 8,
                "prediction_site": "next",
            },
        ),
        ("t5", {"mechanism": "linear", "objective": "prefix_lm", "stack": "encoder_decoder"}),
    ],
)
def test_saved_models(name, fields, saved):
    model = presets.load(saved / name)
    assert model.config == {**model.config, **fields, "config_version": 2}
    assert_scores(model, name, saved)


def test_saved_models_take_overrides(saved):
    assert presets.load(saved / "gpt", mechanism="softmax").config["mechanism"] == "softmax"
    with pytest.raises(InputError, match="mechanism.linear.feature_map=VALUE"):
        presets.load(saved / "gpt", feature_map="elu1")


def test_keras_files_and_presets_of_keras_hub(saved):
    assert_scores(keras.saving.load_model(saved / "unilm.keras"), "unilm", saved)
    assert_scores(keras_hub.models.Seq2SeqLM.from_preset(str(saved / "t5")), "t5", saved)
    backbone = keras_hub.models.Backbone.from_preset(str(saved / "gpt"))
    assert backbone.mechanism.get_config() == RELU


def test_checkpoints_go_on(saved, caplog):
    model = presets.load("gpt_nano", mechanism=RELU, max_sequence_length=16, **SMALL)
    model.compile(optimizer=keras.optimizers.SGD(0.1), weighted_metrics=[])
    x, y, weight = model.preprocessor(["to be", "or not"])
    fit = {"batch_size": 2, "verbose": 0, "callbacks": [Checkpoints(saved / "checkpoints", keep=1)]}
    with caplog.at_level(logging.INFO, logger="kzoo"):
        model.fit(x, y, sample_weight=weight, epochs=1, **fit)
    assert "going on from step 1" in caplog.text


def test_studies_are_reported_and_go_on(saved):
    study, (unilm, t5) = records.read(saved / "study")
    assert study["arms"]["UniLM linear"]["overrides"]["mechanism"] == RELU
    for record in (unilm, t5):
        name = f"{record['arm'].split()[0].lower()}_nano"
        assert record["config"] == presets.config(name, **record["overrides"])
    again = Study.from_dict(study)
    check_directory(again, saved / "study")
    old = json.loads((saved / "study" / "study.json").read_text())
    with pytest.raises(InputError, match="is an option of the mechanism now"):
        Study.from_dict(old)


@pytest.mark.parametrize(
    "old, new",
    [
        ({"mechanism": "linear", "feature_map": "elu1"}, {"mechanism": "linear"}),
        ({"feature_map": "relu", "mechanism": "softmax"}, {"mechanism": "softmax"}),
        ({"feature_map": "relu"}, {}),
        ({"attention_scale": None}, {}),
        ({"attention_scale": 1.0}, {"mechanism": {"softmax": {"scale": 1.0}}}),
        (
            {"prediction": "mask", "config_version": 1},
            {"prediction_site": "mask", "config_version": 2},
        ),
    ],
)
def test_fields(old, new):
    assert migrations.config(old) == new
    assert migrations.config(new) == new
