"""Linear attention with a gate for each head and token: the scalar form of gated linear attention
(Yang et al. 2023, Gated Linear Attention Transformers with Hardware-Efficient Training,
arXiv:2312.06635), and of Mamba-2 (Dao and Gu 2024, Transformers are SSMs, arXiv:2405.21060)."""

import dataclasses
from typing import ClassVar

import numpy as np

from kzoo.errors import unknown
from kzoo.mechanisms import gates
from kzoo.mechanisms.base import Extras, HeadSizes, register
from kzoo.mechanisms.decaying import Decaying
from kzoo.typing import Tensor

GATES = ("logsigmoid/16", "softplus")


@register
@dataclasses.dataclass(frozen=True)
class GatedLinear(Decaying):
    """out_i = scale · Σ_j φ(q_i)·φ(k_j) exp(Σ g) v_j over the visible keys j, in linear time, with
    a gate g <= 0 of each head and token (`kzoo.ops.gated_linear_attention`); under masks along
    time.

    Args:
        gate: how g is made of a projection a of the token. `"logsigmoid/16"`: g = log σ(a) / 16
            (arXiv:2312.06635, section 4.4, with one gate for a head, as in the layer
            `SimpleGatedLinearAttention` of fla-org/flash-linear-attention). `"softplus"`:
            g = -exp(A_log) · softplus(a + dt_bias), of two variables for each head
            (arXiv:2405.21060, whose state space dual is this with softplus(a + dt_bias) as a
            factor on v).
        feature_map: φ, of `kzoo.feature_maps`; None for q and k as they are.
        normalize: divide by the sum of the weights, which needs a feature map.
        scale: positive factor on the sum; None for 1/√head_dim.
    """

    gate: str = "logsigmoid/16"
    name = "gated_linear"
    sharding: ClassVar = {
        "decay/kernel": ("data", "model"),
        "decay/bias": ("model",),
        "(A_log|dt_bias)": ("model",),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.gate not in GATES:
            raise unknown("value of gate", self.gate, GATES)

    def projections(self, sizes: HeadSizes) -> dict[str, int]:
        """`decay`: the projection a of the formula above."""
        return {} if sizes.cross else {"decay": sizes.num_heads}

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        own = super().variables(sizes)
        if self.gate == "softplus" and not sizes.cross:
            own |= gates.softplus_variables(sizes.num_heads)
        return own

    def make_gates(self, sizes: HeadSizes, extras: Extras) -> Tensor:
        from kzoo.load_keras import ops

        logits = ops.cast(extras.projected["decay"], "float32")
        if self.gate == "softplus":
            return gates.softplus_gates(logits, extras.variables)
        return ops.log_sigmoid(logits) / 16

    def define_gates(self, sizes: HeadSizes, extras: Extras) -> np.ndarray:
        logits = np.asarray(extras.projected["decay"], "float64")
        if self.gate == "softplus":
            return gates.define_softplus_gates(logits, extras.variables)
        return -np.logaddexp(0, -logits) / 16
