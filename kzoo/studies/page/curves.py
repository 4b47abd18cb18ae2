"""Curves along training: from all recorded points of the runs to means, bands and charts."""

import math

import altair
import numpy as np
import pandas

from kzoo import objectives
from kzoo.studies.page import labels, style
from kzoo.studies.page.figure import Figure
from kzoo.training.flops import count_flops

MOST = 400  # points of a band; each takes in the points between it and the next
HEIGHT = 280
KEY = altair.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolOpacity=1)
KINDS = {"held-out": "held-out {measure}", "training": "training loss, bits per scored token"}
AXES = {
    "steps": "training steps",
    "tokens": "tokens seen",
    "flops": "floating-point operations of training",
    "seconds": "seconds of training",
}


def curve(record, kind):
    """Step -> bits of a run, of the finite points: a dict."""
    if kind == "training":  # which records keep in nats
        pairs = ((step, _bits(loss)) for step, loss in enumerate(record["train_loss"], 1))
    else:
        pairs = ((step, bits) for step, bits in record["held_out"])
    return {step: bits for step, bits in pairs if bits is not None and math.isfinite(bits)}


def _bits(nats):
    return None if nats is None else nats / math.log(2)


def bands(runs, kind):
    """The mean, least and greatest of an arm's runs along training.

    Args:
        runs: records of one arm and group.
        kind: one of `KINDS`.

    Returns:
        A list of (step, mean, least, greatest). Every recorded point is in it: where there are
        more than `MOST` steps, neighbours share a point.
    """
    found = {}
    for run in runs:
        for step, bits in curve(run, kind).items():
            found.setdefault(step, []).append(bits)
    steps = sorted(found)
    rows = []
    for some in np.array_split(steps, min(MOST, len(steps))) if steps else ():
        values = [bits for step in some for bits in found[step]]
        rows.append((int(some[-1]), float(np.mean(values)), min(values), max(values)))
    return rows


def entropies(record):
    """The text's entropies, where the next byte of a text is what is predicted."""
    objective, facts = objectives.get(record["config"]["objective"]), record["facts"]
    if not objective.next_token or str(record["data"]).startswith("synthetic:"):
        return {}
    return {k: facts[f"{k}_entropy"] for k in ("unigram", "bigram") if f"{k}_entropy" in facts}


def figure(name, records, styles, kind):
    """The curves of one group, an arm each.

    Args:
        name: of the figure.
        records: of one group.
        styles: arm -> (colour, dash).
        kind: one of `KINDS`.

    Returns:
        A `Figure`, or None where no run has a finite point.
    """
    arms = labels.by(records, "arm")
    rows = [
        (arm, *row, _ended(runs, row[0], kind))
        for arm, runs in arms.items()
        for row in bands(runs, kind)
    ]
    if not rows:
        return None
    title = KINDS[kind].format(measure=records[0]["measure"])
    data = _csv(rows, ["arm", "step", "mean", "least", "greatest", "diverged"])
    factors = _per_step(records)
    base = _base(data, factors, arms, styles)
    layers = _layers(base, arms, styles, f"hover_{name.replace('-', '_')}", kind == "held-out")
    if any(row[-1] for row in rows):
        cross = base.mark_point(shape="cross", angle=45, size=110, filled=True, opacity=1)
        layers.append(cross.transform_filter("datum.diverged == 1"))
    if kind == "held-out":
        layers += _levels(entropies(records[0]))
    chart = (
        altair.layer(*layers)
        .encode(
            x=altair.X(
                "x:Q",
                title=AXES["steps"],
                scale=altair.Scale(zero=kind == "training", nice=False),
                axis=altair.Axis(grid=False, tickCount=6),
            ),
            y=altair.Y("mean:Q", title=title, scale=altair.Scale(zero=False)),
        )
        .add_params(altair.param(name="axis", value="steps"), altair.param(name="hidden", value=[]))
        .properties(width="container", height=HEIGHT)
    )
    return Figure(name, chart, _in_words(title, arms, kind))


def _ended(runs, step, kind):
    """Whether a run of an arm became NaN after this point, its last."""
    return int(
        any(run["status"] == "nan" and max(curve(run, kind), default=0) == step for run in runs)
    )


def _per_step(records):
    """What a step takes, by arm, means over its runs: rows of tokens, FLOPs and seconds."""
    rows = []
    for arm, runs in labels.by(records, "arm").items():
        each = [_amounts(run) for run in runs if run["steps"]]
        means = np.mean(each, axis=0).tolist() if each else [0.0] * 3
        rows.append({"arm": arm, **dict(zip(list(AXES)[1:], means, strict=True))})
    return rows


def _amounts(run):
    """Tokens, FLOPs and seconds of a step. Older records count no tokens but those of the rate,
    with padding, and no FLOPs."""
    steps = run["steps"]
    seen = run.get("tokens_seen", run["tokens_per_second"] * run["seconds"])
    flops = run.get("flops")
    if flops is None:  # three times the forward pass
        flops = 3 * sum(count_flops(run["config"]).values()) * run.get("batch_size", 1) * steps
    return seen / steps, flops / steps, run["seconds"] / steps


def _csv(rows, columns):
    """Rows as CSV, a third of their size as JSON; numbers in five digits."""
    text = pandas.DataFrame(rows, columns=columns).to_csv(index=False, float_format="%.5g")
    numbers = {name: "number" for name in columns if name != "arm"}
    return altair.InlineData(values=text, format=altair.CsvDataFormat(type="csv", parse=numbers))


def _base(data, factors, arms, styles):
    """A chart of the arms that are not hidden, each point at its x on the axis asked for."""
    scale = altair.Scale(domain=list(arms), range=[styles[arm][0] for arm in arms])
    costs = altair.LookupData(
        altair.InlineData(values=factors), key="arm", fields=["tokens", "flops", "seconds"]
    )
    return (
        altair.Chart(data)
        .transform_filter("indexof(hidden, datum.arm) < 0")
        .transform_lookup(lookup="arm", from_=costs)
        .transform_calculate(x="datum.step * (axis == 'steps' ? 1 : datum[axis])")
        .encode(color=altair.Color("arm:N", scale=scale, legend=KEY))
    )


def _layers(base, arms, styles, hover, points):
    """Bands, lines and points; each point is told where the pointer comes near it."""
    tooltip = [
        altair.Tooltip("arm:N"),
        altair.Tooltip("step:Q", format=","),
        *(altair.Tooltip(f"{name}:Q", format=".4f") for name in ("mean", "least", "greatest")),
        altair.Tooltip("x:Q", title="on this axis", format=".4~s"),
    ]
    dash = altair.Scale(domain=list(arms), range=[styles[arm][1] for arm in arms])
    line = base.mark_line(strokeWidth=1.8).encode(
        strokeDash=altair.StrokeDash("arm:N", scale=dash, legend=KEY)
    )
    under = altair.selection_point(
        name=hover, fields=["arm", "step"], on="pointerover", clear="pointerout", empty=False
    )
    seen = altair.condition(under, altair.value(1), altair.value(0))
    near = base.mark_point(filled=True, size=90).encode(opacity=seen, tooltip=tooltip)
    return [
        base.mark_area(opacity=0.16).encode(y="least:Q", y2="greatest:Q"),
        line,
        *([base.mark_point(filled=True, size=20, opacity=1)] if points else []),
        near.add_params(under),
    ]


def _levels(entropies):
    """A line at each entropy of the text, with its name."""
    if not entropies:
        return []
    rows = [
        {"name": f"{name} entropy {level:.2f}", "level": level} for name, level in entropies.items()
    ]
    base = altair.Chart(altair.InlineData(values=rows)).encode(y="level:Q")
    name = {"align": "right", "dy": -6, "fontSize": 11, "color": style.colour("soft")}
    halo = {"stroke": style.colour("card"), "strokeWidth": 3, "strokeJoin": "round"}
    at_the_end = {"x": altair.value("width"), "text": "name:N"}
    return [
        base.mark_rule(color=style.colour("soft"), strokeWidth=0.8, opacity=0.7).encode(
            x=altair.value(0), x2=altair.value("width")
        ),
        base.mark_text(**name, **halo).encode(**at_the_end),
        base.mark_text(**name).encode(**at_the_end),
    ]


def _in_words(title, arms, kind):
    said = []
    for arm, runs in arms.items():
        rows = bands(runs, kind)
        if not rows:
            said.append(f"{arm}: no finite point")
            continue
        ends = [f"{mean:.2f} at step {step:,}" for step, mean, *_ in (rows[0], rows[-1])]
        said.append(f"{arm} from {ends[0]} to {ends[1]}" if len(rows) > 1 else f"{arm} {ends[0]}")
        if any(run["status"] == "nan" for run in runs):
            said[-1] += ", with a run that became NaN"
    return f"{title[0].upper()}{title[1:]} against training. Means over seeds: {'; '.join(said)}."
