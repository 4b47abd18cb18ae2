# What type checkers see: the names that `__getattr__` loads when they are named, and the others.
from kzoo.evaluation.base import METRICS as METRICS
from kzoo.evaluation.base import Evaluation as Evaluation
from kzoo.evaluation.base import Metric as Metric
from kzoo.evaluation.base import evaluate as evaluate
from kzoo.evaluation.choices import evaluate_choices as evaluate_choices
from kzoo.evaluation.examples import Example as Example
from kzoo.evaluation.examples import examples as examples
from kzoo.evaluation.examples import read as read
from kzoo.evaluation.generation import answers as answers
from kzoo.evaluation.keras_metrics import ExactMatch as ExactMatch
from kzoo.evaluation.likelihood import loglikelihood as loglikelihood
from kzoo.evaluation.probes import LinearProbe as LinearProbe
from kzoo.evaluation.probes import hidden_states as hidden_states
from kzoo.evaluation.prompts import Prompts as Prompts
from kzoo.evaluation.texts import TextMetric as TextMetric
from kzoo.evaluation.tokens import Accuracy as Accuracy
from kzoo.evaluation.tokens import BitsPerByte as BitsPerByte
