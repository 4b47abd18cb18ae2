"""The task that gives each text a label."""

from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from kzoo import masks
from kzoo.errors import InputError
from kzoo.layers import derive_seed
from kzoo.layers.classes import ClassHead
from kzoo.learning_rate import finetuning_rate
from kzoo.models.bases import PipelineModel
from kzoo.models.loss import BitsPerByte, token_loss
from kzoo.models.preprocessing import TextClassifierPreprocessor
from kzoo.models.reading import check_ids
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.task import Task


@keras.saving.register_keras_serializable(package="kzoo")
class TextClassifier(Task, keras_hub.models.TextClassifier, PipelineModel):
    """Predicts the label of a text: one of the labels of its objective, `classification`.

    The logits come from one token's last state: the first token's where a head of some layer shows
    it the whole text (bidirectional, reversed and prefix masks), else the last one's (causal).
    `fit` takes (text, label) pairs, or texts and their labels, as strings or as classes from 0 on;
    `predict` gives logits, float32 [texts, labels], and `classify` labels.

    Args:
        backbone: a `SingleStackBackbone`.
        preprocessor: a `TextClassifierPreprocessor`; None where only token batches come.
        objective: `{"classification": {"labels": [...]}}`.
        head: the `ClassHead` of another task over the same backbone; by default its own.
        **kwargs: as in `keras.Model`.

    Raises:
        InputError: for another objective, or fields of a language model's head.

    Example:
        >>> spam = {"classification": {"labels": ["ham", "spam"]}}
        >>> model = kzoo.presets.load("bert_nano", num_layers=1, objective=spam)
        >>> model.fit([("win a prize", "spam"), ("see you at six", "ham")], verbose=0)
        >>> model.predict(["a prize for you"], verbose=0).shape
        (1, 2)
    """

    backbone_cls = SingleStackBackbone
    preprocessor_cls = TextClassifierPreprocessor
    default_objective = "classification"
    bits_name = "bits_per_label"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes: strings."""
        return self.objective.labels or ()

    def make_head(self, dtype: Any) -> ClassHead:
        backbone = self.backbone
        return ClassHead(
            len(self.labels),
            summary_token(backbone),
            backbone.pooler,
            derive_seed(backbone.seed, "classes"),
            name="classes",
            dtype="float32",
        )

    def outputs_of(self, backbone: Any) -> Any:
        return self.head(backbone(backbone.input), backbone.input["padding_mask"])

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; by default AdamW at `kzoo.training.finetuning_rate(width)`, the
        mean cross-entropy of the texts, `bits_per_label` and `accuracy`."""
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(finetuning_rate(self.backbone.hidden_dim))
        if loss == "auto":
            loss = token_loss()
        if weighted_metrics == "auto":
            ones = np.ones(len(self.labels))
            weighted_metrics = [
                BitsPerByte(self.bits_name, token_bytes=ones),  # a label counts as one
                keras.metrics.SparseCategoricalAccuracy("accuracy"),
            ]
        super().compile(
            optimizer, loss, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs
        )

    def classify(self, texts: Any, batch_size: int = 32) -> list[str]:
        """The likeliest label of each text.

        Args:
            texts: a string or a list of strings.
            batch_size: texts that the model sees at once.

        Returns:
            A list of strings.
        """
        logits = self.predict(texts, batch_size=batch_size, verbose=0)
        return [self.labels[i] for i in np.argmax(logits, axis=-1)]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            "a classifier gives labels, with classify or predict, and generates no text. "
            "Received: TextClassifier"
        )

    stream = conversation = score = generate

    def enable_lora(self, rank: int) -> None:
        """Train matrices of rank `rank` beside the query and value projections, and the head of
        the classes, which is new (Hu et al. 2021, arXiv:2106.09685). Compile the model after it."""
        self.backbone.enable_lora(rank)

    def _check_tokens(self, x):
        super()._check_tokens(x)
        mask = x["padding_mask"]
        if isinstance(mask, np.ndarray) and mask.size and mask.max() > 1:
            raise InputError(
                "a classifier takes one text per sequence: its padding mask is 0 or 1. "
                f"Received: {int(mask.max())} in padding_mask"
            )

    def _check_labels(self, x, y, sample_weight):
        batch = np.shape(x["token_ids"])[:1]
        if y is None or tuple(np.shape(y)) != tuple(batch):
            received = "no y" if y is None else f"y of shape {list(np.shape(y))}"
            raise InputError(
                f"a classifier's inputs come with y, the class of each text, {list(batch)}. "
                f"Received: {received}"
            )
        check_ids(y, len(self.labels), "classes")

    def _tell_of_bytes(self):
        """A label's bytes do not count."""


def summary_token(backbone):
    """Whose state tells of a whole text: `"first"` or `"last"`."""
    length = backbone.max_sequence_length
    ones = np.ones((1, length), "int32")
    for mask in set(masks.per_layer(backbone.mask, backbone.num_layers)):
        source = {"source_mask": ones} if mask.needs_source else {}
        seen = ops.convert_to_numpy(mask.dense(1, length, **source))
        if seen.all(-1).any():
            return "first"
    return "last"
