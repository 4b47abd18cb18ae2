"""kzoo compile: what a program would take on a TPU."""

import os

from kzoo.cli.arguments import (
    add_command,
    add_overrides,
    add_running,
    leave_tensorflow,
    mesh,
    overrides,
    positive,
    print_json,
)
from kzoo.errors import InputError

_MESH = "parts of a batch and of each layer; default: all chips along data"


def add(commands):
    help = "compile ahead of time for a TPU: memory, FLOPs, collectives"
    more = "No TPU is needed. By default it compiles a step of training."
    command = add_command(commands, "compile", help, _compile, more=more)
    command.add_argument("preset", metavar="NAME", help="of a preset, or FILE.json:SIZE")
    command.add_argument("--topology", required=True, help="chips, such as v5e:2x4")
    command.add_argument(
        "--batch", type=positive, required=True, metavar="N", help="examples in all"
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
