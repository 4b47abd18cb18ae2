"""Which examples are held out: whole groups, so that no text that is scored was trained on.

Running text is split by `kzoo.data.text.split`.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from kzoo.data import text
from kzoo.data.sources import Corpus
from kzoo.data.sources.index import Indexed, keys
from kzoo.data.sources.records import CHUNK
from kzoo.data.sources.stored import Stored
from kzoo.encoder import utf8
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

LARGEST = 0.05  # of all examples: a larger group is split by source
SMALL = 10  # examples: a group of so few is never split
LABEL = 32  # characters that labels have on average, or fewer
# Of what is not held in memory a sample is looked at, to count what two parts share:
SAMPLE = 1 << 20  # held-out bytes
SAMPLED = 2048  # held-out texts
MUCH = 1 << 28  # bytes of training text
READ = 4096  # documents of training text that are read one by one
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
    facts: dict[str, Any]
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
    if not (isinstance(train, Stored) or isinstance(held_out, Stored)):
        return overlap([train], [held_out])
    affordable = READ * train.mean_stretch if isinstance(train, Stored) else 0
    sizes = min(MUCH, max(SAMPLE, affordable)), SAMPLE
    pair = zip((train, held_out), sizes, strict=True)
    some = [one.sample(size) if isinstance(one, Stored) else one for one, size in pair]
    runs = [one.chunks() if isinstance(one, Stored) else [one] for one in some]
    return overlap(*runs, much=True) | {"sampled_bytes": [*map(len, some)]}


def examples(corpus: Corpus, valid: float) -> tuple[dict[str, Any], dict]:
    """The parts of a corpus of examples, as `texts` gives those of running text: lists of pairs."""
    given = corpus.examples
    whole = {part: other.examples for part, other in corpus.official.items()}
    facts: dict[str, Any] = {}
    if "valid" in whole:
        parts = {"train": given, **whole}
    else:
        held_out, facts["split"] = hold_out(given, valid)
        sides = (some(given, np.flatnonzero(held_out == side)) for side in (False, True))
        parts = dict(zip(("train", "valid"), sides, strict=True), **whole)
        if given[0][0] is None:
            facts["split"] |= _shared_texts(parts["train"], parts["valid"])
    for part in whole:
        facts["split" if part == "valid" else f"{part}_split"] = _in_common(
            parts["train"], parts[part]
        )
    return parts, facts


def some(examples: Sequence[Any], indices: np.ndarray) -> Sequence[Any]:
    """Some examples: a list, or `Indexed` of such."""
    if isinstance(examples, Indexed):
        return examples.some(indices)
    return [examples[i] for i in indices]


def sample(examples: Sequence[Any], size: int) -> list[Any]:
    """At most `size` examples, evenly spread: a list."""
    return list(some(examples, spread(len(examples), size)))


def spread(count: int, size: int) -> np.ndarray:
    """At most `size` indices below `count`, evenly spread."""
    return np.linspace(0, count - 1, min(size, count)).astype(int)


def _in_common(train, held_out):
    """What two official splits have in common: nothing is moved."""
    facts, rows = {"official": True}, [keys(train), keys(held_out)]
    both, sides = np.concatenate(rows), np.repeat([False, True], [*map(len, rows)])
    if train[0][0] is None:
        facts |= _shared_texts(train, held_out)
    else:
        facts["sources_on_both_sides"] = _on_both_sides(both["source"], sides)
        pair = both["source"] * np.uint64(0x9E3779B97F4A7C15) ^ both["target"]
        facts["examples_on_both_sides"] = _on_both_sides(pair, sides)
    facts["targets_on_both_sides"] = _on_both_sides(both["target"], sides)
    return facts


def _shared_texts(train, held_out):
    """The overlap of texts; of those that are not held in memory, of a sample of them."""
    if not (isinstance(train, Indexed) or isinstance(held_out, Indexed)):
        return overlap(*([utf8(target) for _, target in part] for part in (train, held_out)))
    affordable = MUCH // (1 + _mean_size(train)) if isinstance(train, Indexed) else len(train)
    counts = [min(len(train), max(SAMPLED, affordable)), min(len(held_out), SAMPLED)]
    learned = some(train, spread(len(train), counts[0]))
    pieces = (learned[at : at + CHUNK] for at in range(0, counts[0], CHUNK))
    runs = (text.joined(utf8(target) for _, target in piece) for piece in pieces)
    scored = [utf8(target) for _, target in sample(held_out, SAMPLED)]
    return overlap(runs, scored, much=True) | {"sampled_rows": counts}


def _mean_size(examples):
    return int(examples.sizes[:, 1].mean())


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
    rows = keys(examples)
    targets, sources = rows["target"], None if examples[0][0] is None else rows["source"]
    linked_by, group, split = _groups(sources, targets, rows["letters"])
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


def _groups(sources, targets, letters):
    """By what examples are linked, the group of each, and how many were split by source."""
    if sources is None:
        linked_by, group, split = "text", components([targets]), 0
    else:
        free = not are_labels(targets, letters)
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


def overlap(train, held_out, much=False):
    """What texts have in common that were split, with a warning where it is much.

    Args:
        train: a list of uint8 arrays, or an iterable of them where they are `much`.
        held_out: a list of uint8 arrays.
        much: whether training texts are too much to be looked at from every byte on.

    Returns:
        A dict of `shared_bytes`: those of the held-out part that stand in training too, in
        runs of 32 or more (`text.shared`, or `text.shared_with_much`).
    """
    held_out = [*held_out]
    find = text.shared_with_much if much else text.shared
    shared, size = find(train, held_out), sum(map(len, held_out))
    if shared > NEAR_COPIES * size:
        log.warning(
            "%d%% of the held-out bytes stand in the training part too, in runs of 32 or more: the "
            "texts are near copies of one another, and the held-out loss measures memory too",
            100 * shared // size,
        )
    return {"shared_bytes": shared}


def are_labels(targets, letters):
    """Whether targets are labels, by the rule of `hold_out`.

    Args:
        targets: a hash of each example's target, `[examples]`.
        letters: how many characters it has, `[examples]`.
    """
    _, first = np.unique(targets, return_index=True)
    return bool(2 * len(first) < len(targets) and letters[first].sum() <= LABEL * len(first))


def components(columns):
    """Groups of examples that share a text, directly or through others.

    Args:
        columns: arrays or lists with one text, or a hash of it, for each example. Empty texts, and
            the hash 0, link nothing.

    Returns:
        The number of each example's group, `[examples]`; groups are counted in the order of their
        first examples.
    """
    from scipy.sparse import coo_array, csgraph

    count = len(columns[0])
    texts, text_of = np.unique(
        np.concatenate([np.asarray(c) for c in columns]), return_inverse=True
    )
    linking = (texts != np.zeros(1, texts.dtype))[text_of]
    ends = np.tile(np.arange(count), len(columns))[linking], count + text_of[linking]
    shape = (count + len(texts),) * 2
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape)
    label = csgraph.connected_components(graph, directed=False)[1][:count]
    _, first, group = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]


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
    again = np.where(inside, sources, _hashes_of(group))
    after = components([again])
    changed = np.bincount(after)[after] < sizes[group]
    return after, int(changed.sum())


def _hashes_of(group):
    """Other hashes than those of texts, all but certainly, for the numbers of groups."""
    return (group.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


def _on_both_sides(texts, held_out):
    """How many texts, given by their hashes, stand on both sides."""
    held_out = np.asarray(held_out)
    return len(np.setdiff1d(np.intersect1d(texts[held_out], texts[~held_out]), [0]))
