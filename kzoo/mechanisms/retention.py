"""Retention (Sun et al. 2023, Retentive Network: A Successor to Transformer for Large Language
Models, arXiv:2307.08621)."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from kzoo.errors import InputError, unknown
from kzoo.masks import Mask
from kzoo.mechanisms.base import Extras, HeadSizes, register
from kzoo.mechanisms.decaying import Decaying
from kzoo.typing import Tensor
from kzoo.values import is_number

SCHEDULES = ("retnet", "lightning", "learned")


@register
@dataclasses.dataclass(frozen=True)
class Retention(Decaying):
    """out_i = scale · Σ_j φ(q_i)·φ(k_j) γ^|i-j| v_j over the visible keys j, with a decay γ of
    each head, in linear time (equations 5 and 6); under masks along time.

    Args:
        log_decay: the logarithm of γ of each head. `"retnet"`: γ = 1 - 2^(-5-h) of the head h =
            0, 1, … (equation 8). `"lightning"`: log γ = -2^(-8(h+1)/heads), ALiBi's slopes, as of
            the first layer of TransNormerLLM (Qin et al. 2024, arXiv:2401.04658; Press et al. 2021,
            arXiv:2108.12409). `"learned"`: γ = σ(a) of a variable a, as LION-D has (Afzal et al.
            2025, arXiv:2502.16249), which begins at RetNet's. Or numbers of at most 0, one for
            each head.
        feature_map: φ, of `kzoo.feature_maps`; None for q and k as they are, as in the paper.
        normalize: divide by the sum of the weights, which needs a feature map.
        scale: positive factor on the sum; None for 1/√head_dim.
    """

    log_decay: str | tuple[float, ...] = "retnet"
    name = "retention"
    sharding: ClassVar = {"decay_logit": ("model",)}

    def __post_init__(self):
        super().__post_init__()
        given = self.log_decay
        if isinstance(given, str) and given not in SCHEDULES:
            raise unknown("value of log_decay", given, SCHEDULES)
        if isinstance(given, str):
            return
        numbers = tuple(given) if isinstance(given, list | tuple) else ()
        if not numbers or not all(is_number(x) and x <= 0 for x in numbers):
            raise InputError(
                f"log_decay is {', '.join(map(repr, SCHEDULES))}, or a number of at most 0 for "
                f"each head. Received: {given!r}"
            )
        object.__setattr__(self, "log_decay", numbers)

    def check(self, heads: Iterable[Mask], *, bias: bool = False) -> None:
        heads = tuple(heads)
        super().check(heads, bias=bias)
        if not isinstance(self.log_decay, str) and len(self.log_decay) != len(heads):
            raise InputError(
                f"log_decay has a number for each of the {len(heads)} heads. "
                f"Received: {len(self.log_decay)} numbers"
            )

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        """Those of a feature map; if decays are learned, `decay_logit` of each head."""
        own = super().variables(sizes)
        if self.log_decay == "learned" and not sizes.cross:
            decay = np.exp(_retnet(sizes.num_heads))
            own["decay_logit"] = np.log(decay / (1 - decay)).astype("float32")
        return own

    def make_gates(self, sizes: HeadSizes, extras: Extras) -> Tensor:
        from kzoo.load_keras import ops

        if self.log_decay == "learned":
            logit = ops.cast(extras.variables["decay_logit"], "float32")
            return ops.log_sigmoid(logit)[None, None]
        return ops.convert_to_tensor(self._fixed(sizes.num_heads).astype("float32"))

    def define_gates(self, sizes: HeadSizes, extras: Extras) -> np.ndarray:
        if self.log_decay == "learned":
            return -np.logaddexp(0, -np.asarray(extras.variables["decay_logit"]))[None, None]
        return self._fixed(sizes.num_heads)

    def _fixed(self, heads):
        """The decays that are no variables: [1, 1, heads]."""
        schedules: Any = {"retnet": _retnet, "lightning": _lightning}
        fixed = self.log_decay
        if isinstance(fixed, str):
            fixed = schedules[fixed](heads)
        return np.asarray(fixed, "float64")[None, None]


def _retnet(heads):
    return np.log1p(-(2.0 ** (-5 - np.arange(heads))))


def _lightning(heads):
    return -(2.0 ** (-8 * np.arange(1, heads + 1) / heads))
