"""Folders in Hugging Face's format: config.json, safetensors and the tokenizer's files."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from kzoo.config import Config
from kzoo.convert.bert import BERT, UNILM, UNILM_SEGMENTS
from kzoo.convert.checkpoint import Checkpoint
from kzoo.convert.family import Family, scale
from kzoo.convert.gpt2 import GPT2
from kzoo.convert.t5 import T5
from kzoo.convert.tensors import FLOATS, SAFETENSORS, Tensors, read_json
from kzoo.convert.tokenizers import read_tokenizer
from kzoo.errors import InputError, unknown
from kzoo.files import check_new, whole_folder
from kzoo.models.tokenizer_file import FileTokenizer
from kzoo.models.weights import by_path, grouped

log = logging.getLogger("kzoo")

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
# Keys of any config.json that change what transformers computes, and that kzoo has not.
_REFUSED = ("quantization_config", "pruned_heads", "tie_encoder_decoder")
FAMILIES = {family.model_type: family for family in (GPT2, BERT, T5, UNILM)}
_OF_RELATIVE = {"relative_buckets", "relative_distance"}
# Fields that change neither the weights nor what the model computes from tokens.
_FREE = {"objective", "tokenizer", "dropout", "loss_tokens", "initialization", "seed"}


def read_huggingface(directory: str | Path) -> Checkpoint:
    """A checkpoint in Hugging Face's format, checked.

    Args:
        directory: a folder with config.json and safetensors, in one file or in shards; see
            `FAMILIES` for the values of `model_type`.

    Returns:
        A `Checkpoint`.

    Raises:
        InputError: an unknown model; a size or detail that kzoo does not compute; a file that
            is missing, truncated or corrupt; tensors that are missing, extra or misshapen, all
            named; a tokenizer that does not match the vocabulary.

    Example:
        >>> read_huggingface("gpt2").config.num_layers  # doctest: +SKIP
        12
    """
    directory = Path(directory)
    theirs = read_json(directory / CONFIG_FILE)
    family = family_of(theirs)
    for key in _REFUSED:
        if theirs.get(key):
            raise InputError(f"kzoo reads no model with {key}. Received: {key}={theirs[key]!r}")
    tensors = Tensors(directory)
    names = {family.name(name): name for name in tensors}
    unused = [
        names.pop(other)
        for name, other in family.overruling.items()
        if name in names and other in names
    ]
    for copy, original in (family.copies | family.overruling).items():
        if copy in names and original not in names:  # of two equal names a file may keep either
            names[original] = names.pop(copy)

    config = family.read_config(theirs, names)
    tied = _is_tied(family, theirs, tensors, names)
    config = Config.get({**config, "tie_embeddings": tied, "tokenizer": "file"})
    pairs = family.pairs(config)
    _check(family, pairs, config, tensors, names, unused, directory)

    def arrays():
        for pair in pairs:
            yield from pair.read(tensors[names[pair.theirs]], config)

    start = _decoder_start(directory, theirs, family)
    tokenizer = read_tokenizer(directory, family, config.vocabulary_size, start)
    shapes = {path: pair.our_shape(config) for pair in pairs for path in pair.ours}
    return Checkpoint(config, tokenizer, shapes, arrays)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. UniLM's says that it is BERT, with six segments.

    Args:
        config: its JSON, a mapping.

    Returns:
        A `kzoo.convert.family.Family`.

    Raises:
        InputError: for another `model_type`.

    Example:
        >>> family_of({"model_type": "gpt2"}) is FAMILIES["gpt2"]
        True
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise unknown("model_type in config.json", kind, FAMILIES)
    if kind == "bert" and config.get("type_vocab_size") == UNILM_SEGMENTS:
        return UNILM
    return FAMILIES[kind]


def _decoder_start(directory, theirs, family):
    """The first id of a decoder; newer folders state it for generation alone."""
    generation = directory / GENERATION_FILE
    stated = read_json(generation) if generation.is_file() else {}
    for content in (theirs, stated):
        if content.get("decoder_start_token_id") is not None:
            return content["decoder_start_token_id"]
    return family.decoder_start


def _is_tied(family, config, tensors, names):
    """Whether the output matrix is the embedding.

    A config.json that ties them is believed only where the file has no other matrix:
    transformers 5 writes of every T5 that it is tied.
    """
    tied = config.get("tie_word_embeddings", True)
    output, original = family.output, family.copies[family.output]
    if not tied or output not in names or original not in names:
        return tied
    return np.array_equal(tensors[names[output]], tensors[names[original]])


def _check(family, pairs, config, tensors, names, unused, directory):
    """`InputError` that names whatever is missing, extra, misshapen or different."""
    needed = {pair.theirs: pair.their_shape(config) for pair in pairs}
    faults = [f"missing {name}" for name in needed if name not in names]
    known = {*names.values(), *unused}
    faults += [f"twice {stored}" for stored in tensors if stored not in known]
    left_out = [(stored, "transformers computes with another") for stored in unused]
    for name, stored in names.items():
        shape = tensors.shapes[stored]
        if name in needed:
            if shape != needed[name]:
                faults.append(f"{stored} has shape {list(shape)}, not {list(needed[name])}")
            elif tensors.dtypes[stored] not in FLOATS:
                faults.append(f"{stored} has dtype {tensors.dtypes[stored]}, not a float's")
        elif name in family.copies:
            if not np.array_equal(tensors[stored], tensors[names[family.copies[name]]]):
                faults.append(f"{stored} differs from {names[family.copies[name]]}")
        elif why := family.is_harmless(name):
            left_out.append((stored, why))
        else:
            faults.append(f"extra {stored}")
    if faults:
        raise InputError(
            "the tensors do not fit config.json: "
            f"{'; '.join(grouped(sorted(faults)))}. Received: {directory}"
        )
    for why in dict.fromkeys(why for _, why in left_out):
        stored = grouped(name for name, reason in left_out if reason == why)
        log.info("left out %s: %s", ", ".join(stored), why)


def to_huggingface(model: Any, directory: str | Path) -> None:
    """Writes a model as transformers reads it: config.json, model.safetensors, tokenizer.

    Args:
        model: a kzoo task whose architecture is GPT-2's, BERT's, T5's or UniLM's.
        directory: a new or empty folder. It appears whole or not at all.

    Raises:
        InputError: if no model of transformers computes what this one does, with the fields of
            the nearest that differ; or if the folder holds something.

    Example:
        >>> model = kzoo.presets.load("hf://google-bert/bert-base-uncased")
        >>> kzoo.convert.to_huggingface(model, "mine")
        >>> transformers.AutoModelForMaskedLM.from_pretrained("mine")
    """
    check_new(directory)
    config = Config.get(model.config)
    family, theirs = _family_of(config)
    arrays = _arrays(model, family.pairs(config))
    arrays |= {name: arrays[of] for name, of in family.overruling.items() if of in arrays}
    tokenizer = getattr(model.preprocessor, "tokenizer", None)
    files = {CONFIG_FILE: theirs | _ids(tokenizer)}
    if isinstance(tokenizer, FileTokenizer):
        special = dict(tokenizer.get_config()["special_tokens"])
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_sequence_length,
            "split_special_tokens": tokenizer.split_special_tokens,
            **special,
        }
    else:
        log.info("no tokenizer is written: %s reads none of bytes", theirs["architectures"][0])

    with whole_folder(directory) as part:
        try:
            save_file(arrays, part / SAFETENSORS, metadata={"format": "pt"})
        except SafetensorError as error:  # of the system, which it does not tell as such
            raise OSError(f"{error}: {directory}") from error
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n")
        shutil.copymode(part / CONFIG_FILE, part / SAFETENSORS)  # safetensors keeps it to the user
        if isinstance(tokenizer, FileTokenizer):
            tokenizer.save_assets(part)
    log.info("written to %s for transformers' %s", directory, theirs["architectures"][0])
    for note in family.notes(config):
        log.info("%s", note)


def _family_of(config):
    """The family that computes what a config says, and its config.json."""
    differences = {}
    for family in (GPT2, BERT, T5):
        theirs = {
            "model_type": family.model_type,
            "architectures": [family.architecture(config)],
            "tie_word_embeddings": config.tie_embeddings,
            **family.write_config(config),
        }
        differences[family.model_type] = different = _differences(family, theirs, config)
        if not different:
            return family, theirs
    nearest = min(differences, key=lambda kind: len(differences[kind]))
    raise InputError(
        f"no model of transformers is this one; nearest is {nearest}: "
        f"{'; '.join(f'{f} is {b!r} there' for f, (_, b) in differences[nearest].items())}. "
        f"Received: {', '.join(f'{f}={a!r}' for f, (a, _) in differences[nearest].items())}"
    )


def _differences(family, theirs, config):
    """Field -> our value and that of the model that a config.json makes, where they compute
    something else."""
    names = [pair.theirs for pair in family.pairs(config)]
    again = {
        "head_dim": max(1, config.hidden_dim // config.num_heads),
        **family_of(theirs).read_config(theirs, names),
        "tie_embeddings": theirs["tie_word_embeddings"],
        "tokenizer": "file",
    }
    again = Config.get(again)
    free = _FREE if config.positions == "relative" else _FREE | _OF_RELATIVE
    if scale(config) == scale(again):
        free = free | {"mechanism"}
    ours, again = config.get_config(), again.get_config()
    return {f: (ours[f], again[f]) for f in ours if f not in free and ours[f] != again[f]}


def _arrays(model, pairs):
    """Their name -> array of each weight of a model."""
    variables = by_path(model)
    held = {path for pair in pairs for path in pair.ours}
    faults = [f"no tensor for {path}" for path in variables if path not in held]
    faults += [f"missing {path}" for path in sorted(held) if path not in variables]
    faults += [
        f"{path} holds {variable.dtype}"
        for path, variable in variables.items()
        if not keras.backend.is_float_dtype(variable.dtype)
    ]
    if faults:  # LoRA, quantisation
        raise InputError(
            f"these weights do not fit the format: {'; '.join(grouped(faults))}. "
            f"Received: {model.name}"
        )

    def array(path):
        return keras.ops.convert_to_numpy(keras.ops.cast(variables[path], "float32"))

    return {pair.theirs: pair.write([array(path) for path in pair.ours]) for pair in pairs}


def _ids(tokenizer):
    """What a config.json says about special tokens."""
    if not isinstance(tokenizer, FileTokenizer):
        return {}
    known = tokenizer.vocabulary
    ids = {
        "pad_token_id": known.pad,
        "bos_token_id": known.bos,
        "eos_token_id": known.eos,
        "decoder_start_token_id": known.decoder_start,
    }
    return {name: id for name, id in ids.items() if id is not None}
