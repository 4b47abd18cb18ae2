"""Hidden tokens, predicted where they stand."""

import numpy as np

from kzoo.errors import InputError
from kzoo.objectives.base import Objective, register
from kzoo.typing import Rng
from kzoo.values import is_number, plain
from kzoo.vocabulary import BYTES, Vocabulary


@register
class MaskedLM(Objective):
    """The hidden tokens (BERT; Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 1).

    Exactly `max(1, round(rate * n))` of an example's n tokens of text are chosen; of these 80% are
    shown as MASK, 10% as a random one, 10% as they are. BOS, SEP and EOS are never chosen.

    Attributes:
        rate: the part of the text that is chosen, above 0, at most 1.
    """

    rate: float = 0.15

    name = "masked_lm"
    next_token = False

    def __post_init__(self):
        if not (is_number(self.rate) and 0 < self.rate <= 1):
            raise InputError(
                "the rate of masked_lm is a number above 0, at most 1; the usual one is 0.15. "
                f"Received: {self.rate!r}"
            )
        object.__setattr__(self, "rate", plain(self.rate))

    def hide(
        self, ids: np.ndarray, rng: Rng, vocabulary: Vocabulary = BYTES
    ) -> tuple[np.ndarray, np.ndarray]:
        if vocabulary.mask is None:
            raise InputError(
                "masked_lm hides tokens behind a mask. Received: a vocabulary without a mask token"
            )
        is_text = vocabulary.is_text(ids)
        count = is_text.sum(1, keepdims=True)
        counts = np.minimum(count, np.maximum(1, np.rint(self.rate * count)))
        # The text in random order, then everything else: the first `counts` are chosen.
        order = np.argsort(rng.random(ids.shape) + ~is_text, axis=1)
        chosen = np.zeros(ids.shape, bool)
        np.put_along_axis(chosen, order, np.arange(ids.shape[1]) < counts, axis=1)
        fate = rng.random(ids.shape)
        drawn = rng.integers(len(vocabulary.text_ids), size=ids.shape, dtype=np.int32)
        noise = vocabulary.text_ids[drawn]
        shown = np.where(fate < 0.8, vocabulary.mask, np.where(fate < 0.9, noise, ids))
        return np.where(chosen, shown, ids), chosen
