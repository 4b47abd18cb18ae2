"""Weights that wait for their model."""

import dataclasses
from collections.abc import Callable

from kzoo.config import Config
from kzoo.errors import InputError
from kzoo.models.weights import by_path, grouped, say_loaded
from kzoo.typing import Model


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
        """Gives a model the weights. What it has besides keeps its initial values, and what a
        language model's head has is left out of a classifier; the log names and counts both.

        Raises:
            InputError: if another weight would be lost, or has another shape; all are named.
        """
        variables = by_path(model)
        lost = [path for path in self.shapes if path not in variables]
        left_out = {p: self.shapes[p] for p in lost if _of_another_head(p, model)}
        faults = [f"no variable for {t}" for t in grouped(p for p in lost if p not in left_out)]
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
            if path not in left_out:
                variables[path].assign(array)
        say_loaded(variables, new=variables.keys() - self.shapes.keys(), left_out=left_out)


def _of_another_head(path, model):
    """Whether a weight is that of a head which predicts tokens, and the model has classes."""
    return model.objective.labels is not None and path.startswith("head/")
