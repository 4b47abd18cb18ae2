"""kzoo compile: what a program would take on a TPU."""

import logging
import os

from kzoo.cli.arguments import (
    add_command,
    add_overrides,
    add_running,
    add_size,
    leave_tensorflow,
    mesh,
    overrides,
    positive,
    print_json,
)
from kzoo.errors import InputError

log = logging.getLogger("kzoo")
_MESH = "parts of a batch and of each layer; default: all chips along data"


def add(commands):
    help = "compile ahead of time for a TPU: memory, FLOPs, collectives, the hours of a study"
    more = (
        "No TPU is needed. Of a preset it compiles a step of training; of a study the step of each "
        "arm, for one chip, and predicts the hours of all runs."
    )
    command = add_command(commands, "compile", help, _compile, more=more)
    command.add_argument(
        "preset", metavar="NAME", help="of a preset, or FILE.json:SIZE; or STUDY.json"
    )
    add_size(command)
    command.add_argument("--topology", required=True, help="chips, such as v5e:2x4")
    command.add_argument(
        "--batch", type=positive, metavar="N", help="examples in all, of a preset's program"
    )
    command.add_argument("--mesh", type=mesh, metavar="data=N,model=M", help=_MESH)
    command.add_argument("--fsdp", action="store_true", help="split parameters over data too")
    command.add_argument("--dtype", help="float32 or mixed_bfloat16")
    command.add_argument("--remat", default="none", help="none, attention or block")
    command.add_argument("--accumulate", type=positive, metavar="N", help="batches an update")
    command.add_argument("--decode", action="store_true", help="what generate does, instead")
    command.add_argument("--quick", action="store_true", help="unoptimised: more memory than it is")
    add_overrides(command)
    add_running(command)


def _compile(options):
    if os.environ["KERAS_BACKEND"] != "jax":
        raise InputError(
            "kzoo compile compiles JAX's programs; use --backend jax. "
            f"Received: {os.environ['KERAS_BACKEND']!r}"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    leave_tensorflow([])
    if options.preset.endswith(".json"):
        _compile_study(options)
        return
    if options.size or options.steps:
        raise InputError(
            "--size and --steps are of a study; the size of a preset is in its name. "
            f"Received: {options.preset!r}"
        )
    if options.batch is None:
        raise InputError(f"the program of a preset needs --batch. Received: {options.preset!r}")
    from kzoo.training.compile_only import compile_only, table

    settings = ("mesh", "fsdp", "dtype", "remat", "accumulate", "decode", "quick")
    settings = {name: getattr(options, name) for name in settings} | overrides(options.set)
    report = compile_only(options.preset, options.topology, options.batch, **settings)
    if options.json:
        print_json(report)
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 110)
    console.print(table(report))


# Options of a preset's program. Of a study, its own fields and one chip decide on each.
_OF_PRESETS = {
    **{"batch": None, "mesh": None, "fsdp": False, "remat": "none", "accumulate": None},
    **{"decode": False, "set": []},
}


def _compile_study(options):
    """The hours of a study, on stdout."""
    for name, default in _OF_PRESETS.items():
        if getattr(options, name) != default:
            raise InputError(
                "the programs of a study are as its file says, and each has one chip; of the "
                "options it takes --size, --steps, --dtype and --quick. "
                f"Received: --{name} with {options.preset!r}"
            )
    from kzoo.studies import Study, sizes

    given = Study.from_json(options.preset)
    study = given.at(size=options.size, steps=options.steps)
    for sentence in sizes.changes(given, study):
        log.info("%s", sentence)
    from kzoo.studies.on_tpu import hours

    found = hours(study, options.topology, dtype=options.dtype, quick=options.quick)
    if options.json:
        print_json(found.to_dict())
        return
    _print_programs(found)
    print(found)


def _print_programs(found):
    from rich.console import Console
    from rich.table import Table

    title = f"{found.study}: a step of each arm on one chip, {found.dtype}"
    lines = Table("arm", "data", box=None, title=title, title_justify="left")
    columns = ("parameters", "rows", "runs", "steps", "passes", "ms at peak", "at roofline")
    for column in (*columns, "assumed", "minutes a run", "compiled, s"):
        lines.add_column(column, justify="right")
    for row in found.programs:
        cells = [f"{row['parameters']:,}", f"{row['batch_size']} × {row['time']}", str(row["runs"])]
        cells += [f"{row['steps']:,}", f"{row['passes']:.1f}"]
        if row["fits"]:
            cells += [f"{row[name] * 1e3:.3g}" for name in ("peak", "roofline", "step")]
            cells += [f"{row['run'] / 60:.2g}", f"{row['compile']:.0f}"]
        else:
            cells.append("does not fit")
        lines.add_row(row["arm"], row["data"], *cells)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 130)
    console.print(lines)
