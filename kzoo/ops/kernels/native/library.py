"""The C++ beside this file, compiled for this machine's CPU when it is first needed.

As PyTorch's and Triton's compilers do, it asks the system's C++ compiler, and keeps what comes out
in the user's cache. A kept library has the checksum of its bytes in its name, so one that is cut
or changed is made again. XLA calls it through its foreign function interface.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import jax

from kzoo.compilation_cache import folder, is_private, private

log = logging.getLogger("kzoo")

SOURCES = ("handlers.cc", "checks.h", "gated.h", "linear.h", "softmax.h", "tile.h")
COMPILERS = ("c++", "g++", "clang++")
# For ARM, compilers take the kind of CPU by another name.
TUNED = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", TUNED, "-fPIC", "-shared")
TARGETS = (
    "kzoo_softmax_forward",
    "kzoo_softmax_backward",
    "kzoo_linear_forward",
    "kzoo_linear_backward",
    "kzoo_gated_forward",
    "kzoo_gated_backward",
)


# What opens a new library first, in a process that may die of it.
PROOF = "import ctypes, sys; [getattr(ctypes.CDLL(sys.argv[1]), name) for name in sys.argv[2:]]"
HERE = Path(__file__).parent


@functools.cache
def missing() -> str | None:
    """Why JAX cannot call the C++ here, in words, said once in the log too; None where it can."""
    try:
        library = _library()
        for name in TARGETS:
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except Exception as error:  # whatever it is: attention can do without
        reason = f"kzoo's kernels in C++ could not be made: {_line(error)}"
        log.warning("%s; attention runs in XLA's operations, which are slower", reason)
        return reason
    return None


def _library():
    """The library as the first compiler that works makes it, or has made it before."""
    compilers = list(filter(None, map(shutil.which, COMPILERS)))
    if not compilers:
        raise OSError(f"no C++ compiler is found, none of {', '.join(COMPILERS)}")
    kept, failures = private(folder("native")), []
    for compiler in compilers:
        try:
            return _made_by(compiler, kept)
        except Exception as error:  # compilers fail in many ways
            failures.append(f"{compiler}: {_line(error)}")
    raise OSError("; ".join(failures))


def _made_by(compiler, kept):
    """The library, from the folder `kept` where it is there and whole."""
    parts = [(HERE / name).read_bytes() for name in SOURCES]
    words = compiler, _output([compiler, "--version"], 60), *FLAGS, metadata.version("jaxlib")
    parts += [word.encode() for word in words]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    for path in kept.glob(f"{key}-*.so"):
        # One that is not whole would end the process with SIGBUS.
        if is_private(path) and path.name == _name(key, path):
            try:
                return _opened(path)
            except (OSError, AttributeError):
                pass  # it is made again
        path.unlink(missing_ok=True)
    log.info("compiling attention for this CPU, once: some ten seconds")
    # Beside the final path, so that it takes its name in one step.
    with tempfile.TemporaryDirectory(dir=kept) as work:
        made = Path(work) / "kzoo.so"
        include = ["-isystem", jax.ffi.include_dir()]  # its warnings are not ours
        command = [compiler, *FLAGS, *include, str(HERE / SOURCES[0]), "-o", str(made)]
        _output(command, 600)
        _output([sys.executable, "-I", "-S", "-c", PROOF, str(made), *TARGETS], 60)
        made.chmod(0o600)
        path = kept / _name(key, made)
        os.replace(made, path)
    return _opened(path)


def _name(key, path):
    return f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()}.so"


def _opened(path):
    library = ctypes.CDLL(str(path))
    for name in TARGETS:
        getattr(library, name)
    return library


def _output(command, seconds):
    """What a command prints: in English, and whatever bytes it is made of."""
    options = {"encoding": "utf-8", "errors": "replace", "env": {**os.environ, "LC_ALL": "C"}}
    options |= {"capture_output": True, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, check=True, timeout=seconds, **options).stdout


def _line(error):
    """The line that says most of what an error says."""
    said = getattr(error, "stderr", None) or str(error) or type(error).__name__
    lines = str(said).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "error" in line), lines[0])
