"""Which examples are held out: whole groups, so that no text that is scored was trained on.

Running text is split by `kzoo.data.text.split`.
"""

import logging
import unicodedata
from typing import Any

import numpy as np

from kzoo.data import text
from kzoo.data.sources import Corpus
from kzoo.data.sources.stored import Stored
from kzoo.encoder import utf8
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

LARGEST = 0.05  # of all examples: a larger group is split by source
SMALL = 10  # examples: a group of so few is never split
LABEL = 32  # characters that labels have on average, or fewer
SAMPLE = 1 << 20  # bytes of a text that is not held in memory, to count what two parts share
NEAR_COPIES = 0.2  # of the held-out bytes; where training shares more, a warning says so


def texts(corpus: Corpus, valid: float) -> tuple[dict[str, Any], dict]:
    """The parts of a corpus of running text.

    Args:
        corpus: with official splits, which are kept, or without, so that a part is held out.
        valid: the part to hold out, between 0 and 1.

    Returns:
        `(parts, facts)`: uint8 arrays, or `Stored`, by `"train"`, `"valid"` and, where the source
        has it, `"test"`; `{"split": ...}` and, with a test part, `"test_split"`, as `Splits` says.
    """
    whole = {part: _readable(other.text) for part, other in corpus.official.items()}
    if "valid" in whole:
        parts = {"train": _readable(corpus.text), **whole}
        facts = {"split": {"official": True}}
    elif isinstance(corpus.text, Stored):
        train, held_out = text.split_stored(corpus.text, valid)
        parts, facts = {"train": train, "valid": held_out, **whole}, {"split": {}}
        log.warning(
            "%s: of a text of 64 MB or more, what is held out is not cut out of the training part "
            "where it is repeated there; the facts count it in a sample",
            corpus.name,
        )
    else:
        train, held_out = text.split(corpus.text, valid)
        parts = {"train": train, "valid": held_out, **whole}
        facts = {"split": {"repeated_bytes": len(corpus.text) - len(train) - len(held_out)}}
    facts["split"] |= _shared(parts["train"], parts["valid"])
    if "test" in parts:
        facts["test_split"] = {"official": True} | _shared(parts["train"], parts["test"])
    return parts, facts


def _readable(held):
    return held if isinstance(held, Stored) else np.frombuffer(held, np.uint8)


def _shared(train, held_out):
    """The overlap of running texts; of those that are not held in memory, of a sample."""
    runs = [one.sample(SAMPLE) if isinstance(one, Stored) else [one] for one in (train, held_out)]
    facts = overlap(*runs)
    if isinstance(train, Stored) or isinstance(held_out, Stored):
        facts["sampled_bytes"] = [sum(map(len, one)) for one in runs]
    return facts


def examples(corpus: Corpus, valid: float) -> tuple[dict[str, list], dict]:
    """The parts of a corpus of examples, as `texts` gives those of running text: lists of pairs."""
    given = corpus.examples
    whole = {part: other.examples for part, other in corpus.official.items()}
    facts = {}
    if "valid" in whole:
        parts = {"train": given, **whole}
    else:
        held_out, facts["split"] = hold_out(given, valid)
        sides = ([given[i] for i in np.flatnonzero(held_out == side)] for side in (False, True))
        parts = dict(zip(("train", "valid"), sides, strict=True), **whole)
        if given[0][0] is None:
            facts["split"] |= overlap(*(_utf8(parts[part]) for part in ("train", "valid")))
    for part in whole:
        facts["split" if part == "valid" else f"{part}_split"] = _in_common(
            parts["train"], parts[part]
        )
    return parts, facts


def _in_common(train, held_out):
    """What two official splits have in common: nothing is moved."""
    facts = {"official": True}
    sides = [False] * len(train) + [True] * len(held_out)
    both = [*train, *held_out]
    sources, targets = ([folded(pair[i] or "") for pair in both] for i in (0, 1))
    if train[0][0] is None:
        facts |= overlap(_utf8(train), _utf8(held_out))
    else:
        facts["sources_on_both_sides"] = _on_both_sides(sources, sides)
        facts["examples_on_both_sides"] = _on_both_sides(
            list(zip(sources, targets, strict=True)), sides
        )
    facts["targets_on_both_sides"] = _on_both_sides(targets, sides)
    return facts


def _utf8(examples):
    return [utf8(target) for _, target in examples]


def hold_out(examples, valid):
    """Chooses the examples to hold out, in whole groups.

    Rows belong to one group if they share a text, directly or through others. The texts of a
    example are its source, and its target where targets are free text; a text counts as the same
    in either place (the other direction of a translation shows the answer too), and the same
    whatever its case, white space and Unicode form, since a copy so changed is as easily
    remembered. Texts without a letter or sign link nothing.

    Targets are labels where fewer than half as many are distinct as there are examples, and the
    distinct ones have 32 characters or fewer on average; else they are free text. A label may
    stand on both sides: held-out examples of a class that no training example shows would measure
    nothing; and each label is held out as often as others. So may a source that all examples share.

    A group that has more than 5% of the examples (and more than 10) would make the held-out
    part a matter of one draw. It is split by source, with a warning: then its sources stand on
    one side, and of its targets some on both, which the facts count.

    Args:
        examples: distinct pairs `(source, target)` of strings; every source None in plain text.
        valid: the part to hold out, between 0 and 1.

    Returns:
        `(held_out, facts)`: a bool for each example, `[examples]`, which depends on nothing but the
        arguments; and a dict of `linked_by` ("text", "source", "source and target", or
        "target" where all examples have one source), `groups`, `largest_group_rows`,
        `rows_split_by_source`, and `sources_on_both_sides` and `targets_on_both_sides`, the
        numbers of texts that the split did not keep apart (for plain text, the latter alone).

    Raises:
        InputError: fewer than two groups.

    Example:
        >>> examples = [("one", "un"), ("One", "une"), ("two", "deux"), ("a pair", "deux")]
        >>> held_out, facts = hold_out(examples, 0.5)
        >>> held_out.tolist(), facts["groups"]
        ([True, True, False, False], 2)
    """
    targets = [folded(target) for _, target in examples]
    sources = None if examples[0][0] is None else [folded(source) for source, _ in examples]
    linked_by, group, split = _groups(sources, targets)
    sizes = np.bincount(group)
    label = np.zeros(len(sizes), int)
    if linked_by == "source":
        label = components([targets])[np.unique(group, return_index=True)[1]]
    held_out = np.isin(group, choose(sizes, valid, label))
    facts = {
        "linked_by": linked_by,
        "groups": len(sizes),
        "largest_group_rows": int(sizes.max()),
        "rows_split_by_source": split,
    }
    if sources is not None:
        facts["sources_on_both_sides"] = _on_both_sides(sources, held_out)
    facts["targets_on_both_sides"] = both = _on_both_sides(targets, held_out)
    if split:
        log.warning(
            "%d of %d examples hang together through their targets and are split by source: %d "
            "targets are held out and trained on, too",
            *(split, len(examples), both),
        )
    return held_out, facts


def _groups(sources, targets):
    """By what examples are linked, the group of each, and how many were split by source."""
    if sources is None:
        linked_by, group, split = "text", components([targets]), 0
    else:
        free = not are_labels(targets)
        linked_by = "source and target" if free else "source"
        group = components([sources, targets] if free else [sources])
        group, split = _split_large(group, sources)
    if sources is not None and group.max() == 0:
        log.warning("all examples have one source, which stands on both sides of the split")
        linked_by, group = "target", components([targets])
    if group.max() == 0:
        raise InputError(
            "examples are trained on or held out, those that share a source or a target together: "
            f"two or more groups of them are needed. Received: {len(group)} examples, 1 group"
        )
    return linked_by, group, split


def overlap(train, held_out):
    """What texts have in common that were split, with a warning where it is much.

    Args:
        train, held_out: lists of uint8 arrays.

    Returns:
        A dict of `shared_bytes`: those of the held-out part that stand in training too, in
        runs of 32 or more.
    """
    shared, size = text.shared(train, held_out), sum(map(len, held_out))
    if shared > NEAR_COPIES * size:
        log.warning(
            "%d%% of the held-out bytes stand in the training part too, in runs of 32 or more: the "
            "texts are near copies of one another, and the held-out loss measures memory too",
            100 * shared // size,
        )
    return {"shared_bytes": shared}


def folded(string):
    """A text without what does not make it another: case, white space, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", string).casefold().split())


def are_labels(targets):
    """Whether targets are labels, by the rule of `hold_out`."""
    distinct = set(targets)
    return 2 * len(distinct) < len(targets) and sum(map(len, distinct)) <= LABEL * len(distinct)


def components(columns):
    """Groups of examples that share a text, directly or through others.

    Args:
        columns: lists of one text for each example. Empty texts link nothing.

    Returns:
        The number of each example's group, `[examples]`; groups are counted in the order of their
        first examples.
    """
    parent = list(range(len(columns[0])))

    def root(example):
        while parent[example] != example:
            parent[example] = example = parent[parent[example]]
        return example

    first = {}
    for column in columns:
        for example, string in enumerate(column):
            if string:
                one, other = root(example), root(first.setdefault(string, example))
                parent[max(one, other)] = min(one, other)
    # The root of a group is its first example, so that sorting numbers them in order.
    return np.unique([root(example) for example in range(len(parent))], return_inverse=True)[1]


def choose(sizes, valid, label):
    """The groups to hold out: about `valid` of the examples, and at least one group, not all.

    Groups of several examples are taken from the largest on, each where less than its share has
    been held out so far; single examples make up for what is missing, evenly spread over labels
    and, within a label, over the examples.

    Args:
        sizes: examples of each group, an integer array; two groups or more.
        valid: the part to hold out.
        label: a number for each group, by its target where targets are labels.

    Returns:
        Indices of groups, an integer array.
    """
    order = np.argsort(-sizes, kind="stable")
    chosen, held, seen = [], 0, 0
    for group in order[sizes[order] > 1]:
        seen += sizes[group]
        if 2 * held + sizes[group] <= 2 * valid * seen:
            chosen.append(group)
            held += sizes[group]
    single = np.flatnonzero(sizes == 1)
    single = single[np.argsort(label[single], kind="stable")]
    missing = max(round(sizes.sum() * valid) - held, 0 if chosen else 1)
    missing = min(missing, len(single))
    chosen += list(single[text.spread(len(single), missing)])
    if len(chosen) == len(sizes):
        chosen.remove(order[-1])
    return np.array(chosen or order[-1:])


def _split_large(group, sources):
    """Splits groups that are too large by source; how many examples were in them."""
    sizes = np.bincount(group)
    large = sizes > max(LARGEST * len(group), SMALL)
    if not (large.any() or len(sizes) == 1):
        return group, 0
    inside = large[group] | (len(sizes) == 1)
    # Rows of large groups are linked by source, all others as before.
    again = [s if within else f"\0{g}" for s, within, g in zip(sources, inside, group, strict=True)]
    after = components([again])
    changed = np.bincount(after)[after] < sizes[group]
    return after, int(changed.sum())


def _on_both_sides(texts, held_out):
    learned = {text for text, held in zip(texts, held_out, strict=True) if text and not held}
    scored = {text for text, held in zip(texts, held_out, strict=True) if text and held}
    return len(learned & scored)
