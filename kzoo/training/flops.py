"""The multiplications and additions that a training step cannot do without."""

from kzoo import masks, names
from kzoo.config import Config
from kzoo.mechanisms import HeadSizes


def count_flops(config):
    """Floating-point operations of the forward pass of one full row.

    Two for every weight of a matrix and token that it meets (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and 4 · head_dim for every head and pair of a query and a key
    that it sees (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, who count hidden pairs
    too). A head of linear attention adds each key to its state and reads that with each query.
    Training takes three times as many, since the backward pass multiplies twice.

    Args:
        config: a `kzoo.config.Config` or its JSON; rows have `max_sequence_length` tokens, in
            both stacks.

    Returns:
        A dict: `matmul` and `attention`.

    Example:
        >>> count_flops(kzoo.presets.config("gpt_nano"))
        {'matmul': 15728640, 'attention': 1064960}
    """
    config = Config.get(config)
    d, time, layers = config.hidden_dim, config.max_sequence_length, config.num_layers
    heads, kv_heads = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
    attention = 2 * d * heads + 2 * d * kv_heads
    matrices = 2 + names.ACTIVATIONS[config.activation].gated
    feed_forward = matrices * d * config.intermediate_dim
    weights = layers * (attention + feed_forward)
    weights += d * config.vocabulary_size + d * d * config.output_transform
    orders = [config.mask]
    if config.stack != "single":  # the decoder's self-attention and cross-attention
        orders += [masks.causal(), masks.bidirectional()]
        weights += layers * (2 * attention + feed_forward)
    sizes = HeadSizes(config.num_heads, config.kv_heads, config.head_dim)
    attention = sum(
        config.mechanism.flops(sizes, layer.per_head(config.num_heads), time)
        for order in orders
        for layer in masks.per_layer(order, layers)
    )
    return {"matmul": 2 * weights * time, "attention": attention}
