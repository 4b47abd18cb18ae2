"""Training in segments: optimizer, per-step losses, checkpoints, resuming to the same bits."""

from kzoo.training.loop import Outcome, prepare, restart, train
from kzoo.training.optimizer import adamw

__all__ = ["Outcome", "adamw", "prepare", "restart", "train"]
