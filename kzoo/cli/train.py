"""kzoo train: one model on one text, with its log, its best weights and its last ones."""

import logging
import math
import os
import shutil

from kzoo.cli import run_folder
from kzoo.cli.arguments import (
    add_command,
    add_overrides,
    add_running,
    add_tokenizer,
    every,
    leave_tensorflow,
    load_backend,
    need,
    packing,
    path,
    positive,
    print_json,
    rate,
    say_backend,
    share,
    source,
)
from kzoo.cli.starting import add_starting, start_config, start_model
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")
SOURCE = (
    "a text file, a folder of them, a table (table:FILE:SOURCE:TARGET), pydoc, tfds:NAME, "
    "synthetic:NAME, or the JSON of one of these"
)
EVALUATIONS = 10  # along a run, by default
_SAMPLE = 0.1  # of a run's computation: what its measurements along the way take, about
_MANY_PASSES = 16  # over the training text


def add(commands):
    train = add_command(
        commands,
        "train",
        "train a preset, or pretrained weights, on text and save it",
        _train,
        run_folder.saved,
    )
    add_starting(train)
    train.add_argument("--text", type=source, required=True, metavar="FILE", help=SOURCE)
    train.add_argument("--steps", type=positive, required=True, metavar="N")
    train.add_argument(
        "--out",
        type=path,
        required=True,
        metavar="DIR",
        help="a new folder, or that of the same run, stopped before its end, to go on",
    )
    train.add_argument("--batch-size", type=positive, default=16, metavar="N", help="examples")
    train.add_argument(
        "--learning-rate",
        type=rate,
        metavar="PEAK",
        help="default: by the model's width, 0.4 / width and at most 0.01; a tenth of it with "
        "--from, but for --lora-rank",
    )
    train.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    train.add_argument(
        "--schedule", default="cosine", choices=("cosine", "wsd"), help="wsd: warmup-stable-decay"
    )
    train.add_argument("--valid", type=share, default=0.1, metavar="SHARE", help="held out")
    train.add_argument(
        "--packing",
        type=packing,
        metavar="NAME_OR_JSON",
        help="how examples stand in rows: padded (the default), buckets or first_fit",
    )
    train.add_argument(
        "--evaluations",
        type=positive,
        metavar="N",
        help=f"how often held-out bits are measured along the run; default: {EVALUATIONS}",
    )
    train.add_argument("--dtype", choices=DTYPES, help="a dtype policy; default: Keras's, float32")
    train.add_argument(
        "--checkpoint-every",
        type=every,
        default="60s",
        metavar="STEPS_OR_SECONDS",
        help="1000 or 60s (the default); they go to DIR/checkpoints until the model is saved",
    )
    train.add_argument("--keep", type=positive, default=3, metavar="N", help="last checkpoints")
    train.add_argument(
        "--tensorboard", action="store_true", help="write DIR/tensorboard for TensorBoard too"
    )
    add_tokenizer(train)
    add_overrides(train)
    add_running(train)


def _train(options):
    from kzoo.data import tokenizer_spec

    config = start_config(options)
    if options.tensorboard:
        need("tensorboardX", "--tensorboard")
    run_folder.check(options, config)
    data_source = _source(options.text)
    run_folder.fill_in(options, config, EVALUATIONS)
    leave_tensorflow([options.text])
    load_backend()
    from kzoo import data
    from kzoo.models.tokenizer_file import read_file

    tokenizer = tokenizer_spec.file(options.tokenizer, data_source, options.valid)
    # Of pretrained weights a tokenizer, and segments, come with the model.
    model = start_model(options, config) if options.pretrained else None
    splits = data.load(
        data_source,
        model or config,
        batch_size=options.batch_size,
        valid=options.valid,
        seed=config["seed"],
        packing=options.packing,
        tokenizer=tokenizer and read_file(tokenizer),
    )
    settings = run_folder.settings(options, config, splits)
    result = run_folder.result(options.out, settings)
    if result is None:
        model = model or start_model(options, config, tokenizer)
        result = _run(options, config, splits, settings, model)
        run_folder.finish(options.out, settings, result)
    shutil.rmtree(options.out / run_folder.CHECKPOINTS, ignore_errors=True)
    if options.json:
        print_json({**result, "out": str(options.out)})
    else:
        _print_result(options.out, result)


def _source(text):
    """What is trained on: files are read, and refused if they are no text, before anything loads;
    other sources have their own rules."""
    from kzoo.data import sources

    named = isinstance(text, dict) or sources.named(text) is not None
    return text if named else sources.read(text)


def _print_result(out, result):
    if "bits_per_label" in result:
        print(
            f"held out: accuracy {result['accuracy']:.1%}, {result['bits_per_label']:.3f} "
            f"{result['measure']} (the labels' entropy {result['label_entropy']:.3f})"
        )
    else:
        print(
            f"held out: {result['bits_per_byte']:.3f} {result['measure']} (the text's unigram "
            f"entropy {result['unigram_entropy']:.3f}, bigram {result['bigram_entropy']:.3f})"
        )
    print(f"saved in {out}: kzoo.presets.load({str(out)!r})")
    best = result.get("best")  # runs of before have none
    if best:
        measured, there = result.get("measured_along_the_way", (0, 0))  # of older runs nothing
        some = f" on {measured} of the {there} held-out batches" if measured < there else ""
        print(
            f"the fewest bits along the way, {best['held_out_bits']:.3f} at step "
            f"{best['step']:,}{some}: kzoo.presets.load({str(out / 'best')!r})"
        )


def _run(options, config, splits, settings, model):
    """Train and save the model; what the command prints, a dict of JSON values."""
    from kzoo import presets
    from kzoo.studies.study import measure
    from kzoo.training import Checkpoints, Monitor, prepare

    say_backend(options)
    _use_all_devices()
    out, steps = options.out, options.steps
    tokens = options.batch_size * splits.facts["row_length"]
    checkpoints = Checkpoints(
        out / run_folder.CHECKPOINTS,
        every=options.checkpoint_every,
        keep=options.keep,
        settings={"preset": options.preset, "dtype": options.dtype},
    )
    monitor = Monitor(out, tokens=tokens, tensorboard=options.tensorboard)
    program = prepare(model, options.learning_rate, steps, options.optimizer, options.schedule)
    sample = _sample(options, splits)
    _say_what_comes(options, splits, sample)
    run_folder.begin(out, settings)
    outcome = _with_progress(program, splits, sample, options, checkpoints, monitor)
    if not outcome.finite:
        raise InputError(
            f"the loss was not finite at step {outcome.steps}; no model is saved. Try a smaller "
            f"learning rate, in a new folder. Received: --learning-rate {options.learning_rate}"
        )
    presets.save(model, out)
    return {
        **_held_out(program, splits, outcome, whole=len(sample) == len(splits.valid)),
        "loss": outcome.train_loss[-1],
        "steps": outcome.steps,
        "best": monitor.best,
        "measured_along_the_way": [len(sample), len(splits.valid)],
        "tokens_per_second": tokens * outcome.steps / outcome.seconds,
        "measure": measure(config["objective"], options.text)[0],
        "parameters": model.count_params(),
        "preset": options.preset,
        "from": options.pretrained,
    }


def _held_out(program, splits, outcome, whole):
    """What was measured on all held-out examples at the end, and what it compares with."""
    if program.model.objective.labels is not None:
        measured = program.measure(splits.valid)
        return {
            "bits_per_label": measured["bits_per_label"],
            "accuracy": measured["accuracy"],
            "label_entropy": splits.facts["label_entropy"],
        }
    return {
        "bits_per_byte": outcome.held_out[-1][1] if whole else program.bits(splits.valid),
        "unigram_entropy": splits.facts["unigram_entropy"],
        "bigram_entropy": splits.facts["bigram_entropy"],
    }


def _sample(options, splits):
    """The held-out batches that are measured along the way, a `grain.MapDataset`.

    Evenly spread, the same each time, and so many that all measurements together take about a
    tenth of the run's computation: an example costs a third of what it costs in training.
    """
    affordable = 3 * _SAMPLE * options.steps / options.evaluations
    count = max(1, min(len(splits.valid), round(affordable)))
    return splits.valid[:: math.ceil(len(splits.valid) / count)]


def _say_what_comes(options, splits, sample):
    """How often the run passes over its text, and what its measurements cost."""
    steps, batches = options.steps, len(splits.valid)
    facts = splits.facts
    passes = steps * options.batch_size / facts["packing"]["rows"]
    size = f"{facts['train_bytes']:,} bytes"
    if "label_entropy" in facts:
        size = f"{facts['train_rows']:,} texts"
    log.info(
        "learning rate %g; %s steps pass %.3g times over the %s to train on; held-out bits "
        "are measured %d times on %d of %d held-out batches, about %.0f%% of the computation",
        *(options.learning_rate, f"{steps:,}", passes, size),
        *(min(options.evaluations, steps), len(sample), batches),
        100 * len(sample) * options.evaluations / (3 * steps),
    )
    if passes > _MANY_PASSES:
        log.warning(
            "%s steps pass %.0f times over the text. After some 16 passes more of them teach "
            "little but the text by heart (Muennighoff et al. 2023, arXiv:2305.16264). More text, "
            "or at most --steps %d, avoids that; the best weights are kept in %s",
            *(f"{steps:,}", passes),
            max(1, int(steps * _MANY_PASSES / passes)),
            options.out / "best",
        )


def _with_progress(program, splits, sample, options, checkpoints, monitor):
    import dataclasses

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from kzoo.training import train

    class TokensPerSecond(ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{monitor.tokens * speed:,.0f} tokens/s")

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[note]}"), TokensPerSecond()]
    columns += [TimeRemainingColumn(), TextColumn("left")]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=options.steps, note="compiling")
        begun = False

        def on_step(step, loss):
            nonlocal begun
            if not begun:  # the time left is told from the steps of this process
                progress.reset(bar, completed=step - 1, total=options.steps)
                begun = True
            progress.update(bar, completed=step, note=f"loss {loss:.3f}")

        return train(
            program,
            dataclasses.replace(splits, valid=sample),
            options.steps,
            evaluations=options.evaluations,
            checkpoints=checkpoints,
            monitor=monitor,
            on_step=on_step,
        )


def _use_all_devices():
    """`kzoo.distribute()`, which a script would say itself, where JAX has several devices."""
    if os.environ["KERAS_BACKEND"] != "jax":
        return
    import jax

    if jax.device_count() > 1:
        from kzoo.training import distribute

        distribute()
        log.info("%d devices share each batch", jax.device_count())
