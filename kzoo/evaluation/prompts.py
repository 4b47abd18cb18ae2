"""Contexts: a question alone, or behind examples that are answered (few-shot)."""

import dataclasses
import itertools

import numpy as np

from kzoo.errors import InputError
from kzoo.evaluation.examples import Example, examples
from kzoo.values import is_count


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How questions become contexts; the names are those of lm-evaluation-harness.

    Attributes:
        num_fewshot: answered examples that stand before each question.
        fewshot: what they are drawn from, a list as `examples` reads it; None: the other examples
            that are evaluated.
        target_delimiter: between a question and its answer. Where the model reads a separator
            between context and answer, that stands in its place before the answer that is scored.
        fewshot_delimiter: behind each answered example.
        seed: of the draw, which is another one for each question, in the order of `fewshot`.

    Raises:
        InputError: for more shots than there are.

    Example:
        >>> shots = Prompts(num_fewshot=1, fewshot=[("1 + 1 =", "2")])
        >>> shots.context(examples([("2 + 2 =", "4")]), 0)
        '1 + 1 = 2\\n\\n2 + 2 ='
    """

    num_fewshot: int = 0
    fewshot: list | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    seed: int = 0

    def __post_init__(self):
        if not is_count(self.num_fewshot, least=0):
            raise InputError(
                f"num_fewshot is an integer from 0 on. Received: {self.num_fewshot!r:.60}"
            )
        if self.fewshot is not None:
            object.__setattr__(self, "fewshot", examples(self.fewshot))

    def context(self, given: list[Example], index: int) -> str:
        """The context of one of the examples that are evaluated."""
        question = given[index].question
        if not self.num_fewshot:
            return question
        pool = given if self.fewshot is None else self.fewshot
        drawn = np.random.default_rng((self.seed, index)).permutation(len(pool))
        others = (i for i in drawn.tolist() if pool[i].question != question)
        chosen = sorted(itertools.islice(others, self.num_fewshot))
        if len(chosen) < self.num_fewshot:
            raise InputError(
                "there are as many examples to show as are asked for, the question itself not "
                f"among them. Received: num_fewshot={self.num_fewshot}, and {len(chosen)} to show"
            )
        return "".join(self._shot(pool[i]) for i in chosen) + question

    def _shot(self, shot):
        return f"{shot.question}{self.target_delimiter}{shot.answer}{self.fewshot_delimiter}"
