"""Which backend Keras has: one rule for Python and for the command line.

It is the one that the environment variable KERAS_BACKEND names, else JAX. Keras's own rule is
another: without KERAS_BACKEND it takes the one in ~/.keras/keras.json, where it has written
"tensorflow" itself the first time that it was imported. Where Keras is imported before kzoo, its
choice stands, and is said if it is another than this rule's.
"""

import importlib.util
import logging
import os
import sys

BACKENDS = ("jax", "tensorflow", "torch")
DEFAULT = "jax"
VARIABLE = "KERAS_BACKEND"


def chosen():
    """The backend by the rule, and who chose it: `("jax", "the default")`, say."""
    named = os.environ.get(VARIABLE)
    return (named, VARIABLE) if named else (DEFAULT, f"the default; {VARIABLE} chooses another")


def load_keras():
    """Import Keras with the backend of the rule, leaving the environment as it is."""
    if "keras" in sys.modules:
        _say_if_other(sys.modules["keras"].config.backend())
        return
    name, _ = chosen()
    with environment({VARIABLE: name}):
        importlib.import_module("keras")


def installed(package):
    """Whether a package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


class environment:
    """A context with other environment variables; at its end they are what they were.

    Example:
        >>> with environment({"TF_CPP_MIN_LOG_LEVEL": "3"}):
        ...     os.environ["TF_CPP_MIN_LOG_LEVEL"]
        '3'
    """

    def __init__(self, variables):
        self.variables = variables

    def __enter__(self):
        self.before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)

    def __exit__(self, *error):
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _say_if_other(backend):
    name, _ = chosen()
    if backend != name:
        logging.getLogger("kzoo").warning(
            "the backend is %s, which Keras chose when it was imported; kzoo and its commands take "
            "%s. Set %s before Keras is imported to choose",
            *(backend, name, VARIABLE),
        )
