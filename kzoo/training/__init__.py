"""Training in segments: optimizer, per-step losses, checkpoints, resuming to the same bits."""

from kzoo.training.loop import Outcome, Program, prepare, train
from kzoo.training.optimizer import adamw

__all__ = ["Outcome", "Program", "adamw", "prepare", "train"]
