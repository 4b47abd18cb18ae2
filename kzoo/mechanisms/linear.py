"""Linear attention (Katharopoulos et al. 2020, Transformers are RNNs: Fast Autoregressive
Transformers with Linear Attention, arXiv:2006.16236)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kzoo import feature_maps
from kzoo.feature_maps import Elu1, FeatureMap
from kzoo.masks import Mask
from kzoo.mechanisms.base import Extras, HeadSizes, register
from kzoo.mechanisms.stateful import Stateful
from kzoo.typing import Tensor


@register
@dataclasses.dataclass(frozen=True)
class Linear(Stateful):
    """out_i = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j) over the visible keys j (equations 5 to 9),
    in linear time; under every order.

    Args:
        feature_map: φ, a name, JSON or `FeatureMap` of `kzoo.feature_maps`.
    """

    feature_map: FeatureMap = Elu1()
    name = "linear"
    orders_only = True
    exports_to_tensorflow = False
    sharding = {r"feature_map_\w+": ("model", None)}  # [heads · head_dim, features]

    def __post_init__(self):
        object.__setattr__(self, "feature_map", feature_maps.get(self.feature_map))

    def check(self, heads: Iterable[Mask], *, bias: bool = False) -> None:
        heads = tuple(heads)
        super().check(heads, bias=bias)
        self.feature_map.check(heads)

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        """The weights of a learned feature map, [heads, head_dim, features] as a matrix each."""
        initial = self.feature_map.initial_weights(sizes.num_heads, sizes.head_dim)
        return {f"feature_map_{n}": x.reshape(-1, x.shape[-1]) for n, x in initial.items()}

    def variable_shapes(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]]:
        shapes = self.feature_map.weight_shapes(sizes.num_heads, sizes.head_dim)
        return {f"feature_map_{n}": (a * b, features) for n, (a, b, features) in shapes.items()}

    def flops(
        self, sizes: HeadSizes, heads: Iterable[Mask], time: int, key_time: int | None = None
    ) -> int:
        """Each key joins the state, and each query reads it; the normaliser is one column more."""
        features, tokens = self.feature_map.size(sizes.head_dim), time + (key_time or time)
        return len(tuple(heads)) * tokens * 2 * features * (sizes.head_dim + 1)

    def state_shape(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]] | None:
        features = sizes.num_heads, self.feature_map.size(sizes.head_dim)
        return {"kv_state": (*features, sizes.head_dim), "k_sum": features}

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
        from kzoo.ops import linear_attention

        own: dict[str, Any] = {"initial_state": initial_state, "return_state": return_state}
        own |= {"rotary": rotary, "implementation": implementation}
        return linear_attention(q, k, v, mask, **own, **self._map(extras, q), **sequence)

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

        own = {"rotary": rotary, "return_weights": True, **self._map(extras, q)}
        return reference_attention(q, k, v, mask, mechanism="linear", **own, **sequence)

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
        """Of the feature map elu1; the oracle has no other."""
        if self.feature_map != Elu1():
            return super().definition(q, k, v, extras, mask, rotary=rotary, **sequence)
        from kzoo.ops import oracle

        own: dict[str, Any] = {"mechanism": "linear", "rotary": rotary}
        return oracle.attention(q, k, v, mask, **own, **sequence)[0]

    def kernel(self, spec: Any, implementation: str = "auto") -> str:
        features = self.feature_map.size(spec.dim)
        return super().kernel(dataclasses.replace(spec, features=features), implementation)

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
        from kzoo.ops.decoding import linear_step
        from kzoo.ops.features import Features

        features = Features(self.feature_map, rotary)
        weights = self._map(extras, q)["feature_weights"]
        step = weights, window.queries().position, window.writes(), cache
        return linear_step(features, q, k, v, *step, **self._step(extras, q))

    def init_cross_cache(
        self,
        sizes: HeadSizes,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        key_padding_mask: Tensor,
    ) -> dict[str, Tensor]:
        """The state of all keys, which every query reads."""
        from kzoo.load_keras import ops

        # A state is made of keys and values alone; one query of zeros stands for all.
        q = ops.zeros((ops.shape(k)[0], 1, sizes.num_heads, sizes.head_dim), k.dtype)
        whole = {"key_padding_mask": key_padding_mask, "return_state": True}
        return self.attend(q, k, v, extras, mask, **whole)[1]

    def cross_attend(
        self, q: Tensor, extras: Extras, mask: Mask, cache: Mapping[str, Tensor]
    ) -> Tensor:
        from kzoo.load_keras import ops
        from kzoo.ops.decoding import linear_read

        features = ops.cast(q, "float32")
        if self.feature_map is not None:
            weights = self._map(extras, q)["feature_weights"]
            features = self.feature_map.query(features, weights)
        return linear_read(features, features, cache, self._scale(q))

    def _step(self, extras, q):
        """What the step of one token takes besides, as `kzoo.ops.decoding.linear_step`."""
        return {}

    def _scale(self, q):
        """The factor on what a query reads in a state that nothing normalises."""
        return None

    def _map(self, extras, q):
        """The feature map and its weights, as the ops take them."""
        from kzoo.load_keras import ops

        heads, dim = q.shape[2:]
        weights = {
            name.removeprefix("feature_map_"): ops.reshape(matrix, (heads, dim, -1))
            for name, matrix in extras.variables.items()
            if name.startswith("feature_map_")
        }
        return {"feature_map": self.feature_map, "feature_weights": weights or None}
