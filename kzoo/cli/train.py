"""kzoo train: one model on one text, saved at the end."""

import json
import logging
import os
import shutil

from kzoo import migrations
from kzoo.cli.arguments import (
    add_command,
    add_overrides,
    add_running,
    leave_tensorflow,
    load_backend,
    name,
    overrides,
    path,
    positive,
    print_json,
    rate,
    share,
)
from kzoo.errors import InputError
from kzoo.files import check_folder, check_new, numbered, read_json, taken, write
from kzoo.values import differences

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")
SOURCE = "a text file, a folder of them, pydoc, tfds:NAME or synthetic:NAME"
RUN_FILE, CHECKPOINTS = "training.json", "checkpoints"
_BYTES = 300_000  # of what a model's folder holds besides the weights, at most


def add(commands):
    train = add_command(commands, "train", "train a preset on text and save it", _train, _saved)
    train.add_argument("preset", metavar="NAME")
    train.add_argument("--text", type=name, required=True, metavar="FILE", help=SOURCE)
    train.add_argument("--steps", type=positive, required=True, metavar="N")
    train.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="DIR",
        help="a new folder, or that of the same run, stopped before its end, to go on",
    )
    train.add_argument("--batch-size", type=positive, default=16, metavar="ROWS")
    train.add_argument("--learning-rate", type=rate, default=3e-3, metavar="PEAK")
    train.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    train.add_argument(
        "--schedule", default="cosine", choices=("cosine", "wsd"), help="wsd: warmup-stable-decay"
    )
    train.add_argument("--valid", type=share, default=0.1, metavar="SHARE", help="held out")
    train.add_argument("--dtype", choices=DTYPES, help="a dtype policy; default: Keras's, float32")
    train.add_argument(
        "--checkpoint-every",
        default="60s",
        metavar="STEPS_OR_SECONDS",
        help="1000 or 60s (the default); they go to DIR/checkpoints until the model is saved",
    )
    train.add_argument("--keep", type=positive, default=3, metavar="N", help="last checkpoints")
    add_overrides(train)
    add_running(train)


def _train(options):
    from kzoo import presets

    config = presets.config(options.preset, **overrides(options.set))
    _check_out(options, config)
    leave_tensorflow([options.text])
    load_backend()
    from kzoo import data

    splits = data.load(
        options.text,
        config,
        batch_size=options.batch_size,
        valid=options.valid,
        seed=config["seed"],
    )
    settings = _settings(options, config, splits)
    if _has(options.out, RUN_FILE):
        result = _finished(options.out, settings)
    else:
        result = _run(options, config, splits)
        # In this order: a run that is killed in the midst of this is finished, or goes on.
        write(options.out / RUN_FILE, json.dumps({"settings": settings, "result": result}) + "\n")
    shutil.rmtree(options.out / CHECKPOINTS, ignore_errors=True)
    if options.json:
        print_json({**result, "out": str(options.out)})
        return
    print(
        f"held out: {result['bits_per_byte']:.3f} {result['measure']} (the text's unigram entropy "
        f"{result['unigram_entropy']:.3f}, bigram {result['bigram_entropy']:.3f})\n"
        f"saved in {options.out}: kzoo.presets.load({str(options.out)!r})"
    )


def _run(options, config, splits):
    """Train and save the model; what the command prints, a dict of JSON values."""
    from kzoo import presets
    from kzoo.studies.study import measure
    from kzoo.training import Checkpoints, prepare

    _use_all_devices()
    checkpoints = Checkpoints(
        options.out / CHECKPOINTS,
        every=options.checkpoint_every,
        keep=options.keep,
        settings={"preset": options.preset, "dtype": options.dtype},
    )
    model = presets.load(options.preset, dtype=options.dtype, **config)
    program = prepare(
        model, options.learning_rate, options.steps, options.optimizer, options.schedule
    )
    outcome = _with_progress(program, splits, options.steps, checkpoints)
    if not outcome.finite:
        raise InputError(
            f"the loss was not finite at step {outcome.steps}; no model is saved. Try a smaller "
            f"learning rate, in a new folder. Received: --learning-rate {options.learning_rate}"
        )
    presets.save(model, options.out)
    tokens = options.batch_size * splits.facts["row_length"] * outcome.steps
    return {
        "bits_per_byte": outcome.held_out[-1][1],
        "loss": outcome.train_loss[-1],
        "steps": outcome.steps,
        "tokens_per_second": tokens / outcome.seconds,
        "measure": measure(config["objective"], options.text)[0],
        "unigram_entropy": splits.facts["unigram_entropy"],
        "bigram_entropy": splits.facts["bigram_entropy"],
        "parameters": model.count_params(),
        "preset": options.preset,
    }


def _with_progress(program, splits, steps, checkpoints):
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from kzoo.training import train

    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=steps, note="compiling")

        def on_step(step, loss):
            progress.update(bar, completed=step, note=f"loss {loss:.3f}")

        return train(program, splits, steps, checkpoints=checkpoints, on_step=on_step)


def _use_all_devices():
    """`kzoo.distribute()`, which a script would say itself, where JAX has several devices."""
    if os.environ["KERAS_BACKEND"] != "jax":
        return
    import jax

    if jax.device_count() > 1:
        from kzoo.training import distribute

        distribute()
        logging.getLogger("kzoo").info("%d devices share each batch", jax.device_count())


# The output folder ----------------------------------------------------------------------------


def _has(out, name):
    return os.path.exists(out / name)  # where pathlib raises, for too long a name say, False


def _check_out(options, config):
    """`InputError` unless the folder is new, or this command's, and can take the model."""
    from kzoo.config import checkpoint_bytes, count_parameters
    from kzoo.presets import TASK_FILE

    out = options.out
    if _has(out, RUN_FILE):
        return
    if _has(out, TASK_FILE) and not _has(out, CHECKPOINTS):
        raise InputError(
            "the output is a new or empty folder; this one holds a saved model, which "
            f"kzoo.presets.load reads. Received: {out}"
        )
    if not _has(out, CHECKPOINTS):
        check_new(out)
    parameters = count_parameters(config)
    needed = checkpoint_bytes(parameters, options.keep) + 4 * parameters + _BYTES
    check_folder(out, needed - taken(out / CHECKPOINTS), "A smaller --keep needs less.")


def _settings(options, config, splits):
    """What makes one run another than the next: a dict of JSON values."""
    given = ("preset", "steps", "batch_size", "learning_rate", "optimizer", "schedule", "dtype")
    return {
        **{name: getattr(options, name) for name in given},
        "backend": os.environ["KERAS_BACKEND"],
        "config": config,
        "data": {name: splits.facts[name] for name in ("sha256", "row_length", "train_rows")},
    }


def _finished(out, settings):
    """The result of a run that has come to its end, with a word on what can be done now."""
    run = read_json(out / RUN_FILE)
    before, now = migrations.record(run.get("settings")), json.loads(json.dumps(settings))
    other = list(differences(before, now))
    if other:
        raise InputError(
            f"the output folder holds a finished run of other settings: {'; '.join(other)}. Name "
            f"a new folder with --out. Received: {out}"
        )
    logging.getLogger("kzoo").info(
        "this run is finished, and its result is told again. To train on, use fit on "
        "kzoo.presets.load(%r); to begin anew, name a new folder with --out",
        str(out),
    )
    return run["result"]


def _saved(options):
    if _has(options.out, RUN_FILE):
        return f"the model is saved in {options.out}"
    folder = options.out / CHECKPOINTS
    steps = numbered(folder)
    if not steps:
        return "nothing is saved"
    return f"step {steps[0]} is saved in {folder}; the same command goes on from there"
