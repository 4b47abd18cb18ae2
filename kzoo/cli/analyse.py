"""kzoo analyse: what attention does in a model, at initialisation and along its training."""

import sys
from pathlib import Path

from kzoo.cli.arguments import (
    add_command,
    add_overrides,
    add_running,
    add_tokenizer,
    leave_tensorflow,
    load_backend,
    name,
    overrides,
    positive,
    print_json,
    say_backend,
    source,
)
from kzoo.errors import InputError
from kzoo.files import check_folder

BYTES, VALID = "bytes", 0.1  # the defaults of data
MEASURES = "spectrum,collapse,gradients"
STUDY = "study.json"
FIGURES = {
    "numerical_rank": "rank",
    "entropy_rank": "entropy rank",
    "stable_rank": "stable rank",
    "k99": "k99",
    "condition": "condition",
    "concentration": "concentration",
}
RESIDUALS = {"residual": "residual", "residual_last_half": "of the last half"}
NORMS = {"parameters": "parameters", "gradient_norm": "gradient", "weight_norm": "weights"}
TURNS = {
    **{"tokens": "tokens", "reused": "reused", "encoded": "computed", "key_change": "keys change"},
    **{"value_change": "values change", "seconds": "seconds to the first token"},
}
# What the rows of a measure's table are, and its columns with their headings.
SHOWN = {
    "spectrum": ("layer", FIGURES),
    "controls": ("layer", FIGURES),
    "collapse": ("layer", RESIDUALS),
    "gradients": ("name", NORMS),
    "reuse": ("turn", TURNS),
}
KINDS = ("data", "arm", "at", "control", "without", "stack")


def add(commands):
    help = "measure attention in a model: ranks, collapse, gradients, along its training"
    more = (
        "MODEL is the folder of kzoo train (its initial values, checkpoints, best and last weights "
        "are measured), that of a study, or the name of a preset (its initial values)."
    )
    analyse = add_command(commands, "analyse", help, _analyse, more=more)
    analyse.add_argument("model", type=name, metavar="MODEL")
    analyse.add_argument(
        "--measures",
        default=MEASURES,
        metavar="NAMES",
        help=f"of spectrum, controls, collapse, gradients, maps, reuse; default: {MEASURES}",
    )
    analyse.add_argument(
        "--text", type=source, metavar="FILE", help="as of kzoo train; default: pydoc"
    )
    analyse.add_argument("--examples", type=positive, default=4, metavar="N")
    analyse.add_argument("--length", type=positive, metavar="N", help="tokens of each example")
    analyse.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for JSON, CSV and figures; default: MODEL/analysis, of a preset runs/MODEL-analysis",
    )
    add_tokenizer(analyse)
    add_overrides(analyse)
    add_running(analyse)


def _analyse(options):
    text = options.text or "pydoc"
    study = (Path(options.model) / STUDY).is_file()
    if study and (options.text or options.set or options.tokenizer != BYTES):
        raise InputError(
            "a study's arms are analysed on its own data, as they are; --text, --tokenizer and "
            f"--set are of one model. Received: {options.model}"
        )
    if options.tokenizer != BYTES and Path(options.model).is_dir():
        raise InputError(
            "a saved model comes with its tokenizer; --tokenizer is of a preset. "
            f"Received: {options.model}"
        )
    out = options.out or _out(options.model)
    check_folder(out)
    leave_tensorflow([text])
    load_backend()
    say_backend(options)
    sizes = {"examples": options.examples, "length": options.length}
    measures = options.measures.split(",")
    from kzoo.studies import analysis_figures

    if study:
        from kzoo.studies.analysis import analyse_study

        analysis = analyse_study(options.model, measures=measures, **sizes)
    else:
        from kzoo.analysis import analyse
        from kzoo.data import tokenizer_spec

        own = overrides(options.set)
        if (file := tokenizer_spec.file(options.tokenizer, text, VALID)) is not None:
            own["tokenizer"] = str(file)
        analysis = analyse(options.model, text, measures=measures, **sizes, **own)
    files = [str(file) for file in [*analysis.save(out), *analysis_figures.save(analysis, out)]]
    if options.json:
        counts = {measure: len(found) for measure, found in analysis.records.items()}
        print_json({"model": options.model, "records": counts, "files": files})
        return
    for measure in analysis.records:
        if measure in SHOWN:
            _print(measure, analysis.table(measure))
    print(f"{len(files)} files in {out}: {', '.join(Path(file).name for file in files)}")


def _out(model):
    folder = Path(model)
    return folder / "analysis" if folder.is_dir() else Path("runs") / f"{folder.name}-analysis"


def _print(measure, rows):
    """A table on the terminal: heads of one layer and mask together, as means."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    by, columns = SHOWN[measure]
    steps = ["step ?" if step is None else f"step {step:,.0f}" for step in rows["step"]]
    rows["at"] = [f"{step}, {name}" for step, name in zip(steps, rows["snapshot"], strict=True)]
    keys = [kind for kind in KINDS if kind in rows and (rows[kind] != "").any()]
    keys += [by, *["mask"] * ("mask" in rows)]
    if "condition" in rows:
        rows["condition"] = np.log(rows["condition"])
    means = rows.groupby(keys, sort=False, dropna=False)[[*columns]].mean().reset_index()
    if "condition" in means:
        means["condition"] = np.exp(means["condition"])
    table = Table(title=measure, title_justify="left", box=None, pad_edge=False)
    for key in keys:
        table.add_column(key, no_wrap=key != "without")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for row in means.itertuples(index=False):
        table.add_row(*map(_cell, row))
    # A pipe has no width; whole lines are found by `grep`.
    Console(markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value):
    if isinstance(value, str):
        return value
    if value is None or value != value:  # of a study, or the first turn
        return "–"
    return f"{value:,.0f}" if value % 1 == 0 and value < 1e6 else f"{value:.3g}"
