"""kzoo compare: run a study; kzoo report: write its page."""

import logging
from pathlib import Path

from kzoo.cli.arguments import (
    add_command,
    add_running,
    add_size,
    leave_tensorflow,
    load_backend,
    minutes,
    need,
    path,
    positive,
    print_json,
    say_backend,
)
from kzoo.errors import InputError
from kzoo.files import numbered

log = logging.getLogger("kzoo")


def add(commands):
    help = "run a study (by default the quick one) and write its report"
    more = "If it is stopped, the same command resumes it."
    compare = add_command(commands, "compare", help, _compare, _saved, more)
    compare.add_argument("study", nargs="?", type=path, metavar="STUDY.json")
    compare.add_argument(
        "--out", type=path, metavar="DIR", help="default: runs/NAME; a study begun there is resumed"
    )
    add_size(compare)
    compare.add_argument(
        "--dry-run",
        action="store_true",
        help="tell runs, minutes, and the effect that the seeds can detect, and run nothing",
    )
    compare.add_argument(
        "--minutes", type=minutes, metavar="N", help="stop after so many minutes, between two runs"
    )
    compare.add_argument(
        "--retune",
        action="store_true",
        help="make the runs on which rates are chosen anew; of a study without finished runs",
    )
    compare.add_argument(
        "--jobs", type=positive, metavar="N", help="the most runs at once; default: by the cores"
    )
    compare.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="a run on each device of a Ray cluster; default: the one that RAY_ADDRESS names or "
        "that runs on this machine, else one that is started here",
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

    study = Study.from_json(options.study or QUICK).at(size=options.size, steps=options.steps)
    return study, options.out or Path("runs") / study.name


def _compare(options):
    study, directory = _read(options)
    leave_tensorflow(study.data)
    if options.ray is not None:
        from kzoo.studies.cluster import keep_accelerators_free

        need("ray", "--ray")
        keep_accelerators_free()
    load_backend()

    from kzoo.ops.context import platform
    from kzoo.studies.folder import as_begun
    from kzoo.studies.page import report, table
    from kzoo.studies.records import read_tuning
    from kzoo.studies.runner import check, run
    from kzoo.studies.workers import processes

    at_once = options.jobs
    if at_once is None and options.ray is None and platform() == "cpu":
        at_once = processes()
    check(as_begun(study, directory), directory, at_once)
    say_backend(options)
    if options.size or options.steps:
        _say_size(study, directory, options)
    if options.dry_run:
        _plan(study, directory, options)
        return
    if study.budget != "steps" and not options.json:
        _print_plan_of_arms(study)
    how = {"minutes": options.minutes, "retune": options.retune, "ray": options.ray}
    records = run(study, directory, at_once=at_once, **how)
    if not records and not options.json:
        tuned = len(read_tuning(directory))
        done = _tuned(tuned) if tuned else "no run is finished yet"
        print(f"{done}; the same command goes on in {directory}")
        return
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
    if left_out := [record["run"] for record in records if record["run"] in study.excluded]:
        print(f"with runs that verdicts leave out: {', '.join(left_out)}")
    _print_verdicts(study, verdicts)
    print(f"report: {page}")


def _say_size(study, directory, options):
    """What another size or other steps change, and how many runs that makes."""
    from kzoo.studies import sizes
    from kzoo.studies.prediction import jobs_of
    from kzoo.studies.study import QUICK, Study

    given = Study.from_json(options.study or QUICK)
    for sentence in sizes.changes(given, study):
        log.info("%s", sentence)
    if study.arms != given.arms and options.steps is None:
        log.warning(
            "each run makes the %s steps that were chosen for another size; a larger model needs "
            "more: --steps N",
            f"{study.steps:,}",
        )
    tuning, deciding = (sum(len(seeds) for *_, seeds in jobs) for jobs in jobs_of(study, directory))
    log.info("%s: %d runs to choose rates and %d to decide are left", study.name, tuning, deciding)


def _verdicts(study, records):
    if not study.hypotheses:
        return []
    from kzoo.studies.evidence import draw

    return draw(study.to_dict(), records)


def _print_verdicts(study, verdicts):
    """The sentences, on lines of their own that a pipe does not cut."""
    if not study.hypotheses:
        print("Arms compare within a group only; the report says what a verdict would need.")
        return
    for verdict in verdicts:
        print(f"{verdict.hypothesis.name}: {verdict}")
    if not verdicts:
        print("No verdict yet: it is drawn when all runs are there; the same command goes on.")


def _plan(study, directory, options):
    """What the study would do, on stdout."""
    from kzoo.studies.planning import plan

    planned = plan(study, directory)
    if options.json:
        print_json(planned.to_dict())
        return
    _print_arms(planned.arms)
    print(planned)


def _print_plan_of_arms(study):
    """The steps that a budget gives to each arm, before anything runs."""
    from kzoo.studies import amounts

    _print_arms(amounts.planned(amounts.with_steps(study, study)))


def _print_arms(rows):
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", "data", title="planned of each run", title_justify="left", box=None)
    for column in ("steps", "batch", "tokens seen", "tokens scored", "FLOPs"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = [f"{row[name]:,}" for name in ("steps", "batch_size", "tokens_seen")]
        figures = (*counts, f"{row['tokens_scored']:,}", f"{row['flops']:.3g}")
        table.add_row(row["arm"], row["data"], *figures)
    Console().print(table)


def _saved(options):
    from kzoo.studies.records import read, read_tuning
    from kzoo.studies.runner import checkpoint_folder

    try:
        study, directory = _read(options)
        records, tuning = read(directory)[1], read_tuning(directory)
    except (InputError, OSError):  # nothing was begun
        return "nothing is saved"
    runs = len(study.runs()) * len(study.seeds)
    finished, tuned = len(records), len(tuning)
    over = {checkpoint_folder(directory, record["run"]) for record in (*records, *tuning)}
    folders = set(directory.glob("checkpoints/*")) - over
    begun = sum(bool(numbered(folder)) for folder in folders)
    if not finished and not begun and not tuned:
        return "nothing is saved"
    parts = [f"{finished} of {runs} runs {'is' if finished == 1 else 'are'} finished"]
    if begun:
        parts.append(f"{begun} more {'have' if begun > 1 else 'has'} a checkpoint to go on from")
    if tuned:
        parts.append(_tuned(tuned))
    return (
        f"saved in {directory}: {', '.join(parts)}. The same command makes what is missing, and "
        "nothing again"
    )


def _tuned(count):
    """That so many runs on which rates are chosen are finished."""
    return f"{count} {'run of the tuning is' if count == 1 else 'runs of the tuning are'} finished"


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
