"""Timing in rounds: all contestants are prepared, then each runs once in every round, so that a
temporary load of the machine slows all of them down.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata

import keras
import numpy as np

from kzoo.errors import InputError
from kzoo.ops import context
from kzoo.values import LARGEST, is_count, plain

PEAK_SIZE, PEAK_ROUNDS = 2048, 5
PAUSE = 0.05  # seconds, after which the threads of the last contestant no longer spin
PACKAGES = ("kzoo", "jax", "jaxlib", "keras", "keras-hub", "numpy", "torch", "transformers")


class Skip(Exception):
    """Raised by a contestant that cannot run, with the reason for the table."""


@dataclasses.dataclass(frozen=True)
class Ready:
    """A prepared contestant.

    Attributes:
        run: called without arguments; returns when the work is done.
        facts: further entries of its results, a dict of JSON values.
    """

    run: Callable
    facts: dict = dataclasses.field(default_factory=dict)


def counts(values):
    """`{name: value}` with Python's integers; `InputError` for what is no positive integer."""
    for name, value in values.items():
        if not is_count(value):
            raise InputError(
                f"{name} must be a positive integer, at most {LARGEST}. Received: {value!r}"
            )
    return plain(values)


def lengths(name, values):
    """Distinct positive integers, in order; `InputError` for anything else."""
    values = plain(values)
    if not isinstance(values, list) or not values:
        raise InputError(f"{name} must be a list of at least one length. Received: {values!r}")
    for value in values:
        counts({name: value})
    return sorted(set(values))


def race(entries, rounds, *, limit=float("inf"), say=lambda text: None):
    """Time contestants in rounds.

    Args:
        entries: dict from names to functions without arguments that return a `Ready`, or raise
            `Skip` or `InputError` with the reason why they cannot.
        rounds: how often each one runs, after one call that is not counted.
        limit: seconds; a contestant whose first call takes longer does not run again.
        say: called with lines about the progress.

    Returns:
        A dict from names to dicts: `reason`, None if it ran; `first_seconds` of the call
        that is not counted; `seconds`, `median_seconds` and `iqr_seconds` (interquartile
        range) of the others, None if it did not run; and its facts.

    Example:
        >>> race({"sleep": lambda: Ready(lambda: time.sleep(0.1))}, 3)["sleep"]["reason"]
    """
    results, ready = {}, {}
    for name, prepare in entries.items():
        results[name] = {"reason": None, "first_seconds": None, **statistics([])}
        try:
            say(f"{name}: getting ready")
            entry = prepare()
        except (Skip, InputError) as error:
            results[name]["reason"] = str(error)
            continue
        first = _timed(entry.run)
        results[name] |= {**entry.facts, "first_seconds": first}
        if first > limit:
            results[name]["reason"] = f"one call took {first:.0f} s"
        else:
            ready[name] = entry.run
    seconds = {name: [] for name in ready}
    for i in range(rounds):
        for name, run in ready.items():
            say(f"{name}: round {i + 1} of {rounds}")
            time.sleep(PAUSE)
            seconds[name].append(_timed(run))
    for name in ready:
        results[name] |= statistics(seconds[name])
    return results


def ratio(result, to):
    """The median divided by that of `to`; None if one of them did not run."""
    mine, others = (x["median_seconds"] if x else None for x in (result, to))
    return mine / others if mine and others else None


def _timed(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def statistics(seconds):
    """The seconds, their median and interquartile range; these are None without seconds."""
    if not seconds:
        return {"median_seconds": None, "iqr_seconds": None, "seconds": []}
    low, median, high = np.percentile(seconds, [25, 50, 75])
    spread = {"median_seconds": float(median), "iqr_seconds": float(high - low)}
    return {**spread, "seconds": list(seconds)}


# The machine --------------------------------------------------------------------------------


def check_jax():
    """`InputError` unless Keras runs on JAX, whose compiled programs are what is measured."""
    if keras.backend.backend() != "jax":
        raise InputError(
            "the benchmark needs the JAX backend; set KERAS_BACKEND=jax. "
            f"Received: {keras.backend.backend()!r}"
        )


def peer_torch():
    """The module torch, on all processors; `Skip` if it cannot be compared."""
    if context.platform() != "cpu":
        raise Skip(f"torch is compared on a CPU only; JAX runs on a {context.platform()} here")
    try:
        import torch
    except ImportError as error:
        raise Skip("torch is not installed") from error
    torch.set_num_threads(processors())
    return torch


def processors():
    """How many of the machine's processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def matmul_peak(say=lambda text: None):
    """The fastest product of two float32 matrices, side 2048, over five rounds.

    Returns:
        A dict of floating-point operations (two per multiply-add) per second: `xla`, `torch`
        (None where it does not run), and `best`.
    """
    a, b = np.random.default_rng(0).normal(size=(2, PEAK_SIZE, PEAK_SIZE)).astype("float32")

    def xla():
        import jax

        matrices = jax.device_put((a, b))
        product = jax.jit(lambda a, b: a @ b)
        return Ready(lambda: jax.block_until_ready(product(*matrices)))

    def torch():
        module = peer_torch()
        matrices = module.from_numpy(a), module.from_numpy(b)
        return Ready(lambda: module.matmul(*matrices))

    results = race({"xla": xla, "torch": torch}, PEAK_ROUNDS, say=lambda t: say(f"peak, {t}"))
    rates = {
        name: 2 * PEAK_SIZE**3 / min(result["seconds"]) if result["seconds"] else None
        for name, result in results.items()
    }
    return {**rates, "best": max(rate for rate in rates.values() if rate)}


def machine():
    """The machine and versions that the timings depend on: a dict of JSON values."""
    return {
        "platform": platform.platform(),
        "device": context.platform(),
        "processors": processors(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "native": _native(),
        # Above 0 at the start if something else runs, which makes timings less reliable.
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _native():
    """Why kzoo's C++ does not run, or None. Builds it, before any contestant is timed."""
    if context.platform() != "cpu":
        return "JAX does not run on a CPU"
    from kzoo.ops.kernels.native.library import missing

    return missing()


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
