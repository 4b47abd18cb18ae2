"""What the page of a study says, as plain values for its template."""

import json
import shlex
from urllib.parse import quote

import numpy as np

from kzoo.errors import InputError
from kzoo.studies.hypotheses import LEAST_PAIRS
from kzoo.studies.metrics import unit
from kzoo.studies.page import curves, figures, labels, style, tables
from kzoo.studies.records import programs, run_name
from kzoo.studies.tuning import trained_with

_LONGEST_STUDY = 50_000  # characters of a study's JSON that the page carries
_SIZES = ("train_bytes", "valid_bytes", "train_rows", "valid_rows", "row_length")
_APART = ("commit", "dirty", "versions", "kernels", "kernel_of_layer", "started")
# Of the costs of arms: those of which the page says whether they are equal.
COSTS = {
    "parameters": "parameters",
    "learning_rate": "learning rate",
    "batch_size": "examples of a batch",
    "steps": "steps",
    "tokens_seen": "tokens seen",
    "tokens_scored": "tokens scored",
    "flops": "FLOPs",
    "seconds": "seconds",
    "scored_tokens": "held-out tokens scored",
}


def content(study, records, tuned, control):
    """What the template shows of a study, and its figures.

    Args:
        study: its JSON.
        records: of its runs.
        tuned: of its tuning.
        control: JSON of what was compared before the first run; None for older studies.

    Returns:
        `(content, figures, frames)`: a dict of plain values, a dict of `Figure` by name, and a
        dict of data frames by name.
    """
    short = labels.shortener(study["data"])
    verdicts, drawn = verdicts_of(study, records)
    runs = judged(study, records) if drawn else []
    entries = [(verdict.hypothesis.name, verdict, runs) for verdict in drawn]
    styles, found = style.arm_styles([*records, *tuned]), {}
    finished = [record for record in records if record["status"] == "finished"]
    planned = programs(study)
    shown = {
        "study": study,
        "short": short,
        "batch_sizes": _batch_sizes(study),
        "verdicts": verdicts,
        "forests": forests(entries, found),
        "runs": len(planned) * len(study["seeds"]),
        "finished": len(finished),
        "missing": _missing(study, records, verdicts["seeds"]),
        "nan": [record for record in records if record["status"] == "nan"],
        "excluded": _excluded(study, records),
        "equal": _equal_fields(records),
        "costs": _costs(records),
        "control": control,
        "budget": study.get("budget", "steps").replace("_", " "),
        "groups": [
            _group(number, name, group, styles, study, found)
            for number, (name, group) in enumerate(labels.by(records, "group").items(), 1)
        ],
        "tuning": _tuning(tables.rates(records, tuned), styles, found),
        "masks": _masks(records, found),
        "spectra": _spectra(records, styles, found),
        "kernels": _kernels(records),
        "provenance": _provenance(records),
        "data": [_data(name, runs) for name, runs in labels.by(records, "data").items()],
        "again": _again(study, records),
    }
    frames = {
        "results": tables.table(records),
        "runs": tables.runs(records),
        "curves": tables.points(records),
        "costs": tables.costs(records),
        "spectra": tables.spectra(records),
        **({"verdicts": tables.verdicts(drawn)} if drawn else {}),
        **({"rates": tables.rates(records, tuned)} if tuned else {}),
    }
    return shown, found, {name: frame for name, frame in frames.items() if len(frame)}


def _batch_sizes(study):
    """The batch sizes of the arms, in words."""
    sizes = {
        arm.get("training", {}).get("batch_size", study["batch_size"])
        for arm in study["arms"].values()
    }
    return " or ".join(map(str, sorted(sizes)))


def joined(studies, links, found):
    """What the template that joins studies shows.

    Args:
        studies: (directory, JSON of the study, records of its runs) of each.
        links: to the page of each.
        found: the figures by name, which grows.

    Returns:
        A dict of plain values.
    """
    names = [study["name"] for _, study, _ in studies]
    said, entries = [], []
    for number, ((directory, study, records), link) in enumerate(zip(studies, links, strict=True)):
        verdicts, drawn = verdicts_of(study, records)
        name = study["name"]
        if names.count(name) > 1:
            name = f"{name} ({directory})"
        runs = judged(study, records) if drawn else []
        entries += [(f"{name}: {verdict.hypothesis.name}", verdict, runs) for verdict in drawn]
        outcomes = [verdict.outcome for verdict in drawn]
        said.append(
            {
                "id": f"study-{number}",
                "name": name,
                "link": quote(link),
                "verdicts": verdicts,
                "arms": len(study["arms"]),
                "data": list(labels.shortened(study["data"]).values()),
                "seeds": len(study["seeds"]),
                "steps": study["steps"],
                "finished": sum(record["status"] == "finished" for record in records),
                "runs": len(programs(study)) * len(study["seeds"]),
                "outcomes": [f"{outcomes.count(x)} {x}" for x in dict.fromkeys(outcomes)],
            }
        )
    verdicts = f"{len(entries)} verdict{'s' * (len(entries) != 1)}"
    return {
        "title": f"{len(said)} stud{'ies' if len(said) != 1 else 'y'}, {verdicts}",
        "studies": said,
        "forests": forests(entries, found),
    }


# Verdicts ---------------------------------------------------------------------------------


def verdicts_of(study, records):
    """What is said of the hypotheses of a study, a dict, and its list of `Verdict`."""
    asked = study.get("hypotheses", [])
    said = {"asked": asked, "drawn": [], "looks": study.get("looks", [])}
    said |= {"seeds": study["seeds"], "stopped": False, "why_none": ""}
    if not asked:
        return {**said, "why_none": _why_none(study)}, []
    from kzoo.studies.evidence import decided, draw, seeds_drawn  # which loads the statistics

    try:
        drawn, seeds = draw(study, records), seeds_drawn(study, records)
    except InputError as error:
        return {**said, "why_none": f"The records do not allow it: {error}"}, []
    if not drawn:
        of_a_look = "of a look " if said["looks"] else ""
        why = f"They are drawn when all runs {of_a_look}are there."
        return {**said, "why_none": why}, []
    from kzoo.studies.page.forest import LOOKS

    stopped = decided(drawn) and len(seeds) < len(study["seeds"])
    said["drawn"] = [
        {
            "name": verdict.hypothesis.name,
            "question": verdict.hypothesis.question,
            "outcome": verdict.outcome,
            "look": LOOKS[verdict.outcome],
            "sentence": verdict.sentence,
            "notes": verdict.notes,
            "post_hoc": verdict.post_hoc,
        }
        for verdict in drawn
    ]
    used = list(seeds if stopped else study["seeds"])
    return {**said, "seeds": used, "stopped": stopped}, drawn


def judged(study, records):
    """The records that verdicts are drawn from: of the seeds of the last look, none excluded."""
    from kzoo.studies.evidence import seeds_drawn  # which loads the statistics

    seeds, excluded = seeds_drawn(study, records), study.get("excluded", ())
    return [run for run in records if run["seed"] in seeds and run["run"] not in excluded]


def _why_none(study):
    seeds = len(study["seeds"])
    why = ["it states no hypotheses"]
    if seeds < LEAST_PAIRS:
        many = "1 seed" if seeds == 1 else f"{seeds} seeds"
        why.append(f"it has {many}, where a verdict needs {LEAST_PAIRS} or more")
    if len(study["arms"]) < 2:
        why.append("it has one arm, with nothing to compare it to")
    return f"This study draws no verdicts: {labels.in_words(why)}."


def forests(entries, found):
    """A figure for each unit in which contrasts are measured.

    Args:
        entries: (label, verdict, records of the study's runs).
        found: the figures by name, which grows.

    Returns:
        Their names.
    """
    if not entries:
        return []
    from kzoo.studies.page.forest import forest  # which loads the statistics

    together = {}
    for label, verdict, records in entries:
        of = verdict.hypothesis
        key = unit(of.metric), of.scale, of.factor
        together.setdefault(key, []).append((label, verdict, records))
    names = []
    for number, some in enumerate(together.values(), 1):
        name = "verdicts" if number == 1 else f"verdicts-{number}"
        found[name] = forest(name, some)
        names.append(name)
    return names


# Runs -------------------------------------------------------------------------------------


def _excluded(study, records):
    """run -> reason, which says of a run that was made whether it was excluded afterwards."""
    made = {record["run"] for record in records}
    late = "; this was asked when its result was there"
    return {run: why + late * (run in made) for run, why in study.get("excluded", {}).items()}


def _missing(study, records, seeds):
    done = {record["run"] for record in records} | set(study.get("excluded", ()))
    rows = []
    for data, arm in programs(study):
        left = [seed for seed in seeds if run_name(data, arm, seed) not in done]
        if left:
            rows.append({"arm": arm, "data": data, "seeds": left})
    return rows


def _group(number, name, records, styles, study, found):
    rows = tables.table(records)
    drawn = []
    for kind, of in (("held-out", "held-out"), ("training", "training")):
        figure = curves.figure(f"curves-{number}-{of}", records, styles, kind)
        if figure is not None:
            found[figure.name] = figure
            drawn.append(figure.name)
    return {
        "id": f"group-{number}",
        "name": labels.shortener([records[0]["data"]])(name),
        "whole_name": name,
        "measure": records[0]["measure"],
        "scored": sorted({record["scored_tokens"] for record in records}),
        "rows": rows.to_dict("records"),
        "seeds": [column for column in rows if column.startswith("seed ")],
        "expected": len(study["seeds"]),
        "entropies": curves.entropies(records[0]),
        "arms": _keys(labels.by(records, "arm"), styles),
        "figures": drawn,
    }


def _keys(arms, styles):
    """What a legend says of arms: their names, colours and dashes."""
    return [
        {
            "name": arm,
            "colour": styles[arm][0],
            "dash": "" if styles[arm][1] == style.SOLID else " ".join(map(str, styles[arm][1])),
        }
        for arm in arms
    ]


def _tuning(rows, styles, found):
    said = []
    for number, (group, of_group) in enumerate(rows.groupby("group", sort=False), 1):
        name = f"rates-{number}"
        found[name] = figures.rates(name, of_group, styles)
        by_arm = {}
        for row in of_group.to_dict("records"):
            by_arm.setdefault(row["arm"], {})[row["learning_rate"]] = row
        data = of_group["data"].iloc[0]
        said.append(
            {
                "id": name,
                "group": labels.shortener([data])(group),
                "rates": sorted(of_group["learning_rate"].unique().tolist()),
                "rows": by_arm,
                "arms": _keys(by_arm, styles),
                "figures": [name],
            }
        )
    return said


# Masks and spectra ------------------------------------------------------------------------


def _masks(records, found):
    """Each different mask once, with the arms that use it."""
    arms = {}
    for record in records:
        config = record["config"]
        key = labels.mask(config), config["num_layers"], config["num_heads"]
        arms.setdefault(key, {}).setdefault(record["arm"], config)
    said = []
    for number, ((mask, layers, heads), of) in enumerate(arms.items(), 1):
        config = next(iter(of.values()))
        figure = figures.masks(f"mask-{number}", config["mask"], layers, heads)
        found[figure.name] = figure
        note = "; its decoder is causal" if mask.endswith(labels.ENCODER) else ""
        said.append({"arms": list(of), "note": note, "figure": figure.name})
    return said


def _spectra(records, styles, found):
    """Of each source: the figures' names, and every head."""
    frame, said = tables.spectra(records), []
    for number, (data, rows) in enumerate(
        frame.groupby("data", sort=False) if len(frame) else (), 1
    ):
        names = []
        for kind, measure in zip(("rank", "concentration"), figures.SPECTRA, strict=True):
            name = f"spectrum-{number}-{kind}"
            found[name] = figures.spectrum(name, rows, styles, measure)
            names.append(name)
        said.append({"data": data, "rows": rows.to_dict("records"), "figures": names})
    return said


# What is equal, and where it comes from ---------------------------------------------------


def _equal_fields(records):
    """(field, value) of every field of configs and of training that is the same in all runs; what
    else differs."""
    configs = [{**record["config"], **trained_with(record)} for record in records]
    fields = {}
    if configs:
        fields = {name: {labels.spec(c.get(name)) for c in configs} for name in configs[0]}
    fields.pop("seed", None)
    return {
        "fields": [(field, *values) for field, values in fields.items() if len(values) == 1],
        "differ": [field for field, values in fields.items() if len(values) > 1],
        "parameters": sorted({record["parameters"] for record in records}),
    }


def _costs(records):
    """Of each group: what every arm took, and what of it is not the same in all."""
    said = []
    for group, rows in tables.costs(records).groupby("group", sort=False):
        unequal = [
            what
            for name, what in COSTS.items()
            if name != "seconds" and rows[name].round(9).nunique(dropna=False) > 1
        ]
        told = {name: what for name, what in COSTS.items() if rows[name].notna().any()}
        said.append(
            {"group": group, "rows": rows.to_dict("records"), "unequal": unequal, "told": told}
        )
    return said


def _kernels(records):
    return {
        arm: list(
            dict.fromkeys(str(kernel) for run in runs for kernel in run["provenance"]["kernels"])
        )
        for arm, runs in labels.by(records, "arm").items()
    }


def _provenance(records):
    """(name, the different values over all runs), most runs having the same."""
    origins = [record["provenance"] for record in records]
    shown = {
        "commit": [_commit(of) for of in origins],
        "versions": [", ".join(f"{k} {v}" for k, v in of["versions"].items()) for of in origins],
    }
    for field in dict.fromkeys(field for of in origins for field in of):
        if field not in _APART:
            shown[field.replace("_", " ")] = [_plainly(of.get(field)) for of in origins]
    modules = [record["imports"] for record in records if record.get("imports")]
    if modules:
        shown["modules of imports, SHA-256"] = [_plainly(of) for of in modules]
    started = sorted(of["started"] for of in origins)
    shown["first and last run started"] = started[:1] + started[-1:]
    shown["seeds"] = [", ".join(map(str, sorted({record["seed"] for record in records})))]
    return [(name, list(dict.fromkeys(values))) for name, values in shown.items()]


def _plainly(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plainly(part)}" for name, part in value.items())
    return "not recorded" if value is None else str(value)


def _commit(origin):
    if origin.get("commit") is None:
        return "not a git checkout: see the version of kzoo"
    return origin["commit"] + (" with uncommitted changes" if origin.get("dirty") else "")


def _data(name, runs):
    """What the runs on one source have in common (objectives cut a text differently)."""
    facts = {
        field: value
        for field, value in runs[0]["facts"].items()
        if all(run["facts"].get(field) == value for run in runs)
    }
    sizes = {field.replace("_", " "): facts[field] for field in _SIZES if field in facts}
    return {"name": name, "sha256": facts.get("sha256"), "sizes": sizes}


def _again(study, records):
    """The study as a file, and the command that runs it again."""
    text = json.dumps(study, indent=2, ensure_ascii=False)
    folder = shlex.quote(f"runs/{study['name']} again")
    origins = [record["provenance"] for record in records]
    commits = list(dict.fromkeys(of["commit"] for of in origins if of.get("commit")))
    versions = list(dict.fromkeys(f"{n}=={v}" for of in origins for n, v in of["versions"].items()))
    return {
        "text": text if len(text) <= _LONGEST_STUDY else "",
        "command": f"kzoo compare study.json --out {folder}",
        "commit": commits[0] if len(commits) == 1 else "",
        "versions": [version for version in versions if not version.endswith("==None")],
    }


def is_missing(value):
    """Whether a number is none: None, NaN or an infinity."""
    return value is None or not np.isfinite(value)
