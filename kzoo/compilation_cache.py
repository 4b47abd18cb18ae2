"""The compilation cache: compiled programs on disk, so that what is started again need not compile.

What is kept is run, so whoever can write it could run programs as this user: folders and files
belong to the user, and nobody else can write them.
"""

import hashlib
import logging
import os
import platform
import stat
from pathlib import Path

log = logging.getLogger("kzoo")

_DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
_BYTES = 2**30
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def use_compilation_cache():
    """Have JAX cache compiled programs in a folder of the user's; call it before JAX is imported.

    They go to `folder("jax")`, one for each number of threads, for which they are made too. A
    folder that the user has named in JAX_COMPILATION_CACHE_DIR is left as it is. JAX's locks let
    processes share it, and it holds a gigabyte at most. Where there is no such folder, nothing is
    kept, and the log says why.
    """
    named = os.environ.get(_DIRECTORY)
    try:
        base = folder("jax")
        if named is not None and not named.startswith(str(base)):
            return
        kept = private(base.with_name(f"{base.name}-{_threads()}"))
    except OSError as error:
        if named is None:
            log.warning("compiled programs are not kept: %s", error)
        return
    os.environ[_DIRECTORY] = str(kept)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_BYTES))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def uses_compilation_cache():
    """Whether JAX has been told to cache compiled programs."""
    return bool(os.environ.get(_DIRECTORY))


def folder(name):
    """The absolute path of `kzoo/name` in XDG_CACHE_HOME or ~/.cache, with a part for this CPU.

    Raises:
        OSError: if the user has no home directory.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # its specification has relative ones ignored
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            pass
    if not cache.is_absolute():
        raise OSError("there is no home directory; XDG_CACHE_HOME may name a folder for caches")
    features = hashlib.sha256(_features().encode()).hexdigest()[:12]
    return cache / "kzoo" / name / f"{platform.machine()}-{features}"


def private(path):
    """Make a folder that `folder` named, closed to others, and return its path.

    Raises:
        OSError: if it cannot be made, or it or one of the two around it is another user's.
    """
    for part in (path.parent.parent, path.parent, path):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not hasattr(os, "geteuid"):  # not on Windows
            continue
        about = part.stat()
        if about.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{part} belongs to another user, whose programs are not run")
        if about.st_mode & _OTHERS:
            part.chmod(stat.S_IMODE(about.st_mode) & ~_OTHERS)
    return path


def is_private(path):
    """Whether a file is this user's or root's, and nobody else can write it."""
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True
    return about.st_uid in (0, os.geteuid()) and not about.st_mode & _OTHERS


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
