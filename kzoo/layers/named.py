"""`Attention` with one mechanism, whose fields are arguments of the layer."""

import dataclasses
from typing import Any

import keras

from kzoo import mechanisms
from kzoo.layers.attention import Attention
from kzoo.typing import MaskSpec


class _OneMechanism(Attention):
    def __init__(
        self, num_heads: int, head_dim: int, mask: MaskSpec = "bidirectional", **kwargs: Any
    ) -> None:
        fields = {field.name for field in dataclasses.fields(mechanisms.REGISTRY[self.only])}
        own = {name: kwargs.pop(name) for name in sorted(fields & kwargs.keys())}
        mechanism = mechanisms.with_fields(self.only, **own)
        super().__init__(num_heads, head_dim, mechanism, mask, **kwargs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        mechanism = config.pop("mechanism")
        return config | (mechanism[self.only] if isinstance(mechanism, dict) else {})


@keras.saving.register_keras_serializable(package="kzoo")
class SoftmaxAttention(_OneMechanism):
    """`Attention` with `mechanism="softmax"`: the same arguments and call.

    Example:
        >>> SoftmaxAttention(4, 16, mask="causal")(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "softmax"


@keras.saving.register_keras_serializable(package="kzoo")
class LinearAttention(_OneMechanism):
    """`Attention` with `mechanism="linear"`: the same arguments and call.

    Example:
        >>> layer = LinearAttention(4, 16, mask="causal", feature_map="relu")
        >>> out, state = layer(first, return_state=True)
        >>> out = layer(second, initial_state=state)
    """

    only = "linear"


@keras.saving.register_keras_serializable(package="kzoo")
class RetentionAttention(_OneMechanism):
    """`Attention` with `mechanism="retention"`: the same arguments and call, and the fields of
    `kzoo.mechanisms.Retention`.

    Example:
        >>> layer = RetentionAttention(4, 16, mask="causal", log_decay="lightning")
        >>> layer(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "retention"


@keras.saving.register_keras_serializable(package="kzoo")
class GatedLinearAttention(_OneMechanism):
    """`Attention` with `mechanism="gated_linear"`: the same arguments and call, and the fields
    of `kzoo.mechanisms.GatedLinear`.

    Example:
        >>> layer = GatedLinearAttention(4, 16, mask="causal", gate="softplus")
        >>> layer(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "gated_linear"


@keras.saving.register_keras_serializable(package="kzoo")
class DeltaAttention(_OneMechanism):
    """`Attention` with `mechanism="delta"`: the same arguments and call; by default causal.

    Example:
        >>> DeltaAttention(4, 16)(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "delta"

    def __init__(
        self, num_heads: int, head_dim: int, mask: MaskSpec = "causal", **kwargs: Any
    ) -> None:
        super().__init__(num_heads, head_dim, mask, **kwargs)


@keras.saving.register_keras_serializable(package="kzoo")
class GatedDeltaAttention(DeltaAttention):
    """`DeltaAttention` with `mechanism="gated_delta"`: the same arguments and call.

    Example:
        >>> GatedDeltaAttention(4, 16)(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "gated_delta"
