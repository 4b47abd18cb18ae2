"""Small models of transformers with random weights, and the same tokens for them and for ours."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from keras import ops
from safetensors.numpy import load_file, save_file

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


def rewrite(source, target, change=lambda tensors: tensors, **settings):
    """A copy of a folder with other tensors and another config.json."""
    target.mkdir()
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors")
    content = json.loads((source / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(content))
    return target


def files_of(package):
    """The folder of an installed package, which need not be imported."""
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])
