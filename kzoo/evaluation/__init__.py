"""What a model can do with a task: choices ranked by likelihood, answers that it writes, what can
be read off its hidden states; and lm-evaluation-harness on kzoo's models.

`kzoo.evaluation.harness` needs the package lm_eval and loads when it is named; so does what loads
Keras. Tasks and metrics are checked without it.
"""

import importlib

from kzoo.evaluation.base import METRICS, Evaluation, Metric, evaluate

# In the order in which messages name their metrics.
from kzoo.evaluation.choices import evaluate_choices  # isort: skip
from kzoo.evaluation.texts import TextMetric  # isort: skip
from kzoo.evaluation.tokens import Accuracy, BitsPerByte  # isort: skip
from kzoo.evaluation.probes import LinearProbe, hidden_states  # isort: skip
from kzoo.evaluation.examples import Example, examples, read
from kzoo.evaluation.generation import answers
from kzoo.evaluation.likelihood import loglikelihood
from kzoo.evaluation.prompts import Prompts

_LATER = {"ExactMatch": "keras_metrics"}
__all__ = [
    "METRICS",
    "Accuracy",
    "BitsPerByte",
    "Evaluation",
    "Example",
    "ExactMatch",
    "LinearProbe",
    "Metric",
    "Prompts",
    "TextMetric",
    "answers",
    "evaluate",
    "evaluate_choices",
    "examples",
    "hidden_states",
    "loglikelihood",
    "read",
]


def __getattr__(name):
    if name in _LATER:
        return getattr(importlib.import_module(f"kzoo.evaluation.{_LATER[name]}"), name)
    raise AttributeError(f"module 'kzoo.evaluation' has no attribute {name!r}")
