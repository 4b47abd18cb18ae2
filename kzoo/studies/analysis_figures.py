"""The figures of an analysis: spectra and residuals layer by layer, and attention maps."""

from pathlib import Path

import altair
from matplotlib.figure import Figure as Picture

from kzoo.files import whole
from kzoo.studies.page.figure import Figure

HEADS = 64  # of which maps are drawn, at most: the first
SIDE = 1.5  # inches of a map
_PANEL = 300  # pixels of a curve's width


def save(analysis, directory):
    """Write the figures of an analysis: `spectrum.svg`, `collapse.svg` and `maps.png`, as far as
    these measures were taken.

    Args:
        analysis: a `kzoo.analysis.Analysis`.
        directory: a folder.

    Returns:
        The files, a list of paths.
    """
    directory, files = Path(directory), []
    for measure, figure in (("spectrum", spectrum), ("collapse", collapse)):
        if measure in analysis.records:
            files.append(figure(analysis.table(measure)).save(directory / f"{measure}.svg"))
    if analysis.records.get("maps"):
        files.append(directory / "maps.png")
        with whole(files[-1]) as part:
            maps(analysis.records["maps"]).savefig(part, format="png", dpi=150)
    return files


def spectrum(rows):
    """Entropy rank ÷ tokens by layer, a line for each step: the mean over heads, and a dot a head.

    Args:
        rows: the table of the measure.
    """
    rows = rows.assign(value=rows["entropy_rank"] / rows["tokens"])
    return _by_layer("spectrum", rows, "step", "entropy rank ÷ tokens", "Entropy rank of attention")


def collapse(rows):
    """The residual by layer at the last step, a line for each part that is left out."""
    rows = rows[rows["step"].isna() | (rows["step"] == rows["step"].max())]
    rows = rows.assign(value=rows["residual"], without=rows["without"].replace("", "nothing"))
    return _by_layer("collapse", rows, "without", "relative residual", "Hidden states", log=True)


def _by_layer(name, rows, colour, title, what, log=False):
    """A panel for each arm and stack, with a line for each value of the column `colour`."""
    labels = [column for column in ("data", "arm", "stack") if column in rows]
    panels = [
        ", ".join(filter(None, each)) for each in zip(*(rows[c] for c in labels), strict=True)
    ]
    rows = rows.assign(panel=panels, line=rows[colour].astype(str))
    columns = ["panel", "layer", "line", "value", *["head"] * ("head" in rows)]
    values = rows[columns].to_dict("records")
    order = list(dict.fromkeys(rows["line"]))
    scale = altair.Scale(type="log" if log else "linear")
    y = altair.Y("value:Q", title=title, scale=scale)
    mean = altair.Y("mean(value):Q", title=title, scale=scale)
    base = altair.Chart(altair.InlineData(values=values)).encode(
        x=altair.X("layer:O", axis=altair.Axis(labelAngle=0)),
        color=altair.Color("line:N", sort=order, title=colour),
    )
    chart = altair.layer(
        base.mark_line().encode(y=mean), base.mark_point(size=18, opacity=0.6).encode(y=y)
    )
    chart = chart.properties(width=_PANEL, height=200)
    if len(set(panels)) > 1:
        chart = chart.facet(
            facet=altair.Facet("panel:N", sort=list(dict.fromkeys(panels)), title=None), columns=2
        )
    ends = ", ".join(
        f"{line} {of['value'].min():.3g} to {of['value'].max():.3g}"
        for line, of in rows.groupby("line", sort=False)
    )
    return Figure(name, chart, f"{what}: {title} by layer, a line for each {colour}. {ends}.")


def maps(records):
    """The weights of each head at the last step: a row for each query, dark where it attends."""
    last = (records[-1]["snapshot"], records[-1]["step"])
    records = [each for each in records if (each["snapshot"], each["step"]) == last][:HEADS]
    layers = list(dict.fromkeys((each["stack"], each["layer"]) for each in records))
    heads = 1 + max(each["head"] for each in records)
    picture = Picture((SIDE * heads + 0.3, (SIDE + 0.3) * len(layers)), facecolor="white")
    axes = picture.subplots(len(layers), heads, squeeze=False)
    for each in records:
        ax = axes[layers.index((each["stack"], each["layer"]))][each["head"]]
        ax.imshow(each["weights"], cmap="Blues", vmin=0)
        place = f"{each['stack']} layer {each['layer']}, head {each['head']}".strip()
        ax.set_title(place, fontsize=7, color="#333333")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    picture.tight_layout()
    return picture
