"""What an objective says and does. It makes examples in one of two forms.

- *The next token* (`next_token`): an example is a source and a target, and the labels are its
  tokens shifted by one. Causal and prefix LMs, span corruption, UL2 and MASS differ in which source
  and target `examples` makes.
- *In place*: an example is written as it is; then `hide` chooses positions and what is shown there,
  and the labels are the tokens that stood there. BERT's masked LM and UniLM's mixture.

A *token array* holds the tokens of one text: integers [tokens], ids that stand for a byte each, or
int32 [tokens, 2], ids and how many bytes of text each stands for, or int32 [tokens, 3], these and
whether each is scored (see `kzoo.encoder`).
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np

from kzoo import migrations
from kzoo.errors import unknown
from kzoo.registry import Part, Registry
from kzoo.typing import ObjectiveSpec, Rng
from kzoo.vocabulary import BYTES, Vocabulary


class Examples(NamedTuple):
    """Examples, before a layout writes them.

    Attributes:
        sources: list of token arrays, each of which may be None; or None. Where it is None no
            source is written, and no separator.
        targets: list of token arrays, none of them empty.
        visible: what of each example a prefix mask shows to all of its tokens: list of `"source"`
            (and the separator), `"all"` or `"none"`; or None, the source of each.
    """

    sources: list[Any] | None
    targets: list[Any]
    visible: list[str] | None = None


class Objective(Part):
    """Base of the objectives: frozen, hashable, JSON both ways.

    The random choices of all methods come from the generator that they are given, and from nothing
    else: every model that trains on an example gets the same ones.

    Attributes:
        name: the name in JSON.
        next_token: whether labels are the inputs shifted by one, so that a model must not see the
            tokens to the right of the target's; else they stand where tokens are hidden.
        has_source: whether every example has a source, which a prefix mask may show whole and an
            encoder may read.
        ends: whether EOS follows a target also where the text goes on, as in windows of running
            text.
    """

    next_token: ClassVar[bool] = True
    has_source: ClassVar[bool] = False
    ends: ClassVar[bool] = False

    @classmethod
    def lacks(cls) -> str:
        in_place = not cls.next_token and cls.labels is Objective.labels
        hides = cls.hide is not Objective.hide
        return "`hide`, where `next_token` is False" if in_place and not hides else ""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes, of an objective that predicts one for each text; None of those
        that predict tokens."""
        return None

    def index(self, label: str) -> int:
        """The class of a label.

        Args:
            label: a string.

        Returns:
            An int in [0, number of labels).

        Raises:
            InputError: for a label that is none of `labels`.

        Example:
            >>> get({"classification": {"labels": ["ham", "spam"]}}).index("spam")
            1
        """
        labels = self.labels or ()
        if label not in labels:
            raise unknown("label", label, labels)
        return labels.index(label)

    def examples(
        self,
        sources: list[Any] | None,
        targets: list[Any],
        room: int,
        rng: Rng,
        vocabulary: Vocabulary = BYTES,
    ) -> Examples:
        """The examples of a batch; by default what is given.

        Args:
            sources: list of `batch` token arrays, or None for plain texts.
            targets: list of `batch` token arrays, none of them empty (one array of them will do).
            room: how many tokens of a plain text fit; `examples` may leave out the rest. An
                integer.
            rng: a `numpy.random.Generator`.
            vocabulary: a `kzoo.vocabulary.Vocabulary`.

        Returns:
            `Examples(sources, targets)`, or a tuple of these.
        """
        return Examples(sources, targets)

    def lengths(self, source: int | None, target: int) -> tuple[int | None, int]:
        """How many tokens the source and the target have that `examples` makes.

        Args:
            source: tokens of a source, or None for plain text.
            target: tokens of a target, or of a plain text.

        Returns:
            `(source, target)`, two integers; source is None where none is written.
        """
        return source, target

    def longest_parts(self, source: int | None, target: int) -> tuple[int | None, int]:
        """The most tokens that the source, and that the target, can have on its own.

        Arguments and result as of `lengths`, which it equals where the two do not depend on draws.
        """
        return self.lengths(source, target)

    def scored(self, held_out: bool = False) -> str:
        """Which tokens of an example are scored: `"targets"`, the end token among them, or
        `"all"`, the sources' too; of held-out examples where `held_out`. A separator is never
        scored, nor what a target's token array says is not. In place it is what `hide` chooses."""
        return "targets"

    def draws(self, paired: bool) -> bool:
        """Whether the examples of pairs (`paired`), or of plain texts, depend on the generator."""
        return True

    def hide(
        self, ids: np.ndarray, rng: Rng, vocabulary: Vocabulary = BYTES
    ) -> tuple[np.ndarray, np.ndarray]:
        """What an objective in place shows of written examples, and which tokens it scores.

        Args:
            ids: int32 [batch, time].
            rng, vocabulary: as in `examples`.

        Returns:
            `(shown, chosen)`: int32 and bool [batch, time].
        """
        raise NotImplementedError(f"{type(self).__name__} hides nothing")


_registry = Registry("objective", Objective)
register = _registry.register


def names() -> tuple[str, ...]:
    """The names of the objectives, in the order in which they were registered: a tuple.

    Example:
        >>> "prefix_lm" in names()
        True
    """
    return _registry.names


def get(spec: ObjectiveSpec) -> Objective:
    """The objective that `spec` names.

    Args:
        spec: a name (`"masked_lm"`), JSON (`{"masked_lm": {"rate": 0.3}}`) or an
            `Objective`, which is returned as it is.

    Returns:
        An `Objective`.

    Raises:
        InputError: unknown objective, field or value.

    Example:
        >>> get({"prefix_lm": {"score": "targets"}}).get_config()
        'prefix_lm'
    """
    migrations.refuse_old_objective(spec)
    return _registry.get(spec)
