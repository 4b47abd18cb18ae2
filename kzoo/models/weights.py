"""Weights in HDF5 files, by variable path."""

import io
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import keras
import numpy as np

from kzoo.errors import InputError
from kzoo.files import whole
from kzoo.typing import Path

log = logging.getLogger("kzoo")

# Keras's low-rank matrices: first factor -> (second factor, the matrix that their product changes).
LORA = {
    "lora_kernel_a": ("lora_kernel_b", "kernel"),
    "lora_embeddings_a": ("lora_embeddings_b", "embeddings"),
}


class PathWeights:
    """A mixin for Keras models: `save_weights` and `load_weights` by variable path.

    Keras's own format finds weights by the class and order of layers, so that a model with one
    layer more can load another's weights without an error. Here every path and shape must match.
    A task and its backbone have the same paths and so can read each other's files. LoRA matrices
    are saved beside the kernels; a model without LoRA adds their product to the kernels.
    """

    def save(self, filepath: Path, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`: a `.keras` file, in which LoRA is merged into the kernels."""
        check_can_be_loaded(self)
        super().save(filepath, *args, **kwargs)

    def save_to_preset(self, preset_dir: Path, *args: Any, **kwargs: Any) -> None:
        """As in keras-hub: a folder, for `kzoo.presets.load` and keras-hub's `from_preset`."""
        check_can_be_loaded(self)
        super().save_to_preset(preset_dir, *args, **kwargs)

    def save_weights(
        self, filepath: Path, overwrite: bool = True, max_shard_size: float | None = None
    ) -> None:
        """Write all weights to `filepath` (`*.weights.h5`), replacing it in one step."""
        filepath = str(filepath)
        if max_shard_size is not None:
            return super().save_weights(filepath, overwrite, max_shard_size)
        if not filepath.endswith(".weights.h5"):
            raise InputError(f"a weights file must end in '.weights.h5'. Received: {filepath}")
        if os.path.exists(filepath) and not overwrite:
            raise InputError(
                f"the file exists; pass overwrite=True to replace it. Received: {filepath}"
            )
        check_factors(self)
        write_weights(filepath, by_path(self))

    def load_weights(self, filepath: Path, **kwargs: Any) -> None:
        """Load weights by path.

        If only the file has LoRA matrices, they are merged into the kernels. If only the model
        has them, they are reset so that they change nothing.

        Raises:
            InputError: if a weight is missing, extra or of another shape; all are named.
        """
        filepath = str(filepath)
        if filepath.endswith(".json"):
            return super().load_weights(filepath, **kwargs)
        if kwargs:
            raise InputError(
                f"weights load by path, all of them, without options. Received: {kwargs}"
            )
        read_weights(filepath, by_path(self))


def by_path(model):
    """A model's weights: path -> variable."""
    variables = {variable.path: variable for variable in model.weights}
    if len(variables) != len(model.weights):
        raise InputError(f"each weight of a model must have its own path. Received: {model.name}")
    return variables


def check_can_be_loaded(model):
    """Check, before anything is written, that a saved model can be loaded with the same weights.

    Raises:
        InputError: for weights quantised by GPTQ or AWQ, LoRA matrices beside quantised kernels,
            and LoRA with alpha other than its rank; it says what can be saved instead.
    """
    layers = model._flatten_layers()
    modes = sorted({layer.quantization_mode for layer in layers} - {None})
    if {"gptq", "awq"} & set(modes):
        raise InputError(
            "Keras loads no model that gptq or awq quantised: save it before quantize and "
            f"quantise it after loading, or use 'int8' or 'int4'. Received: {', '.join(modes)}"
        )
    lora = [layer for layer in layers if getattr(layer, "lora_enabled", False)]
    if lora and modes:
        raise InputError(
            "LoRA matrices cannot be merged into quantised kernels: save the model before "
            "enable_lora, and the matrices with backbone.save_lora_weights. "
            f"Received: LoRA beside {', '.join(modes)}"
        )
    check_factors(model)


def check_factors(model):
    """`InputError` for LoRA with alpha other than its rank, since files hold no factor."""
    for layer in model._flatten_layers():
        if getattr(layer, "lora_enabled", False) and layer.lora_alpha != layer.lora_rank:
            raise InputError(
                "files hold LoRA matrices without a factor: lora_alpha must be the rank, as after "
                f"enable_lora(rank). Received: {layer.path} with lora_alpha={layer.lora_alpha} "
                f"and rank {layer.lora_rank}"
            )


def write_weights(filepath, variables):
    """Write variables, by path, to an HDF5 file, replacing it in one step.

    Raises:
        OSError: if it cannot be written, such as on a full disk; the old file is unchanged.
    """
    with whole(filepath) as part, _DefersErrors(part, "w+b") as disk:
        with h5py.File(disk, "w") as file:
            for path, variable in variables.items():
                # HDF5 has no bfloat16; float32 holds its values exactly.
                value = keras.ops.cast(variable, _storage(variable))
                file[path] = keras.ops.convert_to_numpy(value)
                disk.check()
        disk.check()


class _DefersErrors(io.FileIO):
    """A file that keeps the first error of a write, to be raised by `check`.

    If a write fails while HDF5 is writing, the process crashes with a segmentation fault when the
    file is closed; so the error is raised after HDF5 has closed it.
    """

    error = None

    def write(self, data):
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and self.error is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size=None):
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size

    def check(self):
        if self.error is not None:
            raise self.error


def read_weights(filepath, variables, may_be_new=False):
    """Assign the weights of an HDF5 file to variables, by path; both must have the same paths.

    Args:
        filepath: of the file.
        variables: path -> variable.
        may_be_new: whether variables that the file has not keep their initial values.

    Returns:
        The paths of those, a list.

    Raises:
        InputError: if a weight is missing, extra or of another shape; all are named.
    """
    arrays = _arrays(filepath)
    _merge_lora(arrays, variables)
    new = [path for path in variables if path not in arrays]
    faults = [] if may_be_new else [f"missing {path}" for path in new]
    faults += [f"unknown {path}" for path in arrays if path not in variables]
    faults += [
        f"{path} has shape {list(arrays[path].shape)}, not {list(variable.shape)}"
        for path, variable in variables.items()
        if path in arrays and tuple(arrays[path].shape) != tuple(variable.shape)
    ]
    if faults:
        lora = any(f"/{name}" in fault for fault in faults for name in LORA)
        hint = "; a model has LoRA matrices after enable_lora(rank)" if lora else ""
        raise InputError(f"the weights do not fit: {'; '.join(faults)}{hint}. Received: {filepath}")
    for path, variable in variables.items():
        if path in arrays:
            variable.assign(arrays[path])
    return new


def shapes_in(filepath):
    """The shapes of the weights in an HDF5 file, by path."""
    return {path: array.shape for path, array in _arrays(filepath).items()}


def _arrays(filepath):
    with h5py.File(filepath, "r") as file:
        arrays = {}
        file.visititems(
            lambda path, item: (
                arrays.update({path: np.asarray(item)}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return arrays


def say_loaded(
    variables: Mapping[str, Any], new: Iterable[str], left_out: Mapping[str, tuple[int, ...]]
) -> None:
    """Log what became of a checkpoint's weights, unless a model has exactly these.

    Args:
        variables: of the model: path -> variable.
        new: paths of those that keep their initial values.
        left_out: what the model has no place for: path -> shape.
    """
    new = [path for path in variables if path in set(new)]
    if new:
        log.info(
            "new parameters, with initial values: %s; the other %d weights are loaded",
            *(_counted({p: variables[p].shape for p in new}), len(variables) - len(new)),
        )
    if left_out:
        log.warning("left out, as this model has no place for them: %s", _counted(left_out))


def _counted(shapes):
    """`"2 weights, 130 parameters (classes/kernel, classes/bias)"`."""
    count = sum(map(math.prod, shapes.values()))
    weights = f"{len(shapes)} weight{'s' * (len(shapes) > 1)}"
    return f"{weights}, {count:,} parameters ({', '.join(grouped(shapes))})"


def _merge_lora(arrays, variables):
    """Reconcile LoRA matrices that only the file or only the model has, in `arrays`.

    The product of those that only the file has is added to the kernel. Of those that only the
    model has, the first factor keeps its value and the second becomes zero.
    """
    for path in list(arrays):
        parent, _, name = path.rpartition("/")
        if name not in LORA or path in variables:
            continue
        second, whole = (f"{parent}/{name}" for name in LORA[name])
        if whole in variables and keras.backend.is_float_dtype(variables[whole].dtype):
            arrays[whole] = arrays[whole] + arrays.pop(path) @ arrays.pop(second)
    for path, variable in variables.items():
        parent, _, name = path.rpartition("/")
        second = f"{parent}/{LORA[name][0]}" if name in LORA else None
        if second in variables and not {path, second} & set(arrays):
            arrays[path] = keras.ops.convert_to_numpy(variable)
            arrays[second] = np.zeros(variables[second].shape, "float32")


def _storage(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float32" if dtype == "bfloat16" else dtype


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
