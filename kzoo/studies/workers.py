"""Programs of a study in processes of their own, so that small ones do not wait for each other.

Nothing here imports Keras: a process sets what it needs in its environment first.
"""

import logging
import multiprocessing
import os
import pkgutil
import queue
import signal
import sys
import time
import traceback

from kzoo.compilation_cache import use_compilation_cache, uses_compilation_cache
from kzoo.errors import InputError

MOST = 8  # processes: each holds a backend of its own, some hundred MB
STEP_SECONDS = 0.5  # between two steps that a process tells of


def processes():
    """How many programs this machine's cores run best at once."""
    return min(_cores(), MOST)


def named(function):
    """The name by which another process finds a function of a module: `load` takes it."""
    return f"{function.__module__}:{function.__qualname__}"


def load(name, imports=()):
    """The function that `named` has named, after the modules of a study's `imports`."""
    from kzoo.studies import modules

    if imports:
        modules.imports("imports", imports)
    return pkgutil.resolve_name(name)


def prepare(backend, without_tensorflow, threads=None):
    """Set what Keras and its backend read when they are imported, in a process that has not.

    Args:
        backend: of Keras.
        without_tensorflow: whether nothing is to load TensorFlow.
        threads: of the CPU; None for all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    logging.getLogger("kzoo.preemption").setLevel(logging.ERROR)  # and says what is saved
    os.environ["KERAS_BACKEND"] = backend
    if threads is not None:
        os.environ["NPROC"] = str(threads)  # of XLA's pool
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if uses_compilation_cache():
        use_compilation_cache()  # those for that number of threads
    if without_tensorflow:
        sys.modules.setdefault("tensorflow", None)


def in_processes(work, study, directory, jobs, say, count):
    """`work(study, directory, *job, say)` for each job, in up to `count` processes.

    Args:
        work: such as `kzoo.studies.runner.run_program`, a function of a module.
        study, directory: as in `kzoo.studies.runner.run`.
        jobs: list of (source, label, seeds).
        say: as in `run_program`; called in this process.
        count: among how many processes the cores are shared out; as many run as there are jobs.

    Raises:
        InputError, OSError: what a process raised, such as on a full disk.
        ChildProcessError: if a process dies.
        RuntimeError: if a process fails in another way. Runs that are finished are always kept.
    """
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.Queue(), context.Queue()
    for job in [*jobs, *[None] * count]:  # a None ends a process
        waiting.put(job)
    without_tensorflow = sys.modules.get("tensorflow", 0) is None
    threads = max(1, _cores() // count)
    count = min(count, len(jobs))
    backend = sys.modules["keras"].config.backend()  # which a script may have chosen itself
    arguments = (
        named(work),
        study,
        directory,
        waiting,
        messages,
        threads,
        without_tensorflow,
        backend,
    )
    workers = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        working = count
        while working:
            try:
                kind, *what = messages.get(timeout=1)
            except queue.Empty:
                if any(worker.exitcode for worker in workers):
                    raise ChildProcessError(
                        "a process of the study died, of too little memory perhaps; start the "
                        "study again and it goes on from there. "
                        f"Received: exit codes {[worker.exitcode for worker in workers]}"
                    ) from None
                continue
            if kind == "refused":
                raise what[0]
            if kind == "failed":
                raise RuntimeError(f"a process of the study failed:\n{what[0]}")
            if kind == "end":
                working -= 1
            else:
                say(kind, *what)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _work(work, study, directory, waiting, messages, threads, without_tensorflow, backend):
    prepare(backend, without_tensorflow, threads)
    try:
        run_program = load(work, study.imports)
        said, parent = 0.0, os.getppid()

        def say(kind, *what):
            nonlocal said
            if os.getppid() != parent:  # killed, so nobody would write down what comes
                os._exit(1)
            now = time.monotonic()
            if kind != "step" or now - said > STEP_SECONDS:
                messages.put((kind, *what))
                said = now

        while (job := waiting.get()) is not None:
            run_program(study, directory, *job, say)
        messages.put(("end",))
    except InputError as error:
        messages.put(("refused", InputError(str(error))))
    except OSError as error:
        what = (error.errno, error.strerror, error.filename) if error.errno else (str(error),)
        messages.put(("refused", OSError(*what)))
    except Exception:
        messages.put(("failed", traceback.format_exc()))


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
