"""What becomes of examples that are longer than a row: cut, or split, and counted."""

import dataclasses
import logging
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
    """Examples as token arrays, none of which loses more than is counted.

    Attributes:
        sources: list of token arrays, or None for plain texts.
        targets: list of token arrays.
        complete: bool [examples], whether EOS follows: not after a piece that is not the last.
        needed: integers [examples], the tokens with which each would be whole.
        sizes: integers [examples, 3], what each takes of a row: of a single stack's, an encoder's
            and a decoder's.
    """

    sources: list[Any] | None
    targets: list[Any]
    complete: np.ndarray
    needed: np.ndarray
    sizes: np.ndarray


def check_long(long):
    """`InputError` unless there is such a way to treat long examples."""
    if long not in LONG:
        raise unknown("way to treat long examples", long, LONG)


def fit(
    encoder: Encoder, parts: dict[str, tuple[Any, Any]], longest: int, long: str
) -> tuple[dict[str, Fitted], dict[str, int]]:
    """Examples that fit into rows of `longest` tokens.

    Args:
        encoder: an `Encoder`.
        parts: by name a list of sources (or None for plain texts) and one of targets, token arrays.
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
    complete, split = np.ones(len(targets), bool), 0
    if long == "split" and sources is None:
        pieces = [_pieces(encoder, target, longest) for target in targets]
        counts = np.array([len(of_text) for of_text in pieces])
        split, complete = int((counts > 1).sum()), np.zeros(counts.sum(), bool)
        complete[np.cumsum(counts) - 1] = True
        targets = [piece for of_text in pieces for piece in of_text]
    each = [None] * len(targets) if sources is None else list(sources)
    pairs = list(zip(each, targets, strict=True))
    needed = np.array(
        [encoder.example_length(*pair, last) for pair, last in zip(pairs, complete, strict=True)]
    )
    too_long = np.flatnonzero(needed > longest)
    left = [_left(encoder, *pairs[i], longest, long) for i in too_long]
    bare = sum(int(t == 1 < len(pairs[i][1])) for i, (_, t) in zip(too_long, left, strict=True))
    if long == "truncate_source" and sources is not None:
        for i, (s, t) in zip(too_long, left, strict=True):
            pairs[i] = pairs[i][0][:s], pairs[i][1][:t]
        sources, targets = ([pair[n] for pair in pairs] for n in (0, 1))
    room = encoder.window(longest)
    parts = [
        encoder.part_lengths(
            None if source is None else len(source),
            min(len(target), room) if source is None else len(target),
            longest,
            bool(last),
        )
        for (source, target), last in zip(pairs, complete, strict=True)
    ]
    sizes = np.column_stack([np.minimum(needed, longest), np.array(parts)])
    lost = int((needed - longest)[too_long].sum())
    facts = {"cut_rows": len(too_long), "cut_tokens": lost, "cut_to_one_token": bare}
    return Fitted(sources, targets, complete, needed, sizes), facts | {"split_rows": split}


def _pieces(encoder, text, longest):
    """A text in pieces that fit, of which the last has room for EOS."""
    if encoder.example_length(None, text) <= longest:
        return [text]
    size, start, found = encoder.window(longest), 0, []
    while encoder.example_length(None, text[start:]) > longest:
        end = min(start + size, len(text) - LEAST)
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


def _left(encoder, source, target, longest, long):
    """How many tokens are left of a source, and of its target, that are too long: `(s, t)`."""
    begun, s = encoder.vocabulary.bos is not None, 0 if source is None else len(source)
    room = longest + encoder.objective.next_token - begun - (source is not None)
    if long != "truncate_source" or source is None:
        return layouts.cut(s, len(target), room)
    t, s = layouts.cut(len(target), s, room - 1)  # of which one is for EOS
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
