"""The words of signatures: what stands for a tensor, a mask, a path.

They say what is meant and load no framework: a `Tensor` is whatever the backend computes with,
NumPy's arrays among it, and its shape and dtype stand in the docstring.
"""

import os
from collections.abc import Mapping
from typing import Any, Protocol


class Configured(Protocol):
    """What a spec names: a `Mask`, a `Mechanism`, a `FeatureMap`, an `Objective`."""

    def get_config(self) -> Any:
        """Its JSON."""


Tensor = Any  # an array or tensor of the backend, or NumPy's
Rng = Any  # a `numpy.random.Generator`, or None where nothing is drawn
Model = Any  # a Keras model: a task or a backbone, unless the docstring says more
Shape = tuple[Any, ...]  # integers, or None where a size is not known before the call
Stddev = Any  # of initial values: a float; of kernels a pair of them; or None for the default
Path = str | os.PathLike[str]

# A part by its name, by JSON with its fields, or itself.
MaskSpec = str | Mapping[str, Any] | Configured
MechanismSpec = str | Mapping[str, Any] | Configured
FeatureMapSpec = str | Mapping[str, Any] | Configured
ObjectiveSpec = str | Mapping[str, Any] | Configured
