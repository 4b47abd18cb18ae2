"""What linear attention whose weights decay with distance has in common."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kzoo import feature_maps
from kzoo.errors import InputError
from kzoo.feature_maps import FeatureMap
from kzoo.masks import Mask
from kzoo.masks.orders import not_along_time
from kzoo.mechanisms.base import Extras, HeadSizes, Mechanism
from kzoo.mechanisms.linear import Linear
from kzoo.typing import Tensor
from kzoo.values import is_boolean, is_number


@dataclasses.dataclass(frozen=True)
class Decaying(Linear):
    """Base of mechanisms that are `kzoo.ops.gated_linear_attention`; a subclass gives `make_gates`.

    Over a second sequence no tokens stand between query and key: nothing decays, and there are no
    variables of gates.
    """

    across = "In cross-attention no tokens stand between query and key, so nothing decays there."
    feature_map: FeatureMap | None = None  # type: ignore[assignment]
    normalize: bool = False
    scale: float | None = None

    def __post_init__(self):
        if self.feature_map is not None:
            object.__setattr__(self, "feature_map", feature_maps.get(self.feature_map))
        if not is_boolean(self.normalize):
            raise InputError(f"normalize is true or false. Received: {self.normalize!r}")
        if self.normalize and self.feature_map is None:
            raise InputError(
                "normalize=True divides by a sum of weights, which must be positive: give a "
                "feature_map, such as 'elu1'. Received: normalize=True with feature_map=None"
            )
        if self.scale is not None and not (is_number(self.scale) and self.scale > 0):
            raise InputError(f"scale is a positive number. Received: {self.scale!r}")

    def make_gates(self, sizes: HeadSizes, extras: Extras) -> Tensor:
        """The logarithms of the decays, at most 0: float32 [batch or 1, time or 1, heads]."""
        raise NotImplementedError

    def define_gates(self, sizes: HeadSizes, extras: Extras) -> np.ndarray:
        """`make_gates` in NumPy and float64."""
        raise NotImplementedError

    def check(self, heads: Iterable[Mask], *, bias: bool = False) -> None:
        heads = tuple(heads)
        reason = not_along_time(heads)
        if reason:
            raise InputError(reason)
        if self.feature_map is not None:
            super().check(heads, bias=bias)
        else:
            super(Linear, self).check(heads, bias=bias)

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        return {} if self.feature_map is None else super().variables(sizes)

    def variable_shapes(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]]:
        return {name: values.shape for name, values in self.variables(sizes).items()}

    def flops(
        self, sizes: HeadSizes, heads: Iterable[Mask], time: int, key_time: int | None = None
    ) -> int:
        """Each key joins the state, which decays, and each query reads it; under masks that show
        what stands behind, another state of what does."""
        features, columns = self._features(sizes), sizes.head_dim + self.normalize
        if key_time is not None:  # nothing decays along another sequence
            return len(tuple(heads)) * (time + key_time) * 2 * features * columns
        ways = sum(2 - (head.is_causal or head.time_reversed) for head in heads)
        return ways * time * 5 * features * columns

    def state_shape(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]] | None:
        features = sizes.num_heads, self._features(sizes)
        shapes: dict[str, tuple[int, ...]] = {"kv_state": (*features, sizes.head_dim)}
        return {**shapes, "k_sum": features} if self.normalize else shapes

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
        from kzoo.ops import gated_linear_attention

        own: dict[str, Any] = {"initial_state": initial_state, "return_state": return_state}
        own |= {"rotary": rotary, "implementation": implementation, **self._options(extras, q)}
        gates = self._gates(extras, q, sequence)
        return gated_linear_attention(q, k, v, gates, mask, **own, **sequence)

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

        own: dict[str, Any] = {
            "mechanism": "gated_linear",
            "rotary": rotary,
            "return_weights": True,
        }
        own |= {**self._options(extras, q), "log_decay": self._gates(extras, q, sequence)}
        return reference_attention(q, k, v, mask, **own, **sequence)

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
        """Without a feature map; the oracle of this mechanism has none."""
        if self.feature_map is not None:
            return Mechanism.definition(self, q, k, v, extras, mask)
        from kzoo.ops import oracle

        cross = sequence.get("key_padding_mask") is not None
        sizes = HeadSizes(q.shape[2], k.shape[2], q.shape[3])
        own: dict[str, Any] = {"mechanism": "gated_linear", "normalize": False, "rotary": rotary}
        own |= {"feature_map": None, "scale": self.scale}
        own["log_decay"] = None if cross else self.define_gates(sizes, extras)
        return oracle.attention(q, k, v, mask, **own, **sequence)[0]

    def kernel(self, spec: Any, implementation: str = "auto") -> str:
        from kzoo.ops import dispatch

        features = spec.dim if self.feature_map is None else self.feature_map.size(spec.dim)
        spec = dataclasses.replace(spec, features=features, normalize=self.normalize)
        return dispatch.kernel_for("gated_linear", spec, implementation)

    def _features(self, sizes):
        dim = sizes.head_dim
        return dim if self.feature_map is None else self.feature_map.size(dim)

    def _options(self, extras, q):
        return {**self._map(extras, q), "normalize": self.normalize, "scale": self.scale}

    def _gates(self, extras, q, sequence):
        """The gates of a call; None over a second sequence."""
        if sequence.get("key_padding_mask") is not None:
            return None
        sizes = HeadSizes(q.shape[2], q.shape[2], q.shape[3])
        named = {**self.projections(sizes), **self.variable_shapes(sizes)}
        missing = set(named) - {*extras.projected, *extras.variables}
        if missing:
            raise InputError(
                f"an attention that was built for a second sequence has no gates, and {self.name} "
                f"attention of one sequence needs them. Received: no {', '.join(sorted(missing))}"
            )
        padding_mask = sequence.get("padding_mask")
        if padding_mask is not None:  # where a projection may be no number, whose gradient is none
            extras = extras._replace(projected=_shown(extras.projected, padding_mask))
        return self.make_gates(sizes, extras)

    def _step(self, extras, q):
        return {"log_decay": self._gates(extras, q, {}), "scale": self._scale(q)}

    def _scale(self, q):
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale


def _shown(projected, padding_mask):
    """Projections [batch, time, size] with zeros at padding."""
    from kzoo.load_keras import ops
    from kzoo.ops.tensors import hide

    real = ops.cast(padding_mask, "bool")[..., None]
    return {name: hide(x, real) for name, x in projected.items()}
