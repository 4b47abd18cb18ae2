"""Metrics for `model.compile(weighted_metrics=[...])`."""

from typing import Any

from kzoo.load_keras import keras, ops
from kzoo.typing import Tensor


@keras.saving.register_keras_serializable(package="kzoo")
class ExactMatch(keras.metrics.Metric):
    """The part of the examples all of whose scored tokens are the likeliest ones, each given the
    right ones before it.

    It is how often greedy decoding writes the whole target and ends there, without the decoding:
    the metric `exact_match` of `kzoo.evaluation`, in `fit` and `evaluate` of pairs. Examples
    without a scored token do not count. For single tokens take Keras's own
    `SparseCategoricalAccuracy`; BLEU and the like need texts, which no batch holds.

    Call arguments:
        y_true: integers [batch, time]. y_pred: logits [batch, time, vocabulary_size].
        sample_weight: floats [batch, time], more than 0 where tokens are scored; None: everywhere.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update_state([[0, 1]], [[[2.0, 1.0], [1.0, 2.0]]])
        >>> float(metric.result())
        1.0
    """

    def __init__(self, name: str = "exact_match", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.matched = self.add_variable((), "zeros", name="matched")
        self.examples = self.add_variable((), "zeros", name="examples")

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        y_true = ops.cast(ops.convert_to_tensor(y_true), "int32")
        likeliest = ops.argmax(ops.convert_to_tensor(y_pred), axis=-1)
        right = ops.equal(ops.cast(likeliest, "int32"), y_true)
        scored = ops.ones_like(right)
        if sample_weight is not None:
            scored = ops.broadcast_to(ops.convert_to_tensor(sample_weight) > 0, ops.shape(right))
        counted = ops.cast(ops.any(scored, axis=-1), "float32")
        whole = ops.all(ops.logical_or(right, ops.logical_not(scored)), axis=-1)
        self.matched.assign_add(ops.sum(counted * ops.cast(whole, "float32")))
        self.examples.assign_add(ops.sum(counted))

    def result(self) -> Tensor:
        return self.matched / ops.maximum(self.examples, 1.0)

    def reset_state(self) -> None:
        self.matched.assign(0.0)
        self.examples.assign(0.0)
