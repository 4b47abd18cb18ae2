"""The figure of verdicts: paired contrasts, their intervals and margins."""

import math

import altair
import numpy as np

from kzoo.studies.metrics import METRICS, unit
from kzoo.studies.page import style
from kzoo.studies.page.figure import Figure
from kzoo.studies.sentences import OUTCOMES, subject
from kzoo.studies.statistics import contrast

ROW = 58  # pixels of a verdict
LOOKS = dict(zip(OUTCOMES, ("yes", "no", "same", "same", "open"), strict=True))
SHAPES = dict(zip(OUTCOMES, ("circle", "diamond", "triangle-up", "square", "cross"), strict=True))


def forest(name, entries):
    """The paired contrast of each verdict on one axis: its interval, its margin, its seeds.

    Args:
        name: of the figure.
        entries: (label, verdict, records of the study's runs); of one metric and scale.

    Returns:
        A `Figure`.
    """
    rows, seeds = [], []
    for label, verdict, records in entries:
        hypothesis = verdict.hypothesis
        shown = math.exp if hypothesis.scale == "ratio" else float
        about = f"{label}, {verdict.outcome}: {subject(hypothesis)}"
        row = {"label": label, "about": about, "outcome": verdict.outcome}
        if verdict.estimate is not None:
            row |= {at: shown(getattr(verdict, at)) for at in ("estimate", "low", "high")}
        if math.isfinite(hypothesis.delta):
            row |= {"margin": shown(hypothesis.delta), "minus": shown(-hypothesis.delta)}
        rows.append(row)
        seeds += [
            {"label": label, "seed": seed, "value": shown(value), "counts": seed in verdict.seeds}
            for seed, value in paired_contrasts(hypothesis, records).items()
        ]
    return Figure(name, _chart(rows, seeds, entries[0][1].hypothesis), _in_words(rows))


def paired_contrasts(hypothesis, records):
    """Seed -> the contrast of the runs with that seed, where those of all arms finished."""
    values = {label: {} for label in hypothesis.labels}
    for run in records:
        mine = run["arm"] in values and run["data"] == hypothesis.data
        if mine and run["status"] == "finished":
            value = METRICS.get(hypothesis.metric).value(run)
            if value is not None and math.isfinite(value):
                values[run["arm"]][run["seed"]] = value
    seeds = sorted(set.intersection(*map(set, values.values())))
    if not seeds:
        return {}
    arrays = {label: np.array([of[s] for s in seeds], float) for label, of in values.items()}
    found = contrast(hypothesis.weights, arrays, hypothesis.scale)
    return dict(zip(seeds, map(float, found), strict=True))


def _chart(rows, seeds, hypothesis):
    ratio, soft = hypothesis.scale == "ratio", style.colour("soft")
    y = altair.Y("label:N", sort=None, axis=None, scale=altair.Scale(paddingInner=0.2))
    base = altair.Chart(altair.InlineData(values=rows)).encode(y=y)
    outcomes = [outcome for outcome in OUTCOMES if any(r["outcome"] == outcome for r in rows)]
    colours = [style.colour(LOOKS[outcome]) for outcome in outcomes]
    colour = altair.Color(
        "outcome:N", scale=altair.Scale(domain=outcomes, range=colours), legend=None
    )
    shapes = altair.Scale(domain=outcomes, range=[SHAPES[outcome] for outcome in outcomes])
    x = altair.X(
        "low:Q",
        title=_title(hypothesis),
        scale=_scale(rows, seeds, ratio),
        axis=altair.Axis(tickCount=6, format=",~r", grid=False),
    )
    tooltip = [altair.Tooltip("about:N", title="hypothesis")]
    tooltip += [altair.Tooltip(f"{at}:Q", format="+.4f") for at in ("estimate", "low", "high")]
    dots = altair.Chart(altair.InlineData(values=seeds))
    zero = altair.Chart(altair.InlineData(values=[{"at": 1.0 if ratio else 0.0}]))
    layers = [
        base.transform_filter("isValid(datum.margin)")
        .mark_bar(color=style.colour("same"), opacity=0.14)
        .encode(x=altair.X("minus:Q"), x2="margin:Q"),
        zero.mark_rule(color=soft, strokeWidth=1).encode(x="at:Q"),
        dots.mark_point(filled=True, size=16, yOffset=14, stroke=soft, strokeWidth=0.8).encode(
            y=y,
            x="value:Q",
            color=altair.value(soft),
            opacity=altair.value(0.55),
            fillOpacity=altair.condition("datum.counts", altair.value(1), altair.value(0)),
            tooltip=[altair.Tooltip("seed:Q"), altair.Tooltip("value:Q", format="+.4f")],
        ),
        base.mark_rule(strokeWidth=2.6).encode(x=x, x2="high:Q", color=colour, tooltip=tooltip),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x="estimate:Q",
            color=colour,
            shape=altair.Shape("outcome:N", scale=shapes, legend=None),
            tooltip=tooltip,
        ),
    ]
    # Behind its letters a name has the page, and neither the line at zero nor a margin.
    for behind in ({"stroke": style.colour("card"), "strokeWidth": 5, "strokeJoin": "round"}, {}):
        name = base.mark_text(**style.NAME, **behind, yOffset=-20)
        layers.append(name.encode(x=altair.value(2), text="about:N"))
    return altair.layer(*layers).properties(width="container", height=ROW * len(rows))


def _title(hypothesis):
    of = unit(hypothesis.metric)
    per = f" per unit of {hypothesis.factor}" if hypothesis.kind == "trend" else ""
    return f"ratio of {of}{per}" if hypothesis.scale == "ratio" else f"contrast, {of}{per}"


def _scale(rows, seeds, ratio):
    ends = [row[at] for row in rows for at in ("low", "high", "margin", "minus") if at in row]
    ends += [seed["value"] for seed in seeds] + [1.0 if ratio else 0.0]
    low, high = min(ends), max(ends)
    if ratio:
        return altair.Scale(type="log", domain=[low / 1.02, high * 1.02], nice=False)
    room = 0.04 * (high - low) or 0.1
    return altair.Scale(domain=[low - room, high + room], nice=False)


def _in_words(rows):
    said = []
    for row in rows:
        at = ""
        if "low" in row:
            ends = f"{row['low']:+.3f} to {row['high']:+.3f}"
            at = f", {row['estimate']:+.3f} with an interval of {ends}"
        margin = f", margin {row['margin']:g}" if "margin" in row else ""
        said.append(f"{row['label']} is {row['outcome']}{at}{margin}")
    return f"Paired contrasts and their intervals: {'; '.join(said)}.".replace("-", "−")
