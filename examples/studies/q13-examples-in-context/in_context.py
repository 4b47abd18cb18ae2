"""What examples in the context are worth to a model, for the study beside it."""

import numpy as np

from kzoo.studies.metrics import METRICS, Metric


@METRICS.register
class GainFromExamples(Metric):
    """The squared error after the fewest shown points less that after the most.

    The study measures `squared_error` too, whose record holds the errors by the number of points
    shown; more is better.
    """

    name = "gain_from_examples"
    unit = "squared error"

    def value(self, record):
        errors = record.get("metrics", {}).get("squared_error")
        return None if errors is None else float(np.subtract(errors[0], errors[-1]))
