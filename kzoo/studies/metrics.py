"""What hypotheses compare: numbers of a run, by name, each one class here or in a user's module.

Nothing here loads Keras: a metric that needs the model is handed it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.special import logsumexp

from kzoo import evaluation, objectives
from kzoo.backend import installed
from kzoo.data.tasks.regression import squared_errors
from kzoo.errors import InputError, missing_package
from kzoo.evaluation.reading import check_next_token
from kzoo.registry import Part, Registry
from kzoo.studies.written import write
from kzoo.values import is_number

_LEAST_POINTS = 2  # of a curve


class Metric(Part):
    """Base of metrics; a subclass is a frozen dataclass with a `name` and a `value`.

    Attributes:
        of_predictions: whether its values compare only where the same is predicted.
        measured: whether a run must `measure` something for it, which its record keeps.
        least_evaluations: how many held-out points a run needs.
    """

    of_predictions: ClassVar[bool] = True
    measured: ClassVar[bool] = False
    least_evaluations: ClassVar[int] = 1

    @classmethod
    def lacks(cls) -> str:
        if cls.measured:
            return "`measure`" if cls.measure is Metric.measure else ""
        return "`value`" if cls.value is Metric.value else ""

    @property
    def about(self) -> str:
        """What it is, in words."""
        return self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """What its numbers count, in words."""
        return self.about

    def value(self, record: Mapping[str, Any]) -> float | None:
        """The metric of a finished run; None where it has none. What `measure` gave is there."""
        return record.get("metrics", {}).get(self.name) if self.measured else None

    def check(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """`InputError` where it cannot be measured: called before the first run.

        Args:
            config: of the model.
            facts: of the data, as `kzoo.data.load` gives them.
        """

    def measure(self, model: Any, valid: Any) -> Any:
        """What is measured with a trained model: a JSON value, kept in `record["metrics"]`.

        Args:
            model: a task.
            valid: the held-out batches, `(x, y, weight)`.
        """
        raise NotImplementedError


METRICS = Registry("metric", Metric)


@METRICS.register
class Bits(Metric):
    """Held-out bits per scored byte at the end."""

    name = "bits"

    def value(self, record):
        return record.get("bits")


@METRICS.register
class Seconds(Metric):
    """Seconds of training, compilation included."""

    name = "seconds"
    of_predictions = False

    def value(self, record):
        return record.get("seconds")


@METRICS.register
class TokensPerSecond(Metric):
    """Tokens that were trained on in a second."""

    name = "tokens_per_second"
    of_predictions = False

    def value(self, record):
        return record.get("tokens_per_second")


@METRICS.register
class StepsTo(Metric):
    """Optimizer steps until the held-out bits fall to a threshold, between measured points by a
    line.

    Attributes:
        bits: the threshold.

    Raises:
        InputError: for a threshold that is no positive number.

    Example:
        >>> StepsTo(2.5).value({"held_out": [[100, 3.0], [200, 2.0]]})
        150.0
    """

    name = "steps_to"
    least_evaluations = _LEAST_POINTS
    bits: float

    def __post_init__(self):
        if not is_number(self.bits) or self.bits <= 0:
            raise InputError(f"steps_to takes bits above 0. Received: {self.bits!r:.80}")

    @property
    def about(self):
        return f"steps to {self.bits:g} bits"

    @property
    def unit(self):
        return "steps"

    def value(self, record):
        before = None
        for step, bits in record["held_out"]:
            if bits <= self.bits:
                if before is None:
                    return float(step)
                part = (before[1] - self.bits) / (before[1] - bits)
                return before[0] + part * (step - before[0])
            before = step, bits
        return None


@METRICS.register
class AreaUnderCurve(Metric):
    """The mean of the held-out bits along training, from the first measured point to the last.

    Example:
        >>> AreaUnderCurve().value({"held_out": [[100, 3.0], [200, 2.0]]})
        2.5
    """

    name = "area_under_curve"
    unit = "bits"
    least_evaluations = _LEAST_POINTS

    def value(self, record):
        steps, bits = np.array(record["held_out"], float).T
        return float(np.trapezoid(bits, steps) / (steps[-1] - steps[0]))


@METRICS.register
class Accuracy(Metric):
    """The part of the scored held-out tokens that are the likeliest ones of the model."""

    name = "accuracy"
    measured = True

    def measure(self, model, valid):
        right = scored = 0.0
        for x, y, weight in valid:
            logits = np.asarray(model.predict_on_batch(x))
            right += float((weight * (logits.argmax(-1) == y)).sum())
            scored += float(weight.sum())
        return right / scored


@METRICS.register
class SquaredError(Metric):
    """The squared error of a model on `synthetic:linear_regression`, the mean over its answers.

    Its record holds the errors by the number of points shown, as
    `kzoo.data.tasks.regression.squared_errors` measures them.
    """

    name = "squared_error"
    measured = True

    def value(self, record):
        errors = record.get("metrics", {}).get(self.name)
        return None if errors is None else float(np.mean(errors))

    def measure(self, model, valid):
        errors = [
            squared_errors(np.asarray(model.predict_on_batch(x)), y, weight)
            for x, y, weight in valid
        ]
        return np.concatenate(errors).mean(0).tolist()


class Written(Metric):
    """Base of metrics of what a model writes, greedily, for the sources of held-out pairs, at most
    `kzoo.studies.written.MOST` of them; a subclass is a `kzoo.evaluation.TextMetric` too."""

    measured = True

    def check(self, config, facts):
        if self.needs and not installed(self.needs):
            raise missing_package(self.needs, f"the metric {self.name}")
        objective = objectives.get(config["objective"])
        check_next_token(objective, config["prediction_site"])
        if objective.draws(paired=True) or "sources_on_both_sides" not in facts["split"]:
            raise InputError(
                f"the metric {self.name} compares what a model writes for the sources of pairs "
                "with their targets: the data are pairs, and the objective is 'causal_lm' or "
                f"'prefix_lm'. Received: objective={objective.get_config()!r} on "
                f"{facts['source']!r:.80}"
            )

    def measure(self, model, valid):
        predictions, references, _ = write(model, valid)
        return self.of_texts(predictions, references)

    def of_texts(self, predictions, references):
        """A number of two lists of texts."""
        return float(np.mean(self.compare(predictions, references)))


for _name in evaluation.METRICS.names:
    _cls = evaluation.METRICS[_name]
    if issubclass(_cls, evaluation.TextMetric):
        _words = {"__doc__": _cls.__doc__, "__module__": __name__}
        METRICS.register(type(_cls.__name__, (Written, _cls), _words))


def measure(metrics, model, valid):
    """What a record keeps of metrics that are measured with a trained model.

    Args:
        metrics: list of `Metric`.
        model, valid: as in `Metric.measure`.

    Returns:
        A dict of `metrics`, a value by name, and, where texts are written for them, which is done
        once for all, `written`: how many held-out pairs there were, and of how many.
    """
    writing = [metric for metric in metrics if isinstance(metric, Written)]
    texts = write(model, valid) if writing else None
    found = {
        metric.name: metric.of_texts(*texts[:2])
        if metric in writing
        else metric.measure(model, valid)
        for metric in metrics
    }
    return {"metrics": found, **({"written": texts.counts} if writing else {})}


def example_losses(model, valid):
    """The loss of each held-out example: a list of `[nats, scored tokens]`, in order.

    Args:
        model: a task.
        valid: the held-out batches, `(x, y, weight)`; examples without a scored token, which fill
            the last batch, are left out.
    """
    losses = []
    for x, y, weight in valid:
        logits = np.asarray(model.predict_on_batch(x), "float64")
        nats = logsumexp(logits, axis=-1) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
        sums = ((weight * nats).reshape(len(y), -1).sum(-1), weight.reshape(len(y), -1).sum(-1))
        for loss, scored in zip(*sums, strict=True):
            if scored > 0:
                losses.append([float(loss), int(scored)])
    return losses


def name_of(spec):
    """The name in the JSON of a metric."""
    return spec if isinstance(spec, str) else next(iter(spec), "")


def about(spec):
    """What a metric is, in words.

    Example:
        >>> about("tokens_per_second"), about({"steps_to": {"bits": 2.5}})
        ('tokens per second', 'steps to 2.5 bits')
    """
    known = name_of(spec) in METRICS.names
    return METRICS.get(spec).about if known else name_of(spec).replace("_", " ")


def unit(spec):
    """What the numbers of a metric count, in words.

    Example:
        >>> unit("bits"), unit({"steps_to": {"bits": 2.5}})
        ('bits', 'steps')
    """
    return METRICS.get(spec).unit if name_of(spec) in METRICS.names else about(spec)


def measured(study):
    """The metrics of a study for which runs must measure something: a list of `Metric`."""
    asked = [*study.metrics, *(hypothesis.metric for hypothesis in study.hypotheses)]
    found = {}
    for metric in map(METRICS.get, asked):
        if metric.measured and found.setdefault(metric.name, metric) != metric:
            raise InputError(
                "a study measures a metric in one way. Received: "
                f"{found[metric.name].get_config()!r} and {metric.get_config()!r}"
            )
    return list(found.values())
