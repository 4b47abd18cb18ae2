"""The delta rule (Schlag et al. 2021, Linear Transformers Are Secretly Fast Weight Programmers,
arXiv:2102.11174; Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over
Sequence Length, arXiv:2406.06484)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.masks import Mask
from kzoo.masks.orders import not_one_way
from kzoo.mechanisms.base import Extras, HeadSizes, register
from kzoo.mechanisms.stateful import Stateful
from kzoo.typing import Tensor
from kzoo.values import is_number

EPSILON = 1e-6  # added to the squared length of q and k, in the definition


@register
@dataclasses.dataclass(frozen=True)
class Delta(Stateful):
    """out_i = scale · Sᵀq_i where each token has S ← S - β k (kᵀS) + β k vᵀ, in linear time
    (arXiv:2406.06484, equation 1); under causal and reversed masks, by head and by layer too.

    q and k are of length 1, and β is the sigmoid of a projection of the token, one for each head.

    Args:
        scale: positive factor on q·k; None for 1/√head_dim.
    """

    scale: float | None = None
    name = "delta"
    orders_only = True
    own_qk_norm = "l2"
    exports_to_tensorflow = False
    sharding = {"beta/kernel": ("data", "model"), "beta/bias": ("model",)}

    def __post_init__(self):
        if self.scale is not None and not (is_number(self.scale) and self.scale > 0):
            raise InputError(f"scale is a positive number. Received: {self.scale!r}")

    def check(self, heads: Iterable[Mask], *, bias: bool = False) -> None:
        heads = tuple(heads)
        super().check(heads, bias=bias)
        reason = not_one_way(heads)
        if reason:
            raise InputError(reason)

    def check_cross(self) -> None:
        raise InputError(
            "the delta rule goes through one sequence and cannot attend to a second one; use "
            "softmax or linear attention, or a model of one stack. "
            f"Received: mechanism={self.get_config()!r} in cross-attention"
        )

    def projections(self, sizes: HeadSizes) -> dict[str, int]:
        """`beta`, whose sigmoid is β."""
        return {"beta": sizes.num_heads}

    def flops(
        self, sizes: HeadSizes, heads: Iterable[Mask], time: int, key_time: int | None = None
    ) -> int:
        """Each token reads the state under its key and under its query, and changes it once."""
        return len(tuple(heads)) * time * 6 * sizes.head_dim**2

    def state_shape(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]] | None:
        return {"kv_state": (sizes.num_heads, sizes.head_dim, sizes.head_dim)}

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
        from kzoo.ops import delta_attention

        if sequence.pop("key_padding_mask", None) is not None:
            self.check_cross()
        sequence.pop("source_mask", None)  # of masks that it refuses
        padding_mask = sequence.get("padding_mask")
        beta, log_decay = self._gates(extras, padding_mask)
        own: dict[str, Any] = {"initial_state": initial_state, "return_state": return_state}
        own |= {"rotary": rotary, "scale": self.scale, "implementation": implementation}
        own["l2_norm"] = True
        return delta_attention(q, k, v, beta, log_decay, mask, **own, **sequence)

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
        """The output is a sum of values: its weights are the outputs of unit vectors as values."""
        from kzoo.load_keras import ops

        batch, time, kv_heads, _ = ops.shape(v)
        one = ops.eye(time, dtype="float64" if "float64" in str(v.dtype) else "float32")
        one = ops.broadcast_to(one[None, :, None], (batch, time, kv_heads, time))
        weights = self.attend(q, k, one, extras, mask, rotary=rotary, **sequence)
        out = self.attend(q, k, v, extras, mask, rotary=rotary, **sequence)
        return out, ops.transpose(weights, (0, 2, 1, 3))

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

        def unit(x):
            return x / np.sqrt((x * x).sum(-1, keepdims=True) + EPSILON)

        beta = 1 / (1 + np.exp(-np.asarray(extras.projected["beta"], "float64")))
        decay = self._define_log_decay(extras)
        own: dict[str, Any] = {"padding_mask": sequence.get("padding_mask"), "rotary": rotary}
        return oracle.delta(unit(q), unit(k), v, beta, decay, mask, scale=self.scale, **own)[0]

    def _define_log_decay(self, extras):
        """The gates of `definition`, in NumPy; None where nothing decays."""
        return None

    def kernel(self, spec: Any, implementation: str = "auto") -> str:
        from kzoo.ops import dispatch

        return dispatch.kernel_for("delta", spec, implementation)  # one with and without a decay

    def decode_token(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        cache: Mapping[str, Tensor],
        window: Any,
        rotary: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from kzoo.load_keras import ops
        from kzoo.ops.delta import delta_step
        from kzoo.ops.kernels.delta_terms import unit
        from kzoo.ops.qkv import wide
        from kzoo.ops.rotary import rotate
        from kzoo.ops.tensors import hide

        q, k = (unit(ops.cast(x, wide(x))) for x in (q, k))
        gates = self._gates(extras, None)
        if rotary:
            q, k = (rotate(x, window.queries().position) for x in (q, k))
        writes = window.writes()[:, None, None]
        beta, log_decay = (None if x is None else hide(x, writes) for x in gates)
        return delta_step(q, k, v, beta, log_decay, cache, self.scale)

    def init_cross_cache(
        self,
        sizes: HeadSizes,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        key_padding_mask: Tensor,
    ) -> dict[str, Tensor]:
        self.check_cross()
        return {}

    def _gates(self, extras, padding_mask):
        """β and the log-decay: in float32, and of zeros at padding.

        Zeros come first: what stands there may be no number, of which no derivative is finite.
        """
        from kzoo.load_keras import ops
        from kzoo.ops.qkv import wide
        from kzoo.ops.tensors import hide

        projected = {name: ops.cast(x, wide(x)) for name, x in extras.projected.items()}
        if padding_mask is not None:
            real = ops.cast(padding_mask, "bool")[:, :, None]
            projected = {name: hide(x, real) for name, x in projected.items()}
        return ops.sigmoid(projected["beta"]), self._log_decay(projected, extras.variables)

    def _log_decay(self, projected, variables):
        """The gates of a call, of tensors that are shown; None where nothing decays."""
        return None
