"""The tasks: what is predicted from a backbone's hidden states."""

from collections.abc import Mapping
from typing import Any, Self

import keras
import keras_hub
import numpy as np

from kzoo import migrations, objectives
from kzoo.config import BackboneConfig, Config, HeadConfig, tokenizer_kind
from kzoo.errors import InputError, unknown
from kzoo.layers import Head, derive_seed
from kzoo.layers.initializers import stddevs
from kzoo.models.bases import PipelineModel
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.exporting import Exports
from kzoo.models.generation import Generates, GeneratesFromEncoder
from kzoo.models.inputs import KerasLoops, ReadsText
from kzoo.models.loss import TokenLoss
from kzoo.models.multi_step import MultiStep
from kzoo.models.preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
)
from kzoo.models.scoring import ScoresTexts
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.weights import PathWeights, by_path, read_weights, write_weights
from kzoo.typing import Path


class _Task(ReadsText, ScoresTexts, TokenLoss, MultiStep, KerasLoops, PathWeights, Exports):
    """What all tasks share: logits at every position, one loss, and `score`.

    Args:
        backbone: a backbone of the task's `backbone_cls`.
        preprocessor: of strings and pairs; None where only token batches come.
        objective: an objective spec that suits the task and the backbone's mask.
        head: the `kzoo.layers.Head` of another task over the same backbone; by default its own.
        head_dtype: the dtype policy of the head's dense layer, where it is not the backbone's
            (after `quantize`).
        **kwargs: the fields of `kzoo.config.HeadConfig`. `prediction_site` is "next" or, for
            `generate` alone, "mask" (see `Generates.prediction_states`). `loss_tokens` is 0, or
            the number of tokens whose logits exist at once in `fit`, `evaluate` and `score`;
            the loss is the same. It is for vocabularies whose logits fill the memory; on a CPU 512
            is also faster than 0. The model itself and `predict` return all logits.

    Raises:
        InputError: if the objective is another task's, or the mask would show its answer.

    Example:
        >>> type(kzoo.presets.load("bert_nano", num_layers=1)).__name__
        'MaskedLM'
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
        self._gives_hidden = self._told_of_bytes = False
        self._distribution = None
        head = head or Head(
            backbone.token_embedding,
            config.output_transform,
            backbone.activation,
            backbone.normalization,
            backbone.norm_epsilon,
            stddevs(backbone.initialization, backbone.num_layers),
            config.output_scale,
            seed=derive_seed(backbone.seed, "head"),
            dense_dtype=head_dtype,
            name="head",
            dtype=backbone.dtype_policy,
        )
        self.head = head
        self.head_config = config
        for field, value in config.get_config().items():
            setattr(self, field, value)
        logits = head(self._decoded(backbone(backbone.input)))
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)
        if keras.backend.backend() == "torch":
            # keras-hub hides them from torch, and DistributedDataParallel would find no parameters.
            self.add_module("torch_parameters", self.torch_params)

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
        for variable in self._own_weights().values():
            variable.trainable = False

    def twin(self) -> Self:
        """A task of its own, compiled by default, over the same layers and weights."""
        own = {"head": self.head, **self.head_config.get_config()}
        return type(self)(self.backbone, self.preprocessor, self.objective, **own)

    @staticmethod
    def _decoded(hidden):
        """Of what the backbone returns, the hidden states that logits are made of."""
        return hidden

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
        write_weights(str(filepath), self._own_weights())

    def load_task_weights(self, filepath: Path) -> None:
        read_weights(str(filepath), self._own_weights())

    def _own_weights(self):
        of_backbone = by_path(self.backbone)
        return {path: v for path, v in by_path(self).items() if path not in of_backbone}

    def get_config(self) -> dict[str, Any]:
        head = self.head_config.get_config()
        if self.output_transform and self.head.dense.quantization_mode is not None:
            head["head_dtype"] = keras.dtype_policies.serialize(self.head.dense.dtype_policy)
        return {**super().get_config(), "objective": self.objective.get_config(), **head}


@keras.saving.register_keras_serializable(package="kzoo")
class CausalLM(Generates, _Task, keras_hub.models.CausalLM, PipelineModel):
    __doc__ = f"""Predicts the next token: GPT, UniLM.

    {_Task.__doc__}"""

    backbone_cls = SingleStackBackbone
    preprocessor_cls = CausalLMPreprocessor
    default_objective = "causal_lm"

    @property
    def recomputes_prompts(self) -> bool:
        """Whether each turn of a conversation computes all tokens again: a longer source changes
        the states of the tokens before."""
        return self.backbone.mask.needs_source


@keras.saving.register_keras_serializable(package="kzoo")
class Seq2SeqLM(GeneratesFromEncoder, _Task, keras_hub.models.Seq2SeqLM, PipelineModel):
    __doc__ = f"""Predicts the target's next token from the source that an encoder has read: T5.

    {_Task.__doc__}"""

    backbone_cls = EncoderDecoderBackbone
    preprocessor_cls = Seq2SeqLMPreprocessor
    default_objective = "prefix_lm"
    recomputes_prompts = True

    @staticmethod
    def _decoded(hidden):
        return hidden["decoder_sequence_output"]

    def _check_tokens(self, x):
        super()._check_tokens(x)
        for name in ("encoder_padding_mask", "decoder_padding_mask"):
            if isinstance(x[name], np.ndarray) and x[name].size and x[name].max() > 1:
                raise InputError(
                    "an encoder and a decoder take one document per sequence: their padding masks "
                    f"are 0 or 1. Received: {int(x[name].max())} in {name}"
                )


@keras.saving.register_keras_serializable(package="kzoo")
class MaskedLM(_Task, keras_hub.models.MaskedLM, PipelineModel):
    __doc__ = f"""Predicts hidden tokens: BERT and its mixed-direction variants.

    {_Task.__doc__}"""

    backbone_cls = SingleStackBackbone
    preprocessor_cls = MaskedLMPreprocessor
    default_objective = "masked_lm"

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "a masked LM predicts hidden tokens and generates no text; a CausalLM does (families "
            "gpt and unilm). Received: MaskedLM"
        )

    stream = conversation = generate

    def _score_sequences(self, encoder, sources, target, complete):
        ((x, y, _),) = super()._score_sequences(encoder, sources, target, complete)
        vocabulary = encoder.vocabulary
        begins = 0 if sources is None else encoder.example_length(sources[0], target[:0], False)
        hideable = vocabulary.is_text(y) & (np.arange(len(y)) >= begins)
        for position in np.flatnonzero(hideable):
            hidden = y.copy()
            hidden[position] = vocabulary.mask
            weight = np.zeros(len(hidden), "float32")
            weight[position] = 1
            yield {**x, "token_ids": hidden}, y, weight
