"""Rows of tokens while they grow, in NumPy.

The prompts of a batch end at one column, so that every row goes on at the same one:

    padding … prompt | tokens to come

kzoo's positions begin at a document's first token, so the padding on the left moves none.
"""

from typing import NamedTuple

import numpy as np

BUCKET = 32  # widths are multiples of it, so that few shapes compile
FREE = -1  # what stands where a token is to come: no token, so none that could stop


class Prompt(NamedTuple):
    """What a row begins with.

    Attributes:
        ids: int32 [tokens].
        source: how many of them are the source of a prefix mask.
        segments: int32 [tokens + 1], their segment ids and that of tokens to come; or None.
        encoded: int32 [tokens], what an encoder reads; or None.
    """

    ids: np.ndarray
    source: int = 0
    segments: np.ndarray | None = None
    encoded: np.ndarray | None = None


def bucket(size):
    """The least multiple of 32 that is not below `size`."""
    return -(-size // BUCKET) * BUCKET


def aligned_right(prompts, max_length):
    """A batch of prompts and columns to come, until each row has `max_length`; int32 arrays.

    Returns:
        A dict: `prompt` [batch, width], the columns that hold prompts and some of those to come;
        `row` [batch, time], -1 where tokens are to come; `start` and `source_end` [batch];
        `index`, the first column to come; and, where prompts have them, `segment_ids`
        [batch, width] and `segments` [batch, 2] (see `Backbone.init_cache`). Rows with longer
        prompts are full before the last column: what stands after that is 0.
    """
    lengths = np.array([len(prompt.ids) for prompt in prompts])
    steps = max_length - lengths.min()
    time = bucket(lengths.max() + steps)
    index = time - steps
    width = min(bucket(index), time)
    ids = np.zeros((len(prompts), time))  # whatever stands in padding, nothing sees it
    for row, prompt in zip(ids, prompts, strict=True):
        row[index - len(prompt.ids) : index] = prompt.ids
    start = index - lengths
    column = np.arange(time)
    free = (column >= index) & (column < (start + max_length)[:, None])
    inputs = {
        "prompt": ids[:, :width],
        "row": np.where(free, FREE, ids),
        "start": start,
        "source_end": start + [prompt.source for prompt in prompts],
        "index": np.array(index),
    }
    if prompts[0].segments is not None:
        segment_ids = np.zeros((len(prompts), width))
        for row, prompt in zip(segment_ids, prompts, strict=True):
            row[index - len(prompt.ids) : index] = prompt.segments[:-1]
        inputs["segment_ids"] = segment_ids
        inputs["segments"] = np.array([prompt.segments[-2:] for prompt in prompts])
    return {name: array.astype("int32") for name, array in inputs.items()}


def until(tokens, stops):
    """Tokens before the first of `stops`, or the first that was never drawn."""
    ends = np.flatnonzero(np.isin(tokens, [FREE, *stops]))
    return tokens[: ends[0]] if len(ends) else tokens
