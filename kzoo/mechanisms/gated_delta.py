"""The delta rule with a decay (Yang et al. 2024, Gated Delta Networks: Improving Mamba2 with Delta
Rule, arXiv:2412.06464)."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from kzoo.masks import Mask
from kzoo.mechanisms import gates
from kzoo.mechanisms.base import HeadSizes, register
from kzoo.mechanisms.delta import Delta

# The authors' layer draws rates from zero on (`GatedDeltaNet` of fla-org/flash-linear-attention).
RATES = (0.0, 16.0)


@register
@dataclasses.dataclass(frozen=True)
class GatedDelta(Delta):
    """`Delta` whose state first decays: S ← exp(g) S, S ← S - β k (kᵀS) + β k vᵀ (equation 10).

    g = -exp(A_log) · softplus(a + dt_bias), of a projection a of the token, one for each head, and
    of two variables: a rate, and a time step. Their initial values are the quantiles of the
    distributions that the authors draw from, so that they are the same for every seed.
    """

    name = "gated_delta"
    sharding: ClassVar = {
        **Delta.sharding,
        "decay/kernel": ("data", "model"),
        "decay/bias": ("model",),
        "(A_log|dt_bias)": ("model",),
    }

    def projections(self, sizes: HeadSizes) -> dict[str, int]:
        """`beta`, and `decay`: the projection a of the formula above."""
        return {**super().projections(sizes), "decay": sizes.num_heads}

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        """`A_log` and `dt_bias`, one for each head."""
        return gates.softplus_variables(sizes.num_heads, RATES)

    def flops(
        self, sizes: HeadSizes, heads: Iterable[Mask], time: int, key_time: int | None = None
    ) -> int:
        """As without a decay, which is one product more for each entry of the state."""
        heads = tuple(heads)
        return super().flops(sizes, heads, time) + len(heads) * time * sizes.head_dim**2

    def _log_decay(self, projected, variables):
        return gates.softplus_gates(projected["decay"], variables)

    def _define_log_decay(self, extras):
        return gates.define_softplus_gates(extras.projected["decay"], extras.variables)
