"""The C++ beside this file, compiled for this machine's CPU when it is first needed.

As PyTorch's and Triton's compilers do, it asks the system's C++ compiler, and keeps what comes out
in the user's cache. XLA calls it through its foreign function interface.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import jax

from kzoo.program_cache import folder

log = logging.getLogger("kzoo")

SOURCES = ("handlers.cc", "checks.h", "linear.h", "softmax.h", "tile.h")
COMPILERS = ("c++", "g++", "clang++")
# For ARM, compilers take the kind of CPU by another name.
TUNED = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", TUNED, "-fPIC", "-shared")
TARGETS = (
    "kzoo_softmax_forward",
    "kzoo_softmax_backward",
    "kzoo_linear_forward",
    "kzoo_linear_backward",
)


@functools.cache
def missing() -> str | None:
    """Why JAX cannot call the C++ here, in words, said once in the log too; None where it can."""
    try:
        library = ctypes.CDLL(str(_compiled()))
        for name in TARGETS:
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        line = next((line for line in lines if "error" in line), lines[0])
        reason = f"kzoo's kernels in C++ could not be made: {line}"
        log.warning("%s; attention runs in XLA's operations, which are slower", reason)
        return reason
    return None


def _compiled():
    """The path of the library, made before by this or an earlier process."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError(f"no C++ compiler is found, none of {', '.join(COMPILERS)}")
    here = Path(__file__).parent
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    parts = [(here / name).read_text() for name in SOURCES]
    parts += [compiler, version.stdout, *FLAGS, metadata.version("jaxlib")]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = folder("native") / f"{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("compiling attention for this CPU, once: some ten seconds")
        # Beside the final path, so that it takes its name in one step.
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / path.name
            include = ["-isystem", jax.ffi.include_dir()]  # its warnings are not ours
            command = [compiler, *FLAGS, *include, str(here / SOURCES[0]), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
            os.replace(made, path)
    return path
