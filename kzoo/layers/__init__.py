"""Keras layers over `kzoo.ops`: attention, positions, feed-forward, block, embedding."""

import kzoo.load_keras  # noqa: F401
from kzoo.layers.attention import Attention, LinearAttention, SoftmaxAttention, kernels
from kzoo.layers.block import Block
from kzoo.layers.embedding import SegmentEmbedding, TokenEmbedding
from kzoo.layers.feed_forward import FeedForward
from kzoo.layers.head import Head
from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.layers.positions import LearnedPositions, RelativeBias, SinusoidalPositions

__all__ = [
    "Attention",
    "Block",
    "FeedForward",
    "Head",
    "LearnedPositions",
    "LinearAttention",
    "RelativeBias",
    "SeededNormal",
    "SegmentEmbedding",
    "SinusoidalPositions",
    "SoftmaxAttention",
    "TokenEmbedding",
    "derive_seed",
    "kernels",
]
