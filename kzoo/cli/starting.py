"""What `kzoo train` starts from: a preset with random weights, or pretrained ones (`--from`)."""

from kzoo.cli.arguments import (
    count,
    leave_tensorflow,
    load_backend,
    name,
    overrides,
    positive,
    with_labels,
)
from kzoo.errors import InputError

# What a setting means to a run that was begun before there was the option.
SETTINGS = {"from": None, "train_layers": None, "lora_rank": None}


def add_starting(train):
    train.add_argument("preset", metavar="NAME", nargs="?", help="a preset, with random weights")
    train.add_argument(
        "--from",
        dest="pretrained",
        type=name,
        metavar="DIR_OR_HANDLE",
        help="in place of NAME: the folder of a run or a saved model, one in Hugging Face's or "
        "keras-hub's format, hf://ORG/NAME or kaggle://...; --set objective=... gives it another "
        "task, classification too, with the labels of the text's pairs",
    )
    part = train.add_mutually_exclusive_group()
    part.add_argument(
        "--train-layers",
        type=count,
        metavar="N",
        help="with --from: train the last N layers and the head alone; 0: the head alone",
    )
    part.add_argument(
        "--lora-rank",
        type=positive,
        metavar="N",
        help="with --from: train low-rank matrices of rank N instead of the weights (LoRA)",
    )


def start_config(options):
    """The complete config of what a run starts from.

    Raises:
        InputError: as `kzoo.presets.config`; and unless the options name one start.
    """
    from kzoo import presets
    from kzoo.data import tokenizer_spec

    _check(options)
    fields = with_labels(overrides(options.set), options.text)
    fields |= tokenizer_spec.config_fields(options.tokenizer, fields)
    if options.pretrained and presets.kind(options.pretrained) == "checkpoint":
        leave_tensorflow([options.text])
        load_backend()
    return presets.config(start_of(options), **fields)


def start_of(options):
    """The name of what a run starts from, for `kzoo.presets.load`."""
    return options.pretrained or options.preset


def start_model(options, config, tokenizer=None):
    """The model that a run trains, with its weights, and those frozen that are not to train; with
    the tokenizer of a file, where it has none of its own."""
    from kzoo import presets
    from kzoo.training.finetuning import say_what_trains, train_last_layers

    fields = {**config, "tokenizer": tokenizer or config["tokenizer"]}
    model = presets.load(start_of(options), dtype=options.dtype, **fields)
    if options.train_layers is not None:
        train_last_layers(model, options.train_layers)
    if options.lora_rank is not None:
        model.enable_lora(options.lora_rank)
    if options.pretrained:
        say_what_trains(model)
    return model


def start_rate(options, config):
    """The default learning rate."""
    from kzoo.learning_rate import finetuning_rate, learning_rate

    if not options.pretrained:
        return learning_rate(config["hidden_dim"])
    return finetuning_rate(config["hidden_dim"], lora=options.lora_rank is not None)


def _check(options):
    from pathlib import Path

    from kzoo.data import tokenizer_spec

    if bool(options.preset) == bool(options.pretrained):
        raise InputError(
            "a run starts from the NAME of a preset, with random weights, or from pretrained ones, "
            f"--from DIR_OR_HANDLE. Received: {'both' if options.preset else 'neither'}"
        )
    if options.preset and Path(options.preset).is_dir():
        raise InputError(
            f"to train on from the weights in a folder, name it with --from {options.preset}; "
            f"NAME is a preset. Received: {options.preset!r}"
        )
    if options.pretrained and options.tokenizer != tokenizer_spec.BYTES:
        raise InputError(
            "pretrained weights know the ids of their own tokenizer: --tokenizer goes with a "
            f"preset. Received: --tokenizer {tokenizer_spec.text(options.tokenizer)} with --from"
        )
    for option in ("train_layers", "lora_rank"):
        value = getattr(options, option)
        if value is not None and not options.pretrained:
            raise InputError(
                f"--{option.replace('_', '-')} leaves weights as they are, which are pretrained: "
                f"it goes with --from. Received: {value} with the preset {options.preset!r}"
            )
