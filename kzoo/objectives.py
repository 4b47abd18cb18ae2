"""What is predicted: NumPy transforms from examples to model inputs, labels and weights.

An *example* is a pair `(source, target)` of token id arrays (bytes, unless a `Vocabulary`
says otherwise); plain text is a target without a source. Every objective lays it out in one order,

    BOS source SEP target EOS PAD ...        (no source: BOS target EOS PAD ...)

and they differ in which tokens are scored and in what the model is shown. The
separator stands there in every arm, so that no model has to guess where the target
begins. Objectives are frozen, hashable and JSON both ways:

    "causal_lm"                          the next token, everywhere
    "continuation"                       the next token of the target, given the source
    {"continuation": {"score": "all"}}   the same, with the source's tokens scored too
    "seq2seq"                            the same as continuation, for an encoder and a decoder,
                                         which read `BOS source SEP` and `BOS target EOS`
    "masked_lm"                          the hidden tokens; {"masked_lm": {"rate": 0.3}}
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from kzoo.errors import InputError, unknown
from kzoo.values import is_number, plain
from kzoo.vocabulary import BYTES

# What stands at a position, in the order in which a row holds them: the kind of a
# position is then the number of edges to its left (see `_layout`).
START, SOURCE, SEPARATOR, TARGET, END, PADDING = range(6)
_SCORE_ALL = np.array([0, 1, 0, 1, 1, 0], np.float32)  # a separator is never scored
_SCORE_TARGETS = np.array([0, 0, 0, 1, 1, 0], np.float32)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of the objectives; `get` makes them.

    Attributes:
        name: the name in JSON.
        task: `"CausalLM"`, `"Seq2SeqLM"` or `"MaskedLM"`, the kind of model that it trains.
        next_token: whether labels are the inputs shifted by one, so that a model must
            not see the tokens to the right of the target's.
        has_source: whether rows have a source that a prefix mask may show whole.
    """

    name: ClassVar[str]
    task: ClassVar[str] = "CausalLM"
    next_token: ClassVar[bool] = True
    has_source: ClassVar[bool] = False

    def get_config(self):
        """The shortest JSON that `get` turns back into this objective."""
        fields = [(f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self)]
        config = {name: value for name, value, default in fields if value != default}
        return {self.name: config} if config else self.name

    def window(self, length, vocabulary=BYTES):
        """How many tokens of running text fill a row of `length` tokens (no EOS)."""
        return length - self.row_length(None, b"", complete=False, vocabulary=vocabulary)

    def row_length(self, source, target, complete=True, vocabulary=BYTES):
        """The `length` at which `encode` keeps this example whole.

        Args:
            source: a sequence of ids, or None.
            target: a sequence of ids.
            complete: whether EOS follows the target.
            vocabulary: a `kzoo.vocabulary.Vocabulary`.

        Returns:
            An int, in tokens.
        """
        separated = source is not None or self.has_source
        begun = vocabulary.bos is not None
        tokens = begun + (0 if source is None else len(source)) + separated + len(target) + complete
        return tokens - self.next_token

    def encode(
        self,
        sources,
        targets,
        length,
        rng,
        *,
        complete=True,
        held_out=False,
        vocabulary=BYTES,
    ):
        """A batch of examples as a model's inputs, labels and weights.

        Args:
            sources: list of `batch` token arrays, or None for plain text. A token array is
                integers [tokens], ids that stand for a byte each, or int32 [tokens, 2], ids and
                how many bytes of text each stands for (see `kzoo.encoder`).
            targets: list of `batch` token arrays, none empty (one array of them will
                do). What does not fit is cut: the target's end (down to one token), then
                the source's end; callers count with `row_length` and say so.
            length: row length, in tokens.
            rng: `numpy.random.Generator` that draws boundaries and masked positions. The
                result depends on the arguments and its state, on nothing else.
            complete: whether targets are whole and EOS follows. Windows of running text
                are not.
            held_out: score what held-out rows score (`continuation`: targets only,
                whatever is trained on, so that arms are measured on the same tokens).
            vocabulary: a `kzoo.vocabulary.Vocabulary`: what the special tokens are. Without
                BOS, rows begin with the source or the text.

        Returns:
            `(x, y, sample_weight)`: `x` a dict of int32 `[batch, length]` arrays
            `"token_ids"`, `"padding_mask"` (1 real, 0 padding), `"source_mask"` (1 in
            BOS, source and SEP; all 0 unless `has_source`) and `"segment_ids"` (1 in the target
            of a pair), and `"label_bytes"` (the bytes of text that each of `y` stands for) where
            tokens come with theirs; `y` int32 `[batch, length]`, the ids to predict; `sample_weight` float32
            `[batch, length]`, 1 where they are scored.

        Raises:
            InputError: a target is empty, or a text is too short to be cut in two.

        Example:
            >>> rng = np.random.default_rng(0)
            >>> x, y, weight = get("continuation").encode([[97]], [[98, 99]], 6, rng)
            >>> x["token_ids"].tolist(), y.tolist(), weight.tolist()
            ([[257, 97, 260, 98, 99, 258]], [[97, 260, 98, 99, 258, 256]], [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
        """  # noqa: E501
        raise NotImplementedError


class CausalLM(Objective):
    """The next token everywhere but at the separator (GPT; Radford et al. 2018, eq. 1)."""

    name = "causal_lm"

    def encode(
        self,
        sources,
        targets,
        length,
        rng,
        *,
        complete=True,
        held_out=False,
        vocabulary=BYTES,
    ):
        rows = _layout(sources, targets, length + 1, complete, vocabulary)
        return _next_token(rows, _SCORE_ALL, sources, np.zeros_like(rows.kinds, bool))


@dataclasses.dataclass(frozen=True)
class Continuation(Objective):
    """The target's next token, given the source (UniLM's sequence to sequence, prefix LM).

    Plain text is cut in two at a boundary drawn uniformly, since a model memorises one
    that never moves (Raffel et al. 2020, section 3.2.3, "prefix LM").

    Attributes:
        score: `"targets"`, or `"all"` to train on the source's tokens as well.
    """

    score: str = "targets"

    name = "continuation"
    has_source = True

    def __post_init__(self):
        if self.score not in ("targets", "all"):
            raise unknown("continuation score", self.score, ["targets", "all"])

    def encode(
        self,
        sources,
        targets,
        length,
        rng,
        *,
        complete=True,
        held_out=False,
        vocabulary=BYTES,
    ):
        if sources is None:
            sources, targets = _cut_in_two(targets, self.window(length, vocabulary), rng)
        rows = _layout(sources, targets, length + 1, complete, vocabulary)
        score = _SCORE_ALL if self.score == "all" and not held_out else _SCORE_TARGETS
        return _next_token(rows, score, sources, rows.kinds <= SEPARATOR)


class Seq2Seq(Objective):
    """The target's next token, given the source that the encoder has read (T5).

    Sources, targets, cuts and scored tokens are those of `Continuation`, example by example.

    `encode` returns in `x`, each int32 [batch, length], `"encoder_token_ids"` (BOS source SEP),
    `"encoder_padding_mask"`, `"decoder_token_ids"` (BOS target) and `"decoder_padding_mask"`.
    """

    name = "seq2seq"
    task = "Seq2SeqLM"
    has_source = True

    def encode(
        self,
        sources,
        targets,
        length,
        rng,
        *,
        complete=True,
        held_out=False,
        vocabulary=BYTES,
    ):
        if sources is None:
            sources, targets = _cut_in_two(targets, self.window(length, vocabulary), rng)
        ids, kinds, sizes = _layout(sources, targets, length + 1, complete, vocabulary)
        encoded = kinds <= SEPARATOR
        # The target follows a BOS of its own: its row begins where the separator stood.
        place = np.arange(length + 1) + encoded.sum(1, keepdims=True) - 1
        inside = place < length + 1
        place = np.minimum(place, length)
        kinds = np.where(inside, np.take_along_axis(kinds, place, 1), PADDING)
        decoded = np.where(inside, np.take_along_axis(ids, place, 1), vocabulary.pad)
        decoded[:, 0], kinds[:, 0] = decoder_start(vocabulary), START
        x = {
            "encoder_token_ids": np.where(encoded, ids, vocabulary.pad)[:, :-1],
            "encoder_padding_mask": encoded[:, :-1].astype(np.int32),
            "decoder_token_ids": decoded[:, :-1],
            "decoder_padding_mask": (kinds[:, :-1] < PADDING).astype(np.int32),
        }
        if sizes is not None:
            x["label_bytes"] = np.where(inside, np.take_along_axis(sizes, place, 1), 0)[:, 1:]
        return x, decoded[:, 1:], _SCORE_TARGETS[kinds[:, 1:]]


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
    """The hidden tokens (BERT; Devlin et al. 2019, section 3.1, task 1).

    Exactly `max(1, round(rate * n))` of a row's n tokens of text are chosen; of these 80% are
    shown as MASK, 10% as a random one, 10% as they are. BOS, SEP and EOS are never chosen.

    Attributes:
        rate: the part of the text that is chosen, above 0, at most 1.
    """

    rate: float = 0.15

    name = "masked_lm"
    task = "MaskedLM"
    next_token = False

    def __post_init__(self):
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            raise InputError(
                "the rate of masked_lm is a number above 0, at most 1; the usual one is 0.15. "
                f"Received: {self.rate!r}"
            )
        object.__setattr__(self, "rate", plain(self.rate))

    def encode(
        self,
        sources,
        targets,
        length,
        rng,
        *,
        complete=True,
        held_out=False,
        vocabulary=BYTES,
    ):
        if vocabulary.mask is None:
            raise InputError(
                "masked_lm hides tokens behind a mask. Received: a vocabulary without a mask token"
            )
        ids, kinds, sizes = _layout(sources, targets, length, complete, vocabulary)
        is_text = vocabulary.is_text(ids)
        count = is_text.sum(1, keepdims=True)
        counts = np.minimum(count, np.maximum(1, np.rint(self.rate * count)))
        # The text in random order, then everything else: the first `counts` are chosen.
        order = np.argsort(rng.random(ids.shape) + ~is_text, axis=1)
        chosen = np.zeros(ids.shape, bool)
        np.put_along_axis(chosen, order, np.arange(length) < counts, axis=1)
        fate = rng.random(ids.shape)
        drawn = rng.integers(len(vocabulary.text_ids), size=ids.shape, dtype=np.int32)
        noise = vocabulary.text_ids[drawn]
        shown = np.where(fate < 0.8, vocabulary.mask, np.where(fate < 0.9, noise, ids))
        x = {
            "token_ids": np.where(chosen, shown, ids),
            "padding_mask": (kinds < PADDING).astype(np.int32),
            "source_mask": np.zeros_like(ids),
            "segment_ids": _segments(kinds, sources),
        }
        if sizes is not None:
            x["label_bytes"] = sizes
        return x, ids, chosen.astype(np.float32)


_OBJECTIVES = {cls.name: cls for cls in (CausalLM, Continuation, Seq2Seq, MaskedLM)}


def get(spec):
    """The objective that `spec` names.

    Args:
        spec: a name (`"masked_lm"`), JSON (`{"masked_lm": {"rate": 0.3}}`) or an
            `Objective`, which is returned as it is.

    Returns:
        An `Objective`.

    Raises:
        InputError: unknown objective, field or value.

    Example:
        >>> get({"continuation": {"score": "targets"}}).get_config()
        'continuation'
    """
    if isinstance(spec, Objective):
        return spec
    name, config = spec, {}
    if isinstance(spec, Mapping) and len(spec) == 1:
        ((name, config),) = spec.items()
    if not isinstance(name, str) or name not in _OBJECTIVES:
        raise unknown("objective", spec, _OBJECTIVES)
    cls = _OBJECTIVES[name]
    if not isinstance(config, Mapping):
        raise InputError(f"the fields of {name} are a mapping of names to values. Received: {spec}")
    fields = [f.name for f in dataclasses.fields(cls)]
    for field in config:
        if field not in fields:
            raise unknown(f"field of {name}", field, fields or ["none"])
    return cls(**config)


def prompt(ids, as_source, vocabulary=BYTES):
    """The beginning of a row, from which a model is to go on.

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
    """The id with which a decoder's row begins.

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


class _Rows(NamedTuple):
    """Rows laid out, before any shift; arrays [batch, width]."""

    ids: np.ndarray  # int32
    kinds: np.ndarray  # int8
    sizes: np.ndarray | None  # int32, bytes of text; None where tokens do not tell


def _layout(sources, targets, width, complete, vocabulary):
    """Token arrays as `_Rows`."""
    t = np.array([len(target) for target in targets])
    if not t.all():
        raise InputError(
            "a row needs at least one token to predict. "
            f"Received: an empty text or target (row {np.argmin(t)} of {len(t)})"
        )
    separated = sources is not None
    s = np.array([len(source) for source in sources]) if separated else np.zeros_like(t)
    begun = vocabulary.bos is not None
    room = width - begun - separated
    t = np.clip(room - s, 1, t)
    s = np.minimum(s, room - t)

    begin = begun + s + separated
    edges = [np.full_like(s, begun), begun + s, begin, begin + t, begin + t + complete]
    position = np.arange(width)
    kinds = np.sum([position >= edge[:, None] for edge in edges], axis=0, dtype=np.int8)

    pad = vocabulary.pad
    ids = np.array([vocabulary.bos or 0, pad, vocabulary.sep, pad, vocabulary.eos, pad], np.int32)
    ids = ids[kinds]
    sizes = np.zeros_like(ids) if np.ndim(targets[0]) == 2 else None
    parts = [(TARGET, targets, t), *[(SOURCE, sources, s)] * separated]
    for kind, examples, lengths in parts:
        # Boolean indices run row by row, as the concatenated examples do.
        tokens = np.concatenate([x[:n] for x, n in zip(examples, lengths, strict=True)])
        if sizes is None:
            ids[kinds == kind] = tokens
        else:
            ids[kinds == kind], sizes[kinds == kind] = tokens.T
    return _Rows(ids, kinds, sizes)


def _cut_in_two(texts, room, rng):
    """Each text, cut to `room`, as a source and a target: boundaries uniform in 1..n-1."""
    n = np.minimum([len(text) for text in texts], room)
    if n.min() < 2:
        raise InputError(
            "a continuation needs two tokens or more, to be cut into source and target. "
            f"Received: a row of {n.min()}"
        )
    cuts = rng.integers(1, n)
    sources = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    targets = [text[cut:end] for text, cut, end in zip(texts, cuts, n, strict=True)]
    return sources, targets


def _segments(kinds, sources):
    """1 in the target of a pair, 0 elsewhere: int32 [batch, width]."""
    return ((kinds > SEPARATOR) & (kinds < PADDING) & (sources is not None)).astype(np.int32)


def _next_token(rows, score, sources, shown):
    """Inputs, labels and weights of a next-token objective: everything shifts by one."""
    ids, kinds, sizes = rows
    x = {
        "token_ids": ids[:, :-1],
        "padding_mask": (kinds[:, :-1] < PADDING).astype(np.int32),
        "source_mask": shown[:, :-1].astype(np.int32),
        "segment_ids": _segments(kinds, sources)[:, :-1],
    }
    if sizes is not None:
        x["label_bytes"] = sizes[:, 1:]
    return x, ids[:, 1:], score[kinds[:, 1:]]
