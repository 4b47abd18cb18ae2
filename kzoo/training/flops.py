"""The multiplications and additions that a training step cannot do without."""

import collections
from typing import Any

from kzoo import masks, mixers
from kzoo.config import Config


def count_flops(config: Any) -> dict[str, int]:
    """Floating-point operations of the forward pass of one full example.

    Two for every weight of a matrix and token that it meets (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and 4 · head_dim for every head and pair of a query and a key
    that it sees (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, who count hidden pairs
    too). A mechanism says what it takes (`Mechanism.flops`): linear attention adds each key to its
    state and reads that with each query.
    Training takes three times as many, since the backward pass multiplies twice.

    Args:
        config: a `kzoo.config.Config` or its JSON; examples have `max_sequence_length` tokens, in
            both stacks.

    Returns:
        A dict: `matmul` and `attention`.

    Example:
        >>> count_flops(kzoo.presets.config("gpt_nano"))
        {'matmul': 15728640, 'attention': 1064960}
    """
    config = Config.get(config)
    time, layers, depth = config.max_sequence_length, config.num_layers, 0
    mixer, flops = mixers.sequence_mixer(config), collections.Counter()
    stacks = [(mixer, mask) for mask in masks.per_layer(config.mask, layers)]
    if config.stack != "single":  # the decoder attends to itself, and to the encoder
        cross, depth = mixers.sequence_mixer(config, cross=True), config.decoder_depth
        stacks += [(mixer, masks.causal()), (cross, masks.bidirectional())] * depth
    for mixer, mask in stacks:
        flops.update(mixer.flops(time, mask.per_head(config.num_heads)))
    for _ in range(layers + depth):
        flops.update(mixers.channel_mixer(config).flops(time))
    d = config.hidden_dim
    output = d * config.vocabulary_size + d * d * config.output_transform
    return {"matmul": flops["matmul"] + 2 * output * time, "attention": flops["attention"]}
