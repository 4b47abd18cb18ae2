"""Keras layers over `kzoo.ops`: attention, positions, feed-forward, block, embedding."""

import kzoo.load_keras  # noqa: F401
from kzoo.layers.attention import Attention, kernels
from kzoo.layers.block import Block
from kzoo.layers.classes import ClassHead
from kzoo.layers.embedding import SegmentEmbedding, TokenEmbedding
from kzoo.layers.feed_forward import FeedForward
from kzoo.layers.head import Head
from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.layers.named import (
    DeltaAttention,
    GatedDeltaAttention,
    GatedLinearAttention,
    LinearAttention,
    RetentionAttention,
    SoftmaxAttention,
)
from kzoo.layers.positions import LearnedPositions, RelativeBias, SinusoidalPositions

__all__ = [
    "Attention",
    "Block",
    "ClassHead",
    "DeltaAttention",
    "FeedForward",
    "GatedDeltaAttention",
    "GatedLinearAttention",
    "Head",
    "LearnedPositions",
    "LinearAttention",
    "RelativeBias",
    "RetentionAttention",
    "SeededNormal",
    "SegmentEmbedding",
    "SinusoidalPositions",
    "SoftmaxAttention",
    "TokenEmbedding",
    "derive_seed",
    "kernels",
]
