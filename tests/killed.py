"""A run that is killed at random moments, and started again each time: `killed.py DIR KILLS`.

Prints a line of JSON. This process imports what a run needs and computes nothing, so that JAX has
no threads in it and each run is a fork of it.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads of NumPy either
import jax  # noqa: E402
import keras_hub  # noqa: E402, F401  # a second or two, once
import orbax.checkpoint  # noqa: E402, F401

from kzoo import data, models, presets  # noqa: E402, F401
from kzoo.training import Checkpoints, prepare, train  # noqa: E402

STEPS = 40
CONFIG = presets.config(
    "gpt_nano",
    num_layers=1,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=32,
    max_sequence_length=16,
    dropout=0.1,
)
TEXTS = [f"{i} green bottles" for i in range(60)]


def run(directory, checkpoints):
    """One run to its end; each loss is written down as soon as it is known."""
    jax.config.update("jax_compilation_cache_dir", str(directory.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    program = prepare(presets.build(CONFIG), 0.01, STEPS)
    splits = data.load(TEXTS, CONFIG, batch_size=4, valid=0.1, seed=0)
    with open(directory / "losses", "a", buffering=1) as file:
        outcome = train(
            program,
            splits,
            STEPS,
            evaluations=2,
            checkpoints=checkpoints,
            on_step=lambda step, loss: file.write(f"{step} {loss.hex()}\n"),
        )
    result = {"losses": [loss.hex() for loss in outcome.train_loss], "bits": outcome.held_out}
    (directory / "result.tmp").write_text(json.dumps(result))
    os.replace(directory / "result.tmp", directory / "result")


def start(directory, every):
    """A fork that runs; its process id."""
    assert threading.active_count() == 1
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            directory.mkdir(exist_ok=True)
            run(directory, every and Checkpoints(directory / "checkpoints", every=every, keep=2))
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid):
    done, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0, status
    return bool(done)


def killed(pid, log, steps, seconds):
    """Kill a process when it has logged so many steps, and so many seconds after that.

    False if it had come to its end. By steps, since on a busy machine seconds say little.
    """
    already = count(log)
    while count(log) < already + steps:
        if ended(pid):
            return False
        time.sleep(0.001)
    time.sleep(seconds)
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def count(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def read(directory):
    result = json.loads((directory / "result").read_text())
    lines = [line.split() for line in (directory / "losses").read_text().splitlines()]
    return result, [(int(step), loss) for step, loss in lines]


def main(root, kills):
    for name in ("compiling", "whole"):  # programs are compiled once, and then read
        begin = time.monotonic()
        os.waitpid(start(root / name, None), 0)
        starting = time.monotonic() - begin
    expected, _ = read(root / "whole")
    rng = random.Random(0)
    seen = {"kills": 0, "runs": 0, "steps again": 0, "while starting": 0, "while saving": 0}
    while seen["kills"] < kills:
        directory = root / f"run {seen['runs']}"
        log = directory / "losses"
        while True:
            pid = start(directory, every=2)
            if seen["kills"] == kills:
                assert os.waitpid(pid, 0)[1] == 0
                break
            steps = rng.choice([0, 1, 2, 3, 4, 6, 8])
            before = count(log)
            if not killed(pid, log, steps, rng.uniform(0, 0.3 if steps else starting)):
                break
            seen["kills"] += 1
            seen["while starting"] += count(log) == before
            seen["while saving"] += any(directory.glob("checkpoints/*.orbax-checkpoint-tmp*"))
        seen["runs"] += 1
        result, lines = read(directory)
        assert result == expected, "other losses than those of the whole run"
        assert {step for step, _ in lines} == set(range(1, STEPS + 1))
        for step, loss in lines:
            assert loss == expected["losses"][step - 1], f"step {step}"
        seen["steps again"] += len(lines) - STEPS
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
