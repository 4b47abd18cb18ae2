"""The 384 token ids that every family shares: 256 bytes and 128 reserved ids.

Every objective finds its special tokens here, so that no objective changes the
shape of an embedding. Models that come with a tokenizer have a `Vocabulary` of their own.
"""

import dataclasses
import functools

import numpy as np

NUM_BYTES = 256
PAD, BOS, EOS, MASK, SEP = range(256, 261)
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
        special: the ids that stand for no text, ascending; they are never hidden or scored as
            text, and never drawn as noise.
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

    @functools.cached_property
    def text_ids(self):
        """The ids that stand for text, ascending: int32."""
        return np.flatnonzero(self._text).astype(np.int32)

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
)
