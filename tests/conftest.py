import atexit
import gc
import hashlib
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

# What tests make in a moment is not looked through for garbage after every 700 objects.
gc.set_threshold(50_000, 20, 100)
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or libtpu, which compiles here, looks for a TPU
# Tests compile much and run little: without optimisation a step compiles in a fifth of the time,
# and in one piece, since two processes share the processors, in 0.9 of that.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
flags.append("--xla_llvm_disable_expensive_passes=true")
KNOWN_JAX = metadata.version("jaxlib").startswith("0.10.")
if KNOWN_JAX:  # later ones end the process at its name
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Two processes share the processors: torch's threads would wait for one another, busily.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start share what they compile, in a folder that the first of them removes
# at its end; nothing is kept in the home of who runs the tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix="kzoo-tests-compiled-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
if os.environ["KERAS_BACKEND"] == "torch":
    sys.modules["tensorflow"] = None  # which no test needs there, and keras-hub would load


def pytest_collection_finish():
    """What is imported by now stays, and no collection of garbage need look at it again.

    Keras collects garbage for every weight that it quantises, half a second each.
    """
    gc.collect()
    gc.freeze()
    # Processes that tests start find kzoo, and load Keras in half the time.
    tests = Path(__file__).parent
    path = [str(tests / "startup"), str(tests.parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if "jax" in sys.modules and KNOWN_JAX:  # both change private functions of JAX
        share_contexts()
        share_programs()
        # Here `share_programs` finds nearly all that the folder would, without writing any.
        sys.modules["jax"].config.update("jax_enable_compilation_cache", False)


def share_contexts(programs=100):
    """JAX makes a context of MLIR, with all its dialects, for each program that it lowers: a
    quarter of what it takes to compile one operation. Here so many programs share one."""
    from jax._src.interpreters import mlir

    make, made = mlir.make_ir_context, []

    def shared():
        if len(made) % programs == 0:
            made[:] = [make()]
        else:
            made.append(made[0])
        return made[0]

    mlir.make_ir_context = shared


PROGRAMS = {}  # those that were compiled, by what they compute


def share_programs():
    """Equal programs are compiled once, as those of two models that differ in values alone are:
    of seeds, of a run that goes on, of a model and its copy from a file."""
    from jax._src import compiler

    compile_, made = compiler.backend_compile_and_load, PROGRAMS

    def shared(backend, module, devices, options, callbacks):
        text = module.operation.get_asm(enable_debug_info=False)
        if callbacks or "callback" in text:  # which are Python's, of one program
            return compile_(backend, module, devices, options, callbacks)
        text = hashlib.sha256(text.encode()).digest()
        key = backend, text, devices, options.SerializeAsString()
        if key not in made:
            made[key] = compile_(backend, module, devices, options, callbacks)
        return made[key]

    compiler.backend_compile_and_load = shared


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_stay():
    """What a file's tests leave behind, above all what JAX keeps of programs, stays as well: some
    gigabytes by the end, which every full collection would go through."""
    yield
    if memory_maps() > 20_000:
        let_programs_go()
    gc.collect()
    gc.freeze()


def memory_maps():
    """Parts of memory that this process has mapped: about three for each compiled program. Linux
    ends a process that asks for more than 65,530."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


def let_programs_go():
    """What is needed again is compiled again."""
    PROGRAMS.clear()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.unfreeze()


@pytest.fixture
def no_spectra(monkeypatch):
    """Studies' runs without spectra, which compile ninety operations for each shape."""
    monkeypatch.setattr("kzoo.studies.runner.attention_spectrum", lambda model, batch: [])
