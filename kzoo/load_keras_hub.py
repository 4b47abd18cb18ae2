"""Importing this imports keras-hub, and Keras before it as `kzoo.load_keras` says.

keras-hub imports TensorFlow where that is installed, whatever the backend, and TensorFlow's C++
then tells standard error which GPUs it misses. Such lines are left out; all others come through,
when the import is done.
"""

import contextlib
import importlib
import os
import re
import sys
import tempfile

import kzoo.load_keras  # noqa: F401
from kzoo.backend import installed

_OF_TENSORFLOW = re.compile(rb"[IW]\d{4} \d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] ")
_OF_TENSORFLOW_TOO = b"WARNING: All log messages before absl::InitializeLog() is called"


@contextlib.contextmanager
def _left_out():
    """A context in which what C++ writes to standard error is kept, and sifted at its end."""
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not (_OF_TENSORFLOW.match(line) or line.startswith(_OF_TENSORFLOW_TOO)):
                    os.write(2, line)


def _loads_tensorflow():
    if "keras_hub" in sys.modules or "tensorflow" in sys.modules:
        return False  # it is there already, or kept out
    return installed("tensorflow")


with _left_out() if _loads_tensorflow() else contextlib.nullcontext():
    importlib.import_module("keras_hub")
