"""Where a result comes from: code, versions, machine."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import keras

from kzoo.layers import kernels
from kzoo.ops import context

BUILD_FILE = Path(__file__).parents[1] / "_build.json"  # which `build_commit.py` writes
PACKAGES = ("kzoo", "keras", "keras-hub", "numpy", "grain")
BACKEND_PACKAGES = {"jax": ("jax", "jaxlib"), "torch": ("torch",), "tensorflow": ("tensorflow",)}


def provenance(model, time):
    """What a record says of its origin: a dict of JSON values.

    Args:
        model: a task.
        time: tokens of a row that it was trained on.

    `commit` is that of the checkout, or of the one that an installed kzoo was built from; null
    where neither is known.
    """
    backend = keras.config.backend()
    by_layer = kernels(model, (None, time), context.platform())
    return {
        **_commit(),
        "versions": {name: _version(name) for name in PACKAGES + BACKEND_PACKAGES[backend]},
        "backend": backend,
        "device": _device(backend, model),
        "device_ids": _device_ids(backend, model),
        "platform": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "dtype": model.dtype_policy.name,
        "kernels": list(by_layer.values()),
        "kernel_of_layer": by_layer,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit():
    def git(*arguments):
        root = Path(__file__).parent
        try:
            done = subprocess.run(
                ["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # The checkout must be kzoo's own, not one that a virtual environment happens to stand in.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return built_from()
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}


def built_from(path=BUILD_FILE):
    """The commit that an installed kzoo was built from, as the build wrote it down."""
    try:
        built = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        built = {}
    return {name: built.get(name) for name in ("commit", "dirty")}


def processor():
    """The model of the CPU, or what the system knows of it."""
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model") and value.strip():
                return value.strip()
    if platform.system() == "Darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(asked, capture_output=True, text=True, timeout=10)
            if done.stdout.strip():
                return done.stdout.strip()
    return platform.processor() or platform.machine()


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device(backend, model):
    """The kind of device that holds the model, × how many do."""
    if backend == "jax":
        devices = _devices(model)
        return f"{devices[0].device_kind} × {len(devices)}"
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    return ", ".join(device.device_type for device in tf.config.list_logical_devices())


def _device_ids(backend, model):
    """Which of its devices those are; null where the backend does not say."""
    return [device.id for device in _devices(model)] if backend == "jax" else None


def _devices(model):
    devices = model.trainable_variables[0].value.sharding.device_set
    return sorted(devices, key=lambda device: device.id)
