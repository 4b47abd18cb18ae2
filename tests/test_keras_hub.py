"""keras-hub's own checks, run on our layers, backbones and tasks; and lower precision."""

import os

# keras-hub's checks are written with TensorFlow's test classes, whatever the backend.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from keras import ops

from kzoo import layers, models, presets
from kzoo.config import BackboneConfig

test_case = pytest.importorskip(
    "keras_hub.src.tests.test_case", reason="keras-hub's checks need TensorFlow"
)
SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 12,
}
PRESETS = {
    "unilm": {"mechanism": "linear"},
    "bert_mixed_heads": {"num_segments": 2, "output_transform": True, "pooler": True},
    "t5_shared": {"positions": "relative", "normalization": "rms_norm", "use_bias": False},
}
TEXTS = ["to be", "or not to be", "that is", "the question"]
PAIRS = {"prompts": ["to", "or", "", "the"], "responses": ["be", "not", "that", "question"]}


def load(family, **fields):
    return presets.load(f"{family}_nano", **{**SMALL, **PRESETS[family], **fields})


def tokens(model):
    return model.preprocessor(PAIRS if model.objective.has_source else TEXTS)


def backbone_arguments(family):
    fields = presets.config(f"{family}_nano", **{**SMALL, **PRESETS[family]})
    arguments = {name: fields[name] for name in BackboneConfig.field_names()}
    return arguments | ({"shared": True} if family == "t5_shared" else {})


class Checks(test_case.TestCase):
    __test__ = False  # its checks are called below

    def check_backbone(self, family):
        model = load(family)
        x, *_ = tokens(model)
        shape = (4, 12, 16)
        if "t5" in family:
            names = ("encoder_sequence_output", "decoder_sequence_output")
            shape = dict.fromkeys(names, shape)
        self.run_backbone_test(
            type(model.backbone),
            backbone_arguments(family),
            x,
            shape,
            run_quantization_check=keras.backend.backend() != "tensorflow",
        )

    def check_task(self, family, data):
        model = load(family)
        arguments = {
            "backbone": model.backbone,
            "preprocessor": model.preprocessor,
            "objective": model.objective.get_config(),
            "output_transform": model.output_transform,
        }
        train_data = tokens(model) if data is None else (data,)
        self.run_task_test(type(model), arguments, train_data, (4, 12, 384))

    def check_saving(self, family):
        model = load(family, num_layers=2)  # elsewhere one is enough
        x, *_ = tokens(model)
        arguments = {"backbone": model.backbone, "objective": model.objective.get_config()}
        self.run_model_saving_test(type(model), arguments, x)

    def check_layer(self, cls, arguments, inputs, shape, weights):
        self.run_layer_test(cls, arguments, inputs, shape, expected_num_trainable_weights=weights)


@pytest.fixture
def checks(tmp_path):
    case = Checks("check_layer")
    case.setUp()
    yield case
    case.tearDown()


@pytest.mark.slow
@pytest.mark.parametrize("family", PRESETS)
def test_keras_hubs_check_of_backbones(checks, family):
    checks.check_backbone(family)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, data",
    [("unilm", TEXTS), ("unilm", PAIRS), ("bert_mixed_heads", TEXTS), ("t5_shared", PAIRS)],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_keras_hubs_check_of_tasks(checks, family, data):
    checks.check_task(family, data)


@pytest.mark.slow
def test_keras_hubs_check_of_tasks_given_tokens(checks):
    checks.check_task("bert_mixed_heads", None)


@pytest.mark.parametrize("family", ["unilm", "t5_shared"])
def test_keras_hubs_check_of_saving(checks, family):
    checks.check_saving(family)


SEQUENCE = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
LAYERS = {
    "softmax": (layers.Attention, {"num_heads": 2, "head_dim": 4, "mask": "half_heads"}, 8),
    "linear": (layers.LinearAttention, {"num_heads": 2, "head_dim": 4, "mask": "causal"}, 8),
    "block": (
        layers.Block,
        {"attention": layers.Attention(2, 4), "feed_forward": layers.FeedForward(16)},
        16,
    ),
    "feed_forward": (layers.FeedForward, {"intermediate_dim": 16, "activation": "swiglu"}, 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_keras_hubs_check_of_layers(checks, name):
    cls, arguments, weights = LAYERS[name]
    checks.check_layer(cls, arguments, SEQUENCE, (2, 5, 8), weights)


# Low precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unilm"])
def test_int8_stays_close_and_comes_back(family, tmp_path):
    model = load(family)
    x, *_ = tokens(model)
    before = ops.convert_to_numpy(model.predict_on_batch(x))
    model.quantize("int8")
    after = ops.convert_to_numpy(model.predict_on_batch(x))
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(ops.convert_to_numpy(again.predict_on_batch(x)), after, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert_mixed_heads"])
def test_lower_precision_trains(family):
    plain = load(family)
    model = presets.load(f"{family}_nano", dtype="mixed_bfloat16", **{**SMALL, **PRESETS[family]})
    x, y, weight = tokens(model)
    logits = model.predict_on_batch(x)
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    want = ops.convert_to_numpy(plain.predict_on_batch(x))
    np.testing.assert_allclose(ops.convert_to_numpy(logits), want, atol=0.1)
    losses = [model.train_on_batch(x, y, weight, return_dict=True)["loss"] for _ in range(3)]
    assert np.isfinite(losses).all()


def test_one_task_per_base_and_backbone():
    """keras-hub finds a task by its base and its backbone's class: two would be drawn at random."""
    tasks = (models.CausalLM, models.MaskedLM, models.Seq2SeqLM)
    bases = ("CausalLM", "MaskedLM", "Seq2SeqLM")
    of = [
        (
            next(base.__name__ for base in task.__mro__[1:] if base.__name__ in bases),
            task.backbone_cls,
        )
        for task in tasks
    ]
    assert len(set(of)) == len(tasks)
