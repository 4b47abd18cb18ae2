"""Where compiled programs are kept, so that what is started again need not compile."""

import hashlib
import os
import platform
from pathlib import Path

_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_BYTES = 2**30


def keep_programs():
    """Have JAX keep programs in a folder of the user's; call it before JAX is imported.

    They go to `folder("jax")`, one for each number of threads, for which they are made too. A
    folder that the user has named in JAX_COMPILATION_CACHE_DIR is left as it is. JAX's locks let
    processes share it, and it holds a gigabyte at most.
    """
    base = folder("jax")
    if not os.environ.get(_DIRECTORY, str(base)).startswith(str(base)):
        return
    os.environ[_DIRECTORY] = f"{base}-{_threads()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def keeps_programs():
    """Whether JAX has been told to keep programs."""
    return bool(os.environ.get(_DIRECTORY))


def folder(name):
    """The path of `kzoo/name` in XDG_CACHE_HOME or ~/.cache, with a part for this kind of CPU."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kzoo" / name
    features = hashlib.sha256(_features().encode()).hexdigest()[:12]
    return base / f"{platform.machine()}-{features}"


def _threads():
    threads = os.environ.get("NPROC")  # as XLA counts them
    if threads is None and hasattr(os, "sched_getaffinity"):
        threads = len(os.sched_getaffinity(0))
    return threads or os.cpu_count()


def _features():
    """The instructions that the CPU has, as far as the system tells."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    for line in lines:
        if line.startswith(("flags", "Features")):
            return line
    return platform.processor()
