"""Tensors in files: what a folder holds is known, and checked, before any is read."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kzoo.errors import InputError

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
FLOATS = ("F16", "BF16", "F32", "F64")


class Tensors(Mapping):
    """The tensors of a folder, by name, each read when it is asked for: float32 arrays.

    Args:
        directory: a folder with `model.safetensors`, or its shards and their index; or, if
            there is neither, `pytorch_model.bin`, which PyTorch reads without unpickling
            anything but tensors.

    Attributes:
        shapes: name -> tuple of integers.
        dtypes: name -> string, `"F32"` and so on.

    Raises:
        InputError: no weights, or shards missing, truncated or corrupt.
    """

    def __init__(self, directory):
        self.shapes, self.dtypes, self._files = {}, {}, {}
        for path in _files(Path(directory)):
            read = _safetensors if path.suffix == ".safetensors" else _pytorch
            file, shapes, dtypes = read(path)
            self.shapes |= shapes
            self.dtypes |= dtypes
            self._files |= dict.fromkeys(shapes, file)

    def __getitem__(self, name):
        return np.asarray(self._files[name](name)).astype("float32", copy=False)

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def read_json(path):
    """The object in a JSON file.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{Path(path).name} is a JSON file ({error}). Received: {path}") from error
    if not isinstance(content, dict):
        raise InputError(f"{Path(path).name} holds a JSON object. Received: {path}")
    return content


def _files(directory):
    for name in (SAFETENSORS, PYTORCH):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            return _shards(index)
    raise InputError(f"weights are in {SAFETENSORS}, or its shards. Received: {directory}")


def _shards(index):
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"an index of shards has a weight_map. Received: {index}")
    names = sorted({str(name) for name in names.values()})
    missing = [
        name for name in names if Path(name).name != name or not (index.parent / name).is_file()
    ]
    if missing:
        raise InputError(f"the shards {', '.join(missing)} are missing. Received: {index}")
    return [index.parent / name for name in names]


def _safetensors(path):
    try:
        file = safe_open(str(path), framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise InputError(f"a truncated or corrupt file ({error}). Received: {path}") from error
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    dtypes = {name: part.get_dtype() for name, part in slices.items()}
    return file.get_tensor, shapes, dtypes


def _pytorch(path):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path.name} needs PyTorch to be read; convert it to {SAFETENSORS}, or install "
            f"kzoo[torch]. Received: {path}"
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        floats = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
        dtypes = {name: floats.get(t.dtype, str(t.dtype)) for name, t in tensors.items()}
    except Exception as error:  # what a damaged or hostile file raises has no common class
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path.name} is read only where it holds nothing but tensors ({reason}). "
            f"Received: {path}"
        ) from error
    return lambda name: tensors[name].float().numpy(), shapes, dtypes
