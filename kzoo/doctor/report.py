"""All checks, one after another, or several at a time where there are processors for it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from kzoo.doctor import attention, devices, models
from kzoo.doctor.check import Check, finish, start
from kzoo.doctor.machine import machine
from kzoo.ops import context

MOST_THREADS = 8


def checks() -> Iterator[Check]:
    """Every check of this machine, in the order of the table."""
    yield from attention.checks()
    yield from models.checks()
    yield from devices.checks()


def examine(
    chosen: Iterable[Check] | None = None,
    *,
    say: Callable[[dict[str, Any]], Any] = lambda report: None,
) -> dict[str, Any]:
    """Run checks on the devices that the backend uses.

    Under JAX, where most of the time goes into compiling, one check for every two processors runs
    at a time.

    Args:
        chosen: the checks; by default `checks()`, all of them.
        say: called with the report so far, when a check begins and when it ends. So the last
            report tells what was running when a device ended the process.

    Returns:
        A dict of JSON values: `machine`; `rows`, one for each check as `kzoo.doctor.check.finish`
        leaves it; `off`, how many found something wrong; and `seconds`.

    Example:
        >>> short = (check for check in checks() if check.case == "bidirectional, 96 tokens")
        >>> report = examine(check for check in short if check.subject.startswith("softmax"))
        >>> report["off"]
        0
    """
    begin, lock = time.perf_counter(), threading.Lock()
    report: dict[str, Any] = {"machine": machine(), "rows": [], "off": 0, "seconds": 0.0}

    def run(check):
        row = start(check)
        with lock:
            report["rows"].append(row)
            say(report)
        found = finish(check)
        with lock:
            row.update(found)
            report["off"] += row["result"] in ("off", "raised")
            report["seconds"] = round(time.perf_counter() - begin, 1)
            say(report)

    say(report)
    with _quick_to_compile():
        _each(run, checks() if chosen is None else chosen)
    return report


def _each(run, chosen):
    processors = os.cpu_count() or 1
    threads = min(processors, MOST_THREADS) if keras.backend.backend() == "jax" else 1
    if threads <= 1:  # not every backend likes a thread of its own
        for check in chosen:
            run(check)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        for _ in pool.map(run, chosen):
            pass
    finally:  # an interrupt does not wait for the checks that have not begun
        pool.shutdown(wait=False, cancel_futures=True)


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
