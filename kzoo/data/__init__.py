"""Text and pairs as Grain datasets of batches, split once into train and held-out."""

from kzoo.data import sources, tasks
from kzoo.data.pipeline import Splits, load

__all__ = ["Splits", "load", "sources", "tasks"]
