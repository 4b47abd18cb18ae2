"""kzoo doctor: whether this machine's devices compute what they should."""

import json
import logging
from pathlib import Path

from kzoo.cli.arguments import add_command, add_running, leave_tensorflow, path, print_json
from kzoo.files import check_folder, write

FILE = Path("kzoo-doctor.json")


def add(commands):
    help = "check that this machine's devices compute what they should"
    more = (
        "Kernels of attention are compared with their definition in NumPy, and models with the "
        "CPU: values, gradients, training, generation, saving. Something wrong is exit status 1."
    )
    command = add_command(commands, "doctor", help, _doctor, _saved, more)
    help = f"for the whole report, to send with a bug report; default: {FILE}"
    command.add_argument("--out", type=path, metavar="FILE", default=FILE, help=help)
    add_running(command)


def _doctor(options):
    check_folder(options.out.parent)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("kzoo").setLevel(logging.WARNING)  # the models that it makes are nobody's
    leave_tensorflow([])
    from rich.console import Console

    from kzoo.doctor import examine, summary, table

    with Console(stderr=True).status("checks") as status:

        def say(report):
            write(options.out, json.dumps(report, indent=1) + "\n")
            ran = sum(row["result"] != "running" for row in report["rows"])
            status.update(f"{ran} checks, {report['off']} found something wrong")

        report = examine(say=say)
    if options.json:
        print_json(report)
    else:
        console = Console(highlight=False)
        console.width = max(console.width, 120)
        console.print(table(report))
        print(f"{summary(report)}. The whole report: {options.out}")
    return 1 if report["off"] else 0


def _saved(options):
    return f"what was found until then is in {options.out}"
