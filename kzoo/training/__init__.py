"""Training: optimizers, the loop with its log and checkpoints, several devices."""

import kzoo.load_keras  # noqa: F401
from kzoo.learning_rate import finetuning_rate, learning_rate
from kzoo.training.checkpoints import Checkpoints
from kzoo.training.distribution import distribute, initialize, layout_map
from kzoo.training.finetuning import train_last_layers
from kzoo.training.loop import Outcome, Program, prepare, train
from kzoo.training.monitor import Monitor
from kzoo.training.optimizer import (
    AdamW,
    Muon,
    WarmupStableDecay,
    adamw,
    muon,
    warmup_cosine,
    warmup_stable_decay,
)
from kzoo.training.timing import Timing, measure

__all__ = [
    "AdamW",
    "Checkpoints",
    "Monitor",
    "Muon",
    "Outcome",
    "Program",
    "Timing",
    "WarmupStableDecay",
    "adamw",
    "distribute",
    "finetuning_rate",
    "initialize",
    "layout_map",
    "learning_rate",
    "measure",
    "muon",
    "prepare",
    "train",
    "train_last_layers",
    "warmup_cosine",
    "warmup_stable_decay",
]
