"""Weights that wait for their model."""

import dataclasses
import logging
import re
from collections.abc import Callable

from kzoo.config import Config
from kzoo.errors import InputError
from kzoo.models.weights import by_path
from kzoo.typing import Model

log = logging.getLogger("kzoo")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of another library is to kzoo, checked and not yet read.

    Attributes:
        config: the `kzoo.config.Config` of the model that holds exactly its weights.
        tokenizer: a keras-hub tokenizer, or None.
        shapes: path of each variable of that model -> shape.
        arrays: a function without arguments that gives `(path, array)` of each, once.
    """

    config: Config
    tokenizer: object
    shapes: dict
    arrays: Callable

    def fill(self, model: Model) -> None:
        """Gives a model the weights; what it has besides keeps its initial values, and is
        named in the log.

        Raises:
            InputError: if a weight would be lost, or has another shape; all are named.
        """
        variables = by_path(model)
        lost = [path for path in self.shapes if path not in variables]
        faults = [f"no variable for {text}" for text in grouped(lost)]
        faults += grouped(
            f"{path} has shape {list(shape)}, not {list(variables[path].shape)}"
            for path, shape in self.shapes.items()
            if path in variables and shape != tuple(variables[path].shape)
        )
        if faults:
            raise InputError(
                f"these overrides do not fit the weights: {'; '.join(faults)}. Received: a model "
                f"of {model.count_params():,} parameters"
            )
        for path, array in self.arrays():
            variables[path].assign(array)
        new = [path for path in variables if path not in self.shapes]
        if new:
            log.info("new parameters, with initial values: %s", ", ".join(grouped(new)))


def grouped(texts):
    """Texts that differ in their first number alone, as one: `block_[0-11]/…`."""
    groups = {}
    for text in texts:
        found = re.search(r"(?<=[._])\d+(?=[./])", text)
        key = (text[: found.start()], text[found.end() :]) if found else (text, None)
        groups.setdefault(key, []).append(int(found.group()) if found else None)
    return [
        start if end is None else f"{start}{_ranges(sorted(numbers))}{end}"
        for (start, end), numbers in groups.items()
    ]


def _ranges(numbers):
    if len(numbers) == 1:
        return str(numbers[0])
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return f"[{','.join(str(a) if a == b else f'{a}-{b}' for a, b in parts)}]"
