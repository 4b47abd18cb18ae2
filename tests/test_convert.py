"""Checkpoints of other libraries: the same logits as transformers and keras-hub give."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from convert_zoo import (
    GPT2,
    PADDING,
    SOURCE,
    TIME,
    ZOO,
    assert_same_logits,
    bert,
    gpt2,
    our_inputs,
    our_logits,
    rewrite,
    their_logits,
    tokens,
)
from keras import ops

from kzoo import config, convert, presets
from kzoo.errors import InputError


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_logits_are_transformers(name, theirs, ours):
    assert_same_logits(name, theirs[name], ours[name])


@pytest.mark.slow
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
    cache = model.backbone.init_cache(*map(ops.convert_to_tensor, (start, source)), TIME, **encoded)
    logits = []
    for at, end in [(0, 5), *((i, i + 1) for i in range(5, ids.shape[1]))]:
        segments = x["segment_ids"][:, at:end] if "segment_ids" in x else None
        hidden, cache = model.backbone.decode(
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
def test_every_weight_is_converted(name, theirs, ours):
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
    complete = config.Config.get({**fields, "tie_embeddings": tied, "tokenizer": "file"})
    assert config.count_parameters(complete) == count
    shapes = [x.their_shape(complete) for x in family.pairs(complete)]
    assert sum(np.prod(shape) for shape in shapes) == count


# Other ways in -----------------------------------------------------------------------------


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


# Surgery -------------------------------------------------------------------------------------


def test_other_masks_and_objectives_keep_all_weights(ours, folders):
    for name, overrides in {
        "bert": {"mask": {"heads": ["causal", "reversed"]}},
        "gpt2": {"mask": "prefix", "objective": "prefix_lm"},
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
        model = presets.load(folders["gpt2"], mechanism={"linear": {"feature_map": "hedgehog"}})
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
        ("gpt2", {"num_layers": 1}, "no variable for block_1/attention/query/kernel"),
        ("gpt2", {"positions": "rotary"}, "no variable for position_embedding/embeddings"),
        ("gpt2", {"max_sequence_length": 8}, "position_embedding/embeddings has shape [16, 32]"),
        ("gpt2", {"vocabulary_size": 50}, "has shape [61, 32], not [50, 32]"),
        ("bert", {"output_transform": False}, "no variable for head/bias"),
        (
            "t5",
            {"use_bias": True, "normalization": "layer_norm"},
            "no variable for encoder_final_norm",
        ),
        (
            "t5_gated",
            {"tie_embeddings": True},
            "no variable for token_embedding/reverse_embeddings",
        ),
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
        ("t5", {"num_decoder_layers": 1}, "decoder.block.1"),
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
        ({"mask": "prefix", "objective": "prefix_lm"}, "gpt2: mask is 'causal' there"),
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
