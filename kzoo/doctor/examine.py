"""All checks, one after another, or several at a time where there are processors for it."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from kzoo.doctor import attention, models
from kzoo.doctor.check import Check, row
from kzoo.doctor.machine import machine
from kzoo.ops import context

MOST_THREADS = 8


def checks() -> Iterator[Check]:
    """Every check of this machine, in the order of the table."""
    yield from attention.checks()
    yield from models.checks()


def examine(
    chosen: Iterable[Check] | None = None,
    *,
    threads: int | None = None,
    say: Callable[[dict[str, Any]], Any] = lambda report: None,
) -> dict[str, Any]:
    """Run checks on the devices that the backend uses.

    Args:
        chosen: the checks; by default `checks()`, all of them.
        threads: how many run at a time: they mostly compile. By default one for every two
            processors under JAX, and one elsewhere.
        say: called after each check with the report so far.

    Returns:
        A dict of JSON values: `machine`; `rows`, one for each check as `kzoo.doctor.check.row`
        returns them; `off`, how many found something wrong; and `seconds`.

    Example:
        >>> report = examine(check for check in checks() if check.group == "saving")
        >>> report["off"]
        0
    """
    begin = time.perf_counter()
    report: dict[str, Any] = {"machine": machine(), "rows": [], "off": 0, "seconds": 0.0}
    if threads is None:
        spare = (os.cpu_count() or 1) // 2
        threads = max(1, min(spare, MOST_THREADS)) if keras.backend.backend() == "jax" else 1
    with _quick_to_compile(), ThreadPoolExecutor(threads) as pool:
        each = pool.map if threads > 1 else map  # not every backend likes a thread of its own
        for entry in each(row, checks() if chosen is None else chosen):
            report["rows"].append(entry)
            report["off"] += entry["result"] in ("off", "raised")
            report["seconds"] = round(time.perf_counter() - begin, 1)
            say(report)
    return report


@contextlib.contextmanager
def _quick_to_compile():
    """Inside it programs of JAX for a CPU compile in a fraction of the time, and run slower."""
    if keras.backend.backend() != "jax" or context.platform() != "cpu":
        yield
        return
    import jax

    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)
