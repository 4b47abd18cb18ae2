"""What the two mixers of a block cost and how devices split them, from their sizes alone.

A block mixes the tokens of a sequence (attention) and then the channels of each token (a
feed-forward network). The classes here describe the layers of `kzoo.layers` without making a
weight or loading Keras, so that counts of parameters and FLOPs and the layouts of variables over
devices need no table of their own: a mixer of another kind is one class here and one layer there.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from kzoo import mechanisms, names
from kzoo.attention_options import AttentionOptions
from kzoo.masks import Mask
from kzoo.mechanisms import HeadSizes, Mechanism
from kzoo.names import DATA, MODEL


def sequence_mixer(config, cross=False):
    """The `Attention` of every block of a complete config; with `cross` that over the encoder."""
    heads = HeadSizes(config.num_heads, config.kv_heads, config.head_dim, cross)
    options = AttentionOptions.of(config)
    return Attention(config.hidden_dim, heads, config.mechanism, config.use_bias, options)


def channel_mixer(config):
    """The `FeedForward` of every block of a complete config."""
    sizes = config.hidden_dim, config.intermediate_dim
    return FeedForward(*sizes, config.activation, config.use_bias)


@dataclasses.dataclass(frozen=True)
class Attention:
    """The sequence mixer `kzoo.layers.Attention`.

    Attributes:
        width: of a token.
        heads: a `HeadSizes`.
        mechanism: a `Mechanism`.
        use_bias: whether projections have biases.
        options: an `AttentionOptions`.
        sharding: the end of a variable's path, a regular expression, to the mesh axes of its
            dimensions; "data" where parameters are split over it too.
    """

    width: int
    heads: HeadSizes
    mechanism: Mechanism
    use_bias: bool = True
    options: AttentionOptions = AttentionOptions()
    # Queries, keys and values come out split by heads, so nothing is exchanged until the output
    # projection sums over them.
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        r"(query|key|value|output_gate)/kernel": (DATA, MODEL),
        r"(query|key|value|output_gate)/bias": (MODEL,),
        r"(query|key|value)_convolution": (None, MODEL),
        r"(query|value)/lora_kernel_b": (None, MODEL),
        r"output_dense/kernel": (MODEL, DATA),
    }

    def parameters(self) -> int:
        """The number of parameters."""
        query, key = self._inner
        projected = (self.width + self.use_bias) * (query + 2 * key)
        output = (query + self.use_bias) * self.width
        own = self.mechanism.parameters(self.heads, self.width, self.use_bias)
        shapes = self.options.shapes(self.heads, self.mechanism).values()
        own += sum(math.prod(shape) for shape in shapes)
        own += (self.width + self.use_bias) * query * self.options.output_gate
        return projected + output + own

    def flops(
        self, time: int, masks: Iterable[Mask], key_time: int | None = None
    ) -> dict[str, int]:
        """Floating-point operations on one example of `time` tokens, a dict.

        Args:
            time: number of tokens, of queries and of keys.
            masks: the mask of each head.
            key_time: number of keys, where they come from another sequence.

        Returns:
            `matmul`, two for every weight of a kernel and token; and `attention`, the mechanism's.
        """
        query, key = self._inner
        extra = sum(self.mechanism.projections(self.heads).values())
        of_query = self.width * query * (2 + self.options.output_gate)
        of_key = self.width * (2 * key + extra)
        of_query += self.options.short_convolution * query
        of_key += self.options.short_convolution * 2 * key
        weights = of_query * time + of_key * (time if key_time is None else key_time)
        attention = self.mechanism.flops(self.heads, masks, time, key_time)
        return {"matmul": 2 * weights, "attention": attention}

    @property
    def _inner(self):
        heads = self.heads
        return heads.num_heads * heads.head_dim, heads.kv_heads * heads.head_dim


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """The channel mixer `kzoo.layers.FeedForward`.

    Attributes:
        width: of a token.
        intermediate_dim: size of the inner layer.
        activation: a name of `kzoo.names.ACTIVATIONS`.
        use_bias: whether projections have biases.
        sharding: as of `Attention`.
    """

    width: int
    intermediate_dim: int
    activation: str = "gelu"
    use_bias: bool = True
    # Hidden units come out split, and nothing is exchanged until the output sums over them.
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        r"(gate|intermediate)/kernel": (DATA, MODEL),
        r"(gate|intermediate)/bias": (MODEL,),
        r"output_dense/kernel": (MODEL, DATA),
    }

    def parameters(self) -> int:
        """The number of parameters."""
        inner = (self.width + self.use_bias) * self.intermediate_dim
        output = (self.intermediate_dim + self.use_bias) * self.width
        return self._projections * inner + output

    def flops(self, time: int) -> dict[str, int]:
        """Floating-point operations on one example of `time` tokens, a dict: `matmul`."""
        weights = (self._projections + 1) * self.width * self.intermediate_dim
        return {"matmul": 2 * weights * time}

    @property
    def _projections(self):
        return 1 + names.ACTIVATIONS[self.activation].gated


def sharding() -> dict[str, tuple[str | None, ...]]:
    """The rules of all mixers: the end of a variable's path, a regular expression, to the mesh axes
    of its dimensions."""
    attention = dict(Attention.sharding)
    for name in mechanisms.names():
        attention |= mechanisms.REGISTRY[name].sharding
    layers: dict[str, Mapping[str, tuple[str | None, ...]]]
    layers = {r"(\w+_)?attention(_\d+)?/": attention}
    layers[r"feed_forward(_\d+)?/"] = FeedForward.sharding
    return {layer + end: axes for layer, rules in layers.items() for end, axes in rules.items()}
