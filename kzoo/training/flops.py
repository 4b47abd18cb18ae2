"""The multiplications and additions that a training step cannot do without."""

import collections
from typing import Any

from kzoo import masks, mixers
from kzoo.config import Config


def count_flops(
    config: Any, time: int | None = None, decoder_time: int | None = None
) -> dict[str, int]:
    """Floating-point operations of the forward pass of one row of tokens.

    Two for every weight of a matrix and token that it meets (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and 4 · head_dim for every head and pair of a query and a key
    that it sees (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, who count hidden pairs
    too). A mechanism says what it takes (`Mechanism.flops`): linear attention adds each key to its
    state and reads that with each query.
    Training takes three times as many, since the backward pass multiplies twice.

    Padding is computed as tokens are, so it counts; of several documents in a row all pairs count
    that one document as long as the row would have.

    Args:
        config: a `kzoo.config.Config` or its JSON.
        time: tokens of the row, of an encoder's where there are two stacks; None:
            `max_sequence_length`.
        decoder_time: tokens of a decoder's row; None: `max_sequence_length`.

    Returns:
        A dict: `matmul` and `attention`.

    Example:
        >>> count_flops(kzoo.presets.config("gpt_nano"))
        {'matmul': 15728640, 'attention': 1064960}
        >>> count_flops(kzoo.presets.config("t5_nano"), 40, 12)
        {'matmul': 12517376, 'attention': 1104896}
    """
    config = Config.get(config)
    time = config.max_sequence_length if time is None else time
    mixer, channels = mixers.sequence_mixer(config), mixers.channel_mixer(config)
    flops = collections.Counter[str]()
    for mask in masks.per_layer(config.mask, config.num_layers):
        flops.update(mixer.flops(time, mask.per_head(config.num_heads)))
        flops.update(channels.flops(time))
    last = time
    if config.stack != "single":  # the decoder attends to itself, and to the encoder
        last = config.max_sequence_length if decoder_time is None else decoder_time
        cross = mixers.sequence_mixer(config, cross=True)
        own, other = (m.per_head(config.num_heads) for m in (masks.causal(), masks.bidirectional()))
        for _ in range(config.decoder_depth):
            flops.update(mixer.flops(last, own))
            flops.update(cross.flops(last, other, key_time=time))
            flops.update(channels.flops(last))
    return {"matmul": flops["matmul"] + 2 * _output(config, last), "attention": flops["attention"]}


def _output(config, time):
    """Products of a token's width with the weights of the head."""
    d, labels = config.hidden_dim, config.objective.labels
    if labels is not None:  # of one token's state
        return d * len(labels) + d * d * config.pooler
    return time * (d * config.vocabulary_size + d * d * config.output_transform)
