"""What this machine is: what a report of a bug must say beside the errors."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras

from kzoo import __version__
from kzoo.ops import context

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin", "keras", "keras-hub"),
    *("numpy", "ml-dtypes", "torch", "tensorflow", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
)
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "LIBTPU_INIT_ARGS")


def machine() -> dict[str, Any]:
    """Versions, backend, devices and CPU: a dict of JSON values."""
    return {
        "kzoo": __version__,
        "backend": keras.backend.backend(),
        "platform": context.platform(),
        "devices": devices(),
        "cpu": cpu(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def devices() -> list[str]:
    """The kind of each device that the backend computes on."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    if backend == "torch":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [torch.cuda.get_device_name(i) for i in range(count)] or ["cpu"]
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    return [details(gpu).get("device_name", "gpu") for gpu in gpus] or ["cpu"]


def cpu() -> str:
    """The CPU's model, as the system names it."""
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
