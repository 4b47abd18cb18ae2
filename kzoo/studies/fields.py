"""Checks of a study's fields: each returns the value as it is kept, or raises `InputError`."""

import re
from typing import Any

from kzoo.data import packing, tokenizer_spec
from kzoo.errors import InputError, unknown
from kzoo.values import LARGEST, is_boolean, is_count, is_number, shown

# The names that `kzoo.training.prepare` takes, which loads Keras.
OPTIMIZERS, SCHEDULES = ("adamw", "muon"), ("cosine", "wsd")
# How an arm is trained, with the defaults. A learning rate of None is that of the arm's width.
TRAINING: dict[str, Any] = {
    "learning_rate": None,
    "batch_size": 16,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 0.1,
}
_LONGEST = 100  # characters of a name
_MOST_SEEDS = 10_000


def count(field, value):
    if is_count(value):
        return value
    try:
        near = min(max(int(float(value)), 1), LARGEST)
    except (TypeError, ValueError, OverflowError):
        near = {"steps": 300, "evaluations": 5}.get(field, 16)
    raise InputError(
        f"{field} is a positive integer, at most {LARGEST}, such as {near}. "
        f"Received: {shown(value)}"
    )


def rate(field, value):
    if value is None or is_number(value) and value > 0:
        return value
    raise InputError(f"{field} is a positive number, such as 0.003. Received: {shown(value)}")


def share(field, value):
    if is_number(value) and 0 < value < 1:
        return value
    raise InputError(
        f"{field} is the part held out, a number between 0 and 1, such as 0.1. "
        f"Received: {shown(value)}"
    )


def text(field, value):
    if isinstance(value, str):
        return value
    raise InputError(f"{field} is a string. Received: {shown(value)}")


def folder_name(field, value):
    """Also the name of a folder, which stands where the user means it to stand."""
    name = value if isinstance(value, str) else ""
    fit = re.sub(r"[/\\]+|\s+", " ", "".join(c for c in name if c.isprintable())).strip(" .")
    fit = fit[:_LONGEST] or "study"
    if name == fit:
        return name
    raise InputError(
        f"{field} names a folder too: up to {_LONGEST} characters, no slashes, and no dots or "
        f"spaces at its ends, such as {fit!r}. Received: {shown(value)}"
    )


def sources(field, value):
    names = [value] if isinstance(value, str) else value
    strings = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if strings and names and len(set(names)) == len(names):
        return tuple(names)
    raise InputError(
        f"{field} is a source or a list of distinct ones, such as 'pydoc'. Received: {shown(value)}"
    )


def seeds(field, value):
    if is_count(value) and value <= _MOST_SEEDS:
        return tuple(range(value))
    given = value if isinstance(value, list) else []
    distinct = given and all(is_count(seed, least=0) for seed in given)
    if distinct and len(set(given)) == len(given) <= _MOST_SEEDS:
        return tuple(given)
    raise InputError(
        f"{field} are a number up to {_MOST_SEEDS:,}, or a list of distinct integers in [0, 2^31), "
        f"such as 2 or [0, 1]. Received: {shown(value)}"
    )


def mapping(field, value):
    if isinstance(value, dict) and value:
        return value
    raise InputError(f"{field} are a JSON object of labels. Received: {shown(value)}")


def switch(field, value):
    if is_boolean(value):
        return bool(value)
    raise InputError(f"{field} is true or false. Received: {shown(value)}")


def reasons(field, value):
    """Names of runs and why each is left out: `{"pydoc/GPT/3": "the machine failed"}`."""
    lines = (
        isinstance(value, dict)
        and value
        and all(
            isinstance(text, str) and text.strip() and text.isprintable() for text in value.values()
        )
    )
    if lines:
        return value
    raise InputError(
        f"{field} is a JSON object of the names of runs and reasons, such as "
        f'{{"pydoc/GPT/3": "the machine failed"}}. Received: {shown(value)}'
    )


def tokenizer(field, value):
    """`"bytes"`, one to train, or the path of a file that loses nothing, as
    `kzoo.data.tokenizer_spec` has it."""
    try:
        asked = tokenizer_spec.get(value)
        tokenizer_spec.check_lossless(asked)
        return asked
    except InputError as error:
        raise InputError(f"{field}: {error}") from None


def given(field, value):
    """Sources in memory, which `kzoo.data.load` checks row by row."""
    lists = isinstance(value, dict) and [isinstance(rows, list) for rows in value.values()]
    if lists and all(lists):
        return value
    raise InputError(
        f"{field} is a JSON object of names and lists of texts or pairs. Received: {shown(value)}"
    )


def part(field, value):
    """A part of a whole that may be nothing of it."""
    if is_number(value) and 0 <= value < 1:
        return value
    raise InputError(
        f"{field} is a part of the steps, a number from 0 up to 1, such as 0.1. "
        f"Received: {shown(value)}"
    )


def one_of(names):
    """A check that a value is one of some names."""

    def take(field, value):
        if isinstance(value, str) and value in names:
            return value
        raise unknown(field, value, names)

    return take


def rows(field, value):
    """How examples stand in rows, the JSON of a `kzoo.data.packing.Packing`; None: not said."""
    return None if value is None else packing.get(value).get_config()


CHECKS_OF_TRAINING = {
    "learning_rate": rate,
    "batch_size": count,
    "optimizer": one_of(OPTIMIZERS),
    "schedule": one_of(SCHEDULES),
    "warmup": part,
}
