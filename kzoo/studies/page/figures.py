"""The other figures of a study: rates, spectra, masks."""

import altair
import numpy as np

from kzoo.analysis.pictures import mask_squares
from kzoo.studies.page import style
from kzoo.studies.page.curves import KEY
from kzoo.studies.page.figure import Figure

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
        .mark_text(**style.NAME, yOffset=-14)
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
