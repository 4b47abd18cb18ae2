"""Every option of a config: what is written is what transformers computes with, and what it
writes is what kzoo computes with; or the option is refused by its name."""

import json
import types

import numpy as np
import pytest
import torch
import transformers
from keras import ops
from safetensors.torch import load_file, save_file
from transformers.models.t5 import modeling_t5

from kzoo import config, convert, presets
from kzoo.errors import InputError
from kzoo.layers import RelativeBias
from kzoo.models.weights import by_path

TIME = 12
COMMON = {
    "vocabulary_size": 41,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
    "max_sequence_length": 16,
    "tokenizer": "file",
}
GPT2 = {"mask": "causal", "objective": "causal_lm", "positions": "learned", **COMMON}
BERT = {
    **GPT2,
    "mask": "bidirectional",
    "objective": "masked_lm",
    "norm_placement": "post",
    "num_segments": 2,
    "embedding_norm": True,
    "output_transform": True,
}
UNILM = {
    **BERT,
    "mask": "prefix",
    "objective": "prefix_lm",
    "prediction_site": "mask",
    "num_segments": 6,
}
T5 = {
    **COMMON,
    "head_dim": 3,
    "mask": "bidirectional",
    "objective": "prefix_lm",
    "stack": "encoder_decoder",
    "positions": "relative",
    "relative_buckets": 8,
    "relative_distance": 10,
    "normalization": "rms_norm",
    "activation": "relu",
    "use_bias": False,
    "mechanism": {"softmax": {"scale": 1.0}},
    "output_scale": 8**-0.5,
}
FAMILIES = {"gpt2": GPT2, "bert": BERT, "unilm": UNILM, "t5": T5}


def tokens(*shape, high=41, seed=0):
    return np.random.default_rng(seed).integers(0, high, size=shape, dtype="int32")


PADDING = (np.arange(TIME) < [[TIME], [7]]).astype("int32")
SOURCE = (np.arange(TIME) < [[5], [3]]).astype("int32")


def batch(family, segments=2, vocabulary=41):
    """The same tokens for us and for transformers."""
    ids = tokens(2, TIME, high=vocabulary)
    theirs = {"input_ids": ids, "attention_mask": PADDING}
    if family == "t5":
        decoder = tokens(2, 9, high=vocabulary, seed=1)
        ours = {
            "encoder_token_ids": ids,
            "encoder_padding_mask": PADDING,
            "decoder_token_ids": decoder,
            "decoder_padding_mask": np.ones_like(decoder),
        }
        return ours, theirs | {"decoder_input_ids": decoder}
    ours = {"token_ids": ids, "padding_mask": PADDING}
    if family in ("bert", "unilm"):
        ours["segment_ids"] = theirs["token_type_ids"] = tokens(2, TIME, high=segments, seed=2)
    if family == "unilm":  # sources whole, targets from left to right
        ours["source_mask"] = SOURCE
        visible = np.tril(np.ones((TIME, TIME), "int32")) | SOURCE[:, None, :]
        theirs["attention_mask"] = (visible * PADDING[:, None, :] > 0)[:, None]
    return ours, theirs


def our_logits(model, family, **sizes):
    ours, _ = batch(family, **sizes)
    logits = ops.convert_to_numpy(model(ours))  # eager: tiny shapes are compiled once for all
    return logits if family == "t5" else logits[PADDING > 0]


def their_logits(model, family, **sizes):
    _, theirs = batch(family, **sizes)
    inputs = {
        name: torch.tensor(x) if x.dtype == bool else torch.tensor(x).long()
        for name, x in theirs.items()
    }
    with torch.no_grad():
        output = model(**inputs)
    if isinstance(model, transformers.BertModel):  # no head: ours is the embedding alone
        logits = output.last_hidden_state @ model.get_input_embeddings().weight.T
    elif isinstance(model, transformers.BertForPreTraining):
        logits = output.prediction_logits
    else:
        logits = output.logits
    logits = logits.detach().float().numpy()
    return logits if family == "t5" else logits[PADDING > 0]


def assert_equal(got, want):
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def random_model(fields):
    """A model without two equal weights, so that none is taken for another."""
    model = presets.build(config.Config.get(fields))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        noise = 0.3 * rng.standard_normal(variable.shape).astype("float32")
        variable.assign(variable + noise)
    return model


# From kzoo to transformers and back ----------------------------------------------------------

WRITTEN = [
    ("gpt2", {}, "GPT2LMHeadModel"),
    ("gpt2", {"tie_embeddings": False}, "GPT2LMHeadModel"),
    ("gpt2", {"activation": "gelu_tanh", "norm_epsilon": 0.1}, "GPT2LMHeadModel"),
    ("gpt2", {"activation": "relu", "intermediate_dim": 32}, "GPT2LMHeadModel"),
    ("gpt2", {"mechanism": {"softmax": {"scale": 1.0}}, "dropout": 0.3}, "GPT2LMHeadModel"),
    ("gpt2", {"mechanism": {"softmax": {"scale": 0.5}}, "relative_buckets": 8}, "GPT2LMHeadModel"),
    ("gpt2", {"vocabulary_size": 57, "max_sequence_length": 12}, "GPT2LMHeadModel"),
    ("gpt2", {"initialization": "gpt2", "seed": 3, "loss_tokens": 8}, "GPT2LMHeadModel"),
    ("bert", {}, "BertForMaskedLM"),
    ("bert", {"tie_embeddings": False}, "BertForMaskedLM"),
    ("bert", {"tie_embeddings": False, "pooler": True}, "BertForPreTraining"),
    ("bert", {"pooler": True, "num_segments": 1}, "BertForPreTraining"),
    ("bert", {"pooler": True, "output_transform": False}, "BertModel"),
    ("bert", {"activation": "gelu_tanh", "norm_epsilon": 0.1}, "BertForMaskedLM"),
    ("bert", {"activation": "relu", "num_segments": 3, "dropout": 0.2}, "BertForMaskedLM"),
    ("unilm", {}, "BertForMaskedLM"),
    ("unilm", {"tie_embeddings": False}, "BertForMaskedLM"),
    ("t5", {}, "T5ForConditionalGeneration"),
    ("t5", {"tie_embeddings": False}, "T5ForConditionalGeneration"),
    ("t5", {"tie_embeddings": False, "output_scale": 1.0}, "T5ForConditionalGeneration"),
    ("t5", {"output_scale": 1.0, "head_dim": None}, "T5ForConditionalGeneration"),
    ("t5", {"activation": "gelu", "norm_epsilon": 0.1}, "T5ForConditionalGeneration"),
    ("t5", {"activation": "gelu_tanh", "head_dim": 5}, "T5ForConditionalGeneration"),
    ("t5", {"activation": "geglu", "relative_buckets": 7}, "T5ForConditionalGeneration"),
    ("t5", {"activation": "geglu_tanh", "relative_distance": 6}, "T5ForConditionalGeneration"),
    ("t5", {"activation": "swiglu", "vocabulary_size": 57}, "T5ForConditionalGeneration"),
]


@pytest.mark.slow
@pytest.mark.parametrize("family, overrides, kind", WRITTEN, ids=str)
def test_transformers_computes_what_is_written(family, overrides, kind, tmp_path):
    fields = FAMILIES[family] | overrides
    sizes = {"segments": fields.get("num_segments"), "vocabulary": fields["vocabulary_size"]}
    ours = random_model(fields)
    convert.to_huggingface(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [kind]
    theirs, report = getattr(transformers, kind).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    missing = {name for name in report.pop("missing_keys") if "seq_relationship" not in name}
    assert not missing and not any(report.values()), (missing, report)
    want = our_logits(ours, family, **sizes)
    assert_equal(their_logits(theirs.eval(), family, **sizes), want)

    theirs.save_pretrained(tmp_path / "theirs")
    copy = presets.load(tmp_path / "theirs")
    assert_equal(our_logits(copy, family, **sizes), want)
    weights = by_path(copy)
    for path, variable in by_path(ours).items():
        np.testing.assert_array_equal(*(ops.convert_to_numpy(w) for w in (weights[path], variable)))
    free = {"initialization", "seed", "loss_tokens", "mechanism", "relative_buckets"}
    for field in copy.config.keys() - free:
        assert copy.config[field] == ours.config[field], field


# Field -> what the model of transformers has in its place.
REFUSED = [
    ("gpt2", {"use_bias": False}, "use_bias is True"),
    ("gpt2", {"activation": "swiglu"}, "activation is 'gelu'"),
    (
        "gpt2",
        {"mechanism": {"softmax": {"scale": 0.3}}},
        "mechanism is {'softmax': {'scale': 1.0}}",
    ),
    ("gpt2", {"identity_mix": 0.1}, "identity_mix is 0.0"),
    ("gpt2", {"qk_norm": "rms"}, "qk_norm is 'default'"),
    ("gpt2", {"output_norm": True}, "output_norm is False"),
    ("gpt2", {"output_gate": True}, "output_gate is False"),
    ("gpt2", {"short_convolution": 4}, "short_convolution is "),
    (
        "gpt2",
        {"short_convolution": 4, "short_convolution_activation": "silu"},
        "short_convolution is ",
    ),
    ("gpt2", {"kv_heads": 1}, "kv_heads is 2"),
    ("gpt2", {"head_dim": 3}, "head_dim is 4"),
    ("gpt2", {"head_dim": 4, "num_heads": 3}, "head_dim is 2"),
    ("gpt2", {"mechanism": "linear"}, "mechanism is 'softmax'"),
    ("gpt2", {"positions": "rotary"}, "positions is 'learned'"),
    ("gpt2", {"positions": "sinusoidal"}, "positions is 'learned'"),
    ("gpt2", {"positions": "none"}, "positions is 'learned'"),
    ("gpt2", {"positions": "relative"}, "positions is 'learned'"),
    ("gpt2", {"normalization": "rms_norm"}, "normalization is 'layer_norm'"),
    ("gpt2", {"norm_placement": "post"}, "norm_placement is 'pre'"),
    ("gpt2", {"output_transform": True}, "output_transform is False"),
    ("gpt2", {"output_scale": 0.5}, "output_scale is 1.0"),
    ("gpt2", {"embedding_norm": True}, "embedding_norm is False"),
    ("gpt2", {"num_segments": 2}, "num_segments is 0"),
    ("gpt2", {"pooler": True}, "pooler is False"),
    ("gpt2", {"mask": "prefix", "objective": "prefix_lm"}, "mask is 'causal'"),
    ("gpt2", {"prediction_site": "mask"}, "prediction_site is 'next'"),
    ("bert", {"tie_embeddings": False, "output_transform": False}, "tie_embeddings is True"),
    ("bert", {"num_segments": 0}, "num_segments is 1"),
    ("bert", {"embedding_norm": False}, "embedding_norm is True"),
    ("bert", {"activation": "geglu", "output_transform": False}, "activation is 'gelu'"),
    ("bert", {"mechanism": {"softmax": {"scale": 1.0}}}, "mechanism is 'softmax'"),
    ("bert", {"mask": {"heads": ["causal", "reversed"]}}, "mask is 'bidirectional'"),
    ("bert", {"num_segments": 6}, "mask is 'prefix'"),
    ("bert", {"norm_placement": "pre"}, "norm_placement is 'post'"),
    ("bert", {"output_scale": 2.0}, "output_scale is 1.0"),
    ("unilm", {"prediction_site": "next"}, "prediction_site is 'mask'"),
    ("unilm", {"num_segments": 2}, "mask is 'bidirectional'"),
    ("t5", {"stack": "encoder_decoder_shared"}, "stack is 'encoder_decoder'"),
    ("t5", {"mask": "causal"}, "mask is 'bidirectional'"),
    ("t5", {"mechanism": "softmax"}, "mechanism is {'softmax': {'scale': 1.0}}"),
    ("t5", {"output_scale": 0.5}, "output_scale is 0.35"),
    ("t5", {"use_bias": True}, "use_bias is False"),
    ("t5", {"normalization": "layer_norm"}, "normalization is 'rms_norm'"),
    ("t5", {"positions": "learned"}, "positions is 'relative'"),
    ("t5", {"output_transform": True}, "output_transform is False"),
    ("t5", {"identity_mix": 0.1}, "identity_mix is 0.0"),
]


@pytest.mark.parametrize("family, overrides, said", REFUSED, ids=str)
def test_what_transformers_does_not_compute_is_refused_by_name(family, overrides, said, tmp_path):
    resolved = config.Config.get(FAMILIES[family] | overrides)
    model = types.SimpleNamespace(config=resolved)  # no weight is looked at
    with pytest.raises(InputError) as caught:
        convert.to_huggingface(model, tmp_path / "export")
    assert said in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_every_field_of_a_config_is_tried():
    tried = {field for _, overrides, _ in [*WRITTEN, *REFUSED] for field in overrides}
    sizes = {"num_layers", "decoder_layers", "hidden_dim", "intermediate_dim", "objective"}
    assert set(config.Config.field_names()) - tried - sizes == {"tokenizer", "config_version"}


# From transformers to kzoo -------------------------------------------------------------------

THEIRS = {
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        {"n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "vocab_size": 41},
    ),
    "bert": (
        transformers.BertForMaskedLM,
        transformers.BertConfig,
        {
            "num_hidden_layers": 2,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "intermediate_size": 12,
            "max_position_embeddings": 16,
            "vocab_size": 41,
        },
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        {"num_layers": 2, "d_model": 8, "d_kv": 3, "num_heads": 2, "d_ff": 12, "vocab_size": 41},
    ),
}


def their_folder(family, settings, folder, change=None):
    """A folder that transformers wrote, whose config.json then says `settings`."""
    cls, config_class, sizes = THEIRS[family]
    made = config_class(**sizes, **settings)
    if settings.get("tie_word_embeddings") is False:
        made.tie_word_embeddings = False  # which T5Config overwrites
    torch.manual_seed(0)
    model = cls(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    if family == "t5":
        model.set_input_embeddings(model.shared)  # of both stacks; untied it makes three
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if change is not None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


READ = [
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"reorder_and_upcast_attn": True}),
    ("gpt2", {"n_inner": 20, "layer_norm_epsilon": 0.1}),
    ("gpt2", {"tie_word_embeddings": False}),
    *(("gpt2", {"activation_function": name}) for name in ("gelu_fast", "gelu_python", "relu")),
    ("gpt2", {"dtype": "float16"}),
    ("gpt2", {"torch_dtype": "bfloat16"}),
    ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
    ("bert", {"hidden_act": "gelu_pytorch_tanh", "type_vocab_size": 3}),
    ("bert", {"tie_word_embeddings": False, "chunk_size_feed_forward": 4}),
    ("t5", {"tie_word_embeddings": False}),
    ("t5", {"scale_decoder_outputs": False}),
    ("t5", {"feed_forward_proj": "gelu", "num_decoder_layers": None}),
    ("t5", {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "is_gated_act": True}),
    ("t5", {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 0.1}),
    ("t5", {"relative_attention_num_buckets": 6, "relative_attention_max_distance": 5}),
]


@pytest.mark.slow
@pytest.mark.parametrize("family, settings", READ, ids=str)
def test_kzoo_computes_what_transformers_does(family, settings, tmp_path):
    folder = their_folder(family, settings, tmp_path)
    theirs = THEIRS[family][0].from_pretrained(folder, dtype=torch.float32).eval()
    sizes = {"segments": settings.get("type_vocab_size", 2)}
    want = their_logits(theirs, family, **sizes)
    assert_equal(our_logits(presets.load(folder), family, **sizes), want)


def test_distances_fall_into_transformers_buckets():
    bucket = modeling_t5.T5Attention._relative_position_bucket
    distance = torch.arange(600)
    for buckets in (4, 5, 7, 8, 9, 16, 31, 32, 64):
        for longest in (5, 10, 33, 128, 500):
            for both in (True, False):
                side = buckets // 2 if both else buckets
                if longest <= side // 2:
                    continue
                theirs = bucket(-distance, both, buckets, longest).tolist()
                layer = RelativeBias(1, buckets, longest, both)
                ours = [layer.bucket_of[min(i, longest)] for i in range(600)]
                assert ours == theirs, (buckets, longest, both)


def other_output(name):
    return lambda tensors: tensors | {name: torch.randn(41, 8)}


def two_biases(tensors):
    return tensors | {"cls.predictions.decoder.bias": torch.randn(41)}


def only_the_decoders_bias(tensors):
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, settings, change",
    [
        ("gpt2", {}, other_output("lm_head.weight")),
        ("t5", {}, other_output("lm_head.weight")),
        ("bert", {}, other_output("cls.predictions.decoder.weight")),
        ("bert", {}, two_biases),
        ("bert", {"tie_word_embeddings": False}, two_biases),
        ("bert", {}, only_the_decoders_bias),
    ],
)
def test_of_two_weights_kzoo_takes_the_one_that_transformers_does(
    family, settings, change, tmp_path
):
    folder = their_folder(family, settings, tmp_path, change)
    theirs = THEIRS[family][0].from_pretrained(folder).eval()
    assert_equal(our_logits(presets.load(folder), family), their_logits(theirs, family))


@pytest.mark.slow
def test_other_names_that_transformers_takes_for_sizes(tmp_path):
    for family, names in {
        "gpt2": {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": None},
        "t5": {"d_kv": "head_dim", "num_heads": "num_attention_heads"},
    }.items():
        folder = their_folder(family, {}, tmp_path / family)
        content = json.loads((folder / "config.json").read_text())
        for name, other in names.items():
            content[other or "num_attention_heads"] = content.pop(name)
        (folder / "config.json").write_text(json.dumps(content))
        theirs = THEIRS[family][0].from_pretrained(folder).eval()
        assert_equal(our_logits(presets.load(folder), family), their_logits(theirs, family))


@pytest.mark.parametrize(
    "family, settings, said",
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function"),
        ("gpt2", {"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"hidden_act": "silu"}, "hidden_act"),
        ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
        ("t5", {"tie_encoder_decoder": True}, "tie_encoder_decoder"),
    ],
    ids=str,
)
def test_what_kzoo_does_not_compute_is_refused_by_name(family, settings, said, tmp_path):
    their_folder(family, {}, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    for derived in ("dense_act_fn", "is_gated_act"):
        content.pop(derived, None)
    path.write_text(json.dumps(content | settings))
    with pytest.raises(InputError, match=said):
        presets.load(tmp_path)
