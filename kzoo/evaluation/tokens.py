"""Metrics of the right answers' tokens, each predicted from all before it."""

import math

from kzoo.evaluation.base import METRICS, Evaluation, Metric


@METRICS.register
class BitsPerByte(Metric):
    """−log₂ p of the right answers per byte of what is scored (with the delimiter before it):
    summed over all, not a mean of means."""

    name = "bits_per_byte"

    def values(self, evaluation: Evaluation) -> float:
        nats, sizes = -evaluation.scored["loglikelihood"].sum(), evaluation.scored["bytes"].sum()
        return nats / (math.log(2) * sizes)


@METRICS.register
class Accuracy(Metric):
    """The part of the right answers' tokens that are the likeliest ones given all before them."""

    name = "accuracy"

    def values(self, evaluation: Evaluation) -> float:
        return evaluation.scored["right"].sum() / evaluation.scored["tokens"].sum()
