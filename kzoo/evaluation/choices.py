"""Choices ranked by how likely a model finds them."""

from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.evaluation.base import METRICS, Evaluation, Metric, evaluate
from kzoo.evaluation.examples import Example, labelled
from kzoo.evaluation.prompts import Prompts

# The usual metrics, of models of language and of classifiers.
OF_CHOICES, OF_CLASSIFIER = ("acc", "acc_norm", "acc_bytes"), ("acc",)


def evaluate_choices(
    model: Any,
    examples: Any,
    *,
    num_fewshot: int = 0,
    fewshot: Any = None,
    metrics: list[Any] | tuple[Any, ...] | None = None,
    target_delimiter: str = " ",
    fewshot_delimiter: str = "\n\n",
    seed: int = 0,
    separated: bool | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Questions with choices: how often the choice that a model finds likeliest is the right one.

    The numbers, their names, and how prompts are put together are those of lm-evaluation-harness
    (its `multiple_choice`). Guessing finds one in as many as there are choices.

    Args:
        model: a `CausalLM`, `Seq2SeqLM` or `TextClassifier`.
        examples: list of `{"question": str, "choices": [str, ...], "answer": index}`; or of
            (text, label) pairs, whose labels are the choices of each: classification. Files:
            `kzoo.evaluation.read`.
        num_fewshot: how many answered examples stand before each question.
        fewshot: what they are drawn from, as `examples`; None: the other examples.
        metrics: names of `"acc"` (of log p), `"acc_norm"` (by character of the choice),
            `"acc_bytes"` (by byte) and `"acc_mutual_info"` (less log p without the context). None:
            the first three; of a classifier, whose labels are no texts to it, `"acc"` alone.
        target_delimiter: between a question and its answer; a model that reads a separator there
            is given that instead.
        fewshot_delimiter: behind each answered example.
        seed: of the draw of examples to show, which is another one for each question.
        separated: whether contexts are sources, as the prompts of pairs are in `fit`. None: where
            the model's objective has a source. True for a causal LM that was trained on pairs.
        batch_size: sequences that the model sees at once. The numbers do not depend on it.

    Returns:
        A dict of the metrics and their standard errors (`"acc"`, `"acc_stderr"`, ...);
        `"examples"`, their number; `"cut"`, how many contexts did not fit and lost their
        beginning; and `"loglikelihoods"`, a list for each example of log p of its choices, in nats.

    Raises:
        InputError: for examples of another form, a metric that ranks no choices, more shots than
            there are, or a model that predicts hidden tokens.

    Example:
        >>> question = {"question": "2 + 2 =", "choices": ["4", "five"], "answer": 0}
        >>> found = evaluate_choices(model, [question])
        >>> found["acc"] in (0.0, 1.0), len(found["loglikelihoods"][0])
        (True, 2)
    """
    if metrics is None:
        labels = getattr(getattr(model, "objective", None), "labels", None)
        metrics = OF_CHOICES if labels is None else OF_CLASSIFIER
    for metric in map(METRICS.get, metrics):
        if not isinstance(metric, ChoiceMetric):
            ranking = [name for name in METRICS.names if issubclass(METRICS[name], ChoiceMetric)]
            raise InputError(
                f"metrics of ranked choices are {', '.join(ranking)}. Received: {metric.name!r}"
            )
    shots = Prompts(num_fewshot, fewshot, target_delimiter, fewshot_delimiter, seed)
    evaluation = Evaluation(
        model, examples, prompts=shots, separated=separated, batch_size=batch_size
    )
    return {
        **evaluate(evaluation, list(metrics)),
        "examples": len(evaluation.examples),
        "cut": evaluation.ranked.cut,
        "loglikelihoods": [found.tolist() for found in evaluation.ranked.loglikelihoods],
    }


class ChoiceMetric(Metric):
    """Base of metrics of ranked choices; a subclass says how choices are compared."""

    def check(self, examples: list[Example]) -> None:
        labelled(examples)

    def scores(self, evaluation: Evaluation) -> list[np.ndarray]:
        """A number for every choice of every example; the choice with the greatest is taken."""
        raise NotImplementedError

    def values(self, evaluation: Evaluation) -> np.ndarray:
        pairs = zip(self.scores(evaluation), evaluation.ranked.examples, strict=True)
        return np.array([float(np.argmax(scores) == example.gold) for scores, example in pairs])


@METRICS.register
class Acc(ChoiceMetric):
    """How often the right choice is the likeliest one."""

    name = "acc"

    def scores(self, evaluation):
        return evaluation.ranked.loglikelihoods


@METRICS.register
class AccNorm(ChoiceMetric):
    """As `acc`, of log p by character of the choice (of its text, without the delimiter)."""

    name = "acc_norm"

    def scores(self, evaluation):
        return evaluation.ranked.by(len)


@METRICS.register
class AccBytes(ChoiceMetric):
    """As `acc`, of log p by byte of the choice in UTF-8."""

    name = "acc_bytes"

    def scores(self, evaluation):
        return evaluation.ranked.by(lambda choice: len(choice.encode()))


@METRICS.register
class AccMutualInfo(ChoiceMetric):
    """As `acc`, of log p(choice | context) − log p(choice): what the context tells of it. Choices
    are scored twice."""

    name = "acc_mutual_info"

    def scores(self, evaluation):
        pairs = zip(
            evaluation.ranked.loglikelihoods, evaluation.unconditional.loglikelihoods, strict=True
        )
        return [given - alone for given, alone in pairs]
