"""The label of a text."""

from kzoo.errors import InputError
from kzoo.objectives.base import Objective, register


@register
class Classification(Objective):
    """Which of some labels a text has: one prediction for each text, by a head of its own.

    The model reads BOS text SEP (BERT's [CLS] text [SEP]; Devlin et al. 2019, arXiv:1810.04805,
    section 4.1), as it reads the source of a prompt; labels are no tokens.

    Attributes:
        labels: the names of the classes, two or more different strings; class 0 is the first.
    """

    labels: tuple[str, ...] = ("0", "1")

    name = "classification"
    next_token = False
    has_source = True

    def __post_init__(self):
        labels = self.labels
        given = isinstance(labels, list | tuple)
        if not given or not all(isinstance(label, str) and label for label in labels):
            raise InputError(
                f"labels of {self.name} are a list of strings, none of them empty. "
                f"Received: {labels!r:.120}"
            )
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise InputError(
                f"labels of {self.name} are two or more, each once. Received: {labels!r:.120}"
            )
        object.__setattr__(self, "labels", tuple(labels))

    def draws(self, paired: bool) -> bool:
        return False
