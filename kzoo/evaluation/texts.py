"""Metrics of what a model writes, against the right answers."""

import re
import string
from collections import Counter
from typing import Any, ClassVar

import numpy as np

from kzoo.errors import missing_package, unknown
from kzoo.evaluation.base import METRICS, Metric


class TextMetric(Metric):
    """Base of metrics that compare texts."""

    def values(self, evaluation: Any) -> Any:
        return self.compare(evaluation.written, evaluation.references)

    def compare(self, predictions: list[str], references: list[str]) -> Any:
        """Two lists of texts, `[examples]` each: float64 [examples], or one number of all."""
        raise NotImplementedError


@METRICS.register
class ExactMatch(TextMetric):
    """How often the prediction is the right answer.

    Attributes:
        normalize: `"none"`: to the last character; or `"squad"`: without case, punctuation,
            articles and white space (Rajpurkar et al. 2016, arXiv:1606.05250).
    """

    normalize: str = "none"

    name = "exact_match"
    NORMALIZE: ClassVar[tuple[str, ...]] = ("none", "squad")

    def __post_init__(self):
        if self.normalize not in self.NORMALIZE:
            raise unknown("normalize of exact_match", self.normalize, self.NORMALIZE)

    def compare(self, predictions, references):
        same = squad_tokens if self.normalize == "squad" else str
        return np.array([float(same(a) == same(b)) for a, b in _pairs(predictions, references)])


@METRICS.register
class TokenF1(TextMetric):
    """The harmonic mean of precision and recall of the words of each answer, in SQuAD's rule: as
    a bag, without case, punctuation and articles; of an empty answer, whether both are empty."""

    name = "token_f1"

    def compare(self, predictions, references):
        return np.array([_f1(*map(squad_tokens, pair)) for pair in _pairs(predictions, references)])


class Sacrebleu(TextMetric):
    """Base of metrics that sacrebleu computes of all texts together, 0 to 100; their fields are
    arguments of its functions."""

    needs = "sacrebleu"

    def compare(self, predictions, references):
        corpus = getattr(_package(self), f"corpus_{self.name}")
        return corpus(predictions, [references], **vars(self)).score


@METRICS.register
class Bleu(Sacrebleu):
    """BLEU of all texts together, 0 to 100, by sacrebleu (Papineni et al. 2002; Post 2018,
    arXiv:1804.08771).

    Attributes:
        tokenize: one of sacrebleu's tokenizers.
    """

    tokenize: str = "13a"

    name = "bleu"


@METRICS.register
class Chrf(Sacrebleu):
    """chrF of all texts together, 0 to 100, by sacrebleu: the F2 of n-grams of characters (Popović
    2015).

    Attributes:
        word_order: n-grams of words that count too; 2 is chrF++.
    """

    word_order: int = 0

    name = "chrf"


@METRICS.register
class RougeL(TextMetric):
    """The F1 of the longest common subsequence of words, by rouge-score (Lin 2004).

    Attributes:
        stem: whether words are stemmed.
    """

    stem: bool = False

    name = "rouge_l"
    needs = "rouge_score"

    def compare(self, predictions, references):
        _package(self)
        from rouge_score.rouge_scorer import RougeScorer

        score = RougeScorer(["rougeL"], use_stemmer=self.stem).score
        found = (score(b, a)["rougeL"].fmeasure for a, b in _pairs(predictions, references))
        return np.array([*found])


def squad_tokens(text: str) -> list[str]:
    """The words of a text in SQuAD's rule.

    Example:
        >>> squad_tokens("The Whale, a fish.")
        ['whale', 'fish']
    """
    text = "".join(mark for mark in text.lower() if mark not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _f1(prediction, reference):
    if not prediction or not reference:
        return float(prediction == reference)
    common = sum((Counter(prediction) & Counter(reference)).values())
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _pairs(predictions, references):
    return zip(predictions, references, strict=True)


def _package(metric):
    """The package that computes a metric."""
    import importlib

    try:
        return importlib.import_module(metric.needs)
    except ImportError as error:
        raise missing_package(metric.needs, f"the metric {metric.name}") from error
