"""The other figures of a study: verdicts, rates, spectra, masks."""

import math

import altair
import numpy as np

from kzoo.analysis.pictures import mask_squares
from kzoo.studies.metrics import METRICS, unit
from kzoo.studies.page import style
from kzoo.studies.page.curves import KEY
from kzoo.studies.page.figure import Figure
from kzoo.studies.sentences import OUTCOMES, subject
from kzoo.studies.statistics import contrast

ROW = 58  # pixels of a verdict
# Of a row, above its marks, where it has the whole width; longer ones end in an ellipsis.
_NAME = {"align": "left", "baseline": "middle", "fontSize": 11.5, "limit": altair.expr("width")}
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
            {"label": label, "seed": seed, "value": shown(value)}
            for seed, value in paired_contrasts(hypothesis, records).items()
        ]
    return Figure(name, _forest(rows, seeds, entries[0][1].hypothesis), _forest_in_words(rows))


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


def _forest(rows, seeds, hypothesis):
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
        title=_forest_title(hypothesis),
        scale=_forest_scale(rows, seeds, ratio),
        axis=altair.Axis(tickCount=6, format="~g", grid=False),
    )
    tooltip = [altair.Tooltip("about:N", title="hypothesis")]
    tooltip += [altair.Tooltip(f"{at}:Q", format="+.4f") for at in ("estimate", "low", "high")]
    dots = altair.Chart(altair.InlineData(values=seeds)).mark_point(
        filled=True, size=16, yOffset=14
    )
    zero = altair.Chart(altair.InlineData(values=[{"at": 1.0 if ratio else 0.0}]))
    layers = [
        base.transform_filter("isValid(datum.margin)")
        .mark_bar(color=style.colour("same"), opacity=0.14)
        .encode(x=altair.X("minus:Q"), x2="margin:Q"),
        zero.mark_rule(color=soft, strokeWidth=1).encode(x="at:Q"),
        dots.mark_point(filled=True, size=16, yOffset=14).encode(
            y=y,
            x="value:Q",
            color=altair.value(soft),
            opacity=altair.value(0.55),
            tooltip=[altair.Tooltip("seed:Q"), altair.Tooltip("value:Q", format="+.4f")],
        ),
        base.mark_rule(strokeWidth=2.6).encode(x=x, x2="high:Q", color=colour, tooltip=tooltip),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x="estimate:Q",
            color=colour,
            shape=altair.Shape("outcome:N", scale=shapes, legend=None),
            tooltip=tooltip,
        ),
        base.mark_text(**_NAME, yOffset=-20).encode(x=altair.value(2), text="about:N"),
    ]
    return altair.layer(*layers).properties(width="container", height=ROW * len(rows))


def _forest_title(hypothesis):
    of = unit(hypothesis.metric)
    per = f" per unit of {hypothesis.factor}" if hypothesis.kind == "trend" else ""
    return f"ratio of {of}{per}" if hypothesis.scale == "ratio" else f"contrast, {of}{per}"


def _forest_scale(rows, seeds, ratio):
    ends = [row[at] for row in rows for at in ("low", "high", "margin", "minus") if at in row]
    ends += [seed["value"] for seed in seeds] + [1.0 if ratio else 0.0]
    low, high = min(ends), max(ends)
    if ratio:
        return altair.Scale(type="log", domain=[low / 1.02, high * 1.02], nice=False)
    room = 0.04 * (high - low) or 0.1
    return altair.Scale(domain=[low - room, high + room], nice=False)


def _forest_in_words(rows):
    said = []
    for row in rows:
        at = ""
        if "low" in row:
            ends = f"{row['low']:+.3f} to {row['high']:+.3f}"
            at = f", {row['estimate']:+.3f} with an interval of {ends}"
        margin = f", margin {row['margin']:g}" if "margin" in row else ""
        said.append(f"{row['label']} is {row['outcome']}{at}{margin}")
    return f"Paired contrasts and their intervals: {'; '.join(said)}.".replace("-", "−")


# Rates ------------------------------------------------------------------------------------


def rates(name, rows, styles):
    """Loss against learning rate, with standard errors; the chosen rate has a ring.

    Args:
        name: of the figure.
        rows: of `tables.rates`, of one group, a data frame.
        styles: arm -> (colour, dash).

    Returns:
        A `Figure`.
    """
    rows = rows.assign(diverged=~np.isfinite(rows["mean"]))
    arms = list(rows["arm"].unique())
    error = rows["standard_error"].where(np.isfinite(rows["standard_error"]), 0.0)
    rows = rows.assign(low=rows["mean"] - error, high=rows["mean"] + error)
    fields = ["arm", "learning_rate", "mean", "low", "high", "chosen", "diverged"]
    finite = rows[fields].astype(object).where(np.isfinite(rows["mean"]), None)
    finite[["arm", "learning_rate", "chosen", "diverged"]] = rows[
        ["arm", "learning_rate", "chosen", "diverged"]
    ]
    values = [{k: v for k, v in row.items() if v is not None} for row in finite.to_dict("records")]
    title = f"final held-out {rows['measure'].iloc[0]}"
    chart = _rates(values, arms, styles, sorted(rows["learning_rate"].unique()), title)
    said = []
    for arm, of_arm in rows.groupby("arm", sort=False):
        best, taken = of_arm.loc[of_arm["mean"].idxmin()], of_arm[of_arm["chosen"]]
        text = f"{arm} is lowest, {best['mean']:.2f}, at {best['learning_rate']:g}"
        if not np.isfinite(best["mean"]):
            text = f"{arm} diverged at every rate"
        if len(taken):
            text += f" and was given {taken['learning_rate'].iloc[0]:g}"
        said.append(text)
    return Figure(name, chart, f"{title[0].upper()}{title[1:]} against rate: {'; '.join(said)}.")


def _rates(values, arms, styles, ticks, title):
    scale = altair.Scale(domain=arms, range=[styles[arm][0] for arm in arms])
    dash = altair.Scale(domain=arms, range=[styles[arm][1] for arm in arms])
    x = altair.X(
        "learning_rate:Q",
        title="learning rate",
        scale=altair.Scale(type="log", nice=False, padding=12),
        axis=altair.Axis(values=ticks, format="~g", grid=False),
    )
    y = altair.Y("mean:Q", title=title, scale=altair.Scale(zero=False))
    base = (
        altair.Chart(altair.InlineData(values=values))
        .transform_filter("indexof(hidden, datum.arm) < 0")
        .encode(x=x, color=altair.Color("arm:N", scale=scale, legend=KEY))
    )
    there = base.transform_filter("!datum.diverged")
    tooltip = [altair.Tooltip("arm:N"), altair.Tooltip("learning_rate:Q")]
    tooltip += [altair.Tooltip(f"{at}:Q", format=".4f") for at in ("mean", "low", "high")]
    layers = [
        there.mark_line(strokeWidth=1.8).encode(
            y=y, strokeDash=altair.StrokeDash("arm:N", scale=dash, legend=KEY)
        ),
        there.mark_rule(strokeWidth=1.4).encode(y=altair.Y("low:Q"), y2="high:Q"),
        there.mark_point(filled=True, size=34, opacity=1).encode(y=y, tooltip=tooltip),
        there.transform_filter("datum.chosen")
        .mark_point(size=170, strokeWidth=2, opacity=1)
        .encode(y=y, tooltip=tooltip),
    ]
    if any(row["diverged"] for row in values):
        cross = base.transform_filter("datum.diverged").mark_point(
            shape="cross", angle=45, size=90, filled=True, opacity=1
        )
        layers.append(cross.encode(y=altair.value(6), tooltip=tooltip[:2]))
    return (
        altair.layer(*layers)
        .add_params(altair.param(name="hidden", value=[]))
        .properties(width="container", height=260)
    )


# Spectra ----------------------------------------------------------------------------------

SPECTRA = {
    "entropy rank ÷ tokens": lambda rows: rows["entropy_rank"] / rows["tokens"],
    "concentration E|x| / √E[x²]": lambda rows: rows["concentration"],
}


def spectrum(name, rows, styles, measure):
    """One figure of every head's attention, an arm a band: a dot is a head.

    Args:
        name: of the figure.
        rows: of `tables.spectra`, of one source, a data frame.
        styles: arm -> (colour, dash).
        measure: one of `SPECTRA`.

    Returns:
        A `Figure`.
    """
    arms = list(rows["arm"].unique())
    rows = rows.assign(value=SPECTRA[measure](rows), solid=0)
    rows["solid"] = [styles[arm][1] == style.SOLID for arm in rows["arm"]]
    values = rows[["arm", "layer", "head", "mask", "value", "solid"]].to_dict("records")
    layers = list(dict.fromkeys(rows["layer"]))
    colour = altair.Scale(domain=arms, range=[styles[arm][0] for arm in arms])
    y = altair.Y("arm:N", sort=None, axis=None, scale=altair.Scale(paddingInner=0.1))
    base = altair.Chart(altair.InlineData(values=values))
    solid = altair.Fill("arm:N", scale=colour, legend=None)
    fill = altair.condition("datum.solid", solid, altair.value(style.colour("card")))
    dots = base.mark_point(size=46, strokeWidth=1.3, opacity=0.9, yOffset=7).encode(
        x=altair.X(
            "value:Q",
            title=measure,
            scale=altair.Scale(domain=[0, 1]),
            axis=altair.Axis(tickCount=5, format="~g"),
        ),
        y=y,
        yOffset=altair.YOffset(
            "layer:N", sort=layers, scale=altair.Scale(paddingOuter=0.75, domain=layers)
        ),
        color=altair.Color("arm:N", scale=colour, legend=None),
        fill=fill,
        tooltip=["arm:N", "layer:N", "head:N", "mask:N", altair.Tooltip("value:Q", format=".3f")],
    )
    names = (
        altair.Chart(altair.InlineData(values=[{"arm": arm} for arm in arms]))
        .mark_text(**_NAME, yOffset=-14)
        .encode(y=y, x=altair.value(2), text="arm:N")
    )
    chart = altair.layer(dots, names).properties(width="container", height=46 * len(arms))
    said = [
        f"{arm} {of['value'].min():.2f} to {of['value'].max():.2f}"
        for arm, of in rows.groupby("arm", sort=False)
    ]
    return Figure(name, chart, f"{measure} of each head after training: {'; '.join(said)}.")


# Masks ------------------------------------------------------------------------------------


def masks(name, mask, num_layers, num_heads):
    """One square for each different mask of a model: rows are queries, columns are keys.

    Args:
        name: of the figure.
        mask: its JSON.
        num_layers, num_heads: of the model.

    Returns:
        A `Figure`.
    """
    squares, said = [], []
    for layers, of_layers in mask_squares(mask, num_layers, num_heads):
        for heads, title, square in of_layers:
            squares.append(_square([title, f"{layers}, {heads}"], square))
            seen = (square > 0).sum(1)
            said.append(
                f"{title} in {layers}, {heads}: of {len(square)} keys the first query sees "
                f"{seen[0]} and the last {seen[-1]}"
            )
    chart = altair.concat(*squares, columns=2, spacing=18)
    return Figure(name, chart, f"Who sees whom. {'; '.join(said)}.")


def _square(title, square):
    time = len(square)
    runs = [
        {"query": query, "to": query + 0.92, "key": start, "end": end - 0.08, "kind": kind}
        for query, row in enumerate(square.tolist())
        for start, end, kind in _stretches(row)
    ]
    axis = {"scale": altair.Scale(domain=[0, time], nice=False)}
    axis |= {"axis": altair.Axis(labels=False, ticks=False, domain=False, grid=False)}
    down = {**axis, "scale": altair.Scale(domain=[time, 0], nice=False)}
    colours = ["hidden", "visible", "source"]
    scale = altair.Scale(domain=[0, 1, 2], range=[style.colour(name) for name in colours])
    return (
        altair.Chart(altair.InlineData(values=runs))
        .mark_rect()
        .encode(
            x=altair.X("key:Q", title="key", **axis),
            x2="end:Q",
            y=altair.Y("query:Q", title="query", **down),
            y2="to:Q",
            color=altair.Color("kind:O", scale=scale, legend=None),
        )
        .properties(width=136, height=136, title=altair.Title(title[0], subtitle=title[1:]))
    )


def _stretches(row):
    """(start, end, kind) of each run of equal kinds, keys that stand alone where they alternate."""
    starts = [0, *(i for i in range(1, len(row)) if row[i] != row[i - 1]), len(row)]
    return [(a, b, row[a]) for a, b in zip(starts, starts[1:], strict=False)]
