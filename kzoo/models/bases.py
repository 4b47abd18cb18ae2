"""Bases of models that leave the classes of Keras and keras-hub as they are.

When a subclass of `keras.Model` is made from inputs and outputs, Keras puts `Functional` in the
place of `Model` among the bases of every class that it comes from; when a keras-hub task is made,
`PipelineModel` gets `Model` back before that. So all tasks of a process lose `call` and `input`
while one of them is being made, and whether they get them back is up to that one. A class with
`Functional` among its own bases has it for good, and changes no other.
"""

from typing import Any

from keras.src.models import Functional
from keras_hub.src.utils import pipeline_model

__all__ = ["Functional", "PipelineModel"]


class PipelineModel(pipeline_model.PipelineModel, Functional):
    """To stand between `keras_hub.models.Task` and the class of keras-hub with this name, whose
    constructor it passes over: that one changes its own bases, and does nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super(pipeline_model.PipelineModel, self).__init__(*args, **kwargs)
