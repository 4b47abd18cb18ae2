"""The 384 token ids that every family shares: 256 bytes and 128 reserved ids.

Every objective finds its special tokens here, so that no objective changes the
shape of an embedding. Models that come with a tokenizer have a `Vocabulary` of their own.
"""

import dataclasses
import functools

import numpy as np

NUM_BYTES = 256
PAD, BOS, EOS, MASK, SEP = range(256, 261)
MODES = range(261, 264)
NUM_SENTINELS = 100
SENTINELS = range(284, 284 + NUM_SENTINELS)
VOCABULARY_SIZE = 384


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids that an objective needs to know; None where a vocabulary has no such token.

    Attributes:
        size: ids are in [0, size).
        pad: what fills a sequence. Where padding stands says the padding mask, not this id.
        bos, sep, eos: before a sequence, between source and target, after a target.
            Only bos may be None.
        mask: hides a token.
        decoder_start: the first token of a decoder.
        sentinels: ids that stand for spans, in the order in which they are used.
        modes: ids that stand before a source and say how its target was made (UL2's R, S and X).
        special: the ids that stand for no text, ascending; they are never hidden or scored as
            text, and never drawn as noise.
        word: the ids of which two that stand side by side are parts of one word.
        continuing: the ids that continue the word of the token before them, whatever that is; None
            where the vocabulary does not tell. Of bytes `word` tells.
    """

    size: int
    pad: int
    bos: int | None
    sep: int
    eos: int
    mask: int | None
    decoder_start: int | None
    special: tuple
    sentinels: tuple = ()
    modes: tuple = ()
    word: tuple = ()
    continuing: tuple | None = None

    @functools.cached_property
    def text_ids(self):
        """The ids that stand for text, ascending: int32."""
        return np.flatnonzero(self._text).astype(np.int32)

    def joined(self, ids):
        """Which of some ids, an integer array, continue the word of the id before them: bool, of
        the same shape; or None where the vocabulary does not tell."""
        if not self.word and self.continuing is None:
            return None
        inside, joined = np.isin(ids, self.word), np.isin(ids, self.continuing or ())
        joined[..., 1:] |= inside[..., 1:] & inside[..., :-1]
        joined[..., 1:] &= self.is_text(ids[..., :-1])  # no word goes on behind a special token
        joined[..., :1] = False
        return joined

    def is_text(self, ids):
        """Which of some ids, an integer array, stand for text: bool, of the same shape."""
        return self._text[ids]

    @functools.cached_property
    def _text(self):
        text = np.ones(self.size, bool)
        text[list(self.special)] = False
        return text


BYTES = Vocabulary(
    size=VOCABULARY_SIZE,
    pad=PAD,
    bos=BOS,
    sep=SEP,
    eos=EOS,
    mask=MASK,
    decoder_start=BOS,
    special=tuple(range(NUM_BYTES, VOCABULARY_SIZE)),
    sentinels=tuple(SENTINELS),
    modes=tuple(MODES),
    word=tuple(id for id in range(NUM_BYTES) if id > 127 or chr(id).isalnum()),
)
