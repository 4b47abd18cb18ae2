"""keras-hub's own backbones, read by kzoo: the same outputs."""

import shutil

import keras_hub
import numpy as np
import pytest
from convert_zoo import PADDING, WORDS, our_inputs
from keras import ops
from marks import once

from kzoo import presets
from kzoo.errors import InputError

HUB_SIZES = {
    "vocabulary_size": 61,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 48,
}
HUB = {
    "gpt2": lambda: keras_hub.models.GPT2Backbone(**HUB_SIZES, max_sequence_length=16),
    "bert": lambda: keras_hub.models.BertBackbone(**HUB_SIZES, max_sequence_length=16),
    "t5": lambda: keras_hub.models.T5Backbone(
        **HUB_SIZES, key_value_dim=6, use_gated_activation=False
    ),
    "t5_gated": lambda: keras_hub.models.T5Backbone(
        **HUB_SIZES, key_value_dim=6, activation="gelu", tie_embedding_weights=False
    ),
}


def shaken(backbone):
    rng = np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(variable + 0.2 * rng.standard_normal(variable.shape).astype("float32"))
    return backbone


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["gpt2", once("bert"), once("t5"), "t5_gated"])
def test_outputs_are_keras_hubs(name):
    theirs = shaken(HUB[name]())
    ours = presets.load(theirs)
    x = our_inputs(name)
    want, got = theirs.predict_on_batch(x), ours.backbone.predict_on_batch(x)
    if name == "bert":
        pooled = ours.backbone.pooler(got[:, 0])
        got = {"sequence_output": got, "pooled_output": ops.convert_to_numpy(pooled)}
    if name == "gpt2":
        want, got = {"": want}, {"": got}
    assert want.keys() == got.keys()
    for part in want:
        decoded = part.startswith(("decoder", "pooled"))
        real = ... if decoded else PADDING.astype(bool)
        np.testing.assert_allclose(got[part][real], want[part][real], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "bert"
    shaken(HUB["bert"]()).save_to_preset(str(folder))
    return folder


def test_a_folder_of_keras_hub(hub_folder, tmp_path, monkeypatch):
    theirs = keras_hub.models.Backbone.from_preset(str(hub_folder))
    ours = presets.load(hub_folder)
    x = our_inputs("bert")
    want = theirs.predict_on_batch(x)["sequence_output"]
    got = ours.backbone.predict_on_batch(x)
    np.testing.assert_allclose(got[PADDING > 0], want[PADDING > 0], atol=1e-4)
    assert ours.preprocessor is None

    folder = tmp_path / "with_tokenizer"
    shutil.copytree(hub_folder, folder)
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=WORDS, lowercase=True)
    tokenizer.save_to_preset(str(folder))
    for cls in (keras_hub.models.Backbone, keras_hub.tokenizers.Tokenizer):
        read = cls.from_preset
        monkeypatch.setattr(cls, "from_preset", lambda handle, read=read: read(str(folder)))
    ours = presets.load("kaggle://keras/bert/keras/small/1").preprocessor.tokenizer
    assert ours("The singing").tolist() == [WORDS.index(x) for x in ("the", "s", "##ing", "##ing")]
    assert list(tokenizer("The singing")) == ours("The singing").tolist()


def test_keras_hubs_other_models(hub_folder, tmp_path):
    with pytest.raises(InputError, match="GPT2Backbone, BertBackbone, T5Backbone"):
        presets.load(keras_hub.models.RobertaBackbone(**HUB_SIZES))
    shutil.copytree(hub_folder, tmp_path / "task")
    (tmp_path / "task" / "task.weights.h5").touch()
    with pytest.raises(InputError, match="weights in task.weights.h5 would be lost"):
        presets.load(tmp_path / "task")
    with_lora = HUB["gpt2"]()
    with_lora.enable_lora(2)
    with pytest.raises(InputError, match="no variable for some weights: extra .*lora_kernel_a"):
        presets.load(with_lora)
