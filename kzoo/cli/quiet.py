"""What the libraries below would say on standard error, kept out of commands."""

import importlib.metadata
import logging
import os
import sys
from pathlib import Path

from kzoo.backend import installed

_GOOGLE = "0x1ae0"  # the vendor of a TPU on the PCI bus, as JAX looks for it


class Handler(logging.StreamHandler):
    """Writes to what standard error is now: above a progress bar, while one is shown."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, stream):
        pass


def others():
    """Have TensorFlow, absl, libtpu and JAX say errors only; before any of them is imported.

    A user's own settings stand. Where libtpu is installed for `kzoo compile` and there is no TPU,
    JAX would look for one, at length: it is told to take the CPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GLOG_minloglevel", "2")
    for name in ("absl", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if "JAX_PLATFORMS" not in os.environ and not _accelerated():
        os.environ["JAX_PLATFORMS"] = "cpu"


def _accelerated():
    """Whether JAX may find something else than a CPU: a TPU, or a plugin for a GPU, say."""
    if importlib.metadata.entry_points(group="jax_plugins") or installed("jax_plugins"):
        return True
    return any(map(_is_google, Path("/sys/bus/pci/devices").glob("*/vendor")))


def _is_google(path):
    try:
        return path.read_text().strip() == _GOOGLE
    except OSError:
        return False
