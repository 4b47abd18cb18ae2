"""Softmax attention (Vaswani et al. 2017, Attention Is All You Need, arXiv:1706.03762)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.masks import Mask
from kzoo.mechanisms.base import Extras, Mechanism, register
from kzoo.typing import Tensor
from kzoo.values import is_number


@register
@dataclasses.dataclass(frozen=True)
class Softmax(Mechanism):
    """out_i = Σ_j exp(scale · q_i·k_j + bias_ij) v_j / Σ_j exp(scale · q_i·k_j + bias_ij), over the
    visible keys j (equation 1); under any mask.

    Args:
        scale: positive factor on q·k; None for 1/√head_dim.
    """

    scale: float | None = None
    name = "softmax"
    takes_bias = True

    def __post_init__(self):
        if self.scale is not None and not (is_number(self.scale) and self.scale > 0):
            raise InputError(f"scale is a positive number. Received: {self.scale!r}")

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
        initial_state: Mapping[str, Tensor] | None = None,
        return_state: bool = False,
        implementation: str = "auto",
        **sequence: Any,
    ) -> Any:
        from kzoo.ops import softmax_attention

        own: dict[str, Any] = {"scale": self.scale, "bias": bias, "rotary": rotary}
        return softmax_attention(q, k, v, mask, implementation=implementation, **own, **sequence)

    def attend_with_weights(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
        **sequence: Any,
    ) -> tuple[Tensor, Tensor]:
        from kzoo.ops import reference_attention

        own: dict[str, Any] = {"scale": self.scale, "bias": bias, "rotary": rotary}
        return reference_attention(
            q, k, v, mask, mechanism="softmax", return_weights=True, **own, **sequence
        )

    def definition(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        **sequence: Any,
    ) -> np.ndarray:
        from kzoo.ops import oracle

        own: dict[str, Any] = {"mechanism": "softmax", "scale": self.scale, "rotary": rotary}
        return oracle.attention(q, k, v, mask, **own, **sequence)[0]

    def attend_to_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        window: Any,
        bias: Tensor | None = None,
    ) -> Tensor:
        from kzoo.ops.decoding import softmax_step

        if window.size > 1:
            return super().attend_to_cache(q, k, v, extras, mask, window, bias)
        visible = mask.between(window.queries(), window.keys(k.shape[1]), q.shape[2])
        return softmax_step(q, k, v, visible, self.scale, bias)

    def cross_attend(
        self, q: Tensor, extras: Extras, mask: Mask, cache: Mapping[str, Tensor]
    ) -> Tensor:
        from kzoo.ops.decoding import softmax_step

        if q.shape[1] > 1:
            return super().cross_attend(q, extras, mask, cache)
        visible = cache["padding_mask"][:, None, None, :] != 0
        return softmax_step(q, cache["key"], cache["value"], visible, self.scale)
