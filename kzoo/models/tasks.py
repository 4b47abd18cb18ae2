"""The tasks: what is predicted from a backbone's hidden states."""

from typing import Any

import keras
import keras_hub
import numpy as np

from kzoo.errors import InputError
from kzoo.layers import Head, derive_seed
from kzoo.layers.initializers import stddevs
from kzoo.models.bases import PipelineModel
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.generation import Generates, GeneratesFromEncoder
from kzoo.models.loss import TokenLoss
from kzoo.models.preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
)
from kzoo.models.scoring import ScoresTexts
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.task import Task


class _LanguageModel(ScoresTexts, TokenLoss, Task):
    """What language models share: logits at every position, one loss, and `score`.

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

    def make_head(self, dtype: Any) -> Any:
        backbone = self.backbone
        return Head(
            backbone.token_embedding,
            self.output_transform,
            backbone.activation,
            backbone.normalization,
            backbone.norm_epsilon,
            stddevs(backbone.initialization, backbone.num_layers),
            self.output_scale,
            seed=derive_seed(backbone.seed, "head"),
            dense_dtype=dtype,
            name="head",
            dtype=backbone.dtype_policy,
        )

    def outputs_of(self, backbone: Any) -> Any:
        return self.head(self._decoded(backbone(backbone.input)))

    @staticmethod
    def _decoded(hidden):
        """Of what the backbone returns, the hidden states that logits are made of."""
        return hidden


@keras.saving.register_keras_serializable(package="kzoo")
class CausalLM(Generates, _LanguageModel, keras_hub.models.CausalLM, PipelineModel):
    __doc__ = f"""Predicts the next token: GPT, UniLM.

    {_LanguageModel.__doc__}"""

    backbone_cls = SingleStackBackbone
    preprocessor_cls = CausalLMPreprocessor
    default_objective = "causal_lm"

    @property
    def recomputes_prompts(self) -> bool:
        """Whether each turn of a conversation computes all tokens again: a longer source changes
        the states of the tokens before."""
        return self.backbone.mask.needs_source


@keras.saving.register_keras_serializable(package="kzoo")
class Seq2SeqLM(GeneratesFromEncoder, _LanguageModel, keras_hub.models.Seq2SeqLM, PipelineModel):
    __doc__ = f"""Predicts the target's next token from the source that an encoder has read: T5.

    {_LanguageModel.__doc__}"""

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
class MaskedLM(_LanguageModel, keras_hub.models.MaskedLM, PipelineModel):
    __doc__ = f"""Predicts hidden tokens: BERT and its mixed-direction variants.

    {_LanguageModel.__doc__}"""

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
