"""kzoo compare: run a study; kzoo report: write its page."""

from pathlib import Path

from kzoo.cli.arguments import (
    add_command,
    add_running,
    leave_tensorflow,
    load_backend,
    path,
    print_json,
    say_backend,
)
from kzoo.errors import InputError
from kzoo.files import numbered


def add(commands):
    help = "run a study (by default the quick one) and write its report"
    more = "If it is stopped, the same command resumes it."
    compare = add_command(commands, "compare", help, _compare, _saved, more)
    compare.add_argument("study", nargs="?", type=path, metavar="STUDY.json")
    compare.add_argument(
        "--out", type=path, metavar="DIR", help="default: runs/NAME; a study begun there is resumed"
    )
    add_running(compare)

    help = "write the page of a study's folder again, or those of several and one that joins them"
    report = add_command(commands, "report", help, _report)
    report.add_argument("directories", type=path, metavar="DIR", nargs="+")
    report.add_argument(
        "--out",
        type=path,
        metavar="FILE.html",
        help="the page that joins several studies; default: studies.html in the folder above them",
    )


def _read(options):
    """The study and its directory."""
    from kzoo.studies.study import QUICK, Study

    study = Study.from_json(options.study or QUICK)
    return study, options.out or Path("runs") / study.name


def _compare(options):
    study, directory = _read(options)
    leave_tensorflow(study.data)
    load_backend()

    from kzoo.ops.context import platform
    from kzoo.studies.page import report, table
    from kzoo.studies.runner import as_begun, check, run
    from kzoo.studies.workers import processes

    at_once = processes() if platform() == "cpu" else None
    check(as_begun(study, directory), directory, at_once)
    say_backend(options)
    records = run(study, directory, at_once=at_once)
    page = report(directory)
    rows, verdicts = table(records), _verdicts(study, records)
    if options.json:
        finite = rows.astype(object).where(rows.notna(), None)
        result = {"study": study.name, "report": str(page), "results": finite.to_dict("records")}
        if study.hypotheses:
            result["verdicts"] = [{"text": str(each), **each.to_dict()} for each in verdicts]
        print_json(result)
        return
    _print_results(rows)
    _print_verdicts(study, verdicts)
    print(f"report: {page}")


def _verdicts(study, records):
    if not study.hypotheses:
        return []
    from kzoo.studies.evidence import draw

    return draw(study.to_dict(), records)


def _print_verdicts(study, verdicts):
    """The sentences, on lines of their own that a pipe does not cut."""
    if not study.hypotheses:
        print("Rows compare within a group only; the report says what a verdict would need.")
        return
    for verdict in verdicts:
        print(f"{verdict.hypothesis.name}: {verdict}")


def _saved(options):
    from kzoo.studies.records import read, read_tuning

    try:
        study, directory = _read(options)
        finished, tuned = len(read(directory)[1]), len(read_tuning(directory))
    except (InputError, OSError):  # nothing was begun
        return "nothing is saved"
    runs = len(study.runs()) * len(study.seeds)
    begun = sum(bool(numbered(folder)) for folder in directory.glob("checkpoints/*"))
    if not finished and not begun and not tuned:
        return "nothing is saved"
    begun = f", and {begun} begun," if begun else ""
    begun += f" and {tuned} of tuning" if tuned else ""
    return (
        f"{finished} of {runs} runs are finished{begun} in {directory}; the same command goes on "
        "from there"
    )


def _report(options):
    from kzoo.studies.page import index, report

    if options.out is None and len(options.directories) == 1:
        print(report(options.directories[0]))
    else:
        print(index(options.directories, options.out))


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
