"""What an evaluation measures: numbers by name, each one class of this package or of a user's
module.

A metric asks an `Evaluation` for what it needs, what the model writes say, which is computed once
for all metrics that need it. Nothing here loads Keras.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.special import log_softmax

from kzoo.errors import InputError
from kzoo.evaluation import generation, likelihood
from kzoo.evaluation.examples import Example, examples, labelled
from kzoo.evaluation.prompts import Prompts
from kzoo.evaluation.reading import Reader
from kzoo.registry import Part, Registry


class Metric(Part):
    """Base of metrics; a subclass is a frozen dataclass with a `name`.

    Attributes:
        name: the name in JSON.
        needs: the package that computes it, or None.
        next_token: whether only models that predict the next token have it.
    """

    needs: ClassVar[str | None] = None
    next_token: ClassVar[bool] = True

    @classmethod
    def lacks(cls) -> str:
        return "`values`" if cls.values is Metric.values else ""

    def check(self, examples: list[Example]) -> None:
        """`InputError` for examples that the metric cannot measure, before a model is made."""

    def values(self, evaluation: "Evaluation") -> Any:
        """The metric of an `Evaluation`: float64 [examples], whose mean it is, or one number that
        is no mean over examples."""
        raise NotImplementedError


METRICS = Registry("metric", Metric)


class Ranked(NamedTuple):
    """log p of every choice of every example.

    Attributes:
        examples: list of `Example`.
        loglikelihoods: list of float64 [choices].
        cut: contexts that lost their beginning.
        of_head: whether they are a classifier's labels.
    """

    examples: list[Example]
    loglikelihoods: list[np.ndarray]
    cut: int
    of_head: bool = False

    def by(self, size: Callable[[str], int]) -> list[np.ndarray]:
        """log p by the size of each choice."""
        if self.of_head:
            raise _only_acc()
        pairs = zip(self.loglikelihoods, self.examples, strict=True)
        return [found / np.array([*map(size, example.choices)]) for found, example in pairs]


class Evaluation:
    """A model and examples: what metrics measure, computed when the first one asks for it.

    Args:
        model: a task.
        given: list of `Example`, or of what `examples` reads.
        prompts: a `Prompts`: how questions become contexts.
        batch_size: sequences that the model sees at once.
        separated: as in `loglikelihood`.
        max_tokens: the most tokens of a written answer; None: one more than the longest right
            answer has, so that none is cut to a right one.
        until: strings at which a written answer ends.
    """

    def __init__(
        self,
        model: Any,
        given: Any,
        *,
        prompts: Prompts | None = None,
        batch_size: int = 32,
        separated: bool | None = None,
        max_tokens: int | None = None,
        until: tuple[str, ...] = (),
    ) -> None:
        self.model, self.examples = model, examples(given)
        self.prompts = prompts or Prompts()
        self.batch_size, self.asked = batch_size, separated
        self.max_tokens, self.until = max_tokens, until

    @functools.cached_property
    def separated(self) -> bool:
        """Whether a separator stands between context and answer."""
        return Reader.of(self.model, self.asked).separated

    def context(self, index: int, given: list[Example] | None = None) -> str:
        """The context of an example: shots, if any, and the question."""
        return self.prompts.context(given or self.examples, index)

    def continuation(self, answer: str) -> str:
        """What is scored of an answer; the separator stands in the delimiter's place."""
        return answer if self.separated else self.prompts.target_delimiter + answer

    @functools.cached_property
    def references(self) -> list[str]:
        """The right answers."""
        return [example.answer for example in self.examples]

    @functools.cached_property
    def written(self) -> list[str]:
        """What the model writes after each context. White space around an answer that runs on
        from its question, the delimiter, is not part of it."""
        contexts = [self.context(i) for i in range(len(self.examples))]
        reader = Reader.of(self.model, self.asked)
        room = [len(answer) + 1 for answer in reader.encoder.tokens(self.references)]
        found = generation.answers(
            self.model,
            contexts,
            max_tokens=self.max_tokens or min(max(room), self.model.longest_sequence() - 1),
            until=self.until,
            room=[tokens - 1 for tokens in room],
            batch_size=self.batch_size,
            separated=self.asked,
        )
        return found if self.separated else [text.strip() for text in found]

    @functools.cached_property
    def scored(self) -> dict[str, Any]:
        """`loglikelihood` of the right answers."""
        pairs = [
            (self.context(i), self.continuation(answer)) for i, answer in enumerate(self.references)
        ]
        return likelihood.loglikelihood(
            self.model, pairs, batch_size=self.batch_size, separated=self.asked
        )

    @functools.cached_property
    def ranked(self) -> Ranked:
        """log p of every choice of every example; of a classifier, of every label of its head."""
        labels = getattr(getattr(self.model, "objective", None), "labels", None)
        if labels is not None:
            return self._of_head(labels)
        return self._ranked(labelled(self.examples), unconditional=False)

    @functools.cached_property
    def unconditional(self) -> Ranked:
        """log p of every choice without its context."""
        if self.ranked.of_head:
            raise _only_acc()
        return self._ranked(labelled(self.examples), unconditional=True)

    def _of_head(self, labels):
        if self.prompts.num_fewshot:
            raise InputError(
                "a classifier reads one text, without others before it. "
                f"Received: num_fewshot={self.prompts.num_fewshot}"
            )
        find, texts = self.model.objective.index, [one.question for one in self.examples]
        given = [Example(one.question, labels, find(one.answer)) for one in self.examples]
        logits = self.model.predict(texts, batch_size=self.batch_size, verbose=0)
        log_p = log_softmax(np.asarray(logits, "float64"), axis=-1)
        return Ranked(given, list(log_p), 0, of_head=True)

    def _ranked(self, given, unconditional):
        contexts = ["" if unconditional else self.context(i, given) for i in range(len(given))]
        pairs = [
            (context, self.continuation(choice))
            for context, example in zip(contexts, given, strict=True)
            for choice in example.choices
        ]
        found = likelihood.loglikelihood(
            self.model, pairs, batch_size=self.batch_size, separated=self.asked
        )
        ends = np.cumsum([len(example.choices) for example in given])[:-1]
        return Ranked(given, np.split(found["loglikelihood"], ends), found["cut"])


def _only_acc():
    return InputError(
        "a classifier's labels are no texts that it reads: acc is the metric of its choices. "
        "Received: another one"
    )


def evaluate(evaluation: Evaluation, metrics: list[Any]) -> dict[str, float]:
    """Metrics of an evaluation.

    Args:
        evaluation: an `Evaluation`.
        metrics: list of metrics: names, their JSON, or `Metric`.

    Returns:
        A dict of numbers: for each metric its value under its name, and where that is a mean over
        two examples or more its standard error under the name with `_stderr`, both named as in
        lm-evaluation-harness where that has them.

    Raises:
        InputError: for an unknown metric, or examples or a model that one cannot measure.

    Example:
        >>> found = evaluate(Evaluation(model, [("Call me", " Ishmael.")]), ["bits_per_byte"])
        >>> sorted(found)
        ['bits_per_byte']
    """
    found: dict[str, float] = {}
    for metric in map(METRICS.get, metrics):
        values = metric.values(evaluation)
        if metric.name in found:
            raise InputError(f"a metric is asked for once. Received: {metric.name} twice")
        found[metric.name] = float(np.mean(values))
        if np.size(values) > 1:
            found[f"{metric.name}_stderr"] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return found
