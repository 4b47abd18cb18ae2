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
sys.modules["tensorflow"] = None
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


def killed(pid, after):
    """Kill a process after so many seconds; False if it had come to its end."""
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return False
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def read(directory):
    result = json.loads((directory / "result").read_text())
    lines = [line.split() for line in (directory / "losses").read_text().splitlines()]
    return result, [(int(step), loss) for step, loss in lines]


def main(root, kills):
    for name in ("compiling", "whole"):  # programs are compiled once, and then read
        begin = time.monotonic()
        assert not killed(start(root / name, None), 600)
    longest = 2 * (time.monotonic() - begin)  # writing checkpoints takes time too
    expected, _ = read(root / "whole")
    rng = random.Random(0)
    seen = {"kills": 0, "runs": 0, "steps again": 0, "before a step": 0, "while saving": 0}
    while seen["kills"] < kills:
        directory = root / f"run {seen['runs']}"
        while True:
            log = directory / "losses"
            before = log.read_text() if log.exists() else ""
            pid = start(directory, every=2)
            if seen["kills"] == kills:
                assert not killed(pid, 600)
                break
            if not killed(pid, rng.uniform(0, longest)):
                break
            seen["kills"] += 1
            seen["before a step"] += before == (log.read_text() if log.exists() else "")
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
