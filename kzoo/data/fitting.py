"""What becomes of examples that are longer than a row: cut, or split, and counted."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from kzoo.encoder import Encoder
from kzoo.errors import InputError, unknown
from kzoo.objectives import layouts

log = logging.getLogger("kzoo")

LONG = ("truncate", "truncate_source", "split", "refuse")
LEAST = 2  # tokens of a piece: objectives that cut a text in two need as many


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What of each example stands in rows, so that none loses more than is counted.

    Attributes:
        example: integers [rows], the number of the example that each has, or has a piece of.
        source: integers [rows], how many tokens of its source; None in plain text.
        start, stop: integers [rows], the first of the tokens of its target, and their end.
        complete: bool [rows], whether EOS follows: not after a piece that is not the last.
        needed: integers [rows], the tokens with which each would be whole.
        sizes: integers [rows, 3], what each takes of a row: of a single stack's, an encoder's
            and a decoder's.
    """

    example: np.ndarray
    source: np.ndarray | None
    start: np.ndarray
    stop: np.ndarray
    complete: np.ndarray
    needed: np.ndarray
    sizes: np.ndarray

    def cut(
        self, rows: Sequence[int], sources: Sequence[Any] | None, targets: Sequence[Any]
    ) -> tuple[list[Any] | None, list[Any]]:
        """The token arrays of some rows: the sources, or None, and the targets.

        Args:
            rows: their numbers.
            sources, targets: the whole token arrays of the example of each.
        """
        each = zip(rows, targets, strict=True)
        cut = [one[self.start[i] : self.stop[i]] for i, one in each]
        if sources is None or self.source is None:
            return None, cut
        return [one[: self.source[i]] for i, one in zip(rows, sources, strict=True)], cut


def check_long(long):
    """`InputError` unless there is such a way to treat long examples."""
    if long not in LONG:
        raise unknown("way to treat long examples", long, LONG)


def fit(
    encoder: Encoder, parts: dict[str, tuple[Any, Any]], longest: int, long: str
) -> tuple[dict[str, Fitted], dict[str, int]]:
    """What of examples fits into rows of `longest` tokens.

    Args:
        encoder: an `Encoder`.
        parts: by name how many tokens each source has (None for plain texts), and each target:
            two integer arrays.
        longest: tokens.
        long: what becomes of longer ones: `"truncate"`: the target's end is cut, down to one
            token, then the source's; `"truncate_source"`: the source's end is cut, then the
            target's; `"split"`: a text becomes several examples, and a pair, which cannot be
            split, is truncated; `"refuse"`: an error.

    Returns:
        A `Fitted` by the name of each part; and facts of all of them: `cut_rows`, how many examples
        are cut, `cut_tokens`, how many tokens are lost by that, `cut_to_one_token`, of how many a
        target of several tokens keeps one, and `split_rows`, how many were split.

    Raises:
        InputError: for an example that is too long and to be refused.
    """
    facts = {"cut_rows": 0, "cut_tokens": 0, "cut_to_one_token": 0, "split_rows": 0}
    fitted = {}
    for name, (sources, targets) in parts.items():
        fitted[name], counted = _fit(encoder, sources, targets, longest, long)
        facts = {fact: count + counted[fact] for fact, count in facts.items()}
    _tell(facts, np.concatenate([part.needed for part in fitted.values()]), longest, long)
    return fitted, facts


def _fit(encoder, sources, targets, longest, long):
    example, start, stop = np.arange(len(targets)), np.zeros_like(targets), targets.copy()
    complete, split = np.ones(len(targets), bool), 0
    if long == "split" and sources is None:
        example, start, stop = _pieces(encoder, targets, longest)
        complete = np.append(example[1:] != example[:-1], True)
        split = len(np.unique(example[~complete]))
    paired = sources is not None
    kept = sources.copy() if paired else None
    need = needed(encoder, sources, stop - start, complete)
    over = np.flatnonzero(need > longest)
    first = long == "truncate_source" and paired
    of_source = sources[over] if paired else np.zeros(len(over), int)
    s, t = _left(encoder, of_source, (stop - start)[over], longest, paired, first)
    bare = int(((t == 1) & ((stop - start)[over] > 1)).sum())
    if first:
        kept[over], stop[over] = s, t
    taken = sizes(encoder, kept, stop - start, need, longest, complete)
    facts = {"cut_rows": len(over), "cut_tokens": int((need[over] - longest).sum())}
    facts |= {"cut_to_one_token": bare, "split_rows": split}
    return Fitted(example, kept, start, stop, complete, need, taken), facts


def needed(encoder: Encoder, sources: Any, targets: Any, complete: Any = True) -> np.ndarray:
    """The tokens with which each example is whole, integers [examples].

    Args:
        encoder: an `Encoder`.
        sources, targets: their numbers of tokens, integers [examples]; sources is None for plain
            texts.
        complete: whether EOS follows, a bool or bool [examples].
    """

    def needs(source, target, last):
        return encoder.example_length(
            None if source is None else range(source), range(target), last
        )

    return _of_each(needs, sources, targets, complete)


def sizes(
    encoder: Encoder, sources: Any, targets: Any, needed: Any, longest: int, complete: Any = True
) -> np.ndarray:
    """What each example takes of a row, as of `Fitted`; the arguments are those of `needed`."""
    room = encoder.window(longest)

    def takes(source, target, last):
        target = min(target, room) if source is None else target
        return encoder.part_lengths(source, target, longest, last)

    parts = _of_each(takes, sources, targets, complete)
    return np.column_stack([np.minimum(needed, longest), parts])


def _of_each(function, sources, targets, complete):
    """A function of two lengths and a bool, of each example: an array. Equal ones are many."""
    source = np.zeros_like(targets) if sources is None else sources
    target, last = targets, np.broadcast_to(complete, len(targets))
    shape = int(source.max()) + 1, int(target.max()) + 1, 2
    rows = np.ravel_multi_index((source, target, last.astype(int)), shape)
    different, which = np.unique(rows, return_inverse=True)
    columns = (column.tolist() for column in np.unravel_index(different, shape))
    found = [
        function(None if sources is None else s, t, bool(end))
        for s, t, end in zip(*columns, strict=True)
    ]
    return np.array(found)[which.reshape(-1)]


def _pieces(encoder, lengths, longest):
    """Texts in pieces that fit, of which the last of each has room for EOS: of each piece the
    number of its text, its first token, and its end."""
    size, found = encoder.window(longest), {}

    def ends(length):
        start, inner = 0, []
        while encoder.example_length(None, range(length - start)) > longest:
            start = min(start + size, length - LEAST)
            inner.append(start)
        return [*inner, length]

    for length in np.unique(lengths).tolist():
        found[length] = ends(length)
    stop = [found[length] for length in lengths.tolist()]
    example = np.repeat(np.arange(len(lengths)), [len(inner) for inner in stop])
    stop = np.concatenate([np.asarray(inner, np.int64) for inner in stop])
    start = np.concatenate([[0], stop[:-1]])
    start[np.append(True, example[1:] != example[:-1])] = 0
    return example, start, stop


def _left(encoder, source, target, longest, paired, source_first):
    """How many tokens are left of sources, and of their targets, that are too long: two arrays."""
    begun = encoder.vocabulary.bos is not None
    room = longest + encoder.objective.next_token - begun - paired
    if not source_first:
        return layouts.cut(source, target, room)
    t, s = layouts.cut(target, source, room - 1)  # of which one is for EOS
    return s, t


def _tell(facts, needed, longest, long):
    """Refuse examples that are too long, or warn that they are cut."""
    cut, bare = facts["cut_rows"], facts["cut_to_one_token"]
    if cut and long == "refuse":
        raise InputError(
            f"examples have at most {longest} tokens, the model's max_sequence_length, where long "
            f"ones are refused. Received: {cut} of {len(needed)} that are longer, up to "
            f"{needed.max()} tokens"
        )
    if cut:
        log.warning(
            "%d of %d examples are longer than %d tokens and are cut", cut, len(needed), longest
        )
    if bare:
        log.warning(
            "of %d of them one token of the target is left: a longer max_sequence_length, or "
            "packing={'padded': {'long': 'truncate_source'}}, which cuts sources first, keeps more",
            bare,
        )
