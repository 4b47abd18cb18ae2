"""The loss over scored tokens, bits per byte, and what a model does to have them."""

import contextlib
import logging
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.learning_rate import learning_rate
from kzoo.ops.cross_entropy import cross_entropy
from kzoo.typing import Tensor
from kzoo.vocabulary import NUM_BYTES

log = logging.getLogger("kzoo")


def token_loss():
    """Σ w·nll / Σ w over the scored tokens of a batch, in nats.

    Keras's default divides by all positions, and so would give objectives that score
    different shares of them different gradient scales.
    """
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight", name="loss"
    )


@keras.saving.register_keras_serializable(package="kzoo")
class BitsPerByte(keras.metrics.Metric):
    """Σ w·nll / (ln 2 · scored bytes), summed over everything seen, never a mean of means.

    For a masked LM the bytes are the masked ones: bits per masked byte, which no other
    objective's bits compare with.

    A task hands it the bytes that its batches count themselves (`"label_bytes"`, see
    `kzoo.encoder`), per byte of the original text. Of batches without, and used alone, it looks
    ids up.

    Args:
        token_bytes: integers [vocabulary_size], how many bytes of text each id stands for, or a
            function that gives them once they are known; None if ids below 256 are bytes.

    Example:
        >>> metric = BitsPerByte()
        >>> metric.update_state([[97]], np.zeros((1, 1, 256)), [[1.0]])
        >>> float(metric.result())
        8.0
    """

    def __init__(self, name="bits_per_byte", token_bytes=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.token_bytes = token_bytes if callable(token_bytes) else lambda: token_bytes
        self._label_bytes = None
        self.nats = self.add_variable((), "zeros", name="nats")
        self.bytes = self.add_variable((), "zeros", name="bytes")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.convert_to_tensor(y_true)
        weight = token_weights(y_true, sample_weight)
        nll = ops.sparse_categorical_crossentropy(
            y_true, ops.cast(y_pred, "float32"), from_logits=True
        )
        self.add(ops.sum(weight * nll), y_true, weight)

    @contextlib.contextmanager
    def counting(self, label_bytes):
        """Inside it the labels stand for so many bytes of text: [batch, time], or None."""
        self._label_bytes = label_bytes
        try:
            yield
        finally:
            self._label_bytes = None

    def add(self, nats, y_true, weight):
        """Count a batch whose Σ w·nll is known."""
        self.nats.assign_add(nats)
        sizes = self.token_bytes()
        if self._label_bytes is not None:
            count = ops.cast(self._label_bytes, "float32")
        elif sizes is None:
            count = ops.cast(y_true < NUM_BYTES, "float32")
        else:
            count = ops.take(np.asarray(sizes, "float32"), y_true, axis=0)
        self.bytes.assign_add(ops.sum(weight * count))

    def result(self):
        return self.nats / (math.log(2) * ops.maximum(self.bytes, 1.0))

    def get_config(self):
        sizes = self.token_bytes()
        sizes = None if sizes is None else np.asarray(sizes, int).tolist()
        return {**super().get_config(), "token_bytes": sizes}

    def reset_state(self):
        self.nats.assign(0.0)
        self.bytes.assign(0.0)


def token_weights(y, sample_weight):
    """How much each token counts: float32 [batch, time], of weights by token or by example, or
    None."""
    weight = ops.ones_like(y, "float32")
    if sample_weight is None:
        return weight
    sample_weight = ops.cast(sample_weight, "float32")
    if len(sample_weight.shape) < len(y.shape):
        sample_weight = sample_weight[:, None]
    return weight * sample_weight


class TokenLoss:
    """A mixin of tasks: one loss over scored tokens, and bits per byte."""

    bits_name = "bits_per_byte"  # of the metric that held-out sets are measured by
    _gives_hidden = False

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`; by default AdamW at `kzoo.training.learning_rate(width)`,
        which is for training from random weights (pretrained ones want a tenth or less), the loss
        over scored tokens, and `bits_per_byte`. With `loss_tokens` no other loss or metric finds
        logits to work on.

        An optimizer's `gradient_accumulation_steps=k` takes the mean of k batches' gradients:
        each batch counts alike, so that a token counts more in one that scores fewer tokens.
        Where all score the same number, it is the gradient of one batch of all of them."""
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(learning_rate(self.backbone.hidden_dim))
        if loss == "auto":
            loss = token_loss()
        if weighted_metrics == "auto":
            weighted_metrics = [BitsPerByte(token_bytes=self._token_bytes)]
        if self.loss_tokens:
            self._check_needs_no_logits(loss, weighted_metrics, kwargs)
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)

    def compile_from_config(self, config: Mapping[str, Any]) -> None:
        """As `compile` was called, so that a `.keras` file brings its optimizer's state back."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _token_bytes(self):
        """Bytes of text of each row of the embedding; None where ids are bytes."""
        sizes = self.preprocessor and self.preprocessor.tokenizer.token_bytes
        if sizes is None:
            return None
        return np.pad(sizes, (0, self.backbone.vocabulary_size - len(sizes)))

    def _check_needs_no_logits(self, loss, weighted_metrics, others):
        needing = [metric for metric in weighted_metrics or () if type(metric) is not BitsPerByte]
        needing += [others[name] for name in ("metrics", "loss_weights") if others.get(name)]
        own = token_loss()
        if type(loss) is not type(own) or loss.get_config() != own.get_config():
            needing.append(loss)
        if needing:
            raise InputError(
                "with loss_tokens no logits are kept, so the loss is 'auto' and the only weighted "
                f"metric is BitsPerByte; others need loss_tokens=0. Received: {needing}"
            )

    # With `loss_tokens`, a step of training or evaluation asks for hidden states instead of
    # logits; whatever else calls the model gets logits.
    def call(self, inputs: Any, training: bool | None = None, mask: Tensor | None = None) -> Any:
        if isinstance(inputs, dict):  # the bytes of labels are no input
            inputs = {name: inputs[name] for name in self.input if name in inputs}
        if self._gives_hidden:
            return self._decoded(self.backbone(inputs, training=training))
        return super().call(inputs, training=training, mask=mask)

    def train_step(self, *args: Any) -> Any:
        with self._giving_hidden():
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        with self._giving_hidden():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _giving_hidden(self):
        self._gives_hidden = self.loss_tokens > 0
        try:
            yield
        finally:
            self._gives_hidden = False

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        weight = token_weights(y, sample_weight)
        if not self._gives_hidden:
            return super().compute_loss(x, y, y_pred, weight, training)
        nats, _ = self._cross_entropy(y_pred, y, weight)
        with self._counting(x, y, y_pred) as metrics:
            for metric in metrics:
                metric.add(ops.stop_gradient(nats), y, weight)
        return ops.divide_no_nan(nats, ops.sum(weight)) + sum(map(ops.sum, self.losses))

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> dict[str, Any]:
        if self._gives_hidden:  # `compute_loss` has counted the batch
            return self.get_metrics_result()
        with self._counting(x, y, y_pred):
            return super().compute_metrics(x, y, y_pred, token_weights(y, sample_weight))

    @contextlib.contextmanager
    def _counting(self, x, y, y_pred):
        """Inside it the metrics of bits per byte, a list, count the bytes of the batch x."""
        compiled = self._compile_metrics
        if compiled is not None and not compiled.built:
            compiled.build(y, y_pred)
        metrics = [] if compiled is None else compiled.metrics
        metrics = [metric for metric in metrics if isinstance(metric, BitsPerByte)]
        label_bytes = x.get("label_bytes") if isinstance(x, dict) else None
        with contextlib.ExitStack() as stack:
            for metric in metrics:
                stack.enter_context(metric.counting(label_bytes))
            yield metrics

    def _cross_entropy(self, hidden, y, weight):
        hidden, kernel = self.head.operands(hidden)
        return cross_entropy(hidden, kernel, y, weight, tokens_at_once=self.loss_tokens)
