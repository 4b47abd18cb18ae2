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

# Of which the initial rates and time steps of heads are the quantiles, as those of Mamba-2 (Dao and
# Gu 2024, arXiv:2405.21060) and of the authors' layer are drawn: evenly, and evenly in logarithms.
MOST_RATE = 16.0
TIME_STEPS = (0.001, 0.1)


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
        """`beta`, and `decay`, which is a."""
        return {**super().projections(sizes), "decay": sizes.num_heads}

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        """`A_log` and `dt_bias`, one for each head."""
        heads = sizes.num_heads
        even = (np.arange(heads) + 0.5) / heads
        low, high = np.log(TIME_STEPS)
        # Time steps rise in another order than rates, so that no head has the least of both.
        steps = np.exp(low + (high - low) * even[np.argsort(np.argsort(_bits_reversed(heads)))])
        values = {
            "A_log": np.log(MOST_RATE * even),
            "dt_bias": steps + np.log(-np.expm1(-steps)),  # whose softplus they are
        }
        return {name: x.astype("float32") for name, x in values.items()}

    def flops(self, sizes: HeadSizes, heads: Iterable[Mask], time: int) -> int:
        """As without a decay, which is one product more for each entry of the state."""
        heads = tuple(heads)
        return super().flops(sizes, heads, time) + len(heads) * time * sizes.head_dim**2

    def _log_decay(self, projected, variables):
        from kzoo.load_keras import ops

        rate, bias = (ops.cast(variables[name], "float32") for name in ("A_log", "dt_bias"))
        return -ops.exp(rate) * ops.softplus(projected["decay"] + bias)

    def _define_log_decay(self, extras):
        return gates.define_softplus_gates(extras.projected["decay"], extras.variables)


def _bits_reversed(count):
    """Each integer below `count` with its bits in reverse order, which spreads neighbours."""
    bits = max(1, (count - 1).bit_length())
    return [int(f"{i:0{bits}b}"[::-1], 2) for i in range(count)]
