"""Loss and metric over scored tokens."""

import math

import keras
import numpy as np
from keras import ops

from kzoo.vocabulary import NUM_BYTES


def token_loss():
    """Σ w·nll / Σ w over the scored tokens of a batch, in nats.

    Keras's default divides by all positions, and so would give objectives that score
    different shares of them different gradient scales.
    """
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight", name="loss"
    )


@keras.saving.register_keras_serializable(package="kzoo")
class BitsPerByte(keras.metrics.Metric):
    """Σ w·nll / (ln 2 · scored bytes), summed over everything seen, never a mean of means.

    For a masked LM the bytes are the masked ones: bits per masked byte, which no other
    objective's bits compare with.

    Args:
        token_bytes: integers [vocabulary_size], how many bytes of text each id stands for, or a
            function that gives them once they are known; None if ids below 256 are bytes.

    Example:
        >>> metric = BitsPerByte()
        >>> metric.update_state([[97]], np.zeros((1, 1, 256)), [[1.0]])
        >>> float(metric.result())
        8.0
    """

    def __init__(self, name="bits_per_byte", token_bytes=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.token_bytes = token_bytes if callable(token_bytes) else lambda: token_bytes
        self.nats = self.add_variable((), "zeros", name="nats")
        self.bytes = self.add_variable((), "zeros", name="bytes")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.convert_to_tensor(y_true)
        weight = ops.ones_like(y_true) if sample_weight is None else sample_weight
        weight = ops.cast(weight, "float32")
        nll = ops.sparse_categorical_crossentropy(
            y_true, ops.cast(y_pred, "float32"), from_logits=True
        )
        self.add(ops.sum(weight * nll), y_true, weight)

    def add(self, nats, y_true, weight):
        """Count a batch whose Σ w·nll is known."""
        self.nats.assign_add(nats)
        sizes = self.token_bytes()
        if sizes is None:
            count = ops.cast(y_true < NUM_BYTES, "float32")
        else:
            count = ops.take(np.asarray(sizes, "float32"), y_true, axis=0)
        self.bytes.assign_add(ops.sum(weight * count))

    def result(self):
        return self.nats / (math.log(2) * ops.maximum(self.bytes, 1.0))

    def get_config(self):
        sizes = self.token_bytes()
        sizes = None if sizes is None else np.asarray(sizes, int).tolist()
        return {**super().get_config(), "token_bytes": sizes}

    def reset_state(self):
        self.nats.assign(0.0)
        self.bytes.assign(0.0)
