"""Training in segments: optimizer, per-step losses, checkpoints, resuming to the same bits."""

from kzoo.training.checkpoints import Checkpoints
from kzoo.training.distribution import distribute, initialize, layout_map
from kzoo.training.loop import Outcome, Program, prepare, train
from kzoo.training.optimizer import adamw

__all__ = [
    "Checkpoints",
    "Outcome",
    "Program",
    "adamw",
    "distribute",
    "initialize",
    "layout_map",
    "prepare",
    "train",
]
