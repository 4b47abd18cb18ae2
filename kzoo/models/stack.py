"""What backbones are made of: the embedding of tokens, and stacks of blocks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import keras
import keras_hub
from keras import ops

from kzoo import masks, migrations
from kzoo.attention_options import AttentionOptions
from kzoo.config import BackboneConfig, check_split
from kzoo.errors import InputError
from kzoo.layers import (
    Attention,
    Block,
    FeedForward,
    LearnedPositions,
    RelativeBias,
    SegmentEmbedding,
    SinusoidalPositions,
    TokenEmbedding,
    derive_seed,
)
from kzoo.layers.initializers import SeededNormal, stddevs
from kzoo.layers.normalization import norm
from kzoo.models.bases import Functional
from kzoo.models.devices import mesh_axes
from kzoo.models.exporting import Exports
from kzoo.models.weights import PathWeights
from kzoo.ops.decoding import Window
from kzoo.typing import Tensor
from kzoo.values import is_count

ARGUMENTS = f"""{BackboneConfig.documentation()}
        dtype: a Keras dtype policy.
        remat: what the gradient computes again instead of keeping it, as in
            `kzoo.layers.Block`: `"none"`, `"block"` or `"attention"`. Like `dtype` it is no
            field of a config, since it says how to compute and not what."""


class Backbone(PathWeights, Exports, keras_hub.models.Backbone, Functional):
    __doc__ = f"""Base of the backbones.

    A subclass gives `assemble`, which makes and connects its stacks. The fields of the config are
    attributes too; `pooler` is the layer, or None.

    Args:
{ARGUMENTS}

    Raises:
        InputError: as `kzoo.config.Config.get`, or for an unknown `remat`.
    """

    def __init__(
        self,
        *,
        dtype: Any = None,
        remat: str = "none",
        name: str | None = None,
        trainable: bool = True,
        **fields: Any,
    ) -> None:
        config = BackboneConfig.get(fields)
        check_split(config, mesh_axes().get("model", 1))
        embeddings = Embeddings(config, dtype)
        inputs, outputs, parts = self.assemble(config, embeddings, dtype, remat)
        super().__init__(
            inputs=inputs, outputs=outputs, dtype=dtype, name=name, trainable=trainable
        )
        self.config = config
        self.remat = remat
        self.embeddings = embeddings
        self.token_embedding = embeddings.token_embedding
        of_config = {field: getattr(config, field) for field in config.field_names()}
        of_config["pooler"] = _pooler(config, dtype) if config.pooler else None
        for attribute, value in (of_config | parts).items():
            setattr(self, attribute, value)

    def assemble(self, config: Any, embeddings: Any, dtype: Any, remat: str) -> Any:
        """Inputs and outputs of the functional model, and what it keeps as attributes."""
        raise NotImplementedError

    def init_cache(
        self, start: Tensor, source_end: Tensor, time: int, segments: Any = None, **encoded: Any
    ) -> dict[str, Any]:
        """The cache of examples of which nothing is computed yet: a nest of tensors, batch first.

        Args:
            start: int32 [batch], the column of each example's first token; an example is one
                document.
            source_end: int32 [batch], the column after its source; `start` where there is none.
            time: number of columns.
            segments: int32 [batch, 2], the segment of the last token of each prompt, and that of
                tokens to come; if there are segments.
            **encoded: what `Block.init_cache` takes of another sequence.

        Returns:
            A dict: `blocks`, a list of what `Block.init_cache` gives; `start`, `source_end`,
            `length` (columns computed) and, if given, `segments`.
        """
        batch = ops.shape(start)[0]
        blocks = self.decoding.blocks
        cache = {
            "blocks": [block.init_cache(batch, time, **encoded) for block in blocks],
            "start": start,
            "source_end": source_end,
            "length": ops.zeros_like(start),
        }
        return cache if segments is None else {**cache, "segments": segments}

    def decode(
        self,
        token_ids: Tensor,
        cache: dict[str, Any],
        index: Tensor,
        end: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Hidden states of new columns, given a cache of the columns before them.

        The masks of the stack are causal or prefix in every head.

        Args:
            token_ids: integers [batch, size], the tokens from column `index` on.
            cache: from `init_cache` or an earlier call.
            index: integer or int32 scalar. A single token at a column that is in the cache
                already is computed again and changes nothing.
            end: integers [batch], the column after each example's last token, if some of the new
                columns are to stay free.
            segment_ids: integers [batch, size]; by default as the cache's `segments` say.

        Returns:
            Floats [batch, size, hidden_dim], and the cache.
        """
        size = token_ids.shape[1]
        window = Window(
            index=index,
            size=size,
            start=cache["start"],
            source_end=cache["source_end"],
            end=ops.zeros_like(cache["length"]) + (index + size) if end is None else end,
            length=cache["length"],
        )
        position = window.queries().position
        if self.positions == "learned":
            # Texts that are complete go on beside longer ones; what they say then is cut off.
            position = ops.minimum(position, self.max_sequence_length - 1)
        if segment_ids is None and "segments" in cache:
            last, to_come = ops.split(cache["segments"], 2, axis=1)
            segment_ids = ops.where(window.writes()[:, None], to_come, last)
            segment_ids = segment_ids + ops.zeros_like(token_ids)
        x = self.embeddings.at(token_ids, position, segment_ids)
        x, blocks = self.decoding.decode(x, cache["blocks"], window)
        return x, {**cache, "blocks": blocks, "length": ops.maximum(window.length, window.end)}

    @property
    def decoding(self) -> Any:
        """The `Stack` that generates: the last one."""
        return list(self.stacks.values())[-1]

    def enable_lora(self, rank: int, target_layer_names: Sequence[str] | None = None) -> None:
        """Train matrices of rank `rank` beside the query and value projections (or the layers of
        the given names), and nothing else of the backbone (Hu et al. 2021, arXiv:2106.09685).

        Raises:
            InputError: for a rank that is no positive integer, or a second call.
        """
        if not is_count(rank):
            raise InputError(f"the rank of LoRA matrices is a positive integer. Received: {rank!r}")
        if getattr(self, "_lora_enabled_layers", None):
            raise InputError(
                "enable_lora comes once; a model that was saved and loaded takes it anew. "
                f"Received: rank={rank} for a model that has LoRA matrices"
            )
        names = target_layer_names or self.default_lora_layer_names()
        every = self._flatten_layers(include_self=False)
        self.trainable = True
        for layer in every:
            layer.trainable = False
        # keras-hub's `save_lora_weights` goes by the index among the layers with weights.
        self._lora_rank, self._lora_enabled_layers = int(rank), []
        for i, layer in enumerate([layer for layer in every if layer.weights]):
            if layer.name in names and hasattr(layer, "enable_lora"):
                layer.trainable = True
                layer.enable_lora(int(rank), a_initializer=self._lora_values(layer.path))
                self._lora_enabled_layers.append(i)
        for variable in self.trainable_variables:  # biases would train, and are not saved
            variable.trainable = variable.name.startswith("lora_")

    def _lora_values(self, path):
        """Initial values of a layer's first matrix, in the scale of Keras's: they follow from the
        model's seed and the path, as all others do, and leave Python's own generator alone."""
        seed = derive_seed(self.seed, f"{path}/lora_kernel_a")

        def draw(shape, dtype=None, **kwargs):
            return SeededNormal((2 / shape[0]) ** 0.5, seed)(shape, dtype, **kwargs)

        return draw

    def get_config(self) -> dict[str, Any]:
        own = {"name": self.name, "trainable": self.trainable}
        how = {"remat": self.remat, "dtype": keras.dtype_policies.serialize(self.policies)}
        version = {"config_version": migrations.CONFIG_VERSION}
        return {**own, **self.config.get_config(), **how, **version}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = migrations.config(config)
        config.pop("config_version", None)
        return super().from_config(config)

    @property
    def policies(self) -> Any:
        """The dtype policy; where layers are quantised, a map with theirs.

        keras-hub's `get_config` leaves the policy of all other layers out of the map, and so to
        the default of who loads it.
        """
        policy = self.dtype_policy
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            return policy
        layers = self._flatten_layers(include_self=False)
        quantised = {x.path: x.dtype_policy for x in layers if x.quantization_mode is not None}
        return keras.dtype_policies.DTypePolicyMap(policy, quantised) if quantised else policy


class Embeddings:
    """Token ids to what the first block receives; the layers of a backbone that do it.

    Attributes:
        token_embedding: a `TokenEmbedding`.
        added: the layer of absolute positions, or None.
        segments: a `SegmentEmbedding`, or None.
        norm: a normalisation, or None.
        dropout: a dropout.
    """

    def __init__(self, config, dtype):
        stddev = stddevs(config.initialization, config.num_layers)
        drawn = {"stddev": stddev and stddev[0]}

        def child(name):
            seed = derive_seed(config.seed, name)
            return {"name": name, "seed": seed, "dtype": dtype}

        self.token_embedding = TokenEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            tie_weights=config.tie_embeddings,
            **drawn,
            **child("token_embedding"),
        )
        self.added = self.segments = self.norm = None
        if config.positions == "learned":
            own = {**drawn, **child("position_embedding")}
            self.added = LearnedPositions(config.max_sequence_length, **own)
        elif config.positions == "sinusoidal":
            self.added = SinusoidalPositions(name="position_embedding", dtype=dtype)
        if config.num_segments:
            own = {**drawn, **child("segment_embedding")}
            self.segments = SegmentEmbedding(config.num_segments, **own)
        if config.embedding_norm:
            self.norm = _norm(config, "embedding_norm", dtype)
        self.dropout = keras.layers.Dropout(config.dropout, **child("embedding_dropout"))

    def __call__(self, token_ids, padding_mask, segment_ids=None):
        x = self.token_embedding(token_ids)
        if self.added is not None:
            x = self.added(x, padding_mask=padding_mask)
        return self.finish(x, segment_ids)

    def at(self, token_ids, position, segment_ids=None):
        """The call for tokens at `position` in their documents, integers [batch, time]."""
        x = self.token_embedding(token_ids)
        if self.added is not None:
            x = x + ops.cast(self.added.vectors(position), x.dtype)
        return self.finish(x, segment_ids)

    def finish(self, x, segment_ids=None):
        """What follows the positions."""
        if self.segments is not None:
            x = self.segments(x, segment_ids=segment_ids)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


class Stack:
    """Blocks, one upon the other, and the norm at the end of those that normalise first.

    Args:
        config: a `kzoo.config.BackboneConfig`.
        mask: the `Mask` of its attention.
        dtype: a Keras dtype policy.
        prefix: of the names of its layers.
        depth: number of blocks; by default the config's `num_layers`.
        cross_attention: whether its blocks attend to another sequence too.
        bidirectional: whether relative positions of keys after a query differ from those before.
        remat: of its blocks.
        shares: the `Stack` whose layers this one uses, apart from `cross_attention`.

    Attributes:
        blocks: list of `Block`.
        relative_bias: a `RelativeBias`, or None.
        final_norm: a normalisation, or None.
    """

    def __init__(
        self,
        config,
        mask,
        dtype,
        prefix="",
        depth=None,
        cross_attention=False,
        bidirectional=True,
        remat="none",
        shares=None,
    ):
        depth = depth or config.num_layers
        layers = masks.per_layer(mask, depth)
        encoder = masks.per_layer(config.mask, config.num_layers)
        self.blocks = [
            _block(
                config,
                layer_mask,
                f"{prefix}block_{i}",
                dtype,
                depth,
                cross_attention=encoder[i % len(encoder)] if cross_attention else None,
                shares=shares and shares.blocks[i],
                remat=remat,
            )
            for i, layer_mask in enumerate(layers)
        ]
        self.relative_bias = self.final_norm = None
        if shares is not None:
            self.relative_bias, self.final_norm = shares.relative_bias, shares.final_norm
            return
        if config.positions == "relative":
            self.relative_bias = RelativeBias(
                config.num_heads,
                config.relative_buckets,
                config.relative_distance,
                bidirectional,
                seed=derive_seed(config.seed, f"{prefix}relative_bias"),
                name=f"{prefix}relative_bias",
                dtype=dtype,
            )
        if config.norm_placement == "pre":
            self.final_norm = _norm(config, f"{prefix}final_norm", dtype)

    def __call__(self, x, **call):
        """`x` [batch, time, hidden_dim] through all blocks, each called with `call` too."""
        if self.relative_bias is not None:
            call["bias"] = self.relative_bias(x)
        for block in self.blocks:
            x = block(x, **call)
        return self._finish(x)

    def decode(self, x, caches, window):
        """The call for new columns of examples: `Block.decode`, with a list of caches."""
        bias, extended = None, []
        if self.relative_bias is not None:
            time = window.key_time(self.blocks[0].attention.cached_time(caches[0]["attention"]))
            bias = self.relative_bias.between(window.columns(), ops.arange(time, dtype="int32"))
        for block, cache in zip(self.blocks, caches, strict=True):
            with keras.name_scope(block.name):  # as in a call: what a compiled program tells
                x, cache = block.decode(x, cache, window, bias)
            extended.append(cache)
        return self._finish(x), extended

    def _finish(self, x):
        return x if self.final_norm is None else self.final_norm(x)


def _block(config, mask, name, dtype, depth, *, cross_attention, shares, remat):
    """One `Block` of a stack of `depth`, made of the layers that a config describes.

    `cross_attention` is the mask of the encoder's block beside it; None in a stack without.
    """
    seed = derive_seed(config.seed, name)
    orders = {}
    if cross_attention is not None and config.short_convolution:
        orders = {"query_order": mask, "key_order": cross_attention}
    stddev = stddevs(config.initialization, depth)
    common = {"use_bias": config.use_bias, "stddev": stddev, "dtype": dtype}

    def attention(name, **own):
        return Attention(
            config.num_heads,
            config.head_dim,
            mechanism=config.mechanism,
            kv_heads=config.kv_heads,
            **dataclasses.asdict(AttentionOptions.of(config)),
            seed=derive_seed(seed, name),
            name=name,
            **own,
            **common,
        )

    def feed_forward(name):
        sizes = config.intermediate_dim, config.activation
        return FeedForward(*sizes, seed=derive_seed(seed, name), name=name, **common)

    return Block(
        attention(
            "attention",
            mask=mask,
            rotary=config.positions == "rotary",
            relative=config.positions == "relative",
            identity_mix=config.identity_mix,
            shares=shares and shares.attention,
        ),
        feed_forward("feed_forward") if shares is None else shares.feed_forward,
        cross_attention=(
            None if cross_attention is None else attention("cross_attention", **orders)
        ),
        normalization=config.normalization,
        epsilon=config.norm_epsilon,
        norm_placement=config.norm_placement,
        dropout=config.dropout,
        shares=shares,
        remat=remat,
        seed=seed,
        name=name,
        dtype=dtype,
    )


def token_input(name):
    """An input of a functional model: integers [batch, time]."""
    return keras.Input((None,), dtype="int32", name=name)


def _norm(config, name, dtype):
    return norm(config.normalization, config.norm_epsilon, name=name, dtype=dtype)


def _pooler(config, dtype):
    width = config.hidden_dim
    draw = SeededNormal(width**-0.5, derive_seed(config.seed, "pooler/kernel"))
    pooler = keras.layers.Dense(width, "tanh", kernel_initializer=draw, name="pooler", dtype=dtype)
    pooler.build((None, width))
    return pooler
