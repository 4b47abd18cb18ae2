"""Weights by variable path, in HDF5."""

import io
import os
from typing import Any

import h5py
import keras
import numpy as np

from kzoo.errors import InputError
from kzoo.files import whole
from kzoo.typing import Path

# What Keras adds beside a matrix, and the matrix that the product of the two is a change of.
LORA = {
    "lora_kernel_a": ("lora_kernel_b", "kernel"),
    "lora_embeddings_a": ("lora_embeddings_b", "embeddings"),
}


class PathWeights:
    """A mixin for Keras models: `save_weights` and `load_weights` by variable path.

    Keras's own format keys weights by class and order of layers, so that a model with one
    layer more can take another's weights without a word. Here every name and shape must
    match. A task and its backbone have the same paths and so can read each other's files.
    LoRA matrices stand in the file beside the kernels; a model without them adds them up.
    """

    def save(self, filepath: Path, *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`: a `.keras` file, in which LoRA is part of the kernels."""
        check_can_be_loaded(self)
        super().save(filepath, *args, **kwargs)

    def save_to_preset(self, preset_dir: Path, *args: Any, **kwargs: Any) -> None:
        """As keras-hub's: a folder, for `kzoo.presets.load` and keras-hub's `from_preset`."""
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
            raise InputError(f"a weights file ends in '.weights.h5'. Received: {filepath}")
        if os.path.exists(filepath) and not overwrite:
            raise InputError(f"the file exists and overwrite is False. Received: {filepath}")
        check_factors(self)
        write_weights(filepath, by_path(self))

    def load_weights(self, filepath: Path, **kwargs: Any) -> None:
        """Read weights by path. Where the file has LoRA matrices and the model has none, they
        become part of the kernels; where the model alone has them, they change nothing then.

        Raises:
            InputError: if a weight is missing, extra or of another shape; all are named.
        """
        filepath = str(filepath)
        if filepath.endswith(".json"):
            return super().load_weights(filepath, **kwargs)
        if kwargs:
            raise InputError(f"weights load by path, all or none. Received: {kwargs}")
        read_weights(filepath, by_path(self))


def by_path(model):
    """A model's weights: path -> variable."""
    variables = {variable.path: variable for variable in model.weights}
    if len(variables) != len(model.weights):
        raise InputError(f"two weights of the model share a path. Received: {model.name}")
    return variables


def check_can_be_loaded(model):
    """Refuse, before anything is written, to save a model that would not be loaded the same.

    Raises:
        InputError: for weights quantised by GPTQ or AWQ, LoRA matrices beside quantised kernels,
            and ones with a factor; it says what can be saved instead.
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
            "low-rank matrices cannot become part of quantised kernels: save the model before "
            "enable_lora, and the matrices with backbone.save_lora_weights. "
            f"Received: LoRA beside {', '.join(modes)}"
        )
    check_factors(model)


def check_factors(model):
    """Refuse LoRA matrices with a factor, of which a file of matrices knows nothing."""
    for layer in model._flatten_layers():
        if getattr(layer, "lora_enabled", False) and layer.lora_alpha != layer.lora_rank:
            raise InputError(
                "files hold LoRA matrices without a factor: lora_alpha is the rank, as after "
                f"enable_lora(rank). Received: {layer.path} with lora_alpha={layer.lora_alpha} "
                f"and rank {layer.lora_rank}"
            )


def write_weights(filepath, variables):
    """Write variables, by path, to an HDF5 file, replacing it in one step.

    Raises:
        OSError: if it cannot be written, such as on a full disk; nothing has changed then.
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

    HDF5 does not survive a write that fails: the process ends in a segmentation fault when the
    file is closed.
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


def read_weights(filepath, variables):
    """Assign to variables, by path, what an HDF5 file holds: all of it, and all of them.

    Raises:
        InputError: if a weight is missing, extra or of another shape; all are named.
    """
    with h5py.File(filepath, "r") as file:
        arrays = {}
        file.visititems(
            lambda path, item: (
                arrays.update({path: np.asarray(item)}) if isinstance(item, h5py.Dataset) else None
            )
        )
    _merge_lora(arrays, variables)
    faults = [f"missing {path}" for path in variables if path not in arrays]
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
        variable.assign(arrays[path])


def _merge_lora(arrays, variables):
    """Of LoRA matrices that the file alone has, add the product to the kernel in `arrays`; those
    that the model alone has, let change nothing, and begin anew."""
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
