"""The multiplications and additions that a training step cannot do without."""

from kzoo import feature_maps, masks, names


def count_flops(config):
    """Floating-point operations of the forward pass of one full row.

    Two for every weight of a matrix and token that it meets (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and 4 · head_dim for every head and pair of a query and a key
    that it sees (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, who count hidden pairs
    too). A head of linear attention adds each key to its state and reads that with each query.
    Training takes three times as many, since the backward pass multiplies twice.

    Args:
        config: a complete config; rows have `max_sequence_length` tokens, in both stacks.

    Returns:
        A dict: `matmul` and `attention`.

    Example:
        >>> count_flops(kzoo.presets.config("gpt_nano"))
        {'matmul': 15728640, 'attention': 1064960}
    """
    d, time, layers = (config[f] for f in ("hidden_dim", "max_sequence_length", "num_layers"))
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_heads", "kv_heads"))
    attention = 2 * d * heads + 2 * d * kv_heads
    matrices = 2 + names.ACTIVATIONS[config["activation"]].gated
    feed_forward = matrices * d * config["intermediate_dim"]
    weights = layers * (attention + feed_forward)
    weights += d * config["vocabulary_size"] + d * d * config["output_transform"]
    orders = [config["mask"]]
    if config["stack"] != "single":  # the decoder looks at itself and at what the encoder read
        orders += ["causal", "bidirectional"]
        weights += layers * (2 * attention + feed_forward)
    if config["mechanism"] == "softmax":
        pairs = sum(_visible(spec, config) for spec in orders)
        attention = 4 * config["head_dim"] * pairs
    else:
        size = feature_maps.get(config["feature_map"]).size(config["head_dim"])
        states = len(orders) * layers * config["num_heads"]
        attention = states * time * 4 * size * (config["head_dim"] + 1)  # and the normaliser
    return {"matmul": 2 * weights * time, "attention": attention}


def _visible(spec, config):
    """Pairs of a query and a key that it sees, of all heads and layers, in rows of one document.

    Under a prefix the fewest, those of an empty source.
    """
    time, pairs = config["max_sequence_length"], 0
    for layer in masks.per_layer(spec, config["num_layers"]):
        for order in layer.per_head(config["num_heads"]):
            whole = order.is_full or not isinstance(order, masks.Order)
            pairs += time * time if whole else time * (time + 1) // 2
    return pairs
