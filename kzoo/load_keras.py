"""Importing this imports Keras, with the backend that `kzoo.backend` says.

Every package of kzoo that imports Keras imports this first.
"""

from kzoo.backend import load_keras

load_keras()
