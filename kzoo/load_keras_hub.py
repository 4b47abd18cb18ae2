"""Importing this imports keras-hub, and Keras before it as `kzoo.load_keras` says.

keras-hub loads TensorFlow where that is installed, whatever the backend; its C++ then tells of
GPUs on standard error, which a user of another backend cannot mean. A TF_CPP_MIN_LOG_LEVEL of the
user's stands.
"""

import importlib
import os

import kzoo.load_keras  # noqa: F401
from kzoo.backend import environment

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}

with environment({} if _QUIET.keys() <= os.environ.keys() else _QUIET):
    importlib.import_module("keras_hub")
