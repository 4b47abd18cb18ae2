"""keras-hub's own GPT-2, BERT and T5."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import keras
import keras_hub

from kzoo.config import Config
from kzoo.convert.bert import BERT
from kzoo.convert.checkpoint import Checkpoint
from kzoo.convert.family import UNSCALED, TensorPair
from kzoo.convert.gpt2 import GPT2
from kzoo.convert.t5 import T5
from kzoo.convert.tensors import read_json
from kzoo.convert.tokenizers import read_tokenizer
from kzoo.errors import InputError, unknown
from kzoo.models.weights import grouped

HEAD_FILE = "task.weights.h5"
SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "dropout")


def read_keras_hub(backbone: Any, tokenizer: Any = None) -> Checkpoint:
    """The checkpoint that a backbone of keras-hub is.

    Args:
        backbone: a `GPT2Backbone`, `BertBackbone` or `T5Backbone`.
        tokenizer: keras-hub's tokenizer of it, or None.

    Returns:
        A `Checkpoint`.

    Raises:
        InputError: for another backbone, or a tokenizer that does not match it.

    Example:
        >>> backbone = keras_hub.models.GPT2Backbone(
        ...     vocabulary_size=64, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        ...     max_sequence_length=16)
        >>> read_keras_hub(backbone).config.num_layers
        1
    """
    kind = type(backbone).__name__
    if kind not in _KINDS:
        raise unknown("backbone of keras-hub", kind, _KINDS)
    family, read_config, pairs_of = _KINDS[kind]
    sizes = {field: getattr(backbone, field) for field in SIZES}
    config = Config.get({**sizes, **read_config(backbone), "tokenizer": "file"})
    pairs = [
        TensorPair(theirs, (ours,), shape, "reshaped") for ours, theirs, shape in pairs_of(config)
    ]
    tensors = {pair.theirs: _find(backbone, pair.theirs) for pair in pairs}
    faults = [f"extra {v.path}" for v in backbone.weights if id(v) not in map(id, tensors.values())]
    if faults:  # LoRA, quantisation, another version of keras-hub
        raise InputError(
            f"kzoo has no variable for some weights: {'; '.join(grouped(faults))}. Received: {kind}"
        )

    def arrays():
        for pair in pairs:
            tensor = keras.ops.convert_to_numpy(keras.ops.cast(tensors[pair.theirs], "float32"))
            yield from pair.read(tensor, config)

    if tokenizer is not None:
        tokenizer = _tokenizer(tokenizer, family, config.vocabulary_size)
    shapes = {pair.ours[0]: pair.our_shape(config) for pair in pairs}
    return Checkpoint(config, tokenizer, shapes, arrays)


def is_keras_hub(directory):
    """Whether a folder is a preset of keras-hub."""
    path = Path(directory) / "config.json"
    return path.is_file() and read_json(path).get("registered_name", "").startswith("keras_hub>")


def load_keras_hub(handle):
    """The checkpoint at a handle (`"kaggle://…"`) or folder of keras-hub.

    Raises:
        InputError: as `read_keras_hub`; or if the folder holds a task with weights of its own,
            which would be lost.
    """
    if Path(handle, HEAD_FILE).is_file():
        raise InputError(
            f"kzoo reads keras-hub's backbones, and the weights in {HEAD_FILE} would be lost; "
            f"load the backbone itself: kzoo.presets.load(task.backbone). Received: {handle}"
        )
    try:
        backbone = keras_hub.models.Backbone.from_preset(str(handle))
    except (OSError, ValueError) as error:  # no such model, no way there, or a damaged file
        reason = str(error).partition("\n")[0]
        raise InputError(f"keras-hub cannot load it ({reason}). Received: {handle}") from error
    try:
        tokenizer = keras_hub.tokenizers.Tokenizer.from_preset(str(handle))
    except FileNotFoundError:
        tokenizer = None
    return read_keras_hub(backbone, tokenizer)


def _find(backbone, name):
    """A variable by its path, or by attributes where Keras numbers the paths."""
    if "/" in name:
        return next(v for v in backbone.weights if v.path == name)
    step = lambda part, key: part[int(key)] if key.isdecimal() else getattr(part, key)  # noqa: E731
    return functools.reduce(step, name.split("."), backbone)


def _tokenizer(theirs, family, vocabulary_size):
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_assets(directory)
        stated = {
            "do_lower_case": getattr(theirs, "lowercase", False),
            "strip_accents": getattr(theirs, "strip_accents", False),
            "tokenize_chinese_chars": getattr(theirs, "split_on_cjk", True),
        }
        Path(directory, "tokenizer_config.json").write_text(json.dumps(stated))
        return read_tokenizer(directory, family, vocabulary_size, family.decoder_start)


# GPT-2 and BERT ------------------------------------------------------------------------------


def _gpt2_config(backbone):
    return {
        "max_sequence_length": backbone.max_sequence_length,
        "mask": "causal",
        "objective": "causal_lm",
        "positions": "learned",
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-5,
        "initialization": "gpt2",
    }


def _bert_config(backbone):
    return {
        "max_sequence_length": backbone.max_sequence_length,
        "mask": "bidirectional",
        "objective": "masked_lm",
        "positions": "learned",
        "norm_placement": "post",
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-12,
        "num_segments": backbone.num_segments,
        "embedding_norm": True,
        "pooler": True,
    }


def _dense(ours, theirs, shape):
    shapes = {"kernel": shape, "bias": shape[-1]}
    return [(f"{ours}/{part}", f"{theirs}/{part}", shape) for part, shape in shapes.items()]


def _norm(ours, theirs):
    return [(f"{ours}/{part}", f"{theirs}/{part}", "d") for part in ("gamma", "beta")]


def _embedding(name, shape):
    return (f"{name}/embeddings", f"{name}/embeddings", shape)


def _blocks(config, attention):
    for i in range(config.num_layers):
        ours, theirs = f"block_{i}", f"transformer_layer_{i}"
        for part in ("query", "key", "value"):
            yield from _dense(f"{ours}/attention/{part}", f"{theirs}/{attention}/{part}", "dh")
        output = f"{theirs}/{attention}/attention_output"
        yield from _dense(f"{ours}/attention/output_dense", output, "hd")
        yield from _norm(f"{ours}/attention_norm", f"{theirs}/self_attention_layer_norm")
        for part, shape in (("intermediate", "df"), ("output", "fd")):
            inner = "intermediate" if part == "intermediate" else "output_dense"
            dense = f"{theirs}/feedforward_{part}_dense"
            yield from _dense(f"{ours}/feed_forward/{inner}", dense, shape)
        yield from _norm(f"{ours}/feed_forward_norm", f"{theirs}/feedforward_layer_norm")


def _gpt2_pairs(config):
    yield _embedding("token_embedding", "vd")
    yield _embedding("position_embedding", "pd")
    yield from _blocks(config, "self_attention")
    yield from _norm("final_norm", "layer_norm")


def _bert_pairs(config):
    yield _embedding("token_embedding", "vd")
    yield _embedding("position_embedding", "pd")
    yield _embedding("segment_embedding", "sd")
    yield from _norm("embedding_norm", "embeddings_layer_norm")
    yield from _blocks(config, "self_attention_layer")
    yield from _dense("pooler", "pooled_dense", "dd")


# T5 ------------------------------------------------------------------------------------------


def _t5_config(backbone):
    config = backbone.get_config()
    name = config["activation"]
    name = name["config"] if isinstance(name, dict) else name  # a function, serialised
    activations = {
        ("relu", False): "relu",
        ("gelu", True): "geglu",
        ("gelu_approximate", True): "geglu_tanh",
        ("silu", True): "swiglu",
    }
    key = (str(name).rpartition(">")[2], backbone.use_gated_activation)
    if key not in activations:
        raise unknown("activation of keras-hub's T5, and whether it gates", key, activations)
    tied = backbone.tie_embedding_weights
    return {
        "head_dim": backbone.key_value_dim or backbone.hidden_dim // backbone.num_heads,
        "max_sequence_length": 512,
        "stack": "encoder_decoder",
        "mask": "bidirectional",
        "objective": "prefix_lm",
        "positions": "relative",
        "normalization": "rms_norm",
        "activation": activations[key],
        "use_bias": False,
        "mechanism": UNSCALED,
        "output_scale": backbone.hidden_dim**-0.5 if tied else 1.0,
        "norm_epsilon": backbone.layer_norm_epsilon,
        "tie_embeddings": tied,
    }


def _t5_attention(ours, theirs):
    for part in ("query", "key", "value", "output"):
        inner = "output_dense" if part == "output" else part
        shape = "hd" if part == "output" else "dh"
        yield f"{ours}/{inner}/kernel", f"{theirs}.{part}_projector.kernel", shape


def _t5_pairs(config):
    yield "token_embedding/embeddings", "token_embedding.embeddings", "vd"
    if not config.tie_embeddings:
        yield "token_embedding/reverse_embeddings", "token_embedding.reverse_embeddings", "dv"
    for stack in ("encoder", "decoder"):
        layers = f"{stack}_transformer_layers"
        bias = f"{layers}.0.self_attention.relative_attention_bias"
        yield f"{stack}_relative_bias/embeddings", bias, "bn"
        for i in range(config.num_layers):
            ours, theirs = f"{stack}_block_{i}", f"{layers}.{i}"
            yield from _t5_attention(f"{ours}/attention", f"{theirs}.self_attention")
            norms = {"attention_norm": "self_attention_layer_norm"}
            if stack == "decoder":
                yield from _t5_attention(f"{ours}/cross_attention", f"{theirs}.cross_attention")
                norms["cross_attention_norm"] = "cross_attention_layer_norm"
            norms["feed_forward_norm"] = "layer_norm"
            for our_norm, their_norm in norms.items():
                yield f"{ours}/{our_norm}/scale", f"{theirs}.{their_norm}.weight", "d"
            # The gate is what the activation acts on: their input_projector.
            inner = {"gate": "input", "intermediate": "gate"}
            if config.activation == "relu":
                inner = {"intermediate": "input"}
            for our_part, their_part in inner.items():
                kernel = f"{theirs}.{their_part}_projector.kernel"
                yield f"{ours}/feed_forward/{our_part}/kernel", kernel, "df"
            kernel = f"{theirs}.output_projector.kernel"
            yield f"{ours}/feed_forward/output_dense/kernel", kernel, "fd"
        yield f"{stack}_final_norm/scale", f"{stack}_layer_norm.weight", "d"


_KINDS = {
    "GPT2Backbone": (GPT2, _gpt2_config, _gpt2_pairs),
    "BertBackbone": (BERT, _bert_config, _bert_pairs),
    "T5Backbone": (T5, _t5_config, _t5_pairs),
}
