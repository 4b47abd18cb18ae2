"""Normalisation layers by name."""

import keras

from kzoo.errors import InputError, unknown
from kzoo.ops.normalization import layer_norm


@keras.saving.register_keras_serializable(package="kzoo")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's layer, over the last axis, computed by `kzoo.ops.normalization.layer_norm`.

    Arguments and call are Keras's: floats [..., width] to the same shape, in the compute dtype.

    Raises:
        InputError: for another axis, or without scale or offset.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        asked = {name: getattr(self, name) for name in ("axis", "center", "scale", "rms_scaling")}
        if asked != {"axis": -1, "center": True, "scale": True, "rms_scaling": False}:
            raise InputError(
                "a layer norm has a scale and an offset and goes over the last axis, -1; "
                f"keras.layers.LayerNormalization has others. Received: {asked}"
            )

    def call(self, inputs):
        return keras.ops.cast(
            layer_norm(inputs, self.gamma, self.beta, self.epsilon), self.compute_dtype
        )


# Both compute in float32 whatever the dtype policy.
NORMALIZATIONS = {
    "layer_norm": LayerNormalization,
    "rms_norm": keras.layers.RMSNormalization,
}


def norm(normalization, epsilon=1e-5, **kwargs):
    """A normalisation layer by name: `"layer_norm"` or `"rms_norm"`."""
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    layer = NORMALIZATIONS[normalization](epsilon=epsilon, **kwargs)
    layer.supports_masking = True  # Keras's RMSNormalization would drop a mask that it is handed
    return layer
