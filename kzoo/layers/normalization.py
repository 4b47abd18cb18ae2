"""Normalisation layers by name."""

import keras

from kzoo.errors import unknown
from kzoo.ops.normalization import layer_norm


@keras.saving.register_keras_serializable(package="kzoo")
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's layer, over the last axis, computed by `kzoo.ops.normalization.layer_norm`."""

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
    return NORMALIZATIONS[normalization](epsilon=epsilon, **kwargs)
