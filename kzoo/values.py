"""Checks of values, for Python's numbers and NumPy's alike, and their text in messages."""

import json
import math
import numbers
import re
from collections.abc import Mapping

import numpy as np

from kzoo.errors import InputError

LARGEST = 2**31 - 1  # the largest count, of int32


def is_integer(value):
    """Whether a value is a static integer, of Python or NumPy, and not a boolean or a tensor.

    Example:
        >>> is_integer(3), is_integer(np.int64(3)), is_integer(True), is_integer(3.0)
        (True, True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value):
    """Whether a value is a finite real number, of Python or NumPy, and not a boolean."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def is_boolean(value):
    """Whether a value is True or False, of Python or NumPy."""
    return isinstance(value, bool | np.bool_)


def is_count(value, least=1):
    """Whether a value is an integer from `least` to `LARGEST`."""
    return is_integer(value) and least <= value <= LARGEST


def take_count(name, value, *, least=1, most=LARGEST):
    """The value of an argument that is an integer from `least` to `most`, or `InputError`."""
    if is_count(value, least) and value <= most:
        return value
    kind = "a positive integer" if least else "an integer, 0 or more"
    raise InputError(f"{name} must be {kind}, at most {most}. Received: {value!r}")


def take_number(name, value, *, below=None):
    """The value of an argument that is a positive number, or one in [0, below)."""
    if below is None and not (is_number(value) and value > 0):
        raise InputError(f"{name} must be a positive number. Received: {value!r}")
    if below is not None and not (is_number(value) and 0 <= value < below):
        raise InputError(f"{name} must be a number in [0, {below}). Received: {value!r}")
    return value


def take_seed(name, value):
    """The value of an argument that is a seed."""
    if is_integer(value) and 0 <= value < 2**31:
        return value
    raise InputError(f"{name} must be an integer in [0, 2^31). Received: {value!r}")


def take_boolean(name, value):
    """The value of an argument that is true or false."""
    if is_boolean(value):
        return value
    raise InputError(f"{name} must be true or false. Received: {value!r}")


def check_batch_size(batch_size):
    """`InputError` unless a batch has an example.

    Example:
        >>> check_batch_size(16)
    """
    if not is_count(batch_size):
        raise InputError(
            "a batch has at least 1 example: batch_size is a positive integer. "
            f"Received: batch_size={batch_size!r:.60}"
        )


def interval(every):
    """The interval between two checkpoints: `(steps, None)` or `(None, seconds)`.

    Args:
        every: 100 or "100", in steps, or "60s".

    Raises:
        InputError: for anything else.

    Example:
        >>> interval(100), interval("60s")
        ((100, None), (None, 60))
    """
    match = re.fullmatch(r"(\d+)(s?)", str(every))
    if match is None or not int(match[1]):
        raise InputError(
            "an interval of checkpoints must be steps, such as 1000, or seconds, such as 60s. "
            f"Received: {every!r}"
        )
    return (None, int(match[1])) if match[2] else (int(match[1]), None)


def plain(value):
    """A value for JSON, with NumPy's numbers and arrays as Python's.

    Mappings become dicts and tuples lists, at any depth; all else is unchanged.

    Example:
        >>> plain({"size": np.int64(4), "seeds": np.arange(2)})
        {'size': 4, 'seeds': [0, 1]}
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def differences(saved, received, name=""):
    """Where two JSON values differ: an iterable of `"name is 1 there and 2 here"`."""
    if isinstance(saved, dict) and isinstance(received, dict):
        for key in {**saved, **received}:
            inner = f"{name}.{key}" if name else key
            yield from differences(saved.get(key), received.get(key), inner)
    elif saved != received:
        yield f"{name} is {json.dumps(saved)} there and {json.dumps(received)} here"


def shown(value):
    """A value as text for a message: on one line, truncated if it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
