"""Runs of a study in threads of this process, each on a device of its own.

One process holds an accelerator, so its devices cannot be shared out among processes. Keras keeps
its global state by thread, and JAX a default device: what a thread builds, trains and measures
sits on its device.
"""

import contextlib
import queue
import threading

import keras


def devices():
    """The devices to share runs out among: a list of JAX's, or an empty one.

    It is empty where there is one device, where a distribution spreads each run over all of
    them, and where `jax_default_device` names the one to use.
    """
    if keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
        return []
    import jax

    found = jax.local_devices()
    return found if len(found) > 1 and jax.config.jax_default_device is None else []


def on_the_first():
    """A context in which what is built and run sits on the first of `devices`."""
    places = devices()
    if not places:
        return contextlib.nullcontext()
    import jax

    return jax.default_device(places[0])


def share_out(jobs, places):
    """Split the seeds of jobs (source, label, seeds) where there are more places than jobs.

    Each part compiles for itself.
    """
    parts = -(-places // max(1, len(jobs)))
    return [
        (source, label, seeds[i::parts])
        for source, label, seeds in jobs
        for i in range(min(parts, len(seeds)))
    ]


def in_threads(work, jobs, say, devices):
    """`work(job, say)` for each job, one after another on each of the devices.

    Args:
        work: such as `kzoo.studies.runner.run_program`; it calls its `say` before and after
            what takes long.
        jobs: list of jobs, taken in order.
        say: called in this thread with what `work` says.
        devices: of JAX.

    Raises:
        Exception: what `work` raised first, after the other threads have ended: they stop where
            they next say something. What they have finished by then is said.
    """
    import jax

    waiting, messages, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for job in jobs:
        waiting.put(job)
    dtype_policy = keras.config.dtype_policy()  # by thread, too

    def tell(*what):
        messages.put(("said", what))
        if stop.is_set():
            raise _Stopped

    def run(device):
        try:
            keras.config.set_dtype_policy(dtype_policy)
            with jax.default_device(device):
                while not waiting.empty():
                    try:
                        job = waiting.get_nowait()
                    except queue.Empty:  # another thread was faster
                        break
                    work(job, tell)
        except _Stopped:
            pass
        except BaseException as error:
            messages.put(("failed", error))
        messages.put(("end", None))

    threads = [
        threading.Thread(target=run, args=(device,), name=str(device), daemon=True)
        for device in devices[: len(jobs)]
    ]
    for thread in threads:
        thread.start()
    working, failure = len(threads), None
    try:
        while working:
            kind, what = messages.get()
            if kind == "said":
                say(*what)
            elif kind == "failed":
                failure = failure or what
                stop.set()
            else:
                working -= 1
    finally:
        # Interrupted, say. Nothing of this study may go on beside what comes next.
        stop.set()
        for thread in threads:
            thread.join()
    if failure is not None:
        raise failure


class _Stopped(Exception):
    pass
