"""kzoo bench: time attention, training, generation and data."""

import json

from kzoo.cli.arguments import (
    add_command,
    add_json,
    leave_tensorflow,
    path,
    positive,
    print_json,
    source,
)
from kzoo.files import check_folder, check_new, whole_folder

_BYTES = 2**20  # the most that the results take


def add(commands):
    help = "time attention, training or generation, beside other installed libraries; or data"
    bench = add_command(commands, "bench", help)
    benches = bench.add_subparsers(dest="bench", required=True, metavar="WHAT")

    help = "time attention, forward and backward, by length"
    attention = add_command(benches, "attention", help, _attention)
    attention.add_argument("--times", type=positive, nargs="+", default=[1024, 4096, 16384])
    attention.add_argument("--heads", type=positive, default=8)
    attention.add_argument("--dim", type=positive, default=64, help="of a head")
    attention.add_argument("--batch", type=positive, default=1, help="examples")
    attention.add_argument("--repeats", type=positive, default=5, help="of each contestant")
    attention.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    _add_result(attention, "a new folder for bench.json and bench.png")

    train = add_command(benches, "train", "time whole train steps of a small GPT", _train)
    train.add_argument("--steps", type=positive, default=5, help="of each contestant")
    _add_result(train, "a new folder for bench.json")

    help = "time the data pipeline beside the training that it feeds"
    data = add_command(benches, "data", help, _data)
    data.add_argument("--source", type=source, default="pydoc", help="as of kzoo train --text")
    data.add_argument("--repeats", type=positive, default=5, help="of each contestant")
    _add_result(data, "a new folder for bench.json")

    help = "time prompts, steps and turns of a conversation"
    generate = add_command(benches, "generate", help, _generate)
    generate.add_argument("--lengths", type=positive, nargs="+", default=[256, 4096])
    generate.add_argument("--turns", type=positive, default=4)
    generate.add_argument("--repeats", type=positive, default=5, help="of each contestant")
    _add_result(generate, "a new folder for bench.json")


def _add_result(command, help):
    command.add_argument("--out", type=path, metavar="DIR", help=help)
    add_json(command, "one JSON line on stdout, no table")


def _attention(options):
    _try(options.out)
    from kzoo.bench import bench_attention, plot

    settings = ("times", "heads", "dim", "batch", "repeats", "dtype")
    settings = {name: getattr(options, name) for name in settings}
    result = _with_status(bench_attention, **settings)
    _finish(result, options, {"bench.png": plot})


def _train(options):
    _try(options.out)
    leave_tensorflow([])
    from kzoo.bench import bench_train

    _finish(_with_status(bench_train, steps=options.steps), options)


def _data(options):
    _try(options.out)
    leave_tensorflow([options.source])
    from kzoo.bench import bench_data

    _finish(_with_status(bench_data, source=options.source, rounds=options.repeats), options)


def _generate(options):
    _try(options.out)
    leave_tensorflow([])
    from kzoo.bench import bench_generate

    settings = {name: getattr(options, name) for name in ("lengths", "turns", "repeats")}
    _finish(_with_status(bench_generate, **settings), options)


def _try(out):
    check_new(out)
    if out is not None:
        check_folder(out, _BYTES)


def _with_status(run, **settings):
    """Run a benchmark, with its progress on the terminal."""
    from rich.console import Console
    from rich.live import Live

    # No animation, which would slow down what is measured.
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        return run(**settings, say=lambda text: live.update(text, refresh=True))


def _finish(result, options, pictures=None):
    from kzoo.bench import tables

    if options.out:
        with whole_folder(options.out) as part:
            (part / "bench.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
            for name, plot in (pictures or {}).items():
                plot(result).savefig(part / name, dpi=150)
    if options.json:
        print_json(result)
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(
        console.width, 110
    )  # a narrow terminal wraps lines instead of truncating them
    for part in tables(result):
        console.print(part)
