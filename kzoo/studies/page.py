"""The table, the curves and the page of a study, made from its files alone."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kzoo import objectives
from kzoo.analysis import draw_masks
from kzoo.config import Config
from kzoo.errors import InputError
from kzoo.files import write
from kzoo.studies.records import REPORT_FILE, programs, read, read_tuning
from kzoo.studies.tuning import losses_by_rate

# Okabe and Ito's colours, told apart by the colour-blind, without yellow; then four more.
# What the page says of a run.
SHOWN = (
    *("group", "measure", "status", "held_out", "bits", "scored_tokens", "parameters", "seconds"),
    *("config", "spectrum", "facts", "provenance"),
)
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#5e3c99", "#7f7f7f", "#8c564b", "#000000"),
)
# What arms of one family may differ in: they share a colour.
WITHIN_FAMILY = ("mechanism", "seed", "max_sequence_length")
DASHES = ("--", "-.", ":")
GREY = "#444444"
ENCODER = " (encoder)"  # follows the mask of models that have one


# The table --------------------------------------------------------------------------------


def table(records):
    """The results, one row per group and arm.

    Rows stand in the order of the records, group by group, and are not sorted by score: only
    rows of one group measure the same thing in the same place.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `pandas.DataFrame` with the columns `group`, `measure`, `arm`, `mask`, `mechanism`,
        `objective`, `parameters`, `finished` and `nan` (numbers of runs), `mean`, `min` and
        `max` (held-out bits over the finished seeds), `seed 0`, `seed 1`, … (of each seed;
        NaN without a finished run) and `seconds` (of training, mean over the runs).

    Example:
        >>> table(results.records)[["arm", "mean", "min", "max"]]
    """
    seeds = sorted({record["seed"] for record in records})
    rows = []
    for group, in_group in _by(records, "group").items():
        for arm, runs in _by(in_group, "arm").items():
            first = runs[0]
            bits = {run["seed"]: run["bits"] for run in runs if run["status"] == "finished"}
            values = list(bits.values()) or [float("nan")]
            rows.append(
                {
                    "group": group,
                    "measure": first["measure"],
                    "arm": arm,
                    "mask": _mask(first["config"]),
                    "mechanism": _mechanism(first["config"]),
                    "objective": _spec(first["config"]["objective"]),
                    "parameters": first["parameters"],
                    "finished": len(bits),
                    "nan": sum(run["status"] == "nan" for run in runs),
                    "mean": float(np.mean(values)),
                    "min": min(values),
                    "max": max(values),
                    **{f"seed {seed}": bits.get(seed, float("nan")) for seed in seeds},
                    "seconds": float(np.mean([run["seconds"] for run in runs])),
                }
            )
    columns = ["group", "measure", "arm", "mask", "mechanism", "objective", "parameters"]
    columns += ["finished", "nan", "mean", "min", "max", *(f"seed {s}" for s in seeds), "seconds"]
    return pandas.DataFrame(rows, columns=columns)


# Figures ----------------------------------------------------------------------------------


def plot(records):
    """Held-out bits against training steps, one panel per group.

    Lines are means over seeds and bands reach from the least to the greatest. Arms that
    differ in mechanism only share a colour: softmax is solid, linear is dashed. Where the
    next byte of text is predicted, the held-out text's unigram and bigram entropies stand
    for models that know no context, or one byte of it.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        InputError: without records.

    Example:
        >>> plot(results.records).savefig("curves.svg")
    """
    if not records:
        raise InputError("curves need at least one run. Received: none")
    groups, styles = _by(records, "group"), _styles(records)
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure((6.4 * columns, 4.4 * rows + 0.6), facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, (group, in_group) in zip(axes.flat, groups.items(), strict=False):
        _curves(panel, in_group, styles)
        panel.set_title(group, fontsize=11, color=GREY)
        _legend(panel, styles)
    for panel in axes.flat[len(groups) :]:
        panel.set_axis_off()
    return figure


def _curves(axes, records, styles):
    for arm, runs in _by(records, "arm").items():
        colour, dash = styles[arm]
        curves = [_finite(run["held_out"]) for run in runs]
        steps = sorted({step for curve in curves for step in curve})
        seen = [[curve[step] for curve in curves if step in curve] for step in steps]
        marker = {"marker": "o", "markersize": 3} if len(steps) < 12 else {}
        axes.fill_between(
            steps, list(map(min, seen)), list(map(max, seen)), color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(steps, list(map(np.mean, seen)), dash, color=colour, label=arm, lw=1.6, **marker)
        for run, curve in zip(runs, curves, strict=True):
            if run["status"] == "nan" and curve:
                step = max(curve)
                axes.plot(step, curve[step], "x", color=colour, markersize=9, mew=2)
    first = records[0]
    axes.set_xlabel("training steps", fontsize=9, color=GREY)
    axes.set_ylabel(f"held-out {first['measure']}", fontsize=9, color=GREY)
    for name, level in _entropies(first).items():
        axes.axhline(level, color="#888888", lw=0.9)
        axes.annotate(
            f" {name} entropy {level:.2f} ",
            (0 if name == "bigram" else 1, level),  # where curves, falling to the right, are not
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left" if name == "bigram" else "right",
            fontsize=8,
            color="#666666",
        )
    _quiet(axes)


def _spectra(records, styles):
    """Entropy rank ÷ n and concentration of every head, one line per arm."""
    arms = _by(records, "arm")
    figure = Figure((7.2, 0.36 * len(arms) + 0.7), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for line, (arm, runs) in enumerate(arms.items()):
        heads = _mean_heads(runs)
        layers = list(dict.fromkeys(map(_layer, heads)))  # an encoder's before its decoder's
        colour, dash = styles[arm]
        for axes, figures in (
            (left, [head["entropy_rank"] / head["tokens"] for head in heads]),
            (right, [head["concentration"] for head in heads]),
        ):
            axes.axhspan(line - 0.4, line + 0.4, color="#f5f5f5", lw=0, zorder=0)
            depths = [(layers.index(_layer(head)) + 0.5) / len(layers) for head in heads]
            places = [line + 0.5 * (depth - 0.5) for depth in depths]
            face = colour if dash == "-" else "white"
            axes.plot(figures, places, "o", ms=4.5, mec=colour, mfc=face, mew=1.1, alpha=0.85)
    left.set_yticks(range(len(arms)), list(arms), fontsize=9, color=GREY)
    left.set_ylim(len(arms) - 0.5, -0.5)
    left.set_xlabel("entropy rank ÷ tokens", fontsize=9, color=GREY)
    right.set_xlabel("concentration E|x| / √E[x²]", fontsize=9, color=GREY)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        _quiet(axes)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    return figure


def _styles(records):
    """The (colour, dash) of each arm: one colour per family, the default mechanism solid."""
    families, dashes, styles = {}, {}, {}
    for record in records:
        config = record["config"]
        rest = {field: value for field, value in config.items() if field not in WITHIN_FAMILY}
        family = families.setdefault(json.dumps(rest, sort_keys=True), len(families))
        mechanism = _mechanism(config)
        dash = "-"
        if mechanism != Config.mechanism:
            dash = DASHES[dashes.setdefault(mechanism, len(dashes)) % len(DASHES)]
        styles[record["arm"]] = COLOURS[family % len(COLOURS)], dash
    return styles


def _quiet(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#bbbbbb")
    axes.tick_params(colors="#666666", labelsize=8)
    axes.grid(color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)


def _legend(axes, styles):
    """The panel's arms below it, a column for each mechanism."""
    lines, _ = axes.get_legend_handles_labels()
    columns = _by_key(lines, lambda line: styles[line.get_label()][1]).values()
    longest = max(map(len, columns))
    empty = Line2D([], [], color="none", label=" ")
    axes.legend(
        handles=[line for column in columns for line in [*column, *[empty] * longest][:longest]],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=len(columns),
        fontsize=8.5,
        frameon=False,
        handlelength=2.6,
        labelcolor=GREY,
    )


def _image(figure, description):
    """A figure as an <img> of its own, so that nothing in it meets the page's styles."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kzoo"}):  # the same page from the same records
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    width = round(figure.get_figwidth() * 96)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"src": f"data:image/svg+xml;base64,{data}", "alt": description, "width": width}


# The page ---------------------------------------------------------------------------------


def report(directory: Path) -> Any:
    """Write the page of a study, self-contained: `report.html` in its directory.

    It shows what is there: runs that are missing are named, and so are those that ended with
    a NaN.

    Args:
        directory: that holds `study.json` and `results.jsonl`.

    Returns:
        The `Path` of the page.

    Raises:
        InputError: as `kzoo.studies.records.read`; and if a record is none of a study.
        OSError: if the page cannot be written.

    Example:
        >>> report("runs/quick")
        PosixPath('runs/quick/report.html')
    """
    directory = Path(directory)
    study, records = read(directory)
    for record in records:
        missing = [field for field in SHOWN if field not in record]
        if missing:
            raise InputError(
                f"a record has {', '.join(SHOWN)}; that of {record['run']} lacks "
                f"{', '.join(missing)}. Received: {directory}"
            )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = {**_content(study, records), "tuning": _tuning(records, read_tuning(directory))}
    page = environment.get_template("page.html.jinja").render(content)
    path = directory / REPORT_FILE
    write(path, page)
    return path


def _content(study, records):
    """What the template shows, all of it plain values."""
    finished = [record for record in records if record["status"] == "finished"]
    styles = _styles(records)
    done = {(record["data"], record["arm"], record["seed"]) for record in records}
    planned = programs(study)
    verdicts = _verdicts(study, records)
    missing = [
        {"arm": arm, "data": data, "seeds": seeds}
        for data, arm in planned
        if (seeds := [seed for seed in verdicts["seeds"] if (data, arm, seed) not in done])
    ]
    return {
        "study": study,
        "verdicts": verdicts,
        "runs": len(planned) * len(study["seeds"]),
        "finished": len(finished),
        "missing": missing,
        "nan": [record for record in records if record["status"] == "nan"],
        "equal": _equal_fields(records),
        "groups": [
            _group(name, group, styles, study) for name, group in _by(records, "group").items()
        ],
        "masks": _masks(records),
        "spectra": _all_spectra(finished, styles),
        "kernels": _kernels(records),
        "provenance": _provenance(records),
        "data": [_data(name, runs) for name, runs in _by(records, "data").items()],
    }


def _verdicts(study, records):
    """The verdicts of a study as plain values, and the seeds that its runs have or wait for."""
    asked = study.get("hypotheses", [])
    found = {"asked": asked, "drawn": [], "seeds": study["seeds"], "stopped": False}
    found["looks"] = study.get("looks", [])
    if not asked:
        return found
    from kzoo.studies.evidence import decided, draw, seeds_drawn  # which loads the statistics

    drawn, seeds = draw(study, records), seeds_drawn(study, records)
    stopped = decided(drawn) and len(seeds) < len(study["seeds"])
    shown = [
        {
            "name": verdict.hypothesis.name,
            "question": verdict.hypothesis.question,
            "outcome": verdict.outcome,
            "sentence": verdict.sentence,
            "notes": verdict.notes,
        }
        for verdict in drawn
    ]
    used = seeds if stopped else study["seeds"]
    return {**found, "drawn": shown, "seeds": list(used), "stopped": stopped}


def _tuning(records, tuned):
    """Of each source: the rates tried, and each arm's loss at them with its standard error."""
    chosen = {(run["data"], run["arm"]): run.get("learning_rate") for run in records}
    losses, tables = losses_by_rate(tuned), {}
    for (data, arm), at in losses.items():
        tables.setdefault(data, []).append(
            {"arm": arm, "at": at, "chosen": chosen.get((data, arm))}
        )
    return [
        {"data": data, "rows": rows, "rates": sorted({rate for row in rows for rate in row["at"]})}
        for data, rows in tables.items()
    ]


def _group(name, records, styles, study):
    figure = Figure((6.0, 4.6), facecolor="white", layout="constrained")
    axes = figure.subplots()
    _curves(axes, records, styles)
    _legend(axes, styles)
    rows = table(records)
    return {
        "name": name,
        "measure": records[0]["measure"],
        "scored": sorted({record["scored_tokens"] for record in records}),
        "rows": rows.to_dict("records"),
        "seeds": [column for column in rows if column.startswith("seed ")],
        "expected": len(study["seeds"]),
        "entropies": _entropies(records[0]),
        "figure": _image(figure, f"Held-out {records[0]['measure']} against steps: {name}"),
    }


def _equal_fields(records):
    """(field, value) of every config field that is the same in all runs; what else differs."""
    configs = [record["config"] for record in records]
    fields = (
        {field: {_spec(config.get(field)) for config in configs} for field in configs[0]}
        if configs
        else {}
    )
    fields.pop("seed", None)
    return {
        "fields": [(field, *values) for field, values in fields.items() if len(values) == 1],
        "differ": [field for field, values in fields.items() if len(values) > 1],
        "parameters": sorted({record["parameters"] for record in records}),
    }


def _masks(records):
    """Each different mask once, with the arms that use it."""
    pictures = {}
    for record in records:
        config = record["config"]
        key = _mask(config), config["num_layers"], config["num_heads"]
        arms = pictures.setdefault(key, (config["mask"], []))[1]
        if record["arm"] not in arms:
            arms.append(record["arm"])
    return [
        {
            "name": name,
            "arms": arms,
            "note": "; its decoder is causal" if name.endswith(ENCODER) else "",
            "figure": _image(draw_masks(mask, layers, heads), f"Who sees whom under {name}"),
        }
        for (name, layers, heads), (mask, arms) in pictures.items()
    ]


def _all_spectra(records, styles):
    """Of each data set: the figure, and every head's figures, means over the seeds."""
    spectra = []
    for data, runs in _by([r for r in records if r.get("spectrum")], "data").items():
        rows = [
            {"arm": arm, **head, "layer": _layer(head)}
            for arm, of_arm in _by(runs, "arm").items()
            for head in _mean_heads(of_arm)
        ]
        figure = _image(
            _spectra(runs, styles),
            f"Entropy rank and concentration of each head's attention, trained on {data}",
        )
        spectra.append({"data": data, "rows": rows, "figure": figure})
    return spectra


def _mean_heads(runs):
    """The spectrum of an arm, each head's figures as the mean over its seeds."""
    heads = []
    for same in zip(*(run["spectrum"] for run in runs), strict=True):
        figures = {
            name: float(np.mean([head[name] for head in same]))
            for name, value in same[0].items()
            if isinstance(value, float)
        }
        heads.append({**same[0], **figures})
    return heads


def _kernels(records):
    return {
        arm: list(
            dict.fromkeys(str(kernel) for run in runs for kernel in run["provenance"]["kernels"])
        )
        for arm, runs in _by(records, "arm").items()
    }


def _provenance(records):
    """(name, the different values over all runs), most runs having the same."""
    origins = [record["provenance"] for record in records]
    shown = {
        "commit": [_commit(of) for of in origins],
        "versions": [", ".join(f"{k} {v}" for k, v in of["versions"].items()) for of in origins],
    }
    for field in origins[0] if origins else ():
        if field not in ("commit", "dirty", "versions", "kernels", "started"):
            shown[field] = [str(of.get(field)) for of in origins]
    started = sorted(of["started"] for of in origins)
    shown["first and last run started"] = started[:1] + started[-1:]
    shown["seeds"] = [", ".join(map(str, sorted({record["seed"] for record in records})))]
    return [(name, list(dict.fromkeys(values))) for name, values in shown.items()]


def _commit(origin):
    if origin["commit"] is None:
        return "not a git checkout: see the version of kzoo"
    return origin["commit"] + (" with uncommitted changes" if origin["dirty"] else "")


def _data(name, runs):
    """What the runs on one source have in common (objectives cut a text differently)."""
    facts = {
        field: value
        for field, value in runs[0]["facts"].items()
        if all(run["facts"].get(field) == value for run in runs)
    }
    sizes = {
        field.replace("_", " "): facts[field]
        for field in ("train_bytes", "valid_bytes", "train_rows", "valid_rows", "row_length")
        if field in facts
    }
    return {"name": name, "sha256": facts.get("sha256"), "sizes": sizes}


# Helpers ----------------------------------------------------------------------------------


def _by(records, field):
    """Records by the value of a field, in the order of first appearance."""
    return _by_key(records, lambda record: record[field])


def _by_key(items, key):
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _finite(curve):
    return {step: bits for step, bits in curve if bits is not None and np.isfinite(bits)}


def _entropies(record):
    """The text's entropies, where the next byte of a text is what is predicted."""
    objective, facts = objectives.get(record["config"]["objective"]), record["facts"]
    if not objective.next_token or str(record["data"]).startswith("synthetic:"):
        return {}
    return {k: facts[f"{k}_entropy"] for k in ("unigram", "bigram") if f"{k}_entropy" in facts}


def _mechanism(config):
    """The mechanism of a config in words: linear, or linear (relu)."""
    spec = config["mechanism"]
    if isinstance(spec, str):
        return spec
    ((name, options),) = spec.items()
    return f"{name} ({', '.join(map(_spec, options.values()))})"


def _mask(config):
    """The mask of a config in words; an encoder's says that it is one."""
    return _spec(config["mask"]) + (ENCODER if config["stack"] != "single" else "")


def _layer(head):
    """The layer of a head in a spectrum, in words."""
    return f"{head['stack']} {head['layer']}".strip()


def _spec(value):
    return value if isinstance(value, str) else json.dumps(value)
