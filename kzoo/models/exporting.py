"""`export`: a model as a program that runs with neither kzoo nor Keras."""

import importlib.util

import keras
from keras.src.export.export_utils import get_input_signature

from kzoo.errors import InputError, missing_package, unknown
from kzoo.ops.context import compiling_for

# The formats that Keras can write of these models. OpenVINO's converter does not read programs that
# come from JAX, and no runtime loads the files that tf2onnx makes.
FORMATS = {
    "jax": ("tf_saved_model",),
    "tensorflow": ("tf_saved_model", "openvino", "litert"),
    "torch": ("torch",),
}
PACKAGES = {"tf_saved_model": "tensorflow", "openvino": "openvino"}


class Exports:
    """A mixin for models whose inputs are a dict of integers [batch, time]."""

    def export(
        self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs
    ):
        """Write the model as a program that runs without kzoo.

        It uses only kernels that every machine has. On JAX it runs on the kind of device that JAX
        uses here; `jax2tf_kwargs={"native_serialization_platforms": ["cpu", "cuda"]}` names
        others.

        Args:
            filepath: a folder for `"tf_saved_model"`; else a file, named as Keras asks.
            format: on JAX `"tf_saved_model"`, which needs TensorFlow installed here; on
                TensorFlow `"tf_saved_model"`, `"openvino"` or `"litert"`, for softmax attention;
                on torch `"torch"`.
            verbose: whether Keras prints what it has written.
            input_signature: a list with a dict of `keras.InputSpec`, to fix sizes. By default
                batch and time are free; torch needs both fixed.
            **kwargs: as in `keras.Model.export`.

        Raises:
            InputError: if this backend cannot write the format for this model, or a package that
                the format needs is missing.

        Example:
            >>> model.export("served")
            >>> logits = tensorflow.saved_model.load("served").serve(batch)
        """
        backend = keras.backend.backend()
        self._check_format(format, backend)
        signature = input_signature or get_input_signature(self)
        signature = [signature] if isinstance(signature, dict) else signature
        sizes = [size for x in keras.tree.flatten(signature) for size in x.shape]
        if backend == "torch" and None in sizes:
            raise InputError(
                "on torch batch and time must be fixed: pass input_signature=[{name: "
                'keras.InputSpec(shape=(batch, time), dtype="int32"), ...}] of '
                f"{', '.join(self.input)}. Received: sizes of None"
            )
        if backend == "jax":
            options = kwargs.get("jax2tf_kwargs") or {}
            kwargs["jax2tf_kwargs"] = {"polymorphic_shapes": [_shapes(signature[0])], **options}
        with compiling_for("cpu"):  # kernels that every backend of XLA has
            super().export(filepath, format, verbose, signature, **kwargs)

    def _check_format(self, format, backend):
        if format not in FORMATS[backend]:
            raise unknown(f"format of export on {backend}", format, FORMATS[backend])
        package = PACKAGES.get(format)
        if package is not None and importlib.util.find_spec(package) is None:
            raise missing_package(package, f"the format {format!r}")
        mechanism = getattr(self, "backbone", self).mechanism
        if backend == "tensorflow" and not mechanism.exports_to_tensorflow:
            raise InputError(
                f"on TensorFlow {mechanism.name} attention cannot be exported: its scan needs a "
                "fixed time. Save the model, and export it under KERAS_BACKEND=jax. "
                f"Received: mechanism={mechanism.get_config()!r} on the tensorflow backend"
            )


def _shapes(inputs):
    """The shapes of inputs for JAX, with one symbol for the time of all inputs of a sequence.

    Keras gives the time of each input a symbol of its own, and attention cannot be traced with
    times that may differ.
    """

    def shape(name, x):
        time = "encoder_time" if name.startswith("encoder_") else "time"
        sizes = zip(("batch", time), x.shape, strict=True)
        return f"({', '.join(str(label if size is None else size) for label, size in sizes)})"

    return {name: shape(name, x) for name, x in inputs.items()}
