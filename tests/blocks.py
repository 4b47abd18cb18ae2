"""A `kzoo.layers.Block` from sizes and fields, as the stack of a model makes one."""

from kzoo import layers

OF_ATTENTION = ("mask", "rotary", "relative", "identity_mix")
OF_BOTH = ("mechanism", "feature_map", "kv_heads", "scale")


def block(num_heads, head_dim, intermediate_dim, *, cross_attention=False, seed=0, **fields):
    """A block; its cross-attention has no positions, and a mask that shows everything."""
    common = {"use_bias": fields.pop("use_bias", True), "dtype": fields.get("dtype")}
    inner = {"activation": fields.pop("activation", "gelu")}
    both = {name: fields.pop(name) for name in OF_BOTH if name in fields}
    own = {name: fields.pop(name) for name in OF_ATTENTION if name in fields}

    def attention(name, **own):
        seeds = {"seed": layers.derive_seed(seed, name), "name": name}
        return layers.Attention(num_heads, head_dim, **both, **own, **seeds, **common)

    name = "feed_forward"
    seeds = {"seed": layers.derive_seed(seed, name), "name": name}
    return layers.Block(
        attention("attention", **own),
        layers.FeedForward(intermediate_dim, **inner, **seeds, **common),
        cross_attention=attention("cross_attention") if cross_attention else None,
        seed=seed,
        **fields,
    )
