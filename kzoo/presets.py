"""JSON to models and back: `load("unilm_base")`."""

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

from kzoo import migrations, objectives
from kzoo.config import TOKENIZERS, BackboneConfig, Config, HeadConfig, tokenizer_kind
from kzoo.errors import InputError, nearest, unknown
from kzoo.files import read_json, whole_folder
from kzoo.values import is_integer

log = logging.getLogger("kzoo")
TASK_FILE, CONFIG_FILE, WEIGHTS_FILE = "task.json", "config.json", "model.weights.h5"
HEAD_FILE = "task.weights.h5"  # of a task with weights beside its backbone's
_KEEPS_REMAT = "--xla_disable_hlo_passes=cse_barrier_expander"
SIZES_FILE = "sizes.json"  # of all families, beside their files
FAMILY_KEYS = ("description", "paper", "config")
TOKENIZER_FILE = "tokenizer.json"  # keras-hub's config of it; its files stand under assets
# What a saved backbone says in `shared`, which only an encoder and a decoder have.
_STACKS = {None: "single", False: "encoder_decoder", True: "encoder_decoder_shared"}


def names() -> list[str]:
    """All preset names, family by family and by size: `["bert_nano", "bert_tiny", ...]`.

    Example:
        >>> "unilm_base" in names()
        True
    """
    return [f"{family}_{size}" for family in _families() for size in _sizes()]


def sizes() -> dict[str, dict[str, int]]:
    """The sizes of presets: for each the config fields that it sets, the same for all families.

    Example:
        >>> sizes()["nano"]["hidden_dim"]
        64
    """
    return {size: dict(fields) for size, fields in _sizes().items()}


def size_of(name: str) -> str:
    """The size in the name of a preset.

    Args:
        name: one of `names()`, or `"FILE.json:SIZE"`.

    Returns:
        One of `sizes()`.

    Raises:
        InputError: for an unknown preset.

    Example:
        >>> size_of("bert_mixed_heads_nano")
        'nano'
    """
    _find(name)
    return max((size for size in _sizes() if name.endswith(size)), key=len)


def resized(name: str, size: str) -> str:
    """The name of the preset of the same family at another size.

    Args:
        name: one of `names()`, or `"FILE.json:SIZE"`.
        size: one of `sizes()`.

    Returns:
        A name like the given one.

    Raises:
        InputError: for an unknown preset or size, and for a family whose own file sets what a size
            sets, which stays as it is at every size.

    Example:
        >>> resized("unilm_nano", "small")
        'unilm_small'
    """
    family, _ = _find(name)
    if size not in _sizes():
        raise unknown("size", size, _sizes())
    if own := [field for field in _sizes()[size] if field in family["config"]]:
        raise InputError(
            f"the family of this preset sets {own[0]} itself, at every size; leave it out of its "
            f"file. Received: {name!r}"
        )
    return name.removesuffix(size_of(name)) + size


def describe(name: str) -> dict[str, str]:
    """The preset's description and paper: `{"description": str, "paper": str}`.

    Args:
        name: one of `names()`.

    Returns:
        A dict of strings.

    Raises:
        InputError: for an unknown preset.

    Example:
        >>> sorted(describe("gpt_nano"))
        ['description', 'paper']
    """
    family, _ = _find(name)
    return {key: family.get(key, "") for key in ("description", "paper")}


def config(name: str, **overrides: Any) -> dict[str, Any]:
    """The complete config of a preset, with nothing left to resolve.

    Args:
        name: one of `names()`; or `"FILE.json:SIZE"`, a family of one's own in a file like
            those of kzoo's presets, in one of their sizes: `{"config": {"mask": …, …}}`; or what
            else `load` takes, such as a directory that `save` wrote.
        **overrides: fields that replace the preset's, e.g. `mechanism="linear"` or
            `mechanism={"linear": {"feature_map": "relu"}}`.

    Returns:
        A dict of JSON values; see `kzoo.config.Config` for the fields.

    Raises:
        InputError: for an unknown preset, field or value, and for fields that do not fit
            together (`kzoo.config.Config.get`).

    Example:
        >>> config("unilm_base", num_layers=2)["mask"]
        'prefix'
    """
    held = kind(name)
    if held == "saved":
        return _resolved(_saved_config(Path(name)), overrides)
    if held == "checkpoint":
        from kzoo import convert

        return _resolved(convert.read(name).config.get_config(), overrides)
    family, size = _find(name)
    return _resolved({**size, **family["config"]}, overrides)


def load(name: Any, *, dtype: Any = None, remat: str = "none", **overrides: Any) -> Any:
    """A model, built and compiled, with its preprocessor.

    Args:
        name: what to load:

            - one of `names()`, or `"FILE.json:SIZE"` as for `config`, whose weights are random;
            - a directory that `save` wrote;
            - pretrained weights of GPT-2, BERT, T5 and UniLM: a folder in Hugging Face's format,
              or `"hf://ORG/NAME"` on their hub, as `kzoo.convert.read_huggingface` says;
            - those of keras-hub's GPT-2, BERT and T5: `"kaggle://ORG/MODEL/keras/VARIANT"`, a
              folder in keras-hub's format, or a backbone of keras-hub.
        dtype: a Keras dtype policy, e.g. `"mixed_bfloat16"`.
        remat: what training computes again instead of keeping it in memory: `"none"`,
            `"attention"` or `"block"` (the least memory). The results are the same. On JAX's
            CPU the memory falls only with what the log then says. Neither is part of the
            config: a directory is loaded with the `dtype` and `remat` that are given here,
            whatever it was trained with. Quantised weights alone keep the dtypes that they were
            saved with.
        **overrides: config fields that replace the preset's or the saved ones. Of a preset
            `tokenizer` can be the path of a `tokenizer.json` (`kzoo.data.train_tokenizer`), which
            then gives `vocabulary_size`. Saved and pretrained weights all have their place in the
            resulting model; what it has besides gets initial values and is named in the log.
            `objective={"classification": {"labels": [...]}}` is a new head: the old one is left
            out, and named.

    Returns:
        A `kzoo.models.CausalLM`, `MaskedLM`, `Seq2SeqLM` or `TextClassifier`, compiled with its
        objective's loss and AdamW, at the rate that `kzoo.training.learning_rate` gives its width
        (a classifier at that of `kzoo.training.finetuning_rate`).

    Raises:
        InputError: as `config`; or if the directory is no saved model or its weights do not
            fit.

    Example:
        >>> model = load("gpt_nano", mechanism="linear")
        >>> model.fit(["Call me Ishmael."] * 32, epochs=1)
        >>> bert = load("hf://google-bert/bert-base-uncased", mask="half_heads")  # doctest: +SKIP
    """
    held = kind(name)
    tokenizer = head_dtype = None
    if held == "preset":
        tokenizer, overrides = _own_tokenizer(overrides)
        complete = config(name, **overrides)
    elif held == "saved":
        saved = _saved_config(Path(name))
        complete = _resolved(saved, overrides)
        tokenizer = _saved_tokenizer(Path(name))
        dtype, head_dtype = _saved_dtype(Path(name), dtype)
    else:
        from kzoo import convert

        checkpoint = convert.read(name)
        complete = _resolved(checkpoint.config.get_config(), overrides)
        tokenizer = checkpoint.tokenizer
    model = build(complete, dtype, tokenizer, remat, head_dtype)
    if held == "checkpoint":
        checkpoint.fill(model)
    elif held == "saved":
        _load_weights(model, Path(name), saved, complete != _resolved(saved, {}))
    shown = name if isinstance(name, str | Path) else f"{type(name).__name__} of keras-hub"
    weights = f"random (seed {complete['seed']})" if held == "preset" else "loaded"
    log.info("%s: %s parameters, weights %s", shown, f"{model.count_params():,}", weights)
    if remat != "none" and _undone():
        log.warning(
            "remat=%r saves no memory here: XLA for CPUs takes out what is computed twice unless "
            "the environment variable XLA_FLAGS holds %s",
            *(remat, _KEEPS_REMAT),
        )
    if model.preprocessor is None:
        log.info("%s: no tokenizer comes with it, so it takes token batches", model.name)
    return model


def load_backbone(name: Any, *, dtype: Any = None, remat: str = "none", **overrides: Any) -> Any:
    """The backbone of `load(name, ...)` alone.

    Args:
        name: as of `load`, like `dtype`, `remat` and the `overrides`.

    Returns:
        A backbone of `kzoo.models`.

    Raises:
        InputError: as `load`.

    Example:
        >>> load_backbone("gpt_nano", num_layers=1).count_params()
        74688
    """
    return load(name, dtype=dtype, remat=remat, **overrides).backbone


def save(model: Any, directory: str | Path) -> None:
    """Write a model's config, tokenizer and weights to a directory, as keras-hub presets do.

    `load(directory)` reads it, and so does `keras_hub.models.CausalLM.from_preset`: the same
    logits, also of weights that were quantised to int8, int4 or float8. LoRA matrices become part
    of the kernels when it is loaded. A model without a tokenizer comes back without one. The model
    is there whole or not at all; other files in the directory stay.

    Args:
        model: a task that `load` made.
        directory: a folder, which is made where there is none.

    Raises:
        InputError: for what is no model, and for weights that would not come back (GPTQ, AWQ, LoRA
            beside quantised ones), before anything is written.
        OSError: if it cannot be written, such as on a full disk.

    Example:
        >>> save(load("gpt_nano", num_layers=1), "mine")
        >>> copy = load("mine")
    """
    if not hasattr(model, "save_to_preset"):
        raise InputError(
            "what is saved is a model, as kzoo.presets.load makes it. "
            f"Received: {type(model).__name__}"
        )
    with whole_folder(directory, last=TASK_FILE) as part:
        model.save_to_preset(str(part))


def build(
    complete: dict[str, Any],
    dtype: Any = None,
    tokenizer: Any = None,
    remat: str = "none",
    head_dtype: Any = None,
) -> Any:
    """The model of a complete config: `load` without a name, random weights, no log.

    A tokenizer of the kind `"file"` is given; without it the model takes token batches only.
    `head_dtype` is that of the head's dense layer, where it is not `dtype`.

    Args:
        complete: a `kzoo.config.Config`, or its JSON.
        dtype, remat: as of `load`.

    Returns:
        A task, built and compiled.

    Example:
        >>> build(config("gpt_nano", num_layers=1)).count_params()
        74688
    """
    from kzoo import models

    config = Config.get(complete)
    task = getattr(models, objectives.task_name(config.stack, config.objective))
    of_backbone = {**vars(config.part(BackboneConfig)), "dtype": dtype, "remat": remat}
    if config.stack == "single":
        backbone = models.SingleStackBackbone(**of_backbone)
    else:
        shared = config.stack == "encoder_decoder_shared"
        backbone = models.EncoderDecoderBackbone(**of_backbone, shared=shared)
    if config.tokenizer == "bytes":
        tokenizer = models.ByteTokenizer()
    preprocessor = tokenizer and task.preprocessor_cls(
        tokenizer,
        config.max_sequence_length,
        config.objective,
        source_mask=backbone.mask.needs_source,
        segments=_segments(config.num_segments, backbone.mask),
    )
    head = {**vars(config.part(HeadConfig)), "head_dtype": head_dtype}
    return task(backbone, preprocessor, objective=config.objective, **head)


def _own_tokenizer(overrides):
    """The tokenizer whose path stands in overrides, if any, and the overrides with its size."""
    path = overrides.get("tokenizer", "bytes")
    named = isinstance(path, str) and not (os.sep in path or path.endswith(".json"))
    if not isinstance(path, str | Path) or named and not os.path.exists(path) or path in TOKENIZERS:
        return None, overrides  # a wrong name is told with the valid ones
    from kzoo.models.tokenizer_file import read_file
    from kzoo.tokenizer_json import lost

    tokenizer = read_file(path)
    if what := lost(path):
        log.warning("%s %s: bits per byte leave out what it loses", path, what)
    size = overrides.get("vocabulary_size", tokenizer.vocabulary.size)
    if is_integer(size) and size < tokenizer.vocabulary.size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocabulary.size} ids, and the model has as many or "
            f"more. Received: vocabulary_size={size}"
        )
    return tokenizer, {**overrides, "tokenizer": "file", "vocabulary_size": size}


def _undone():
    """Whether the compiler takes remat out again."""
    from kzoo.load_keras import keras
    from kzoo.ops.context import platform

    on_cpu = keras.backend.backend() == "jax" and platform() == "cpu"
    return on_cpu and _KEEPS_REMAT not in os.environ.get("XLA_FLAGS", "")


def _segments(count, mask):
    """The segment ids of a source and of its target.

    UniLM has six: two of texts that are seen whole, one for each direction, and two of a source
    and its target (Dong et al. 2019, arXiv:1905.03197, section 2.1, and its published code).
    """
    if count < 6:
        return (0, min(1, count - 1)) if count else None
    if mask.needs_source:
        return (4, 5)
    for segment, name in ((2, "causal"), (3, "reversed")):
        if mask.get_config() == name:
            return (segment, segment)
    return (0, 1)


def kind(name: Any) -> str:
    """What `load` is given.

    Args:
        name: as of `load`.

    Returns:
        `"preset"`, with random weights; `"saved"`, by `save`; or `"checkpoint"`, of another
        library.

    Raises:
        InputError: for what is none of them by its type.

    Example:
        >>> kind("gpt_nano"), kind("hf://openai-community/gpt2")
        ('preset', 'checkpoint')
    """
    if not (isinstance(name, str | Path) or hasattr(name, "get_config")):
        raise InputError(
            "a model is loaded by the name of a preset, such as 'unilm_nano', the path of a "
            "folder, a handle ('hf://ORG/NAME'), or as a backbone of keras-hub. "
            f"Received: {name!r:.80}"
        )
    if not isinstance(name, str | Path) or str(name).startswith(("hf://", "kaggle://")):
        return "checkpoint"
    if str(name) in names() or not Path(name).is_dir():
        return "preset"
    foreign = (Path(name) / CONFIG_FILE).is_file() and not _is_ours(Path(name) / TASK_FILE)
    return "checkpoint" if foreign else "saved"


def _is_ours(path):
    if not path.is_file():
        return False
    task = read_json(path)
    name = task.get("registered_name") if isinstance(task, dict) else None
    return isinstance(name, str) and name.startswith("kzoo>")


def _saved_config(directory):
    path = directory / TASK_FILE
    if not path.is_file():
        raise InputError(f"a saved model has the file {TASK_FILE}. Received: {directory}")
    if not _is_ours(path):
        raise InputError(f"this directory holds another library's model. Received: {directory}")
    task = read_json(path)
    try:
        own = migrations.config(task["config"])
        backbone = migrations.config(own["backbone"]["config"], complete=True)
        return {
            **{field: backbone[field] for field in BackboneConfig.field_names()},
            **{field: own[field] for field in (*HeadConfig.field_names(), "objective")},
            "stack": _STACKS[backbone.get("shared")],
            "tokenizer": _saved_tokenizer_kind(directory, backbone["vocabulary_size"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{TASK_FILE} is as `save` wrote it, with every field of a config; save the model "
            f"again. Received: {path}, without {error}"
        ) from None


def _load_weights(model, directory, saved, changed):
    """Load a saved model's weights, and say which are new or left out.

    Only where the config is `changed` may some be. A head that predicts labels, or other labels,
    is another head.
    """
    from kzoo.models.weights import by_path, read_weights, say_loaded, shapes_in

    of_backbone, own = by_path(model.backbone), model.own_weights()
    new = _read(read_weights, directory / WEIGHTS_FILE, of_backbone, changed)
    head, left_out = directory / HEAD_FILE, {}
    if objectives.get(saved["objective"]).labels != model.objective.labels:
        new += own
        left_out = _read(shapes_in, head) if head.is_file() else {}
    elif head.is_file() or own and not changed:
        new += _read(read_weights, head, own, changed)
    else:
        new += own
    say_loaded({**of_backbone, **own}, new, left_out)


def _read(read, path, *arguments):
    try:
        return read(str(path), *arguments)
    except OSError as error:  # HDF5 does not name the file
        raise InputError(
            "the weights cannot be read: the file is cut short, damaged or missing "
            f"({error}). Received: {path}"
        ) from error


def _saved_dtype(directory, dtype):
    """The dtype policies of a saved backbone and of its head's dense layer: `dtype` and None, but
    for quantised weights, which have their own."""
    saved = read_json(directory / TASK_FILE)["config"]
    policy, head = saved["backbone"]["config"]["dtype"], saved.get("head_dtype")
    if policy["class_name"] != "DTypePolicyMap" and head is None:
        return dtype, None
    if dtype is not None:
        raise InputError(
            "quantised weights are loaded in the dtypes that they were saved with; leave dtype "
            f"out. Received: dtype={dtype!r} for {directory}"
        )
    from kzoo.load_keras import keras

    return keras.dtype_policies.get(policy), head and keras.dtype_policies.get(head)


def _saved_tokenizer_kind(directory, vocabulary_size):
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return "file"  # none was saved, so none comes, whatever the number of ids
    return tokenizer_kind(read_json(path)["class_name"], vocabulary_size)


def _saved_tokenizer(directory):
    from kzoo.models import FileTokenizer

    path = directory / TOKENIZER_FILE
    if not path.is_file():
        return None
    saved = read_json(path)
    if saved["class_name"] != FileTokenizer.__name__:
        return None
    tokenizer = FileTokenizer.from_config(saved["config"])
    tokenizer.load_preset_assets(str(directory))
    return tokenizer


def _resolved(fields, overrides):
    """The complete config of some fields, others in the place of theirs.

    A classifier's head takes none of the options of the language model's that it replaces.
    """
    fields = {**fields, **overrides}
    if "objective" in fields and objectives.get(fields["objective"]).labels is not None:
        of_tokens = set(HeadConfig.field_names()) - set(overrides)
        fields = {name: value for name, value in fields.items() if name not in of_tokens}
    return Config.get(fields).get_config()


def _find(name):
    """The family of a preset and the fields of its size."""
    file, _, size = str(name).rpartition(":")
    if file.endswith(".json"):
        if size not in _sizes():
            raise unknown(f"size of {file}", size, _sizes())
        return _family(file), _sizes()[size]
    family, _, size = str(name).rpartition("_")
    if family not in _families() or size not in _sizes():
        raise _no_such_preset(name)
    return _families()[family], _sizes()[size]


def _no_such_preset(name):
    """An `InputError` for a name that is no preset: a path, a family alone, or a slip."""
    if not isinstance(name, str) or Path(name).name != name:
        return InputError(
            "no such folder of a model; presets are named by family and size, such as "
            f"'unilm_nano'. Received: {str(name)!r}"
        )
    if name in _families():
        sizes = ", ".join(_sizes())
        return InputError(
            f"a preset is a family and a size, such as '{name}_nano'. Sizes: {sizes}. "
            f"Received: {name!r}"
        )
    hint = nearest(name, names()) or "; one is 'unilm_nano'."
    return InputError(
        f"unknown preset, and no folder of that name{hint} `kzoo list` shows all presets. "
        f"Received: {name!r:.120}"
    )


def _family(file):
    """A family of one's own, from its file."""
    family = read_json(file)
    if not isinstance(family, dict) or not isinstance(family.get("config"), dict):
        raise InputError(
            'a family of presets is a JSON object with a "config", whose fields every size of it '
            f"has. Received: {file}"
        )
    for key in family:
        if key not in FAMILY_KEYS:
            raise unknown(f"key of the family {file}", key, FAMILY_KEYS)
    return family


@functools.cache
def _families():
    files = sorted(path for path in _directory().glob("*.json") if path.name != SIZES_FILE)
    return {path.stem: json.loads(path.read_text()) for path in files}


@functools.cache
def _sizes():
    return json.loads((_directory() / SIZES_FILE).read_text())


def _directory():
    package = Path(__file__).parent
    installed = package / "_presets"
    return installed if installed.is_dir() else package.parent / "presets"
