"""How large the gradient of the loss is in each layer."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.analysis.activations import inputs_of
from kzoo.analysis.float64 import numpy
from kzoo.errors import InputError
from kzoo.typing import Model


def gradient_norms(model: Model, batch: Any) -> list[dict[str, Any]]:
    """The norm of the loss's gradient with respect to each layer's parameters.

    The loss is that of training, Σ w·nll / Σ w over the scored tokens, without dropout and in the
    model's own dtype. Where norms stand decides how it is spread over depth: after each part, as in
    GPT-1, it is largest in the last layers of an untrained model; before each part, as in GPT-2,
    it is even (Xiong et al. 2020, arXiv:2002.04745).

    Args:
        model: a task.
        batch: (x, y, sample_weight), as `kzoo.data.load` yields them.

    Returns:
        A list of dicts in the order of the layers: `stack` ("encoder" or "decoder"; empty for a
        single stack, and for what belongs to none), `layer` (of a block, from 0; None for the
        embeddings and the last norm), `name` of the layer, `parameters` (how many), `gradient_norm`
        (the Euclidean norm of their gradient) and `weight_norm` (that of the parameters
        themselves). A shared stack's layers are the encoder's.

    Raises:
        InputError: if the model is no task of kzoo, or the batch has no targets.

    Example:
        >>> [round(layer["gradient_norm"], 3) for layer in gradient_norms(model, valid[0])]
    """
    backbone, _ = inputs_of(model, batch)
    if backbone is model or not isinstance(batch, list | tuple) or len(batch) != 3:
        raise InputError(
            "gradients are of a task, and of a batch (x, y, sample_weight) as kzoo.data.load "
            f"yields it. Received: {type(model).__name__} and {type(batch).__name__}"
        )
    gradients = _gradients(model, *batch)
    blocks = {
        block.name: (stack, layer)
        for stack, of in reversed(backbone.stacks.items())
        for layer, block in enumerate(of.blocks)
    }
    layers: dict[str, list] = {}
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        name = variable.path.partition("/")[0]
        layers.setdefault(name, []).append((numpy(variable), gradient))
    found = []
    for name, pairs in layers.items():
        stack, layer = blocks.get(name, ("", None))
        found.append(
            {
                "stack": stack,
                "layer": layer,
                "name": name,
                "parameters": sum(weight.size for weight, _ in pairs),
                "gradient_norm": _norm(gradient for _, gradient in pairs),
                "weight_norm": _norm(weight for weight, _ in pairs),
            }
        )
    return found


def _norm(arrays):
    return float(np.sqrt(sum((array**2).sum() for array in arrays)))


def _gradients(model, x, y, sample_weight):
    """Of the loss with respect to the trainable variables: a list of float64 arrays."""
    backend = keras.backend.backend()
    x = {name: ops.convert_to_tensor(x[name]) for name in model.input}
    y = ops.convert_to_tensor(y)
    weight = ops.ones_like(y, "float32")
    if sample_weight is not None:
        weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")

    def loss(logits):
        nll = ops.sparse_categorical_crossentropy(y, ops.cast(logits, "float32"), from_logits=True)
        return ops.divide_no_nan(ops.sum(weight * nll), ops.sum(weight))

    variables = model.trainable_variables
    if backend == "jax":
        import jax

        others = [variable.value for variable in model.non_trainable_variables]

        def of(values):
            return loss(model.stateless_call(values, others, x, training=False)[0])

        found = jax.jit(jax.grad(of))([variable.value for variable in variables])
    elif backend == "torch":
        import torch

        values = [variable.value for variable in variables]
        with torch.enable_grad():
            found = torch.autograd.grad(loss(model(x, training=False)), values, allow_unused=True)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(model(x, training=False))
        found = tape.gradient(value, [variable.value for variable in variables])
    return [
        np.zeros(variable.shape) if gradient is None else numpy(ops.convert_to_tensor(gradient))
        for variable, gradient in zip(variables, found, strict=True)
    ]
