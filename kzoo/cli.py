"""The command line: kzoo list | show | train | generate | compare | report | compile | bench.

Wrong input is answered with one line on standard error and exit status 2. On SIGTERM, `train` and
`compare` save what they have and exit with status 75; the same command goes on from there. `list`
and `show` read JSON only; Keras loads when a model is made, with the backend that was asked for.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

from kzoo.errors import InputError, Preempted, unknown
from kzoo.program_cache import keep_programs

BACKENDS = ("jax", "tensorflow", "torch")
WORDS = ("mask", "objective")
DTYPES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")
EPILOG = "Run `kzoo COMMAND --help` for the options of a command."


def main(arguments=None):
    """Run the command line; returns the exit status: 0, 2 for wrong input, 75 after SIGTERM."""
    try:
        options = _parser().parse_args(arguments)
        _set_up(options)
        options.run(options)
    except InputError as error:
        print(f"kzoo: {error}", file=sys.stderr)
        return 2
    except Preempted as stop:
        return stop.code
    except KeyboardInterrupt:
        last = "the same command goes on from the last checkpoint"
        print(f"kzoo: interrupted; {last}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}. See `{self.prog} --help`")


def _parser():
    parser = _Parser(prog="kzoo", description=__doc__.split("\n\n")[1], epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(run, help, commands=commands):
        name = run.__name__.rpartition("_")[2]
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    add(_list, "the presets: what they are and how many parameters they have")

    show = add(_show, "a preset's complete config")
    show.add_argument("preset", metavar="NAME")
    show.add_argument("--masks", action="store_true", help="draw who sees whom")
    show.add_argument("--png", type=Path, metavar="FILE", help="with --masks: a picture")
    _add_overrides(show)

    train = add(_train, "train a preset on text and save it")
    train.add_argument("preset", metavar="NAME")
    train.add_argument("--text", required=True, metavar="FILE", help=_SOURCE)
    train.add_argument("--steps", type=_positive, required=True, metavar="N")
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or that of the same run, stopped before its end, to go on",
    )
    train.add_argument("--batch-size", type=_positive, default=16, metavar="ROWS")
    train.add_argument("--learning-rate", type=_rate, default=3e-3, metavar="PEAK")
    train.add_argument("--optimizer", default="adamw", choices=("adamw", "muon"))
    train.add_argument(
        "--schedule", default="cosine", choices=("cosine", "wsd"), help="wsd: warmup-stable-decay"
    )
    train.add_argument("--valid", type=float, default=0.1, metavar="SHARE", help="held out")
    train.add_argument("--dtype", choices=DTYPES, help="a dtype policy; default: Keras's, float32")
    train.add_argument(
        "--checkpoint-every",
        default="60s",
        metavar="STEPS_OR_SECONDS",
        help="1000 or 60s (the default); they go to DIR/checkpoints until the model is saved",
    )
    train.add_argument("--keep", type=_positive, default=3, metavar="N", help="last checkpoints")
    _add_overrides(train)
    _add_running(train)

    generate = add(_generate, "continue a prompt, token by token")
    generate.add_argument("model", metavar="PRESET_OR_DIR")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="- reads it from stdin")
    generate.add_argument(
        "--max-length", type=_positive, metavar="N", help="tokens in all, those of the prompt too"
    )
    generate.add_argument("--sampler", default="top_k", metavar="NAME")
    generate.add_argument("--seed", type=int, metavar="N", help="of a sampler that draws")
    _add_running(generate)

    compare = add(_compare, "run a study (by default the quick one) and write its report")
    compare.add_argument("study", nargs="?", type=Path, metavar="STUDY.json")
    compare.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/NAME; the same study goes on there"
    )
    _add_running(compare)

    report = add(_report, "write the report of a study's folder again")
    report.add_argument("directory", type=Path, metavar="DIR")

    compile_ = add(_compile, "compile for a TPU that is not there: memory, FLOPs, collectives")
    compile_.add_argument("preset", metavar="NAME")
    compile_.add_argument("--topology", required=True, help="chips, such as v5e:2x4")
    compile_.add_argument("--batch", type=_positive, required=True, metavar="ROWS", help="in all")
    compile_.add_argument("--mesh", type=_mesh, metavar="data=N,model=M", help=_MESH)
    compile_.add_argument("--fsdp", action="store_true", help="split parameters over data too")
    compile_.add_argument("--dtype", help="float32 or mixed_bfloat16")
    compile_.add_argument("--remat", default="none", help="none, attention or block")
    compile_.add_argument("--accumulate", type=_positive, metavar="N", help="batches an update")
    compile_.add_argument("--decode", action="store_true", help="what generate does, instead")
    compile_.add_argument(
        "--quick", action="store_true", help="unoptimised: more memory than it is"
    )
    _add_overrides(compile_)
    _add_running(compile_)

    help = "time attention, training or generation, beside what else is installed"
    bench = commands.add_parser("bench", help=help, description=help)
    benches = bench.add_subparsers(dest="bench", required=True, metavar="WHAT")

    attention = add(_bench_attention, "attention, forward and backward, by length", benches)
    attention.add_argument("--times", type=_positive, nargs="+", default=[1024, 4096, 16384])
    attention.add_argument("--heads", type=_positive, default=8)
    attention.add_argument("--dim", type=_positive, default=64, help="of a head")
    attention.add_argument("--batch", type=_positive, default=1, metavar="ROWS")
    attention.add_argument("--repeats", type=_positive, default=5, help="of each contestant")
    attention.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    _add_result(attention, "a new folder for bench.json and bench.png")

    steps = add(_bench_train, "whole train steps of a small GPT", benches)
    steps.add_argument("--steps", type=_positive, default=5, help="of each contestant")
    _add_result(steps, "a new folder for bench.json")

    generate = add(_bench_generate, "prompts, steps and turns of a conversation", benches)
    generate.add_argument("--lengths", type=_positive, nargs="+", default=[256, 4096])
    generate.add_argument("--turns", type=_positive, default=4)
    generate.add_argument("--repeats", type=_positive, default=5, help="of each contestant")
    _add_result(generate, "a new folder for bench.json")
    return parser


_MESH = "parts of a batch and of each layer; default: all chips along data"
_SOURCE = "a text file, a folder of them, pydoc, tfds:NAME or synthetic:NAME"


def _add_overrides(command):
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a config field; VALUE is JSON or a bare word",
    )


def _add_result(command, help):
    command.add_argument("--out", type=Path, metavar="DIR", help=help)
    command.add_argument("--json", action="store_true", help="one JSON line on stdout, no table")


def _add_running(command):
    command.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    command.add_argument(
        "--backend", choices=BACKENDS, help="of Keras; default: KERAS_BACKEND, else jax"
    )


def _set_up(options):
    """Choose the backend before anything imports Keras, and let warnings be read."""
    backend = getattr(options, "backend", None) or os.environ.get("KERAS_BACKEND") or "jax"
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    os.environ["KERAS_BACKEND"] = backend
    if options.command in ("bench", "compile"):
        # One times compilation; the other's programs, for absent machines, JAX cannot read again.
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    else:
        keep_programs()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GLOG_minloglevel", "2")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kzoo: %(message)s"))
    log = logging.getLogger("kzoo")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def _leave_tensorflow(sources):
    """Keep keras-hub from loading TensorFlow where neither backend nor data need it.

    It would load it for its own preprocessing, for seconds and with lines of noise, and works
    the same without.
    """
    if os.environ["KERAS_BACKEND"] != "tensorflow" and not any(
        source.startswith("tfds:") for source in sources
    ):
        sys.modules.setdefault("tensorflow", None)


# Commands -----------------------------------------------------------------------------------


def _list(options):
    from rich.console import Console
    from rich.table import Table

    from kzoo import presets
    from kzoo.config import count_parameters

    table = Table(box=None, pad_edge=False)
    for column in ("preset", "parameters", "layers", "width", "length"):
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    table.add_column("mask")
    table.add_column("objective")
    for name in presets.names():
        config = presets.config(name)
        sizes = (config[field] for field in ("num_layers", "hidden_dim", "max_sequence_length"))
        words = (config[f] if isinstance(config[f], str) else json.dumps(config[f]) for f in WORDS)
        table.add_row(name, f"{count_parameters(config):,}", *map(str, sizes), *words)
    # A pipe has no width of its own: lines stay whole for `grep`.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)


def _show(options):
    from kzoo import presets
    from kzoo.config import count_parameters

    if options.png and not options.masks:
        raise InputError(f"--png draws masks; add --masks. Received: --png {options.png}")
    config = presets.config(options.preset, **_overrides(options.set))
    if not options.masks:
        about = presets.describe(options.preset)
        print(f"{options.preset}: {about['description']}\n{about['paper']}")
        print(f"{count_parameters(config):,} parameters, weights random (seed {config['seed']})")
        print(json.dumps(config, indent=2))
        return
    from kzoo.analysis import draw_masks, terminal_masks

    stack = (config["mask"], config["num_layers"], config["num_heads"])
    if config["stack"] != "single":
        print("The encoder; the decoder is causal, and sees all of what the encoder read.\n")
    print(terminal_masks(*stack))
    if options.png:
        options.png.parent.mkdir(parents=True, exist_ok=True)
        draw_masks(*stack).savefig(options.png, dpi=150)
        print(options.png)


def _train(options):
    from kzoo import data, presets

    config = presets.config(options.preset, **_overrides(options.set))
    folder = options.out / "checkpoints"
    if not folder.is_dir():
        _check_new(options.out)
    _leave_tensorflow([options.text])
    splits = data.load(
        options.text,
        config,
        batch_size=options.batch_size,
        valid=options.valid,
        seed=config["seed"],
    )

    from rich.console import Console
    from rich.progress import Progress, TextColumn

    from kzoo.studies.study import measure
    from kzoo.training import Checkpoints, prepare, train

    _use_all_devices()
    checkpoints = Checkpoints(
        folder,
        every=options.checkpoint_every,
        keep=options.keep,
        settings={"preset": options.preset, "dtype": options.dtype},
    )
    model = presets.load(options.preset, dtype=options.dtype, **{**config})
    settings = (options.learning_rate, options.steps, options.optimizer, options.schedule)
    program = prepare(model, *settings)
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=options.steps, note="compiling")

        def on_step(step, loss):
            progress.update(bar, completed=step, note=f"loss {loss:.3f}")

        outcome = train(program, splits, options.steps, checkpoints=checkpoints, on_step=on_step)
    if not outcome.finite:
        raise InputError(
            f"the loss was not finite at step {outcome.steps}; no model is saved. Try a smaller "
            f"learning rate, in a new folder. Received: --learning-rate {options.learning_rate}"
        )
    presets.save(model, options.out)
    if folder.is_dir():
        # In one step: a run that is killed in the midst of this is finished, or is not.
        shutil.rmtree(folder.rename(folder.with_name("checkpoints.finished")))
    bits = outcome.held_out[-1][1]
    tokens = options.batch_size * splits.facts["row_length"] * outcome.steps
    result = {
        "bits_per_byte": bits,
        "loss": outcome.train_loss[-1],
        "steps": outcome.steps,
        "tokens_per_second": tokens / outcome.seconds,
        "measure": measure(config["objective"], options.text)[0],
        "unigram_entropy": splits.facts["unigram_entropy"],
        "bigram_entropy": splits.facts["bigram_entropy"],
        "parameters": model.count_params(),
        "preset": options.preset,
        "out": str(options.out),
    }
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"held out: {bits:.3f} {result['measure']} (the text's unigram entropy "
        f"{result['unigram_entropy']:.3f}, bigram {result['bigram_entropy']:.3f})\n"
        f"saved in {options.out}: kzoo.presets.load({str(options.out)!r})"
    )


def _use_all_devices():
    """`kzoo.distribute()`, which a script would say itself, where JAX has several devices."""
    if os.environ["KERAS_BACKEND"] != "jax":
        return
    import jax

    if jax.device_count() > 1:
        from kzoo.training import distribute

        distribute()
        logging.getLogger("kzoo").info("%d devices share each batch", jax.device_count())


def _generate(options):
    _leave_tensorflow([])
    from kzoo import presets
    from kzoo.models.generation import ONE_BY_ONE, get_sampler

    sampler = get_sampler(options.sampler, options.seed)
    model = presets.load(options.model)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    settings = {"max_length": options.max_length, "sampler": sampler}
    if options.sampler in ONE_BY_ONE:
        pieces = model.stream(prompt, **settings)
    else:
        pieces = [model.generate(prompt, strip_prompt=True, **settings)]
    text = []
    for piece in pieces:
        text.append(piece)
        if not options.json:
            print(piece, end="", flush=True)
    if options.json:
        result = {"model": options.model, "prompt": prompt, "text": "".join(text)}
        print(json.dumps({**result, "sampler": options.sampler, "seed": options.seed}))
    else:
        print()


def _compare(options):
    from kzoo.studies.study import QUICK, Study

    study = Study.from_json(options.study or QUICK)
    directory = options.out or Path("runs") / study.name
    _leave_tensorflow(study.data)

    from kzoo.ops.choice import platform
    from kzoo.studies.page import report, table
    from kzoo.studies.runner import run
    from kzoo.studies.workers import processes

    with _ending_on_sigterm(directory):
        records = run(study, directory, at_once=processes() if platform() == "cpu" else None)
    page = report(directory)
    rows = table(records)
    if options.json:
        finite = rows.astype(object).where(rows.notna(), None)
        result = {"study": study.name, "report": str(page), "results": finite.to_dict("records")}
        print(json.dumps(result))
        return
    _print_results(rows)
    print(f"report: {page}")


@contextlib.contextmanager
def _ending_on_sigterm(directory):
    """SIGTERM ends what runs between trainings and beside them; a training saves itself first."""

    def end(number, frame):
        raise Preempted(f"asked to end by SIGTERM: {directory} holds what has been run")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(options):
    from kzoo.studies.page import report

    print(report(options.directory))


def _compile(options):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _leave_tensorflow([])
    from kzoo.training.compile_only import compile_only, table

    settings = ("mesh", "fsdp", "dtype", "remat", "accumulate", "decode", "quick")
    settings = {name: getattr(options, name) for name in settings} | _overrides(options.set)
    report = compile_only(options.preset, options.topology, options.batch, **settings)
    if options.json:
        print(json.dumps(report))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 110)
    console.print(table(report))


def _bench_attention(options):
    _check_new(options.out)
    from kzoo.bench import bench_attention, plot

    settings = ("times", "heads", "dim", "batch", "repeats", "dtype")
    settings = {name: getattr(options, name) for name in settings}
    result = _with_status(bench_attention, **settings)
    _finish_bench(result, options)
    if options.out:
        plot(result).savefig(options.out / "bench.png", dpi=150)


def _bench_train(options):
    _check_new(options.out)
    _leave_tensorflow([])
    from kzoo.bench import bench_train

    _finish_bench(_with_status(bench_train, steps=options.steps), options)


def _bench_generate(options):
    _check_new(options.out)
    _leave_tensorflow([])
    from kzoo.bench import bench_generate

    settings = {name: getattr(options, name) for name in ("lengths", "turns", "repeats")}
    _finish_bench(_with_status(bench_generate, **settings), options)


def _with_status(run, **settings):
    """Run a benchmark, saying on the terminal what runs."""
    from rich.console import Console
    from rich.live import Live

    # No animation: it would take time from what is measured.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        return run(**settings, say=lambda text: live.update(text, refresh=True))


def _finish_bench(result, options):
    from kzoo.bench import tables

    text = json.dumps(result)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "bench.json").write_text(text + "\n")
    if options.json:
        print(text)
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 110)  # a narrow terminal wraps; nothing is cut off
    for part in tables(result):
        console.print(part)


def _print_results(rows):
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for group, arms in rows.groupby("group", sort=False):
        unit = arms["measure"].iloc[0]
        table = Table("arm", title=f"{group}: held-out {unit}", title_justify="left", box=None)
        for column in ("mean", "least", "greatest", "seconds a run"):
            table.add_column(column, justify="right")
        for _, row in arms.iterrows():
            figures = (row["mean"], row["min"], row["max"])
            note = f"{row['nan']} not finite" if row["nan"] else ""
            table.add_row(row["arm"], *(f"{x:.3f}" for x in figures), f"{row['seconds']:.0f}", note)
        console.print(table)
    console.print("Rows compare within a group only; the report says what a verdict would need.")


# Arguments ----------------------------------------------------------------------------------


def _check_new(directory):
    """`InputError` for an output folder that holds something."""
    if directory and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"the output is a new or empty folder. Received: {directory}")


def _overrides(settings):
    """`["mask=causal", 'objective={"masked_lm": {"rate": 0.3}}']` as a dict."""
    overrides = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals or not field:
            raise InputError(f"--set takes FIELD=VALUE. Received: {setting!r}")
        try:
            overrides[field] = json.loads(value)
        except ValueError:
            overrides[field] = value
    return overrides


def _mesh(text):
    """`"data=4,model=2"` as a dict."""
    pairs = [pair.partition("=")[::2] for pair in text.split(",")]
    if not all(axis and size.isdecimal() and int(size) for axis, size in pairs):
        raise argparse.ArgumentTypeError(f"data=N,model=M. Received: {text!r}")
    return {axis: int(size) for axis, size in pairs}


def _positive(text):
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"a positive integer. Received: {text!r}")
    return number


def _rate(text):
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number. Received: {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
