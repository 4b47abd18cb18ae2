"""Hidden tokens, predicted where they stand."""

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives.base import Objective, register
from kzoo.typing import Rng
from kzoo.values import is_count, is_number, plain, shown
from kzoo.vocabulary import BYTES, Vocabulary

SINGLE = 0.8  # of the runs, one token


@register
class MaskedLM(Objective):
    """The hidden tokens (BERT; Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 1).

    Exactly `max(1, round(rate * n))` of an example's n tokens of text are chosen; of these 80% are
    shown as MASK, 10% as a random one, 10% as they are. BOS, SEP and EOS are never chosen.

    Attributes:
        rate: the part of the text that is chosen, above 0, at most 1.
        longest: tokens of a run that is chosen at once, at most. Of the runs 80% have one token,
            the others two or more, equally likely (Dong et al. 2019, arXiv:1905.03197, section
            2.3, with 3). The last run is cut where the number is reached.
        whole_words: whether words are chosen whole (Google's BERT of May 2019): in random order,
            those that would pass the number are left out, so that it may not be reached.
    """

    rate: float = 0.15
    longest: int = 1
    whole_words: bool = False

    name = "masked_lm"
    next_token = False

    def __post_init__(self):
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            raise InputError(
                f"the rate of {self.name} is a number above 0, at most 1; the usual one is 0.15. "
                f"Received: {self.rate!r}"
            )
        if not is_count(self.longest):
            raise InputError(
                f"longest of {self.name} is a number of tokens, 1 or more. "
                f"Received: {shown(self.longest)}"
            )
        if not isinstance(self.whole_words, bool) or (self.whole_words and self.longest > 1):
            raise InputError(
                f"whole_words of {self.name} is true or false, and true only with a longest of 1. "
                f"Received: whole_words={shown(self.whole_words)}, longest={self.longest}"
            )
        object.__setattr__(self, "rate", plain(self.rate))

    def hide(
        self, ids: np.ndarray, rng: Rng, vocabulary: Vocabulary = BYTES
    ) -> tuple[np.ndarray, np.ndarray]:
        if vocabulary.mask is None:
            raise InputError(
                f"{self.name} hides tokens behind a mask. "
                "Received: a vocabulary without a mask token"
            )
        is_text = vocabulary.is_text(ids)
        count = is_text.sum(1, keepdims=True)
        counts = np.minimum(count, np.maximum(1, np.rint(self.rate * count)))
        if self.whole_words:
            chosen = _whole_words(_joined(ids, vocabulary), is_text, counts, rng)
        else:
            chosen = _runs(self.longest, is_text, counts, rng)
        fate = rng.random(ids.shape)
        drawn = rng.integers(len(vocabulary.text_ids), size=ids.shape, dtype=np.int32)
        noise = vocabulary.text_ids[drawn]
        instead = np.where(fate < 0.8, vocabulary.mask, np.where(fate < 0.9, noise, ids))
        return np.where(chosen, instead, ids), chosen


def _runs(longest, is_text, counts, rng):
    """Which tokens are chosen, `counts` [batch, 1] of each example, in runs: bool [batch, time]."""
    rank = rng.random(is_text.shape)
    if longest > 1:
        several = rng.random(is_text.shape) >= SINGLE
        sizes = np.where(several, rng.integers(2, longest, is_text.shape, endpoint=True), 1)
        rank = _spread(rank, sizes, is_text)
    # The text in the order of its runs, then everything else: the first `counts` are chosen.
    order = np.argsort(rank + ~is_text, axis=1, kind="stable")
    chosen = np.zeros(is_text.shape, bool)
    np.put_along_axis(chosen, order, np.arange(is_text.shape[1]) < counts, axis=1)
    return chosen


def _spread(rank, sizes, is_text):
    """The least rank among the runs that hold a token. A run of `sizes` tokens begins at each
    token, has its rank, and ends before what is no text."""
    least, inside = rank.copy(), is_text.copy()
    for step in range(1, sizes.max()):
        inside[:, :-step] &= is_text[:, step:]  # from a run's first token to this one all is text
        reached = np.where(inside & (sizes > step), rank, np.inf)[:, :-step]
        least[:, step:] = np.minimum(least[:, step:], reached)
    return least


def _joined(ids, vocabulary):
    joined = vocabulary.joined(ids)
    if joined is None:
        raise InputError(
            "whole words need a vocabulary that tells which tokens form a word, as bytes and most "
            "tokenizers' files do. Received: one that does not"
        )
    return joined


def _whole_words(joined, is_text, counts, rng):
    """Which tokens are chosen, whole words of each example: bool [batch, time]."""
    word = np.cumsum(~joined, axis=1) - 1  # the word of each token, from 0 on
    chosen = np.zeros(is_text.shape, bool)
    for i, (words, text, count) in enumerate(zip(word, is_text, counts[:, 0], strict=True)):
        sizes = np.bincount(words[text], minlength=words[-1] + 1)
        taken = 0
        for each in rng.permutation(np.flatnonzero(sizes)):
            if taken + sizes[each] <= count:
                chosen[i] |= text & (words == each)
                taken += sizes[each]
        if not taken:  # all words are longer: the beginning of one
            first = np.flatnonzero(text & (words == rng.choice(np.flatnonzero(sizes))))
            chosen[i, first[: int(count)]] = True
    return chosen
