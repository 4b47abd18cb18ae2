"""Compiled functions that use a model's variables."""

import keras


def compiled(function, model, written=()):
    """`function(state, *tensors) -> (out, state)`, compiled once for each shape.

    On JAX the state passed in is donated, so that a large one is changed in place: do not use it
    again. On torch the function runs uncompiled, without gradients.

    Args:
        function: takes and returns nests of tensors.
        model: a Keras model whose variables it reads.
        written: a list of variables that it changes, such as a sampler's seeds.

    Returns:
        A function with the same arguments and result.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.no_grad()(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    import jax

    def pure(state, values, *tensors):
        mapping = zip([*model.variables, *written], values, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            out, state = function(state, *tensors)
        return out, state, [scope.get_current_value(variable) for variable in written]

    program = jax.jit(pure, donate_argnums=0)

    def call(state, *tensors):
        values = [variable.value for variable in [*model.variables, *written]]
        out, state, changed = program(state, values, *tensors)
        for variable, value in zip(written, changed, strict=True):
            variable.assign(value)
        return out, state

    return call
