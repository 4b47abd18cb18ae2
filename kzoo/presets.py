"""JSON to models and back: `load("unilm_base")`."""

import functools
import json
import logging
from pathlib import Path

from kzoo import config as fields
from kzoo.errors import InputError, unknown

log = logging.getLogger("kzoo")
TASK_FILE, WEIGHTS_FILE = "task.json", "model.weights.h5"
# What a saved backbone says in `shared`, which only an encoder and a decoder have.
_STACKS = {None: "single", False: "encoder_decoder", True: "encoder_decoder_shared"}


def names():
    """All preset names, family by family and by size: `["bert_nano", "bert_tiny", ...]`."""
    return [
        f"{family}_{size}" for family, preset in _families().items() for size in preset["sizes"]
    ]


def describe(name):
    """The preset's description and paper: `{"description": str, "paper": str}`.

    Raises:
        InputError: for an unknown preset.
    """
    preset, _ = _find(name)
    return {key: preset[key] for key in ("description", "paper")}


def config(name, **overrides):
    """The complete config of a preset, with nothing left to resolve.

    Args:
        name: one of `names()`.
        **overrides: fields that replace the preset's, e.g. `mechanism="linear"`.

    Returns:
        A dict of JSON values; see `kzoo.config.DEFAULTS` for the fields.

    Raises:
        InputError: for an unknown preset, field or value, and for fields that do not fit
            together (`kzoo.config.resolve`).

    Example:
        >>> config("unilm_base", num_layers=2)["mask"]
        'prefix'
    """
    preset, size = _find(name)
    return fields.resolve({**preset["config"], **preset["sizes"][size], **overrides})


def load(name, *, dtype=None, **overrides):
    """A model, built and compiled, with its preprocessor.

    Args:
        name: one of `names()`, whose weights are random, or a directory that `save` wrote,
            whose weights are loaded.
        dtype: a Keras dtype policy, e.g. `"mixed_bfloat16"`.
        **overrides: config fields that replace the preset's or the saved ones. Saved weights
            must fit the resulting model exactly; mask, mechanism and objective change none.

    Returns:
        A `kzoo.models.CausalLM` or `MaskedLM`, compiled with its objective's loss and
        AdamW(3e-4).

    Raises:
        InputError: as `config`; or if the directory is no saved model or its weights do not fit.

    Example:
        >>> model = load("gpt_nano", mechanism="linear")
        >>> model.fit(["Call me Ishmael."] * 32, epochs=1)
    """
    directory = Path(name)
    saved = directory.is_dir() and name not in names()
    complete = (
        fields.resolve({**_saved_config(directory), **overrides})
        if saved
        else config(name, **overrides)
    )
    model = build(complete, dtype)
    if saved:
        model.load_weights(directory / WEIGHTS_FILE)
    log.info(
        "%s: %s parameters, weights %s",
        name,
        f"{model.count_params():,}",
        "loaded" if saved else f"random (seed {complete['seed']})",
    )
    return model


def load_backbone(name, *, dtype=None, **overrides):
    """The backbone of `load(name, ...)` alone."""
    return load(name, dtype=dtype, **overrides).backbone


def save(model, directory):
    """Write a model's config, tokenizer and weights to a directory, as keras-hub presets do.

    `load(directory)` reads it, and so does `keras_hub.models.CausalLM.from_preset`.
    """
    model.save_to_preset(str(directory))


def build(complete, dtype=None):
    """The model of a complete config: `load` without a name, random weights, no log."""
    from kzoo import models, objectives

    objective = objectives.get(complete["objective"])
    task = getattr(models, objective.task)
    of_backbone = {field: complete[field] for field in fields.BACKBONE_FIELDS}
    if complete["stack"] == "single":
        backbone = models.SingleStackBackbone(**of_backbone, dtype=dtype)
    else:
        shared = complete["stack"] == "encoder_decoder_shared"
        backbone = models.EncoderDecoderBackbone(**of_backbone, shared=shared, dtype=dtype)
    preprocessor = task.preprocessor_cls(
        models.ByteTokenizer(),
        complete["max_sequence_length"],
        objective,
        source_mask=backbone.mask.needs_source,
        segments=_segments(complete["num_segments"], backbone.mask),
    )
    head = {field: complete[field] for field in fields.HEAD_FIELDS}
    return task(backbone, preprocessor, objective=objective, **head)


def _segments(count, mask):
    """The segment ids of a source and of its target.

    UniLM has six: two of texts that are seen whole, one for each direction, and two of a source
    and its target (Dong et al. 2019, arXiv:1905.03197, section 2.1, and its published code).
    """
    if count < 6:
        return (0, min(1, count - 1)) if count else None
    if mask.needs_source:
        return (4, 5)
    one = {"causal": 2, "reversed": 3}.get(mask.get_config())
    return (0, 1) if one is None else (one, one)


def _saved_config(directory):
    path = directory / TASK_FILE
    if not path.is_file():
        raise InputError(f"a saved model has the file {TASK_FILE}. Received: {directory}")
    task = json.loads(path.read_text())
    if not task.get("registered_name", "").startswith("kzoo>"):
        raise InputError(f"this directory holds another library's model. Received: {directory}")
    backbone = task["config"]["backbone"]["config"]
    names = (*fields.HEAD_FIELDS, "objective")
    return {
        **{field: backbone[field] for field in fields.BACKBONE_FIELDS},
        **{field: task["config"][field] for field in names},
        "stack": _STACKS[backbone.get("shared")],
    }


def _find(name):
    family, _, size = str(name).rpartition("_")
    families = _families()
    if family not in families or size not in families[family]["sizes"]:
        raise unknown("preset", name, names())
    return families[family], size


@functools.cache
def _families():
    return {path.stem: json.loads(path.read_text()) for path in sorted(_directory().glob("*.json"))}


def _directory():
    package = Path(__file__).parent
    installed = package / "_presets"
    return installed if installed.is_dir() else package.parent / "presets"
