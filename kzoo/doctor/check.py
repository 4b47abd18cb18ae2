"""One check, and the row of the table that it becomes."""

import collections
import dataclasses
import functools
import math
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


class Refused(Exception):
    """Raised by a check of what is not to be had here, with the reason."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        error: how far off the result is; not a number where the result is none.
        tolerance: the largest error that is all right.
        note: what the reader of the table should know besides.
    """

    error: float
    tolerance: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Check:
    """Something to compute and to compare.

    Attributes:
        group: what kind of check: "attention", "training", "generation", "saving" or "devices".
        subject: what is checked, e.g. `"softmax by cudnn"`.
        case: at which input, e.g. `"causal, 1091 tokens"`.
        dtype: in which it computes.
        run: called without arguments; returns a `Finding`, or raises.
    """

    group: str
    subject: str
    case: str
    dtype: str
    run: Callable[[], Finding]


def start(check: Check) -> dict[str, Any]:
    """The row of a check that runs now: a dict of JSON values, with the result "running"."""
    names = ("group", "subject", "case", "dtype")
    known = {name: getattr(check, name) for name in names}
    found = {"result": "running", "error": None, "tolerance": None, "note": ""}
    return {**known, **found, "traceback": None, "seconds": 0.0}


def finish(check: Check) -> dict[str, Any]:
    """Run a check: what its row says from then on, a dict of JSON values.

    `result` is "ok", "off" (the error is above the tolerance, or not a number), "raised" (with its
    `traceback`) or "refused" (with the reason in `note`: it is not to be had here).
    """
    begin = time.perf_counter()
    try:
        found = _compared(check.run())
    except Refused as refusal:
        found = {"result": "refused", "note": str(refusal)}
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        note = ": ".join([type(error).__name__, *first])
        found = {"result": "raised", "note": note, "traceback": traceback.format_exc()}
    return {**found, "seconds": round(time.perf_counter() - begin, 3)}


def _compared(found):
    known = math.isfinite(found.error)
    return {
        "result": "ok" if known and found.error <= found.tolerance else "off",
        "error": found.error if known else None,
        "tolerance": found.tolerance,
        "note": found.note if known else f"not a number: {found.note}",
    }


def once(function: Callable) -> Callable:
    """`functools.cache` for checks that run in threads: what two need at a time is made once."""
    locks: dict[tuple, Any] = collections.defaultdict(threading.Lock)
    cached = functools.cache(function)

    @functools.wraps(function)
    def call(*arguments):
        with locks[arguments]:
            return cached(*arguments)

    return call
