"""Which input positions each output of a Keras model depends on, compared with a mask."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kzoo import masks
from kzoo.analysis.activations import compact
from kzoo.analysis.dependence import DRAWS, differentiated, lookups_of, perturbed
from kzoo.analysis.leaks import EPSILON, ROUNDINGS
from kzoo.analysis.tpu import LENGTH, attention_on_tpu, walk
from kzoo.errors import InputError
from kzoo.typing import MaskSpec, Model

TIME = 16  # the positions of inputs that are drawn here
FLOAT32 = 2.0**-24
SHOWN = 6  # pairs of positions in the text of a finding; the arrays hold all of them
COLOURS = {"independent": "#e9ecef", "depends": "#33658a", "leak": "#c1121f", "unused": "#d98324"}


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What `check` found. It prints as a table; `plot()` draws it.

    Attributes:
        findings: list of dicts of strings, JSON-able: `kind` (`"leak"`, `"unused"` or `"tpu"`),
            `where` (an input and output, or the path of a layer) and `detail`.
        dependence: dict of booleans [batch, query_time, key_time], one for each input that was
            changed (and each output, if there are several): whether the output at a query
            position depends on the input at a key position.
        leaks: the same keys and shapes: dependences on positions that the mask hides.
        unused: the same keys and shapes: pairs that the mask shows, where no input at the key
            position has any effect on the output.
        layers: list of dicts, one for each attention layer: `path`, `class`, `asked` (the
            arguments of its call of `keras.ops.dot_product_attention`) and `tpu` (what JAX on a
            TPU will run).
        notes: list of sentences: what was compared, and what could not be checked.
    """

    findings: list
    dependence: dict
    leaks: dict
    unused: dict
    layers: list
    notes: list

    @property
    def ok(self) -> bool:
        """Whether nothing was found, for TPUs either."""
        return not self.findings

    def __str__(self):
        number = len(self.findings)
        lines = ["ok: nothing found" if self.ok else f"{number} finding{'s' * (number > 1)}"]
        lines += [
            f"  {found['kind']}: {found['where']}: {found['detail']}" for found in self.findings
        ]
        depends = [
            {"output on input": k, "depends on": _name(x)} for k, x in self.dependence.items()
        ]
        for table in (depends, self.layers):
            lines += ["", *_table(table)] if table else []
        return "\n".join([*lines, "", *self.notes])

    def plot(self) -> Any:
        """A square for each example and input: rows are queries, columns are keys.

        Returns:
            A `matplotlib.figure.Figure`, which shows itself in a notebook.
        """
        rows, columns = len(self.dependence), len(next(iter(self.dependence.values())))
        figure = Figure((1 + 2 * columns, 0.6 + 2.2 * rows), facecolor="white")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes_row, (key, depends) in zip(grid, self.dependence.items(), strict=True):
            picture = np.where(self.leaks[key], 2, np.where(self.unused[key], 3, depends))
            for example, axes in enumerate(axes_row):
                axes.pcolormesh(
                    picture[example],
                    cmap=ListedColormap(list(COLOURS.values())),
                    vmin=0,
                    vmax=3,
                    edgecolors="white",
                    linewidth=12 / picture.shape[1],
                )
                axes.set(xticks=[], yticks=[], ylim=(picture.shape[1], 0), aspect="equal")
                axes.spines[:].set_visible(False)
                axes.set_title(f"{key}, example {example}", fontsize=8)
                axes.set_xlabel("input position", fontsize=8)
                axes.set_ylabel("output position", fontsize=8)
        figure.legend(
            [Patch(color=colour) for colour in COLOURS.values()],
            COLOURS,
            loc="lower center",
            ncols=4,
            fontsize=8,
            frameon=False,
        )
        figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
        return figure


def check(model: Model, inputs: Any = None, mask: MaskSpec | None = None) -> Report:
    """Find which outputs of a Keras model depend on which positions, and what TPUs would do.

    Dependence is found in two ways, and either is enough. First, the input at one position is
    changed (to another id, or by noise): do outputs change? Second, is the gradient of an output
    with respect to the input, or to the embeddings of its ids, zero? Inputs with "mask" in their
    name are not changed. Then every attention layer that calls
    `keras.ops.dot_product_attention` runs once more as JAX on a TPU would run it, in Pallas's
    interpret mode, and its output is compared with the attention that the layer asked for.

    An output also depends on the input at its own position through its query and the residual,
    so an attention that omits a token's own key is not noticed. The model is called but, once
    built, not changed. The number of calls grows with the time, and the cost of each with its
    square: use short sequences.

    Args:
        model: a `keras.Model`: functional, sequential or subclassed; keras-hub's; a kzoo task
            or backbone.
        inputs: arrays [batch, time, ...] in the structure that the model takes, or a tuple that
            begins with it, as `kzoo.data.load` yields. By default two examples of at most 16
            positions are drawn, if the model is functional; with a `padding_mask`, the last
            example ends in padding.
        mask: what the outputs of the whole model may depend on. A mask spec or `Mask`, which also
            follows the model's inputs `padding_mask` and `source_mask`, if it has them; then an
            output may also depend on its own position, and at padding on anything. Or booleans
            [query_time, key_time] or [batch, query_time, key_time], taken literally. By default
            a kzoo model's own mask, if all its layers and heads share it; else nothing is
            compared.

    Returns:
        A `Report`, with `ok`, `findings`, `dependence` and `plot()`; it prints as a table.

    Raises:
        InputError: if the model is no Keras model; inputs are missing, or differ in batch or
            time; no output has a time axis; or the mask is unknown, differs by head or layer, or
            has the wrong shape.

    Example:
        >>> report = check(model)
        >>> report.ok
        True
    """
    if not isinstance(model, keras.Model):
        raise InputError(f"check takes a keras.Model. Received: {type(model).__name__}")
    inputs = inputs[0] if isinstance(inputs, tuple) else inputs
    made = inputs is None
    structure, names, values = _flat(model, _placeholders(model, mask) if made else inputs)

    def call(values):
        return model(tree.pack_sequence_as(structure, values), training=False)

    def run(values):
        with keras.StatelessScope():
            return tree.flatten(call(values))

    outputs, notes = _outputs(
        model, call(values), values[0].shape
    )  # builds the model if it is not built
    changed = {name: i for i, name in enumerate(names) if not _is_mask(name, values[i])}
    if not changed:
        raise InputError(
            f"check needs inputs other than masks, which it changes. Received: {', '.join(names)}"
        )
    lookups = lookups_of(run, values, changed)
    if made:
        for name, i in changed.items():
            values[i] = _drawn(values[i], lookups.get(name))
    allowed, shown, compared = _stated(model, mask, dict(zip(names, values, strict=True)), lookups)

    def forward(values):
        every = run(values)
        return [every[i] for i in outputs.values()]

    changes, across_examples = perturbed(model, forward, values, changed, lookups)
    slopes, failures = differentiated(forward, values, changed, lookups)
    enough = ROUNDINGS * EPSILON.get(model.compute_dtype, FLOAT32)
    findings, dependence, leaks, unused = [], {}, {}, {}
    for o, output in enumerate(outputs):
        keys = {name: f"{name} → {output}" if len(outputs) > 1 else name for name in changed}
        untouched = shown
        for name, key in keys.items():
            change, slope = changes[name][o], slopes[name][o] if name in slopes else np.zeros(1)
            dependence[key] = (change > enough) | (slope > ROUNDINGS * FLOAT32)
            leaks[key] = dependence[key] & ~allowed
            untouched = untouched & (change == 0) & (slope == 0)
            findings += _found("leak", key, "depend on positions that the mask hides", leaks[key])
        unused.update(dict.fromkeys(keys.values(), untouched))
        findings += _found("unused", output, "do not depend on positions it shows", untouched)
    findings += [
        {"kind": "leak", "where": output, "detail": "outputs depend on other examples of the batch"}
        for output, change in zip(outputs, across_examples, strict=True)
        if change > enough
    ]
    layers, wrong, unchecked = attention_on_tpu(
        model, run, values, _stretched(model, names, values)
    )
    how = f"perturbation ({DRAWS} draws)" + " and gradients" * bool(slopes)
    notes = [f"dependence was found by {how}; {compared}", *notes, *failures, *unchecked]
    return Report(findings + wrong, dependence, leaks, unused, layers, notes)


def _found(kind, where, what, pairs):
    """A list with one finding, or an empty one if `pairs` has no True."""
    if not pairs.any():
        return []
    first = ", ".join(str(tuple(pair)) for pair in np.argwhere(pairs)[:SHOWN].tolist())
    more = ", …" * bool(pairs.sum() > SHOWN)
    detail = f"outputs {what}: {pairs.sum()} of (example, output, input): {first}{more}"
    return [{"kind": kind, "where": where, "detail": detail}]


# Inputs and outputs -----------------------------------------------------------------------


def _symbols(model, end="input"):
    """The symbolic inputs, or outputs, of a functional model; None for a subclassed one."""
    try:
        return (
            getattr(model, f"{end}s")[0]
            if isinstance(model, keras.Sequential)
            else getattr(model, end)
        )
    except (AttributeError, ValueError, TypeError):  # what Keras raises if there are none
        return None


def _is_mask(name, value):
    return "mask" in name or value.dtype == bool


def _flat(model, inputs):
    """`(structure, names, arrays)`: two flat lists, and the structure to pack the arrays in."""
    symbols = _symbols(model)
    if isinstance(symbols, Mapping) and isinstance(inputs, Mapping):
        if missing := set(symbols) - set(inputs):
            raise InputError(
                f"the model takes {', '.join(symbols)}; missing {', '.join(sorted(missing))}. "
                f"Received: {', '.join(inputs)}"
            )
        inputs = {name: inputs[name] for name in symbols}
    symbols = [getattr(symbol, "name", "keras_tensor") for symbol in tree.flatten(symbols)]
    names, values = [], []
    for i, (path, value) in enumerate(tree.flatten_with_path(inputs)):
        named = any(isinstance(key, str) for key in path)
        name = "/".join(map(str, path)) if named else symbols[i] if len(symbols) > i else ""
        # Keras numbers inputs without a name by a global counter: keras_tensor_1 etc.
        names.append(f"input {i}" if name.startswith("keras_tensor") or not name else name)
        value = np.asarray(value)
        if value.dtype.kind not in "biuf" or value.ndim < 2:
            raise InputError(
                "inputs must be arrays of numbers [batch, time, ...]. "
                f"Received: {names[-1]} of shape {value.shape} and dtype {value.dtype}"
            )
        values.append(value.astype({"b": "bool", "f": "float32"}.get(value.dtype.kind, "int32")))
    if len({value.shape[:2] for value in values}) != 1:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in zip(names, values, strict=True))
        raise InputError(f"all inputs must have one batch size and one time. Received: {shapes}")
    return inputs, names, values


def _placeholders(model, mask):
    """Inputs for a functional model: its masks, and random zeros and ones for all else.

    Zeros and ones are valid ids of any embedding. They are random so that no two inputs are equal,
    which is how `lookups_of` tells them apart; `_drawn` replaces them afterwards.
    """
    symbols = _symbols(model)
    if symbols is None:
        raise InputError(
            "the inputs of a model that is not functional are not known; pass some. "
            f"Received: {type(model).__name__} and inputs=None"
        )
    lengths = [
        length
        for layer in (model, *(layer for _, layer in walk(model)))
        for length in (getattr(layer, f"{name}sequence_length", None) for name in ("max_", ""))
        if isinstance(length, int)
    ]
    shapes = [tuple(symbol.shape) for symbol in tree.flatten(symbols)]
    if any(len(shape) < 2 or None in shape[2:] for shape in shapes):
        raise InputError(
            f"inputs must be [batch, time, ...] with known sizes; else pass some. "
            f"Received: {shapes}"
        )
    fixed = [shape[1] for shape in shapes if shape[1]]
    time = fixed[0] if fixed else min([TIME, *lengths])
    rng = np.random.default_rng(0)

    def make(symbol):
        shape = (symbol.shape[0] or 2, symbol.shape[1] or time, *symbol.shape[2:])
        x = np.ones(shape, "bool" if symbol.dtype == "bool" else "int32")
        if symbol.name == "source_mask":
            x[:, time // 3 :] = 0
        elif symbol.name == "padding_mask" and (mask is None or _is_spec(mask)):
            x[-1, -(time // 4) :] = 0
        kind = "float32" if "float" in symbol.dtype else "int32"
        return x if _is_mask(symbol.name, x) else rng.integers(0, 2, shape).astype(kind)

    return tree.map_structure(make, symbols)


def _drawn(x, lookup):
    """A random input in place of one from `_placeholders`."""
    rng = np.random.default_rng(1)
    if lookup:
        return rng.integers(*lookup.ids, x.shape).astype("int32")
    return rng.normal(size=x.shape).astype("float32") if x.dtype.kind == "f" else x


def _outputs(model, outputs, shape):
    """The outputs with a time axis, {name: index among all}, and a note about the others."""
    sizes = {
        "/".join(map(str, path)) or "output": tuple(output.shape)
        for path, output in tree.flatten_with_path(outputs)
    }
    timed = {
        name: i for i, (name, size) in enumerate(sizes.items()) if size[:2] == tuple(shape[:2])
    }
    symbols = _symbols(model)
    if symbols is not None and all(x.shape[1] is None for x in tree.flatten(symbols)):
        # A graph distinguishes time from features even if their sizes are equal by chance.
        varies = [y.shape[1:2] == (None,) for y in tree.flatten(_symbols(model, "output"))]
        timed = {name: i for name, i in timed.items() if varies[i]}
    if not timed:
        raise InputError(
            f"an output must have the inputs' batch and time, {shape[:2]}, as its first axes. "
            f"Received: outputs of shape {', '.join(map(str, sizes.values()))}"
        )
    rest = [name for name in sizes if name not in timed]
    return timed, [f"not checked, without a time axis: {', '.join(rest)}"] if rest else []


def _stretched(model, names, values):
    """The inputs stretched to `LENGTH` positions; None if the model's time is fixed."""
    if any(symbol is not None and symbol.shape[1] for symbol in tree.flatten(_symbols(model))):
        return None
    time = values[0].shape[1]
    positions = np.repeat(np.arange(time), -(-LENGTH // time))[:LENGTH]
    stretched = [x[:, positions] for x in values]
    for i, (name, x) in enumerate(zip(names, stretched, strict=True)):
        if _is_mask(name, x) and x.ndim > 2 and x.shape[2] == time:
            stretched[i] = x[:, :, positions]
    return stretched


# The stated mask --------------------------------------------------------------------------


def _is_spec(mask):
    return isinstance(mask, str | Mapping | masks.Mask)


def _stated(model, mask, named, lookups):
    """What outputs may depend on, what they should depend on, and a phrase for the notes.

    The first two are booleans [batch, time, time].
    """
    shape = next(iter(named.values())).shape[:2]
    shape = (*shape, shape[1])
    nothing = np.ones(shape, bool), np.zeros(shape, bool)
    if mask is None:
        mask = getattr(getattr(model, "backbone", model), "mask", None)
        if not isinstance(mask, masks.Mask):
            return *nothing, "no mask was stated, so nothing was compared"
        if not isinstance(mask, masks.Order):
            why = f"the model's own mask, {compact(mask)}, differs by head or layer"
            return *nothing, f"{why}, so nothing was compared"
    if not _is_spec(mask):
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape not in (shape, shape[1:], (1, *shape[1:])):
            raise InputError(
                f"mask must be a mask spec, or booleans {shape[1:]} or {shape}. "
                f"Received: {mask.dtype} of shape {mask.shape}"
            )
        visible = np.broadcast_to(mask, shape)
        return visible, visible, "compared with the given array"
    mask = masks.get(mask)
    if isinstance(mask, masks.Heads | masks.Layers):
        raise InputError(
            "one mask must be given for the whole model; `kzoo.analysis.leaks` checks the layers "
            f"and heads of a kzoo model one by one. Received: {mask.get_config()!r}"
        )
    padding = named.get("padding_mask")
    for name, lookup in lookups.items():
        if padding is None and lookup.masks_zero:
            padding = (named[name] != 0).astype("int32")
    sequence = {"padding_mask": padding, "source_mask": named.get("source_mask")}
    visible = np.asarray(ops.convert_to_numpy(mask.dense(shape[1], **sequence)))[:, 0]
    visible = np.broadcast_to(visible, shape)
    real = True if padding is None else (padding != 0)[:, :, None]
    itself = np.eye(
        shape[1], dtype=bool
    )  # residuals carry each input to the output at its position
    allowed = visible | np.logical_not(real) | itself
    return allowed, visible & real, f"compared with the mask {compact(mask)}"


def _name(depends):
    """A dependence [batch, query_time, key_time] in words, such as "itself and what precedes"."""
    square = np.ones(depends.shape[1:], bool)
    shapes = {"nothing": ~square, "itself": np.eye(len(square), dtype=bool)}
    shapes |= {
        "itself and what precedes": np.tril(square),
        "itself and what follows": np.triu(square),
    }
    for name, shape in (shapes | {"everything": square}).items():
        if (depends == shape).all():
            return name
    return f"{depends.mean():.0%} of all pairs"


def _table(records):
    """Dicts of strings with the same keys as lines of text."""
    lines = [list(records[0]), *(list(record.values()) for record in records)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(x.ljust(width) for x, width in zip(line, widths, strict=True)).rstrip()
