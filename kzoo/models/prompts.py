"""Prompts of different lengths as one batch, in NumPy.

The prompts of a batch are padded on the left, so that all of them end at the same column and
generation writes the same column of every sequence:

    padding … prompt | tokens to generate

Positions are counted from a document's first token, so the padding on the left changes none.
"""

from typing import NamedTuple

import numpy as np

BUCKET = 32  # widths are multiples of it, so that few shapes compile
FREE = -1  # in place of a token to be generated: no valid id, so never equal to a stop token


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        ids: int32 [tokens].
        source: how many of them, from the first on, are the source of a prefix mask.
        segments: int32 [tokens + 1], their segment ids, then that of all tokens to be generated;
            None for a model without segments.
        encoded: int32 [encoder_tokens], the encoder's input; None without an encoder.
    """

    ids: np.ndarray
    source: int = 0
    segments: np.ndarray | None = None
    encoded: np.ndarray | None = None


def bucket(size):
    """The least multiple of 32 that is not below `size`."""
    return -(-size // BUCKET) * BUCKET


def aligned_right(prompts, max_length):
    """A batch of prompts, with columns in which each can grow to `max_length` tokens.

    Args:
        prompts: a list of `Prompt`.
        max_length: tokens of each sequence, its prompt included.

    Returns:
        A dict of int32 arrays. `prompt` [batch, width]: the columns up to the end of the prompts,
        rounded up to a multiple of 32. `tokens` [batch, time]: all columns, with -1 where a token
        is to be generated; a longer prompt reaches `max_length` before the last column, and 0
        follows. `start` and `source_end` [batch]: the first column of the prompt, and the one
        after its source. `index`: the first column to generate. And, if prompts have segments,
        `segment_ids` [batch, width] and `segments` [batch, 2] (see `Backbone.init_cache`).
    """
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    steps = max_length - lengths.min()
    time = bucket(lengths.max() + steps)
    index = time - steps
    width = min(bucket(index), time)
    ids = np.zeros((len(prompts), time))  # no token sees what stands in the padding
    for tokens, prompt in zip(ids, prompts, strict=True):
        tokens[index - len(prompt.ids) : index] = prompt.ids
    start = index - lengths
    column = np.arange(time)
    free = (column >= index) & (column < (start + max_length)[:, None])
    inputs = {
        "prompt": ids[:, :width],
        "tokens": np.where(free, FREE, ids),
        "start": start,
        "source_end": start + [prompt.source for prompt in prompts],
        "index": np.array(index),
    }
    if prompts[0].segments is not None:
        segment_ids = np.zeros((len(prompts), width))
        for segments, prompt in zip(segment_ids, prompts, strict=True):
            segments[index - len(prompt.ids) : index] = prompt.segments[:-1]
        inputs["segment_ids"] = segment_ids
        inputs["segments"] = np.array([prompt.segments[-2:] for prompt in prompts])
    return {name: array.astype("int32") for name, array in inputs.items()}


def until(tokens, stops):
    """The generated tokens before the first stop token, or before the first column left free."""
    ends = np.flatnonzero(np.isin(tokens, [FREE, *stops]))
    return tokens[: ends[0]] if len(ends) else tokens
