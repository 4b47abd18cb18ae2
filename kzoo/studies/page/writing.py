"""From a study's files to its page, its figures and its tables."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair
import jinja2

from kzoo.errors import InputError
from kzoo.files import read_json, write
from kzoo.studies.page import curves, labels, style
from kzoo.studies.page.contents import content, is_missing, joined
from kzoo.studies.page.figure import Figure, bundle
from kzoo.studies.page.reading import checked
from kzoo.studies.records import CONTROL_FILE, REPORT_FILE, read, read_tuning

HERE = Path(__file__).parent
INDEX_FILE = "studies.html"
FILES = "report"  # the folder of figures and tables beside the page


def report(directory: Path) -> Path:
    """Write the page of a study, self-contained: `report.html` in its directory.

    It shows what is there: runs that are missing are named, and so are those that ended with
    a NaN. The folder `report` beside it has the same figures as SVG and PNG and the tables as CSV.

    Args:
        directory: that holds `study.json` and `results.jsonl`.

    Returns:
        The `Path` of the page.

    Raises:
        InputError: as `kzoo.studies.records.read`; and if a record is none of a study.
        OSError: if a file cannot be written.

    Example:
        >>> report("runs/quick")
        PosixPath('runs/quick/report.html')
    """
    directory = Path(directory)
    study, records = _read(directory)
    path = directory / CONTROL_FILE
    control = read_json(path) if path.is_file() else None
    shown, figures, frames = content(study, records, read_tuning(directory), control)
    values = {**shown, "frames": list(frames), "folder": FILES}
    text = _render("page.html.jinja", values, figures)
    folder = directory / FILES
    folder.mkdir(exist_ok=True)
    for figure in figures.values():
        for kind in ("svg", "png"):
            figure.save(folder / f"{figure.name}.{kind}")
    for name, frame in frames.items():
        write(folder / f"{name}.csv", frame.to_csv(index=False))
    path = directory / REPORT_FILE
    write(path, text)
    return path


def index(directories: Sequence[Path], path: Path | None = None) -> Path:
    """Write the page of each study, and one that joins them, verdicts first.

    Args:
        directories: of the studies, each with `study.json` and `results.jsonl`.
        path: of the joining page; by default `studies.html` in the folder that holds them all.

    Returns:
        The `Path` of the joining page.

    Raises:
        InputError: as `report`, for two equal directories, and for none; nothing is written then.
        OSError: if a file cannot be written.

    Example:
        >>> index(["runs/quick"], "runs/all.html")
        PosixPath('runs/all.html')
    """
    directories = [Path(directory) for directory in directories]
    places = [os.path.realpath(directory) for directory in directories]
    if not places or len(set(places)) < len(places):
        raise InputError(
            f"studies to join are different folders. Received: {list(map(str, directories))}"
        )
    if path is None:
        above = Path(os.path.commonpath([os.path.dirname(place) for place in places]))
        here = Path(os.path.realpath("."))
        path = (above.relative_to(here) if above.is_relative_to(here) else above) / INDEX_FILE
    path = Path(path)
    studies = [(directory, *_read(directory)) for directory in directories]  # all, before any page
    pages = [report(directory) for directory in directories]
    links = [Path(os.path.relpath(page, path.parent)).as_posix() for page in pages]
    found = {}
    values = joined(studies, links, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, _render("index.html.jinja", {**values, "frames": [], "folder": ""}, found))
    return path


def _read(directory):
    """A study and its records, checked."""
    study, records = read(directory)
    checked(records, directory)
    return study, records


def plot(records: list[dict[str, Any]]) -> Figure:
    """Held-out bits against training steps, one panel per group.

    Lines are means over seeds and bands reach from the least to the greatest. Arms that
    differ in mechanism only share a colour: softmax is solid, linear is dashed. Where the
    next byte of text is predicted, the held-out text's unigram and bigram entropies stand
    for models that know no context, or one byte of it.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `kzoo.studies.page.figure.Figure`, which shows itself in a notebook.

    Raises:
        InputError: without records, or where no run has a point.

    Example:
        >>> plot(results.records).save("curves.svg")
        PosixPath('curves.svg')
    """
    styles, short = style.arm_styles(records), labels.shortener(r["data"] for r in records)
    panels = []
    for number, (group, runs) in enumerate(labels.by(records, "group").items(), 1):
        figure = curves.figure(f"curves-{number}", runs, styles, "held-out")
        if figure is not None:
            chart = figure.chart.properties(width=420, title=short(group))
            panels.append((chart, f"{short(group)}: {figure.alternative}"))
    if not panels:
        raise InputError(f"curves need a run with a point. Received: {len(records)} runs")
    chart = altair.concat(*(chart for chart, _ in panels), columns=2)
    chart = chart.resolve_scale(color="independent", strokeDash="independent")
    return Figure("curves", chart, "\n".join(text for _, text in panels))


def _render(template, values, figures):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["missing"] = is_missing
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode()).decode()
    specs = {name: figure.on_page for name, figure in figures.items()}
    values = {
        **values,
        "figures": figures,
        "axes": curves.AXES,
        "light": style.css(style.LIGHT),
        "dark": style.css(style.DARK),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "bundle": bundle() if figures else "",
        # What a script element must not hold; the same JSON.
        "specs": json.dumps(specs, ensure_ascii=False).replace("<", "\\u003c"),
    }
    return environment.get_template(template).render(values)
