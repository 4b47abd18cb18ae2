"""Attention as functions on tensors: mechanisms and a dense reference, for every mask."""

import kzoo.load_keras  # noqa: F401
from kzoo.ops.delta import delta_attention
from kzoo.ops.gated_linear import gated_linear_attention
from kzoo.ops.linear import linear_attention
from kzoo.ops.reference import reference_attention
from kzoo.ops.softmax import softmax_attention

__all__ = [
    "delta_attention",
    "gated_linear_attention",
    "linear_attention",
    "reference_attention",
    "softmax_attention",
]
