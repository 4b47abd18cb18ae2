"""Drawings of masks, as figures for files and notebooks, and as text for terminals."""

from typing import Any

import numpy as np
from keras import ops
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kzoo import masks
from kzoo.analysis.activations import compact
from kzoo.typing import MaskSpec

HIDDEN, VISIBLE, SOURCE = range(3)
LABELS = {VISIBLE: "sees", SOURCE: "sees (in the source)", HIDDEN: "does not see"}
COLOURS = {HIDDEN: "#e9ecef", VISIBLE: "#33658a", SOURCE: "#d98324"}
SIDE, GAP, LEFT, TITLE, BOTTOM = 1.35, 0.3, 0.8, 0.5, 0.8  # inches


def draw_masks(
    mask: MaskSpec, num_layers: int, num_heads: int, *, time: int = 24, source: int | None = None
) -> Any:
    """One square for each different mask of a model: rows are queries, columns are keys.

    Layers and heads that share a mask share a square.

    Args:
        mask: a mask spec or `Mask`.
        num_layers, num_heads: how many layers and heads the model has.
        time: tokens along each side of a square.
        source: how many of them, from the first on, are the source of a prefix mask; a third by
            default.

    Returns:
        A `matplotlib.figure.Figure`, which shows itself in a notebook; `.savefig(path)`
        writes it.

    Raises:
        InputError: for an unknown mask, or one whose pattern does not divide the layers or heads.

    Example:
        >>> draw_masks("half_heads", 2, 4).savefig("mask.png")
    """
    bands = mask_squares(mask, num_layers, num_heads, time=time, source=source)
    columns = max(len(squares) for _, squares in bands)
    width = LEFT + columns * (SIDE + GAP)
    height = len(bands) * (SIDE + TITLE) + BOTTOM
    figure = Figure((width, height), facecolor="white")
    for band, (layers, squares) in enumerate(bands):
        bottom = (height - (band + 1) * (SIDE + TITLE)) / height
        for column, (heads, name, square) in enumerate(squares):
            left = (LEFT + column * (SIDE + GAP)) / width
            axes = figure.add_axes((left, bottom, SIDE / width, SIDE / height))
            axes.pcolormesh(
                square,
                cmap=ListedColormap(list(COLOURS.values())),
                vmin=0,
                vmax=2,
                edgecolors="white",
                linewidth=12 / time,
                rasterized=True,
            )
            axes.set(xticks=[], yticks=[], ylim=(len(square), 0))
            axes.spines[:].set_visible(False)
            axes.set_title(f"{name}\n{heads}", fontsize=8, color="#333333")
            if column == 0:
                axes.set_ylabel(f"{layers}\n\nquery", fontsize=8, color="#333333")
            if band == len(bands) - 1:
                axes.set_xlabel("key", fontsize=8, color="#333333")
    shown = np.unique([square for _, squares in bands for *_, square in squares])
    figure.legend(
        [Patch(color=COLOURS[kind]) for kind in LABELS if kind in shown],
        [LABELS[kind] for kind in LABELS if kind in shown],
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        ncols=3 if columns > 1 else 1,
        fontsize=8,
        frameon=False,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
        labelspacing=0.2,
        borderpad=0.2,
    )
    return figure


def terminal_masks(
    mask: MaskSpec, num_layers: int, num_heads: int, *, time: int = 24, source: int | None = None
) -> str:
    """`draw_masks` in block characters, for a terminal.

    A character holds one key and two queries, so that squares look square.

    Args:
        mask, num_layers, num_heads, time, source: as in `draw_masks`.

    Returns:
        A string of several lines.

    Example:
        >>> print(terminal_masks("causal", 2, 4, time=4))
        all layers
        causal
        all heads
        ┌────┐
        │█▄  │
        │███▄│
        └────┘
    """
    lines = []
    for layers, squares in mask_squares(mask, num_layers, num_heads, time=time, source=source):
        columns = []
        for heads, name, square in squares:
            column = [name, heads, *_frame(square != HIDDEN)]
            width = max(map(len, column))
            columns.append([line.ljust(width) for line in column])
        lines += [layers, *("   ".join(line).rstrip() for line in zip(*columns, strict=True)), ""]
    return "\n".join(lines[:-1])


def _frame(square):
    """Booleans [query_time, key_time] as framed lines of text; a line holds two queries."""
    time = square.shape[1]
    if len(square) % 2:
        square = np.concatenate([square, np.zeros((1, time), bool)])
    upper, lower = square[::2], square[1::2]
    body = np.array([" ", "▀", "▄", "█"])[upper + 2 * lower]
    edges = "─" * time
    return [f"┌{edges}┐", *(f"│{''.join(line)}│" for line in body), f"└{edges}┘"]


def mask_squares(
    mask: MaskSpec, num_layers: int, num_heads: int, *, time: int = 24, source: int | None = None
) -> list[tuple[str, list[tuple[str, str, np.ndarray]]]]:
    """The different masks of a model, grouped by layers, then by heads.

    Args:
        mask, num_layers, num_heads, time, source: as in `draw_masks`.

    Returns:
        A list of (layers, [(heads, mask, square)]). The first three are strings that name them;
        `square` is integers [time, time], a row for each query, each `HIDDEN`, `VISIBLE` or
        `SOURCE`.

    Example:
        >>> [(layers, [(heads, square)])] = [
        ...     (layers, [(heads, square.tolist()) for heads, _, square in squares])
        ...     for layers, squares in mask_squares("causal", 2, 4, time=2)
        ... ]
        >>> layers, heads, square
        ('all layers', 'all heads', [[1, 0], [1, 1]])
    """
    source = time // 3 if source is None else source
    source_mask = (np.arange(time) < source).astype("int32")[None]
    bands = []
    for layers, layer_mask in _group(masks.per_layer(mask, num_layers)):
        squares = []
        for heads, head_mask in _group(layer_mask.per_head(num_heads)):
            visible = head_mask.dense(time, source_mask=source_mask)
            square = np.array(ops.convert_to_numpy(visible)[0, 0], int) * VISIBLE
            if head_mask.needs_source:
                square[:, :source] *= SOURCE
            squares.append((_name("heads", heads, num_heads), compact(head_mask), square))
        bands.append((_name("layers", layers, num_layers), squares))
    return bands


def _group(items):
    """The different items, in order, as pairs (the list of its indices, item)."""
    indices = {}
    for i, item in enumerate(items):
        indices.setdefault(item, []).append(i)
    return [(where, item) for item, where in indices.items()]


def _name(kind, indices, number):
    """`all heads`, `head 3`, `heads 0, 2`, `layers 0, 2, …, 10`."""
    if len(indices) == number:
        return f"all {kind}" if number > 1 else f"one {kind[:-1]}"
    if len(indices) == 1:
        return f"{kind[:-1]} {indices[0]}"
    if len(indices) > 4:
        indices = [*indices[:2], "…", indices[-1]]
    return f"{kind} {', '.join(map(str, indices))}"
