"""The figure of the README: which keys each query sees, by family, above the curves of a study.

    kzoo compare                                       # a few minutes on 2 cores
    python examples/quick_figure.py                    # about 15 seconds

    python examples/quick_figure.py runs/other other.png

reads a folder that `kzoo compare` wrote (default: runs/quick) and writes a picture (default:
examples/quick/figure.png).
"""

import argparse
import io
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.patches import Patch

from kzoo import masks
from kzoo.analysis.pictures import COLOURS, HIDDEN, SOURCE, VISIBLE
from kzoo.studies.page import plot
from kzoo.studies.records import read

DPI = 160  # of the masks; the curves have two pixels for each of their own
TIME, SOURCE_TIME = 18, 6  # tokens of a mask's drawing, and the source tokens of a prefix mask


def families(study, records):
    """The config of each different mask: {names of the families that have it: config}."""
    configs, names = {}, {}
    for record in records:
        key = str(record["config"]["mask"])
        configs.setdefault(key, record["config"])
        family = study["arms"][record["arm"]]["preset"].rpartition("_")[0]
        names.setdefault(key, {})[family] = None
    return {"\n".join(names[key]): config for key, config in configs.items()}


def squares(config):
    """[(layers and heads, booleans [query, key], source tokens)] of a model's different masks."""
    found = {}
    for i, layer in enumerate(masks.per_layer(config["mask"], config["num_layers"])):
        for j, head in enumerate(layer.per_head(config["num_heads"])):
            found.setdefault(head, []).append((i, j))
    pictures = []
    for head, where in found.items():
        layers, heads = (set(indices) for indices in zip(*where, strict=True))
        words = []
        if len(layers) < config["num_layers"]:
            words.append(f"layers {', '.join(map(str, sorted(layers)))}")
        if len(heads) < config["num_heads"]:
            words.append(f"heads {', '.join(map(str, sorted(heads)))}")
        source_mask = (np.arange(TIME) < SOURCE_TIME).astype("int32")[None]
        visible = np.array(head.dense(TIME, source_mask=source_mask)[0, 0])
        pictures.append(("; ".join(words), visible, SOURCE_TIME if head.needs_source else 0))
    return pictures


def strip(study, records, width):
    """All masks side by side, `width` inches wide; a `matplotlib.figure.Figure`."""
    panels = [
        (family if i == 0 else "", *square)
        for family, config in families(study, records).items()
        for i, square in enumerate(squares(config))
    ]
    figure = Figure((width, width / len(panels) + 1.3), facecolor="white", layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (family, words, visible, source) in zip(every, panels, strict=True):
        kinds = np.where(visible, VISIBLE, HIDDEN)
        kinds[:, :source] = np.where(visible[:, :source], SOURCE, HIDDEN)
        colours = ListedColormap([COLOURS[kind] for kind in (HIDDEN, VISIBLE, SOURCE)])
        axes.pcolormesh(kinds, cmap=colours, vmin=0, vmax=2, edgecolors="white", linewidth=0.7)
        axes.set(xticks=[], yticks=[], ylim=(TIME, 0), aspect="equal")
        axes.spines[:].set_visible(False)
        axes.set_title(family, fontsize=10, color="#333333", loc="left")
        axes.set_xlabel(words, fontsize=9, color="#666666")
    figure.legend(
        [Patch(color=COLOURS[kind]) for kind in (VISIBLE, SOURCE, HIDDEN)],
        ["the query (row) sees the key (column)", "it sees the key, which is source", "hidden"],
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        frameon=False,
        handlelength=1,
        handleheight=1,
        labelcolor="#444444",
    )
    return figure


def pixels(figure):
    """A figure as an array [height, width, 4]."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=Path("runs/quick"))
    default = Path(__file__).parent / "quick" / "figure.png"
    parser.add_argument("picture", nargs="?", type=Path, default=default)
    options = parser.parse_args()

    study, records = read(options.study)
    curves = np.uint8(255 * imread(io.BytesIO(plot(records).png())))
    above = strip(study, records, curves.shape[1] / DPI)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    imsave(options.picture, np.vstack([pixels(above), curves]))
    print(options.picture)
