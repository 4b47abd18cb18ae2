"""Importing this imports Keras, with the backend that `kzoo.backend` says.

Every package of kzoo that imports Keras imports this first. Modules that answer without Keras take
it inside their functions, from here: `from kzoo.load_keras import ops`.
"""

from kzoo.backend import load_keras

load_keras()

import keras  # noqa: E402
from keras import ops  # noqa: E402

__all__ = ["keras", "ops"]
