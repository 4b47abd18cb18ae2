"""What all tasks have in common."""

from collections.abc import Mapping
from typing import Any, Self

import keras

from kzoo import migrations, objectives
from kzoo.config import BackboneConfig, Config, HeadConfig, tokenizer_kind
from kzoo.errors import InputError, unknown
from kzoo.models.exporting import Exports
from kzoo.models.inputs import KerasLoops, ReadsText
from kzoo.models.multi_step import MultiStep
from kzoo.models.weights import PathWeights, by_path, read_weights, write_weights
from kzoo.typing import Path


class Task(ReadsText, MultiStep, KerasLoops, PathWeights, Exports):
    """What all tasks share: a backbone, a head, an objective, and how they are read and saved.

    A subclass gives `make_head` and `outputs_of`.

    Args:
        backbone: a backbone of the task's `backbone_cls`.
        preprocessor: of strings and pairs; None where only token batches come.
        objective: an objective spec that suits the task and the backbone's mask.
        head: the head of another task over the same backbone; by default its own.
        head_dtype: the dtype policy of a language model's head's dense layer, where it is not the
            backbone's (after `quantize`).
        **kwargs: the fields of `kzoo.config.HeadConfig`, and those of a Keras model.

    Raises:
        InputError: if the objective is another task's, or the mask would show its answer.
    """

    def __init__(
        self,
        backbone: Any,
        preprocessor: Any = None,
        objective: Any = None,
        head: Any = None,
        head_dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        for field in BackboneConfig.field_names():
            if field in kwargs:  # Keras would drop it without a word
                raise InputError(
                    f"{field} is the backbone's; kzoo.presets.load(directory, {field}=...) "
                    f"overrides it. Received: {field}={kwargs[field]!r}"
                )
        of_head = [field for field in HeadConfig.field_names() if field in kwargs]
        config = HeadConfig.get({field: kwargs.pop(field) for field in of_head})
        if config.prediction_site == "mask" and backbone.stack_name != "single":
            raise InputError(
                "an encoder and a decoder predict at the token before: prediction_site must be "
                "'next'. Received: prediction_site='mask'"
            )
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.objective = objectives.get(objective or self.default_objective)
        self._check_objective(backbone)
        self._told_of_bytes = False
        self._distribution = None
        self.head_config = config
        for field, value in config.get_config().items():
            setattr(self, field, value)
        self.head = head or self.make_head(head_dtype)
        outputs = self.outputs_of(backbone)
        super().__init__(inputs=backbone.input, outputs=outputs, **kwargs)
        if keras.backend.backend() == "torch":
            # keras-hub hides them from torch, and DistributedDataParallel would find no parameters.
            self.add_module("torch_parameters", self.torch_params)

    def make_head(self, dtype: Any) -> Any:
        """A head of its own: a layer, whose dense layer has the policy `dtype` if there is one."""
        raise NotImplementedError

    def outputs_of(self, backbone: Any) -> Any:
        """What the functional model returns, made of a backbone's outputs."""
        raise NotImplementedError

    def _check_objective(self, backbone):
        objectives.check(backbone.stack_name, backbone.mask, self.objective)
        task = type(self).__name__
        if objectives.task_name(backbone.stack_name, self.objective) != task:
            every = map(objectives.get, objectives.names())
            valid = [x.name for x in every if objectives.task_name(backbone.stack_name, x) == task]
            raise unknown(f"objective of {task}", self.objective.name, valid)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return super().from_config(migrations.config(config))

    def enable_lora(self, rank: int) -> None:
        """Train matrices of rank `rank` beside the query and value projections, and no other
        weights, the head's neither (Hu et al. 2021, arXiv:2106.09685). Compile the model after
        it. `backbone.save_lora_weights` and `load_lora_weights` keep the matrices alone; all
        else that saves the model makes them part of the kernels when it is loaded."""
        self.backbone.enable_lora(rank)
        for variable in self.own_weights().values():
            variable.trainable = False

    def twin(self) -> Self:
        """A task of its own, compiled by default, over the same layers and weights."""
        own = {"head": self.head, **self.head_config.get_config()}
        return type(self)(self.backbone, self.preprocessor, self.objective, **own)

    @property
    def config(self) -> Any:
        """The complete config: what `kzoo.presets.config` gives, for this model."""
        cls = self.preprocessor and type(self.preprocessor.tokenizer).__name__
        fields = {
            **self.backbone.config.get_config(),
            **self.head_config.get_config(),
            "stack": self.backbone.stack_name,
            "objective": self.objective,
            "tokenizer": tokenizer_kind(cls, self.backbone.vocabulary_size),
        }
        return Config.get(fields).get_config()

    # keras-hub keeps what is not the backbone's in a file of its own; by path there, too.
    def save_task_weights(self, filepath: Path) -> None:
        write_weights(str(filepath), self.own_weights())

    def load_task_weights(self, filepath: Path) -> None:
        read_weights(str(filepath), self.own_weights())

    def own_weights(self) -> dict[str, Any]:
        """The weights beside the backbone's: path -> variable."""
        of_backbone = by_path(self.backbone)
        return {path: v for path, v in by_path(self).items() if path not in of_backbone}

    def get_config(self) -> dict[str, Any]:
        head = self.head_config.get_config()
        if self.output_transform and self.head.dense.quantization_mode is not None:
            head["head_dtype"] = keras.dtype_policies.serialize(self.head.dense.dtype_policy)
        return {**super().get_config(), "objective": self.objective.get_config(), **head}
