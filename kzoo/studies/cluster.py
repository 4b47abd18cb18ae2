"""Runs of a study on a Ray cluster: one on each device, taken up again where a worker is lost.

Like `kzoo.studies.workers`, which this stands beside, it imports no Keras: a worker sets what it
needs in its environment first.
"""

import collections
import contextlib
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

from kzoo.errors import InputError, missing_package
from kzoo.studies.records import STUDY_FILE
from kzoo.studies.workers import STEP_SECONDS, load, named, prepare

RETRIES = 3  # of a run whose worker is lost: its process killed, its machine gone
_ANSWER = 10  # seconds in which a cluster answers
_PAUSE = 0.5  # seconds between two looks at what runs say of their steps


def keep_accelerators_free():
    """Let JAX in this process, which only hands out runs, leave accelerators to the workers."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def on_cluster(work, study, directory, jobs, say, address="", at_once=None):
    """`work` for each seed of each job, on a device of its own somewhere in a Ray cluster.

    A device is a GPU or TPU chip that Ray knows of; in a cluster without, a CPU core, so that a run
    has one thread. A run whose worker is lost begins again on another, up to three times; where
    the study's directory is one that all machines share, it goes on from its checkpoint. Data in
    files and the modules of `imports` are where every machine finds them.

    Args:
        work: such as `kzoo.studies.runner.run_program`.
        study, directory: as in `kzoo.studies.runner.run`.
        jobs: list of (source, label, seeds).
        say: as in `run_program`; called in this process.
        address: as `ray.init` takes it, `"HOST:6379"`, `"ray://HOST:10001"`; empty for the cluster
            that the environment variable RAY_ADDRESS names or that runs on this machine, or, where
            there is none, one that is started on this machine for the study.
        at_once: the most runs at once; None for as many as there are devices.

    Raises:
        InputError, OSError: what a run raised; or if no cluster answers, or Ray is not installed.
        ChildProcessError: if a run's worker is lost once more than it is retried.
        RuntimeError: if a run fails in another way. Runs that are finished are always kept.
    """
    waiting = collections.deque(
        (source, label, [seed]) for source, label, seeds in jobs for seed in seeds
    )
    if not waiting:
        return
    with joined(address) as ray, _messages(ray) as messages:
        needs, environment = _device(ray.cluster_resources()), _environment(study)
        task = ray.remote(_work).options(max_retries=RETRIES, **needs)
        most = at_once or len(waiting)
        fixed = (named(work), study, str(Path(directory).absolute()), environment, messages)
        hears, running = _Once(say), {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    job = waiting.popleft()
                    running[task.remote(job, *fixed)] = job
                done, _ = ray.wait([*running], timeout=_PAUSE)
                with contextlib.suppress(ray.exceptions.RayError):  # progress, and no more
                    for message in messages.get_nowait_batch(messages.qsize()):
                        hears(*message)
                for run in done:
                    job = running.pop(run)
                    for message in _result(ray, run, job):
                        hears(*message)
        finally:
            for run in running:
                with contextlib.suppress(Exception):
                    ray.cancel(run, force=True)


class _Once:
    """Hands on what runs say, as if each had begun once."""

    def __init__(self, say):
        self.say, self.begun, self.ended = say, set(), set()

    def __call__(self, kind, name, *what):
        if name in self.ended:  # a message that was on its way
            return
        if name not in self.begun:
            self.begun.add(name)
            self.say("begin", name)
        if kind == "record":
            self.ended.add(name)
        if kind != "begin":
            self.say(kind, name, *what)


@contextlib.contextmanager
def joined(address):
    """Ray, connected to a cluster as in `on_cluster`; at the end it is left, if it was joined here.

    Nothing happens for the address None.
    """
    if address is None:
        yield None
        return
    try:
        import ray
    except ModuleNotFoundError:
        raise missing_package("ray", "--ray") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default to come
    try:
        _reach(address)
        ray.init(address or None, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"a Ray cluster is asked for that answers ({text[:200]}). Received: {address!r}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address):
    """`OSError` if nothing answers at HOST:PORT, for which Ray would wait a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextlib.contextmanager
def _messages(ray):
    """A queue on this machine, which is lost with this process only."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    try:
        yield queue
    finally:
        queue.shutdown(force=True)


def _device(resources):
    """What one run takes of a cluster, as options of a task."""
    if resources.get("TPU"):
        return {"resources": {"TPU": 1}}
    if resources.get("GPU"):
        return {"num_gpus": 1}
    return {"num_cpus": 1}


def _environment(study):
    """What a worker is to be like, from what this process is like."""
    return {
        "backend": sys.modules["keras"].config.backend(),  # which a script may have chosen itself
        "without_tensorflow": sys.modules.get("tensorflow", 0) is None,
        "paths": [path for path in sys.path if path],
        "imports": study.imports,
    }


def _result(ray, run, job):
    """The messages of a run that has ended."""
    try:
        return ray.get(run)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from None
        if isinstance(cause, OSError):
            raise OSError(*cause.args) from None
        raise RuntimeError(f"a run of the study failed:\n{error}") from None
    except ray.exceptions.RayError as error:
        source, label, (seed,) = job
        raise ChildProcessError(
            f"the worker of a run was lost {RETRIES + 1} times, of too little memory perhaps; "
            f"start the study again and it goes on from there. Received: {source}/{label}/{seed}, "
            f"{type(error).__name__}"
        ) from None


def _work(job, work, study, directory, environment, messages):
    """In a worker: the run's last messages; those before go to the queue."""
    import ray

    own = [path for path in environment["paths"] if path not in sys.path and os.path.isdir(path)]
    sys.path += own
    on_cpu = not any(map(len, ray.get_runtime_context().get_accelerator_ids().values()))
    if not on_cpu:
        os.environ.pop("JAX_PLATFORMS", None)  # of the process that started the cluster
    threads = 1 if on_cpu else None
    prepare(environment["backend"], environment["without_tensorflow"], threads)
    said, last = 0.0, []

    def say(kind, *what):
        nonlocal said
        if kind == "record":
            last.append((kind, *what))
        elif kind != "step" or time.monotonic() - said > STEP_SECONDS:
            said = time.monotonic()
            with contextlib.suppress(ray.exceptions.RayError):
                messages.put((kind, *what))

    with _folder(directory) as folder:
        load(work, environment["imports"])(study, folder, *job, say)
    return last


@contextlib.contextmanager
def _folder(directory):
    """The study's directory, or, on a machine that has it not, a new one for the run."""
    if (Path(directory) / STUDY_FILE).is_file():
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory(prefix="kzoo-") as folder:
        yield Path(folder)
