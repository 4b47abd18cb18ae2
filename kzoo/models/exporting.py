"""`export`: a model as a program for other machines, which need neither kzoo nor Keras."""

import importlib.util

import keras
from keras.src.export.export_utils import get_input_signature

from kzoo.errors import InputError, unknown
from kzoo.ops.choice import compiling_for


class Exports:
    """A mixin of functional models, whose inputs are a dict of integers [batch, time]."""

    def export(
        self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs
    ):
        """As `keras.Model.export`: for any batch and time, unless `input_signature` says them.
        """
        signature = input_signature or get_input_signature(self)
        if isinstance(signature, dict):
            signature = [signature]
        backend = keras.backend.backend()
        if backend == "jax" and format == "tf_saved_model":
            options = kwargs.get("jax2tf_kwargs") or {}
            kwargs["jax2tf_kwargs"] = {"polymorphic_shapes": [_names(signature[0])], **options}
        if False:
            kwargs.setdefault("dynamic_shapes", _dims(signature[0]))
        with compiling_for("cpu"):
            super().export(filepath, format, verbose, signature, **kwargs)


def _names(inputs):
    return {
        name: "({}, {})".format(
            *(label if size is None else size for label, size in zip(labels(name), x.shape))
        )
        for name, x in inputs.items()
    }


def labels(name):
    return "batch", "encoder_time" if name.startswith("encoder_") else "time"


def _dims(inputs):
    import torch

    dims = {label: torch.export.Dim(label) for name in inputs for label in labels(name)}
    return [
        {
            name: {i: dims[label] for i, label in enumerate(labels(name)) if x.shape[i] is None}
            for name, x in inputs.items()
        }
    ]
