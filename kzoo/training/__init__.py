"""Training in segments: optimizer, per-step losses, checkpoints, resuming to the same bits."""

from kzoo.training.checkpoints import Checkpoints
from kzoo.training.loop import Outcome, Program, prepare, train
from kzoo.training.optimizer import (
    AdamW,
    Muon,
    WarmupStableDecay,
    adamw,
    muon,
    warmup_cosine,
    warmup_stable_decay,
)

__all__ = [
    "AdamW",
    "Checkpoints",
    "Muon",
    "Outcome",
    "Program",
    "WarmupStableDecay",
    "adamw",
    "muon",
    "prepare",
    "train",
    "warmup_cosine",
    "warmup_stable_decay",
]
