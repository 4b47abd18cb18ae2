"""Weights in HDF5 files, by variable path."""

import io
import os

import h5py
import keras
import numpy as np

from kzoo.errors import InputError
from kzoo.files import whole

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

    def save(self, filepath, *args, **kwargs):
        """As `keras.Model.save`: a `.keras` file, in which LoRA is merged into the kernels."""
        check_can_be_loaded(self)
        super().save(filepath, *args, **kwargs)

    def save_to_preset(self, preset_dir, *args, **kwargs):
        """As in keras-hub: a folder, for `kzoo.presets.load` and keras-hub's `from_preset`."""
        check_can_be_loaded(self)
        super().save_to_preset(preset_dir, *args, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
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

    def load_weights(self, filepath, **kwargs):
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


def read_weights(filepath, variables):
    """Assign the weights of an HDF5 file to variables, by path; both must have the same paths.

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
