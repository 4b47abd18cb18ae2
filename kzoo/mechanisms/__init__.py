"""How attention is computed: softmax, linear attention, the delta rule, and what is registered.

A mechanism is a frozen dataclass: static, hashable, and JSON both ways. This package loads no
Keras until a mechanism computes something.
"""

from kzoo.mechanisms.base import (
    REGISTRY,
    Extras,
    HeadSizes,
    Mechanism,
    get,
    names,
    register,
    with_fields,
)
from kzoo.mechanisms.delta import Delta
from kzoo.mechanisms.gated_delta import GatedDelta
from kzoo.mechanisms.gated_linear import GatedLinear
from kzoo.mechanisms.linear import Linear
from kzoo.mechanisms.retention import Retention
from kzoo.mechanisms.softmax import Softmax

__all__ = [
    "REGISTRY",
    "Delta",
    "Extras",
    "GatedDelta",
    "GatedLinear",
    "HeadSizes",
    "Linear",
    "Mechanism",
    "Retention",
    "Softmax",
    "get",
    "names",
    "register",
    "with_fields",
]
