"""The labels that the examples of a source have."""

from typing import Any

import numpy as np

from kzoo.data import sources, splits
from kzoo.errors import InputError


def labels(source: Any) -> tuple[str, ...]:
    """The distinct labels of (text, label) pairs, for a classifier's objective.

    Args:
        source: pairs in any form that `kzoo.data.load` takes, such as
            `"table:reviews.csv:text:label"` or a list; the second of each is the label.

    Returns:
        A tuple of strings in alphabetical order; whole numbers in theirs.

    Raises:
        InputError: as `kzoo.data.load`; for texts without a label, one label alone, and targets
            that are no labels: half as many as examples, or longer than 32 characters on average.

    Example:
        >>> labels([("a fine film", "good"), ("a dull one", "bad"), ("so fine", "good"),
        ...         ("so dull", "bad"), ("dull again", "bad")])
        ('bad', 'good')
    """
    corpus = sources.read(source)
    found: dict[str, None] = {}  # in the order of the source, which need not fit into memory
    count = 0
    for part in (corpus, *corpus.official.values()):
        check_labelled(part.examples)
        count += len(part.examples)
        found.update((target, None) for _, target in part.examples)
    few = 1 < len(found) < count / 2
    if not few or sum(map(len, found)) > splits.LABEL * len(found):
        raise InputError(
            "labels are two or more, short, and each of several examples. Received: "
            f"{len(found)} different ones in {count} examples, such as {next(iter(found))!r:.60}"
        )
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if numbers else None))


def check_labelled(examples: Any) -> None:
    """`InputError` unless a source holds pairs: `Corpus.examples`, or None for running text."""
    if examples is None or examples[0][0] is None:
        raise InputError(
            "a classifier learns from (text, label) pairs, such as 'table:FILE:TEXT:LABEL'. "
            "Received: texts without labels"
        )


def label_entropy(part: Any) -> float:
    """The entropy of labels in bits: what guessing them without the texts costs each.

    Args:
        part: a part of the data, as `kzoo.data.parts` has it, whose targets are classes, [1] each;
            of one that is not in memory a sample counts.

    Returns:
        A float.
    """
    indices = splits.spread(len(part), len(part) if part.in_memory else splits.SAMPLED)
    share = np.bincount(np.ravel(part.take(indices)[1])) / len(indices)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())
