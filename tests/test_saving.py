"""What training and quantising leave, saved and loaded in every way: the same, or refused."""

import json
import random

import h5py
import keras
import numpy as np
import pytest
from keras import ops

from kzoo import presets
from kzoo.errors import InputError
from kzoo.training import Checkpoints

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 12,
}
# Every task and stack; between them what has weights beside the projections.
FAMILIES = {
    "gpt": {"mechanism": {"linear": {"feature_map": "hedgehog"}}, "positions": "learned"},
    "bert": {"output_transform": True, "tie_embeddings": False, "pooler": True},
    "t5": {"positions": "relative", "normalization": "rms_norm"},
    "t5_shared": {},
}
PAIRS = {"prompts": ["to", "or"], "responses": ["be", "not"]}


def load(family, **others):
    return presets.load(f"{family}_nano", **{**SMALL, **FAMILIES[family], **others})


def tokens(model):
    return model.preprocessor(PAIRS if model.objective.has_source else ["to be", "or not"])


def logits(model, x):
    return ops.convert_to_numpy(model(x))  # eagerly: no program for each of many models


def draw_lora(model):
    for i, variable in enumerate(model.backbone.trainable_variables):
        draw = np.random.default_rng(i).normal(0, 0.3, variable.shape)
        variable.assign(draw.astype("float32"))


# LoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_its_matrices_and_no_other_parameter(family, tmp_path):
    model = load(family)
    x, y, weight = tokens(model)
    before = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    start = logits(model, x)
    drawn = random.getstate()
    model.enable_lora(2)
    assert random.getstate() == drawn  # initial values follow from the model's seed
    np.testing.assert_array_equal(logits(model, x), start)
    matrices = {v.path for v in model.variables if v.path not in before}
    assert {path.split("/")[-2] for path in matrices} == {"query", "value"}
    assert {v.path for v in model.trainable_variables} == matrices
    assert {path.split("/")[-1] for path in matrices} == {"lora_kernel_a", "lora_kernel_b"}
    assert "cross_attention" in str(matrices) or "t5" not in family
    model.compile(optimizer=keras.optimizers.Adam(0.05), weighted_metrics=[])
    for _ in range(3):
        model.train_on_batch(x, y, weight)
    after = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    trained = logits(model, x)
    assert np.abs(trained - start).max() > 1e-2
    model.backbone.save_lora_weights(tmp_path / "matrices.lora.h5")
    fresh = load(family)
    fresh.backbone.load_lora_weights(tmp_path / "matrices.lora.h5")
    np.testing.assert_allclose(logits(fresh, x), trained, atol=1e-5)
    with pytest.raises(InputError, match="enable_lora comes once"):
        model.enable_lora(2)


def test_loras_initial_values_follow_from_seed_and_path():
    draws = []
    for seed in (0, 0, 1):
        model = load("gpt", seed=seed)
        model.enable_lora(2)
        draws += [[ops.convert_to_numpy(v) for v in model.trainable_variables if v.name[-1] == "a"]]
    for a, b, other in zip(*draws, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != other).all() and a.std() == pytest.approx((2 / 16) ** 0.5, rel=0.5)
    assert (draws[0][0] != draws[0][1]).all()


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, None])
def test_a_rank_is_a_positive_integer(rank):
    model = load("gpt")
    trainable = len(model.trainable_variables)
    with pytest.raises(InputError, match="positive integer"):
        model.enable_lora(rank)
    assert len(model.trainable_variables) == trainable


# Every way of saving ----------------------------------------------------------------------------


def changed(family, how, **others):
    model = load(family, **others)
    for step in how.split(" then "):
        if step == "lora":
            model.enable_lora(2)
            draw_lora(model)
        elif step != "plain":
            model.quantize(step)
    return model


def brought_back(model, fresh, folder):
    """Of every way, what comes back."""
    presets.save(model, folder / "saved")
    yield "presets", presets.load(folder / "saved")
    model.save_to_preset(str(folder / "preset"))
    yield "from_preset", type(model).from_preset(str(folder / "preset"))
    model.save(folder / "model.keras")
    yield ".keras", keras.saving.load_model(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    fresh.load_weights(folder / "model.weights.h5")
    yield "weights", fresh


# A layer is changed alike wherever it stands: every change in one family, and the two that users
# make most also where both stacks share their layers.
CHANGED = [
    ("lora", "gpt"),
    ("lora", "bert"),
    ("lora", "t5_shared"),
    ("int8", "bert"),
    ("int8", "t5_shared"),
    ("int4", "gpt"),
    ("float8", "t5_shared"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how, family", CHANGED)
def test_every_way_brings_the_same_logits_back(how, family, tmp_path):
    model = changed(family, how)
    x, *_ = tokens(model)
    want = logits(model, x)
    plain = load(family)
    assert np.abs(logits(plain, x) - want).max() > 1e-4
    # Weights alone come back into a model of their dtypes; LoRA matrices into any.
    fresh = load(family, seed=3) if how == "lora" else changed(family, how, seed=3)
    for way, again in brought_back(model, fresh, tmp_path):
        np.testing.assert_allclose(logits(again, x), want, atol=1e-5, err_msg=way)
        assert again.trainable_variables or how != "lora"
    if how != "lora":
        with pytest.raises(InputError, match="unknown .*(_scale|g_idx)"):
            plain.load_weights(tmp_path / "model.weights.h5")
        with pytest.raises(InputError, match="leave dtype out"):
            presets.load(tmp_path / "saved", dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_keep_the_precision_of_the_other_layers(tmp_path):
    model = load("bert", dtype="mixed_bfloat16")
    x, *_ = tokens(model)
    model.quantize("int8")
    want = logits(model, x)
    for way, again in brought_back(model, model, tmp_path):
        np.testing.assert_array_equal(logits(again, x), want, err_msg=way)
    policy = model.backbone.transformer_layers[0].attention.query.dtype_policy
    assert policy.name == "int8_from_mixed_bfloat16"  # saving changes nothing in the model
    bidirectional, causal = (
        presets.load(tmp_path / "saved", mask=m) for m in ("bidirectional", "causal")
    )
    np.testing.assert_array_equal(logits(bidirectional, x), want)
    assert np.abs(logits(causal, x) - want).max() > 1e-3
    assert causal.backbone.transformer_layers[0].attention.query.quantization_mode == "int8"


def quantised_then(model, mode):
    """As `quantize` leaves a model, without its minutes of calibration."""
    layer = model.backbone.transformer_layers[0].attention.query
    layer._dtype_policy = keras.dtype_policies.get(f"{mode}/4/128_from_float32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["lora then int8", "int8 then lora", "gptq", "awq", "factor"])
def test_what_could_not_be_loaded_is_refused_before_anything_is_written(how, tmp_path):
    if how in ("gptq", "awq"):
        model, said = load("gpt"), "save it before quantize"
        quantised_then(model, how)
    elif how == "factor":
        model, said = load("gpt"), "lora_alpha must be the rank"
        model.backbone.transformer_layers[0].attention.query.enable_lora(2, lora_alpha=4)
    else:
        model, said = changed("gpt", how), "save_lora_weights"
    ways = {
        "presets": lambda: presets.save(model, tmp_path / "saved"),
        "preset": lambda: model.save_to_preset(str(tmp_path / "preset")),
        "backbone": lambda: model.backbone.save_to_preset(str(tmp_path / "backbone")),
        ".keras": lambda: model.save(tmp_path / "model.keras"),
    }
    for way in ways.values():
        with pytest.raises(InputError, match=said):
            way()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_the_refusal_says_works(tmp_path):
    base = changed("gpt", "int8")
    presets.save(base, tmp_path / "base")
    model = presets.load(tmp_path / "base")
    x, *_ = tokens(model)
    model.enable_lora(2)
    draw_lora(model)
    model.backbone.save_lora_weights(tmp_path / "matrices.lora.h5")
    again = presets.load(tmp_path / "base")
    again.backbone.load_lora_weights(tmp_path / "matrices.lora.h5")
    np.testing.assert_allclose(logits(again, x), logits(model, x), atol=1e-6)
    # Weights by path go from model to model in the same state.
    model.save_weights(tmp_path / "model.weights.h5")
    third = changed("gpt", "int8 then lora", seed=5)
    third.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(logits(third, x), logits(model, x), atol=1e-6)
    with pytest.raises(InputError, match="LoRA matrices after enable_lora"):
        base.load_weights(tmp_path / "model.weights.h5")


def test_weights_of_models_with_and_without_lora(tmp_path):
    model = changed("gpt", "lora")
    x, *_ = tokens(model)
    model.save_weights(tmp_path / "lora.weights.h5")
    with h5py.File(tmp_path / "lora.weights.h5") as file:
        assert "lora_kernel_a" in file["block_0/attention/query"]
    same = changed("gpt", "lora", seed=3)
    same.load_weights(tmp_path / "lora.weights.h5")
    for a, b in zip(same.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = load("gpt", seed=4)
    plain.save_weights(tmp_path / "plain.weights.h5")
    same.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(logits(same, x), logits(plain, x), atol=1e-6)
    first = {v.path: ops.convert_to_numpy(v) for v in same.trainable_variables}
    assert all(value.any() for path, value in first.items() if path.endswith("_a"))  # it can learn
    other = load("gpt")
    other.enable_lora(3)
    with pytest.raises(InputError, match=r"lora_kernel_a has shape \[16, 2\], not \[16, 3\]"):
        other.load_weights(tmp_path / "lora.weights.h5")


def test_checkpoints_bring_lora_back(tmp_path):
    def trained(epochs):
        model = load("gpt")
        model.enable_lora(2)
        model.compile(optimizer=keras.optimizers.Adam(0.05), weighted_metrics=[])
        x, y, weight = tokens(model)
        callbacks = [Checkpoints(tmp_path)]
        model.fit(x, y, sample_weight=weight, epochs=epochs, verbose=0, callbacks=callbacks)
        return logits(model, x)

    first = trained(1)
    assert (trained(1) == first).all()  # nothing left to train


# Without a tokenizer ----------------------------------------------------------------------------


def test_weights_that_are_cut_short_are_named(tmp_path):
    presets.save(presets.load("gpt_nano", num_layers=1), tmp_path)
    path = tmp_path / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cut short.*Received: .*model.weights.h5"):
        presets.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="missing.*Received: .*model.weights.h5"):
        presets.load(tmp_path)


def test_a_model_without_a_tokenizer_comes_back_without_one(tmp_path):
    with_bytes = load("gpt")
    x, *_ = tokens(with_bytes)
    bare = type(with_bytes)(with_bytes.backbone, None, with_bytes.objective)
    assert with_bytes.backbone.vocabulary_size == 384
    presets.save(bare, tmp_path / "bare")
    presets.save(with_bytes, tmp_path / "bytes")
    want = logits(with_bytes, x)
    back = {
        "load": presets.load(tmp_path / "bare"),
        "override": presets.load(tmp_path / "bare", num_segments=0),
        "from_preset": type(bare).from_preset(str(tmp_path / "bare")),
    }
    for way, again in back.items():
        assert again.preprocessor is None, way
        np.testing.assert_allclose(logits(again, x), want, atol=1e-6)
    with pytest.raises(InputError, match="no tokenizer"):
        back["load"].score(["to be"])
    asked = presets.load(tmp_path / "bare", tokenizer="bytes")
    assert type(asked.preprocessor.tokenizer).__name__ == "ByteTokenizer"
    again = presets.load(tmp_path / "bytes", mask="prefix", objective="prefix_lm")
    assert again.preprocessor is not None and again.backbone.mask.needs_source
    assert json.loads((tmp_path / "bytes" / "tokenizer.json").read_text())
