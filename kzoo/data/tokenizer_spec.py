"""A tokenizer as studies and commands name it: bytes, one to train, or a file.

In JSON `"bytes"`, `{"bpe": 4096}`, `{"unigram": 4096}` or the path of a `tokenizer.json`; in one
word `"bpe:4096"`.
"""

import os
from collections.abc import Mapping
from typing import Any

from kzoo import tokenizer_json
from kzoo.data import tokenizer_training
from kzoo.errors import InputError, unknown
from kzoo.values import is_integer, plain, shown

BYTES = "bytes"
FORMS = ("bytes", *(f"{kind}:SIZE" for kind in tokenizer_training.TRAINERS), "tokenizer.json")


def get(spec: Any) -> Any:
    """The JSON of a tokenizer, checked.

    Args:
        spec: `"bytes"`, `{"bpe": 4096}`, `"bpe:4096"`, or the path of a `tokenizer.json` or of its
            folder; instead of `bpe` also `unigram`.

    Returns:
        `"bytes"`, a dict of one kind and its number of ids, or a path as a string.

    Raises:
        InputError: for an unknown kind, a size too small for the bytes and the special tokens, and
            a file that is missing or no tokenizer.

    Example:
        >>> get("bpe:4096")
        {'bpe': 4096}
    """
    kinds = tokenizer_training.TRAINERS
    if isinstance(spec, os.PathLike):
        spec = os.fspath(spec)
    if isinstance(spec, str) and spec != BYTES and not os.path.exists(spec):
        kind, colon, size = spec.partition(":")
        if colon and (kind in kinds or size.isdecimal()):
            spec = {kind: int(size) if size.isdecimal() and len(size) < 20 else size}
    if isinstance(spec, str):
        if spec != BYTES:
            if os.sep not in spec and not spec.endswith(".json") and not os.path.exists(spec):
                raise unknown("tokenizer", spec, FORMS)
            tokenizer_json.size(spec)
        return spec
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise InputError(
            "a tokenizer is 'bytes', a kind and its number of ids, such as {'bpe': 4096}, or the "
            f"path of a tokenizer.json. Received: {shown(spec)}"
        )
    ((kind, size),) = plain(spec).items()
    tokenizer_training.check(kind, size)
    return {kind: size}


def check_lossless(spec: Any) -> None:
    """`InputError` for a checked tokenizer that is a file's and does not give a text back exactly,
    since arms are compared by bits per byte."""
    if isinstance(spec, str) and spec != BYTES and (example := tokenizer_json.lost(spec)):
        raise lossy(spec, example)


def lossy(name: str, example: str) -> InputError:
    """The error for a tokenizer that loses text where bits per byte are compared.

    Args:
        name: of the tokenizer.
        example: of what it loses, as in "makes 'the' of 'The'".
    """
    return InputError(
        "a tokenizer of a study gives every text back exactly, else bits per byte would leave out "
        "what it loses; kzoo.data.train_tokenizer makes one that does. "
        f"Received: {name!r}, which {example}"
    )


def text(spec: Any) -> str:
    """A checked tokenizer in one word.

    Example:
        >>> text({"bpe": 4096})
        'bpe:4096'
    """
    return spec if isinstance(spec, str) else ":".join(str(part) for part in [*spec.items()][0])


def config_fields(spec: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields of a model with a checked tokenizer.

    Args:
        spec: as `get` returns it.
        overrides: the config fields that are asked for besides. A `vocabulary_size` among them
            leaves ids unused.

    Returns:
        A dict, empty for bytes. One that is trained may find fewer ids than it is asked for, in a
        short text; the model has as many as were asked for all the same.

    Raises:
        InputError: for a smaller `vocabulary_size`.

    Example:
        >>> config_fields({"bpe": 4096}, {})
        {'tokenizer': 'file', 'vocabulary_size': 4096}
    """
    if spec == BYTES:
        return {}
    path = isinstance(spec, str)
    size = tokenizer_json.size(spec) if path else next(iter(spec.values()))
    asked = overrides.get("vocabulary_size", size)
    if is_integer(asked) and asked < size:
        raise InputError(
            f"the tokenizer {text(spec)} has {size} ids, and the model has as many or more. "
            f"Received: vocabulary_size={asked}"
        )
    return {"tokenizer": "file", "vocabulary_size": asked}


def file(spec: Any, source: Any, valid: float) -> Any:
    """The file of a checked tokenizer, trained where need be on the training part of a source.

    Args:
        spec: as `get` returns it.
        source, valid: as of `kzoo.data.load`.

    Returns:
        A `Path`; None for bytes.

    Raises:
        InputError: as `kzoo.data.train_tokenizer`.
    """
    if spec == BYTES:
        return None
    if isinstance(spec, str):
        return tokenizer_json.find(spec)
    ((kind, size),) = spec.items()
    return tokenizer_training.train_tokenizer(source, kind=kind, size=size, valid=valid)
