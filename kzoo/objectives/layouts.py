"""How a stack reads examples: their model inputs, labels and weights, and prompts to go on from.

Every layout writes an example in one order,

    BOS source SEP target EOS PAD ...        (no source: BOS target EOS PAD ...)

`Single` as one sequence; `EncoderDecoder` as two, `BOS source SEP` and `BOS target EOS`. The
separator stands there under every objective, so that no model has to guess where the target begins.
The same examples have the same scored tokens in every layout.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives.base import Examples, Objective
from kzoo.typing import Rng
from kzoo.vocabulary import BYTES, Vocabulary

# What stands at a position, in the order in which a sequence holds them: the kind of a position is
# then the number of edges to its left (see `write`).
START, SOURCE, SEPARATOR, TARGET, END, PADDING = range(6)
# Whether the tokens of each kind are scored.
SCORED = {
    "all": np.array([0, 1, 0, 1, 1, 0], np.float32),
    "targets": np.array([0, 0, 0, 1, 1, 0], np.float32),
}
# The last kind that a prefix mask shows to all tokens, for each `Examples.visible`.
VISIBLE = {"none": START - 1, "source": SEPARATOR, "all": END}


class Sequences(NamedTuple):
    """Written examples, before any shift; arrays [batch, width]."""

    ids: np.ndarray  # int32
    kinds: np.ndarray  # int8, START to PADDING
    sizes: np.ndarray | None  # int32, bytes of text; None where tokens do not tell
    told: np.ndarray | None  # bool, False where an example says that a token is not scored

    def weights(self, scored):
        """Which tokens are scored, of `"targets"` or `"all"`: float32 [batch, width]."""
        weights = SCORED[scored][self.kinds]
        return weights if self.told is None else weights * self.told


def write(sources, targets, width, complete=True, vocabulary=BYTES):
    """Examples as `Sequences` of `width` tokens.

    What does not fit is cut: the target's end (down to one token), then the source's end.

    Args:
        sources: list of `batch` token arrays, each of which may be None; or None.
        targets: list of `batch` token arrays, none of them empty.
        width: tokens of a sequence.
        complete: whether targets are whole and EOS follows, of all or of each: a bool, or bool
            [batch]. Windows of running text are not.
        vocabulary: a `kzoo.vocabulary.Vocabulary`.

    Raises:
        InputError: a target is empty.
    """
    t = np.array([len(target) for target in targets])
    if not t.all():
        raise InputError(
            "an example needs at least one token to predict. "
            f"Received: an empty text or target (example {np.argmin(t)} of {len(t)})"
        )
    sources = [None] * len(t) if sources is None else sources
    separated = np.array([source is not None for source in sources])
    s = np.array([0 if source is None else len(source) for source in sources])
    begun = vocabulary.bos is not None
    s, t = cut(s, t, width - begun - separated)

    begin = begun + s + separated
    edges = [np.full_like(s, begun), begun + s, begin, begin + t, begin + t + complete]
    position = np.arange(width)
    kinds = np.sum([position >= edge[:, None] for edge in edges], axis=0, dtype=np.int8)

    pad = vocabulary.pad
    ids = np.array([vocabulary.bos or 0, pad, vocabulary.sep, pad, vocabulary.eos, pad], np.int32)
    ids = ids[kinds]
    sizes = np.zeros_like(ids) if np.ndim(targets[0]) == 2 else None
    told = None
    for kind, arrays, lengths in ((TARGET, targets, t), (SOURCE, sources, s)):
        parts = [x[:n] for x, n in zip(arrays, lengths, strict=True) if x is not None]
        if not parts:
            continue
        # Boolean indices run example by example, as the concatenated arrays do.
        tokens, at = np.concatenate(parts), kinds == kind
        one_byte = tokens.ndim == 1
        ids[at] = tokens if one_byte else tokens[:, 0]
        if sizes is not None:
            sizes[at] = 1 if one_byte else tokens[:, 1]
        if kind == TARGET and tokens.shape[1:] == (3,):
            told = np.ones(ids.shape, bool)
            told[at] = tokens[:, 2]
            told &= (kinds != END) | told.all(axis=1, keepdims=True)
    return Sequences(ids, kinds, sizes, told)


def cut(source, target, room):
    """How many tokens are left of a source and its target, of which `room` tokens fit.

    The target's end is cut first, down to one token, then the source's end.

    Args:
        source, target: numbers of tokens, integers or arrays of them.
        room: the same.

    Returns:
        `(source, target)`, arrays.

    Example:
        >>> [int(n) for n in cut(4, 5, 6)]
        [4, 2]
    """
    target = np.clip(room - source, 1, target)
    return np.minimum(source, room - target), target


def example_length(objective, source, target, complete=True, vocabulary=BYTES):
    """The `length` at which every layout keeps an example whole.

    Args:
        objective: an `Objective`.
        source: tokens of the source, or None for plain text.
        target: tokens of the target or text.
        complete, vocabulary: as in `write`.

    Returns:
        An int, in tokens.

    Example:
        >>> from kzoo import objectives
        >>> example_length(objectives.get("prefix_lm"), 1, 2)
        5
    """
    source, target = objective.lengths(source, target)
    begun, complete = vocabulary.bos is not None, complete or objective.ends
    tokens = begun + (0 if source is None else source + 1) + target + complete
    return tokens - objective.next_token


def part_lengths(objective, source, target, length, complete=True, vocabulary=BYTES):
    """The most columns of an encoder's and of a decoder's sequence that an example takes.

    They are exact where the objective draws neither (`Objective.longest_parts`). It is cut as in
    `write`.

    Args:
        objective, source, target, complete, vocabulary: as of `example_length`.
        length: tokens of a sequence, to which a longer example is cut.

    Returns:
        `(encoder, decoder)`, two ints. An example without a source is all the decoder's.

    Example:
        >>> from kzoo import objectives
        >>> part_lengths(objectives.get("prefix_lm"), 3, 2, 64)
        (5, 3)
    """
    begun, complete = vocabulary.bos is not None, complete or objective.ends
    exact = objective.longest_parts(source, target) == objective.lengths(source, target)
    source, target = objective.longest_parts(source, target)
    width = length + objective.next_token
    if source is None:
        return 0, min(begun + target + complete, width) - objective.next_token
    room = width - begun - 1
    if exact:
        source, target = (int(n) for n in cut(source, target, room))
    else:
        source, target = min(source, room - 1), min(target, room)
    encoder = begun + source + 1
    return encoder, min(target + complete, width - encoder if exact else length)


def window(objective, length, vocabulary=BYTES):
    """How many tokens of running text fill an example of `length` tokens (no EOS)."""
    tokens = length + 1
    while example_length(objective, None, tokens, False, vocabulary) > length:
        tokens -= 1
    return tokens


def aligned_left(sequences, width=None, pad=0):
    """Arrays of ids as int32 arrays [batch, width], `pad` behind them, and their 0/1 mask."""
    lengths = np.array([len(ids) for ids in sequences])
    mask = (np.arange(width or lengths.max()) < lengths[:, None]).astype("int32")
    ids = np.full(mask.shape, pad, "int32")
    ids[mask != 0] = np.concatenate(sequences)
    return ids, mask


def prompt(ids, as_source, vocabulary=BYTES):
    """The beginning of a sequence, from which a model is to go on.

    Args:
        ids: a sequence of ids.
        as_source: whether they are a source, whose target is to come, or a target's beginning.
        vocabulary: a `Vocabulary`.

    Returns:
        int32 [tokens]: BOS ids SEP, or BOS ids; without BOS where the vocabulary has none.

    Example:
        >>> prompt([97], as_source=True).tolist()
        [257, 97, 260]
    """
    bos = [] if vocabulary.bos is None else [vocabulary.bos]
    return np.array([*bos, *ids, *[vocabulary.sep] * as_source], np.int32)


def decoder_start(vocabulary=BYTES):
    """The id with which a decoder's sequence begins.

    Raises:
        InputError: if the vocabulary has none.
    """
    start = vocabulary.bos if vocabulary.decoder_start is None else vocabulary.decoder_start
    if start is None:
        raise InputError(
            "a decoder needs a token to start with, decoder_start_token_id in a Hugging Face "
            "config.json. Received: a vocabulary with neither decoder_start nor bos"
        )
    return start


@dataclasses.dataclass(frozen=True)
class Single:
    """Examples as one sequence each.

    Attributes:
        source_mask: whether the model takes a `source_mask`.
        segments: the segment ids of texts and sources, and of the targets of pairs, where the
            model has segment embeddings; else None.
    """

    source_mask: bool = False
    segments: tuple | None = None

    name: ClassVar[str] = "single"

    def check(self, objective: Objective) -> None:
        """`InputError` unless a single stack can learn an objective: it can learn all."""

    def batch(
        self,
        objective: Objective,
        examples: Examples,
        length: int,
        rng: Rng,
        *,
        complete: bool | np.ndarray,
        scored: str,
        vocabulary: Vocabulary,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Examples as `(x, y, sample_weight)`.

        Args:
            objective: an `Objective`.
            examples: as its `examples` returns them.
            length: tokens of a sequence.
            rng: of what it hides in place.
            complete, vocabulary: as in `write`.
            scored: `"targets"` or `"all"`.

        Returns:
            `x`, a dict of int32 [batch, length]: `"token_ids"`, `"padding_mask"` (1 real, 0
            padding); where the model takes them `"source_mask"` (1 in BOS, source and SEP, or in
            what else an example shows; all 0 unless the objective has a source) and
            `"segment_ids"`; and where tokens come with their bytes, `"label_bytes"` (those that
            each of `y` stands for). `y`, int32 [batch, length], the ids to predict.
            `sample_weight`, float32 [batch, length], 1 where they are scored.
        """
        shift = int(objective.next_token)
        sources, targets, visible = Examples(*examples)
        sequences = write(sources, targets, length + shift, complete, vocabulary)
        ids, kinds, sizes, told = sequences
        if shift:
            shown, weight = ids[:, :-1], sequences.weights(scored)[:, 1:]
        elif told is not None:
            raise InputError(
                "where an example says which of its tokens are scored, they are predicted as next "
                "tokens: use the objective 'prefix_lm'. "
                f"Received: objective={objective.get_config()!r}"
            )
        else:
            shown, chosen = objective.hide(ids, rng, vocabulary)
            weight = chosen.astype(np.float32)
        kinds = kinds[:, :length]
        x = {"token_ids": shown, "padding_mask": (kinds < PADDING).astype(np.int32)}
        if self.source_mask:
            last = np.array([VISIBLE[v] for v in visible or ["source"]])[:, None]
            x["source_mask"] = ((kinds <= last) & objective.has_source).astype(np.int32)
        if self.segments is not None:
            of_pair = np.array([False] * len(ids)) if sources is None else _given(sources)
            in_target = (kinds > SEPARATOR) & (kinds < PADDING) & of_pair[:, None]
            x["segment_ids"] = np.array(self.segments, np.int32)[in_target.astype(np.int32)]
        if sizes is not None:
            x["label_bytes"] = sizes[:, shift:]
        return x, ids[:, shift:], weight

    def prompts(self, texts: list[Any], as_source: bool, vocabulary: Vocabulary = BYTES) -> Any:
        """The inputs of a model that is to go on from some texts.

        Args:
            texts: list of sequences of ids.
            as_source: whether they are sources, whose targets are to come.
            vocabulary: a `Vocabulary`.

        Returns:
            A dict of int32 arrays [batch, width], as `batch` gives, up to where the model goes on.
        """
        sequences = [prompt(ids, as_source, vocabulary) for ids in texts]
        aligned = aligned_left(sequences, pad=vocabulary.pad)
        x = dict(zip(("token_ids", "padding_mask"), aligned, strict=True))
        if self.source_mask:
            x["source_mask"] = x["padding_mask"] * as_source
        if self.segments is not None:
            x["segment_ids"] = x["padding_mask"] * self.segments[0]
        return x


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """Examples as two sequences each: the encoder reads the source, the decoder writes the target.

    `batch` returns in `x`, int32 [batch, length], `"encoder_token_ids"` (BOS source SEP),
    `"encoder_padding_mask"`, `"decoder_token_ids"` (BOS target) and `"decoder_padding_mask"`; and
    `"label_bytes"` as `Single`. Its arguments are `Single`'s, and so are those of `prompts`.
    """

    name: ClassVar[str] = "encoder_decoder"

    def check(self, objective: Objective) -> None:
        """`InputError` unless an encoder and a decoder can learn an objective."""
        if objective.next_token and objective.has_source and objective.scored() == "targets":
            return
        raise InputError(
            "an encoder reads the source, and a decoder predicts the target's next token: the "
            "objective has a source and scores targets alone, such as 'prefix_lm'. "
            f"Received: objective={objective.get_config()!r} with an encoder and a decoder"
        )

    def batch(
        self,
        objective: Objective,
        examples: Examples,
        length: int,
        rng: Rng,
        *,
        complete: bool | np.ndarray,
        scored: str,
        vocabulary: Vocabulary,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        sources, targets, _ = Examples(*examples)
        sequences = write(sources, targets, length + 1, complete, vocabulary)
        ids, kinds, sizes, _ = sequences
        encoded = kinds <= SEPARATOR
        # The target follows a BOS of its own: its sequence begins where the separator stood.
        position = np.arange(length + 1) + encoded.sum(1, keepdims=True) - 1
        inside = position < length + 1
        position = np.minimum(position, length)
        kinds = np.where(inside, np.take_along_axis(kinds, position, 1), PADDING)
        decoded = np.where(inside, np.take_along_axis(ids, position, 1), vocabulary.pad)
        decoded[:, 0], kinds[:, 0] = decoder_start(vocabulary), START
        x = {
            "encoder_token_ids": np.where(encoded, ids, vocabulary.pad)[:, :-1],
            "encoder_padding_mask": encoded[:, :-1].astype(np.int32),
            "decoder_token_ids": decoded[:, :-1],
            "decoder_padding_mask": (kinds[:, :-1] < PADDING).astype(np.int32),
        }
        if sizes is not None:
            x["label_bytes"] = np.where(inside, np.take_along_axis(sizes, position, 1), 0)[:, 1:]
        weights = np.take_along_axis(sequences.weights(scored), position, 1)
        return x, decoded[:, 1:], np.where(inside, weights, 0)[:, 1:]

    def prompts(self, texts: list[Any], as_source: bool, vocabulary: Vocabulary = BYTES) -> Any:
        """As `Single.prompts`; whatever a prompt is, the encoder reads it."""
        starts = [[decoder_start(vocabulary)]] * len(texts)
        encoded = [prompt(ids, True, vocabulary) for ids in texts]
        x = {}
        for part, sequences in (("encoder", encoded), ("decoder", starts)):
            aligned = aligned_left(sequences, pad=vocabulary.pad)
            x[f"{part}_token_ids"], x[f"{part}_padding_mask"] = aligned
        return x


def layout(stack: str, source_mask: bool = False, segments: Any = None) -> Single | EncoderDecoder:
    """The layout of a stack.

    Args:
        stack: a config's `stack`.
        source_mask, segments: as in `Single`; of an encoder and a decoder neither.
    """
    return Single(source_mask, segments) if stack == "single" else EncoderDecoder()


def _given(sources):
    """Which of some sources are there: bool [batch]."""
    return np.array([source is not None for source in sources])
