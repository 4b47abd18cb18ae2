"""Pretrained weights: checkpoints of other libraries, to kzoo and back.

`kzoo.presets.load` takes what is read here; `to_huggingface` writes.
"""

from pathlib import Path
from typing import Any

import kzoo.load_keras_hub  # noqa: F401
from kzoo.convert.checkpoint import Checkpoint
from kzoo.convert.hub import PREFIX, download
from kzoo.convert.huggingface import (
    FAMILIES,
    family_of,
    read_huggingface,
    to_huggingface,
)
from kzoo.convert.keras_hub import is_keras_hub, load_keras_hub, read_keras_hub

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "family_of",
    "read",
    "read_huggingface",
    "read_keras_hub",
    "to_huggingface",
]


def read(source: Any) -> Checkpoint:
    """The checkpoint of another library that `kzoo.presets.load` was given.

    Args:
        source: `"hf://ORG/NAME"`, `"kaggle://ORG/MODEL/keras/VARIANT"`, a folder in Hugging
            Face's or keras-hub's format, or a backbone of keras-hub.

    Returns:
        A `Checkpoint`.

    Raises:
        InputError: as `read_huggingface` and `read_keras_hub`; or if it is none of these.

    Example:
        >>> read("hf://openai-community/gpt2").config.num_layers  # doctest: +SKIP
        12
    """
    if not isinstance(source, str | Path):
        return read_keras_hub(source)
    if str(source).startswith("kaggle://"):
        return load_keras_hub(source)
    directory = download(source) if str(source).startswith(PREFIX) else Path(source)
    if is_keras_hub(directory):
        return load_keras_hub(source)  # which fetches its own files
    return read_huggingface(directory)
