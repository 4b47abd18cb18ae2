"""A study at another size, or of another length: what changes with that, and what stays."""

from fractions import Fraction

from kzoo import presets
from kzoo.errors import InputError

_WIDTH = "hidden_dim"
# Fields that a size does not set, and the ones of a size by which their defaults are counted.
_COUNTED_BY = {
    "head_dim": lambda size: Fraction(size[_WIDTH], size["num_heads"]),
    "kv_heads": lambda size: size["num_heads"],
    "decoder_layers": lambda size: size["num_layers"],
}
RATE = "learning_rate"


def at(fields, size=None, steps=None):
    """The JSON of a study with presets of another size, and other steps.

    An override of a field that a size sets, such as `hidden_dim`, keeps its ratio to it, and so do
    `head_dim`, `kv_heads` and `decoder_layers`. Learning rates that the study names or tries are
    multiplied by the old width ÷ the new one, as `kzoo.learning_rate` does. The name says the size
    and the steps. Runs that were excluded were others, and all else stays: data, seeds, batches,
    options of masks and mechanisms, margins, thresholds, and the file of tuning records, of which
    those of another size do not count.

    Args:
        fields: JSON of a `Study`.
        size: one of `kzoo.presets.sizes()`; None for the study's own.
        steps: of each run; None for the study's own.

    Returns:
        JSON of a `Study`.

    Raises:
        InputError: for an unknown size, presets of several sizes, a family that a size does not
            change, and an override that has no whole number in that ratio.
    """
    name, said = fields["name"], []
    if size is not None and (old := _size(fields)) != size:
        fields = _resized(fields, old, size)
        words = name.split("-")
        words = [size if word == old else word for word in words]
        name = "-".join(words if size in words else [*words, size])
        said.append(f"at {size} size in place of {old}")
    if steps is not None and steps != fields["steps"]:
        said.append(f"{steps:,} steps in place of {fields['steps']:,}")
        fields = {**fields, "steps": steps}
        name = f"{name}-{steps}-steps"
    if not said:
        return fields
    about = f"{fields['name']} {', '.join(said)}. As it was written: {fields['description']}"
    fields = {field: value for field, value in fields.items() if field != "excluded"}
    return {**fields, "name": name, "description": about.removesuffix(" As it was written: ")}


def changes(before, after):
    """What `at` made of the fields of arms, of rates and of what follows a size: sentences.

    Args:
        before, after: a `Study` and the same at another size.

    Returns:
        A list of strings; empty where all presets took their size and no more was to be done.
    """
    found = []
    for label, arm in before.arms.items():
        for field, value in arm.overrides.items():
            if (new := after.arms[label].overrides[field]) != value:
                found.append(f"{label}: {field} {value} becomes {new}, in its ratio to the size's")
    for name, old, new in _rates(before, after):
        found.append(f"{name} {old} becomes {new}, by the width")
    if before.arms != after.arms:
        for hypothesis in after.hypotheses:
            if hypothesis.kind == "trend":
                values = ", ".join(f"{value:g}" for value in hypothesis.factor_values)
                found.append(
                    f"{hypothesis.name}: the values of {hypothesis.factor} stay {values}, as they "
                    "were written for another size"
                )
    return found


def _rates(before, after):
    """(name, old, new) of the learning rates that changed, as texts."""
    pairs = [(RATE, before.learning_rate, after.learning_rate)]
    for label, arm in before.arms.items():
        own = (each.training.get(RATE) for each in (arm, after.arms[label]))
        pairs.append((f"{label}: {RATE}", *own))
    if before.tuning:
        of_all = (t.grid.get(RATE) for t in (before.tuning, after.tuning))
        pairs.append(("the grid of rates", *of_all))
        for label in before.tuning.arms:
            own = (t.arms[label].get(RATE) for t in (before.tuning, after.tuning))
            pairs.append((f"{label}: the grid of rates", *own))
    for name, old, new in pairs:
        if old != new:
            yield name, _text(old), _text(new)


def _text(rates):
    return ", ".join(map(str, rates)) if isinstance(rates, list | tuple) else str(rates)


def _size(fields):
    """The one size of a study's presets."""
    found = {}
    for label, arm in fields["arms"].items():
        found.setdefault(presets.size_of(arm["preset"]), label)
    if len(found) > 1:
        each = ", ".join(f"{size} ({label})" for size, label in found.items())
        raise InputError(
            "a study whose presets all are of one size can take another; one that compares sizes "
            f"is written out. Received: {each}"
        )
    return next(iter(found))


def _resized(fields, old, new):
    of_old, of_new = (presets.sizes().get(size) for size in (old, new))
    arms = {
        label: {
            **arm,
            "preset": presets.resized(arm["preset"], new),
            "overrides": {
                field: _override(label, field, value, of_old, of_new, new)
                for field, value in arm["overrides"].items()
            },
        }
        for label, arm in fields["arms"].items()
    }
    factor = of_old[_WIDTH] / of_new[_WIDTH]
    for label, arm in arms.items():
        if "training" in arm:
            arms[label] = {**arm, "training": _with_rates(arm["training"], factor)}
    found = {**_with_rates(fields, factor), "arms": arms}
    if tuning := fields.get("tuning"):
        found["tuning"] = {**tuning, "grid": _with_rates(tuning["grid"], factor)}
        if "arms" in tuning:
            own = {label: _with_rates(grid, factor) for label, grid in tuning["arms"].items()}
            found["tuning"]["arms"] = own
    return found


def _override(label, field, value, of_old, of_new, size):
    """An override at the new size: in its ratio to what the size sets, if it sets that."""
    counted_by = _COUNTED_BY.get(field, lambda of: of.get(field))
    old, new = counted_by(of_old), counted_by(of_new)
    if old is None or value is None:
        return value
    scaled = value * Fraction(new) / Fraction(old)
    if scaled < 1 or scaled.denominator > 1:
        near = max(1, round(scaled))
        raise InputError(
            f"the arm {label!r} sets {field} to {value} where its size has {old}, and the same "
            f"part of the {new} of {size} is no whole number; {near} is near. Write the arms of "
            f"that size into a study of their own. Received: size={size!r}"
        )
    return int(scaled)


def _with_rates(fields, factor):
    """Fields whose learning rates, if they have some, are multiplied by a factor."""
    if (rates := fields.get(RATE)) is None:
        return fields
    several = isinstance(rates, list | tuple)
    found = [rate and float(f"{rate * factor:.2g}") for rate in (rates if several else [rates])]
    return {**fields, RATE: found if several else found[0]}
