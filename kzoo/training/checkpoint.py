"""A run's state in one file: model, optimizer, and what has been measured so far."""

import json
import os

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kzoo.errors import InputError


def state_variables(model):
    """All variables that training changes, by a name that is the same in every process.

    Keras numbers optimizers and dropout's generators anew in each, so those go by their order.
    """
    named = {variable.path: variable for variable in model.trainable_variables}
    for kind, variables in (
        ("state", model.non_trainable_variables),
        ("optimizer", model.optimizer.variables),
    ):
        named |= {f"{kind} {i}": variable for i, variable in enumerate(variables)}
    return named


def save(path, model, progress):
    """Write the state to `path`, replacing it in one step.

    Args:
        path: `pathlib.Path` of the file.
        model: a compiled model whose optimizer is built.
        progress: what else to keep; anything JSON can hold.
    """
    arrays = {
        # A copy: 0-d arrays and views are not contiguous enough for the format.
        name: np.array(keras.ops.convert_to_numpy(variable), order="C")
        for name, variable in state_variables(model).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(arrays, temporary, metadata={"progress": json.dumps(progress)})
    os.replace(temporary, path)


def restore(path, model):
    """Put a saved state back, to the bit, and return its `progress`.

    Raises:
        InputError: if the file is damaged or belongs to another model.
    """
    variables = state_variables(model)
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != {name: tuple(variable.shape) for name, variable in variables.items()}:
                raise InputError(f"this checkpoint is another model's. Received: {path}")
            for name, variable in variables.items():
                variable.assign(arrays[name])
            return json.loads(file.metadata()["progress"])
    except SafetensorError as error:
        raise InputError(f"the checkpoint is damaged ({error}). Received: {path}") from error
