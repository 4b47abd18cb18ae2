"""Every measure of a model, at initialisation and along its training, as plain records."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kzoo import __version__
from kzoo.analysis import snapshots
from kzoo.analysis.collapse import collapse
from kzoo.analysis.gradients import gradient_norms
from kzoo.analysis.maps import attention_maps
from kzoo.analysis.reuse import cache_reuse
from kzoo.analysis.spectrum import attention_spectrum, control_spectrum
from kzoo.errors import InputError, unknown
from kzoo.files import whole, write
from kzoo.typing import Model
from kzoo.values import is_count

DEFAULT = ("spectrum", "collapse", "gradients")
MAPS = "maps"
FILE, MAPS_FILE = "analysis.json", "maps.npz"
TURNS = 4  # of the conversation whose cache is looked at
_REMARK = "Tell me more of it. "
_EXAMPLES = 4


def _collapse(model, batch):
    """The residual of the whole model, without each of the parts, and of attention alone."""
    parts = ("skips", "feed_forward", "norms")
    for without in ((), *((part,) for part in parts), parts):
        yield from collapse(model, batch, **{part: part not in without for part in parts})


def _reuse(model, batch):
    """A conversation of equal turns that fills half of the model's longest sequence."""
    size = model.backbone.max_sequence_length // (2 * TURNS)
    return cache_reuse(model, [(_REMARK * size)[:size]] * TURNS)


MEASURES: dict[str, Callable[[Any, Any], Iterable[dict]]] = {
    "spectrum": attention_spectrum,
    "controls": control_spectrum,
    "collapse": _collapse,
    "gradients": gradient_norms,
    MAPS: attention_maps,
    "reuse": _reuse,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Analysis:
    """What `analyse` found.

    Attributes:
        facts: what was analysed and how, a dict that JSON can hold.
        records: the name of a measure to its records, a list of dicts: each has the `snapshot`
            (`"initial"`, `"checkpoint"`, `"best"` or `"last"`) and its `step`, and what the
            measure's own function returns. Of a study also `data`, `arm` and `seed`.
    """

    facts: dict
    records: dict

    def table(self, measure: str) -> Any:
        """A measure's records as a pandas table, one row each; of `"maps"` without the weights.

        Raises:
            InputError: for a measure that was not taken.
        """
        import pandas

        if measure not in self.records:
            raise unknown("measure", measure, self.records)
        return pandas.DataFrame(
            [
                {name: value for name, value in record.items() if name != "weights"}
                for record in self.records[measure]
            ]
        )

    def save(self, directory: str | Path) -> list[Path]:
        """Write the files of an analysis into a folder, which is made if it is missing.

        `analysis.json` has the facts and all records but the maps; each measure has a CSV file
        named after it; the maps are in `maps.npz`, one array [tokens, tokens] for each row of
        `maps.csv`, named after it: `row_0`.

        Returns:
            The files, a list of paths.

        Raises:
            OSError: if they cannot be written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = [directory / FILE]
        records = {name: self.records[name] for name in self.records if name != MAPS}
        content = {"facts": self.facts, "records": records}
        write(files[0], json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n")
        for measure in self.records:
            files.append(directory / f"{measure}.csv")
            write(files[-1], self.table(measure).to_csv(index=False))
        if MAPS in self.records:
            files.append(directory / MAPS_FILE)
            maps = {f"row_{i}": each["weights"] for i, each in enumerate(self.records[MAPS])}
            with whole(files[-1]) as part, open(part, "wb") as file:
                np.savez_compressed(file, **maps)
        return files

    def __repr__(self):
        counts = ", ".join(f"{len(found)} of {name}" for name, found in self.records.items())
        return f"Analysis({self.facts['source']!r}: {counts})"


def analyse(
    source: Any,
    text: Any = "pydoc",
    *,
    measures: Iterable[str] = DEFAULT,
    examples: int = _EXAMPLES,
    length: int | None = None,
    **overrides: Any,
) -> Analysis:
    """Take measures of a model at its initial values and along its training.

    Args:
        source: what `kzoo.presets.load` takes: the name of a preset for its initial values, or a
            folder. Of the folder of `kzoo train` the initial values, the checkpoints that are
            there, the best and the last weights are measured; of that of
            `kzoo.training.Checkpoints` every checkpoint.
        text: data as `kzoo.data.load` takes them; its first held-out batch is looked at.
        measures: which ones: `"spectrum"` (`attention_spectrum`), `"controls"`
            (`control_spectrum`), `"collapse"` (`collapse`, of the whole model, without each of
            skips, feed-forward networks and norms, and of attention alone), `"gradients"`
            (`gradient_norms`), `"maps"` (`attention_maps` of the first example), `"reuse"`
            (`cache_reuse` of a conversation of four turns).
        examples: of the batch.
        length: tokens of each example; by default all that the model takes.
        **overrides: fields that replace a preset's.

    Returns:
        An `Analysis`.

    Raises:
        InputError: for an unknown measure; as the measures' own functions, such as for a
            mechanism without weights, or more tokens than fit into memory.

    Example:
        >>> found = analyse("gpt_nano", "synthetic:copy", measures=["spectrum"], num_layers=1)
        >>> found.table("spectrum")[["step", "head", "entropy_rank"]].shape
        (4, 3)
    """
    from kzoo import data

    measures = check(measures, examples, length)
    model, found = snapshots.find(source, **overrides)
    splits = data.load(text, model, batch_size=examples)
    batch = cut(splits.valid[0], length)
    records: dict[str, list] = {measure: [] for measure in measures}
    for snapshot in snapshots.place(model, found):
        measure(model, batch, records, {"snapshot": snapshot.name, "step": snapshot.step})
    about = {"source": str(source), "text": splits.facts["source"]}
    about |= {"sha256": splits.facts["sha256"], "config": model.config}
    return Analysis(about | facts(model, batch), records)


def check(measures, examples, length):
    """The measures as a list; `InputError` unless there are some, and sizes are sizes."""
    measures = [measures] if isinstance(measures, str) else list(measures)
    for name in measures:
        if name not in MEASURES:
            raise unknown("measure", name, MEASURES)
    if not measures:
        raise InputError(f"there is at least one measure of {', '.join(MEASURES)}. Received: none")
    for name, size in {"examples": examples, "length": length}.items():
        if size is not None and not is_count(size):
            raise InputError(f"{name} is a positive integer. Received: {size!r}")
    return list(dict.fromkeys(measures))


def measure(model: Model, batch: Any, records: Mapping[str, list], about: Mapping) -> None:
    """Append what each measure in `records` finds, with `about` before it."""
    for name, found in records.items():
        found += [{**about, **record} for record in MEASURES[name](model, batch)]


def cut(batch, length):
    """A batch (x, y, sample_weight) with the first `length` tokens of each example."""
    x, y, weight = batch
    time = max(np.shape(array)[1] for array in x.values())
    if length is None or length == time:
        return batch
    if length > time:
        raise InputError(f"length is at most the {time} tokens of an example. Received: {length}")
    return {name: array[:, :length] for name, array in x.items()}, y[:, :length], weight[:, :length]


def facts(model, batch):
    """What an analysis says of how it was made."""
    shapes = {name: list(np.shape(array)) for name, array in batch[0].items()}
    return {
        "inputs": shapes,
        "dtype": model.dtype_policy.name,
        "spectra": "of weights in float64; numerical_rank counts σ > tokens · epsilon · σ₁",
        "residual": "‖X − 1xᵀ‖ / ‖X‖, x the mean over tokens, in the norm that each record names",
        "versions": {"kzoo": __version__, "keras": keras.__version__},
        "backend": keras.backend.backend(),
    }


def _finite(value):
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
