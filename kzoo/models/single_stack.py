"""The backbone of GPT, UniLM, BERT and mixed-direction BERT: one stack of blocks."""

import keras
import keras_hub

from kzoo import masks
from kzoo.errors import unknown
from kzoo.layers import (
    Block,
    LearnedPositions,
    SinusoidalPositions,
    TokenEmbedding,
    derive_seed,
)
from kzoo.layers.block import norm
from kzoo.models.weights import PathWeights
from kzoo.ops import feature_maps

POSITIONS = ("none", "learned", "sinusoidal", "rotary")


@keras.saving.register_keras_serializable(package="kzoo")
class SingleStackBackbone(PathWeights, keras_hub.models.Backbone):
    """Token ids to hidden states through one stack of blocks.

    Variables, shapes and initial values depend on neither `mask` nor `mechanism`.

    Args:
        vocabulary_size: number of token ids.
        num_layers, num_heads, hidden_dim, intermediate_dim: sizes of the stack.
        max_sequence_length: the longest sequence; the size of a table of learned positions.
        mask: a mask spec or `Mask`; `{"layers": [...]}` repeats over the layers.
        mechanism: `"softmax"` or `"linear"`, the latter with a `feature_map`.
        kv_heads: heads of keys and values, as many as `num_heads` by default.
        head_dim: size of a head, hidden_dim / num_heads by default.
        positions: `"none"`, `"learned"`, `"sinusoidal"` or `"rotary"`.
        normalization: `"layer_norm"` or `"rms_norm"`; norm_placement: `"pre"` or `"post"`.
        activation: `"gelu"`, `"relu"`, `"geglu"` or `"swiglu"`.
        dropout: rate on embeddings and on what blocks add; never on attention weights.
        tie_embeddings: whether the output matrix is the transposed embedding.
        seed: integer from which all initial values and dropout derive.
        dtype: a Keras dtype policy.

    Inputs:
        A dict of integers [batch, time]: `token_ids`; `padding_mask` (0 padding, k the k-th
        document of the row); and, exactly when the mask contains prefix, `source_mask`
        (1 source).

    Returns:
        Floats [batch, time, hidden_dim].

    Example:
        >>> backbone = SingleStackBackbone(384, 2, 4, 64, 256, 64, mask="half_heads")
        >>> ids = np.zeros((1, 10), "int32")
        >>> backbone({"token_ids": ids, "padding_mask": ids + 1}).shape
        (1, 10, 64)
    """

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        max_sequence_length,
        mask="bidirectional",
        mechanism="softmax",
        feature_map="elu1",
        kv_heads=None,
        head_dim=None,
        positions="rotary",
        normalization="layer_norm",
        norm_placement="pre",
        activation="gelu",
        dropout=0.0,
        tie_embeddings=True,
        seed=0,
        dtype=None,
        **kwargs,
    ):
        if positions not in POSITIONS:
            raise unknown("positions", positions, POSITIONS)
        mask = masks.get(mask)
        head_dim = head_dim or hidden_dim // num_heads

        def child(name):
            return {"name": name, "seed": derive_seed(seed, name), "dtype": dtype}

        # === Layers ===
        token_embedding = TokenEmbedding(
            vocabulary_size, hidden_dim, tie_weights=tie_embeddings, **child("token_embedding")
        )
        position_layer = None
        if positions == "learned":
            position_layer = LearnedPositions(max_sequence_length, **child("position_embedding"))
        elif positions == "sinusoidal":
            position_layer = SinusoidalPositions(name="position_embedding", dtype=dtype)
        embedding_dropout = keras.layers.Dropout(dropout, **child("embedding_dropout"))
        blocks = [
            Block(
                num_heads,
                head_dim,
                intermediate_dim,
                mechanism=mechanism,
                mask=layer_mask,
                feature_map=feature_map,
                kv_heads=kv_heads,
                rotary=positions == "rotary",
                activation=activation,
                normalization=normalization,
                norm_placement=norm_placement,
                dropout=dropout,
                **child(f"block_{i}"),
            )
            for i, layer_mask in enumerate(masks.per_layer(mask, num_layers))
        ]
        final_norm = None
        if norm_placement == "pre":
            final_norm = norm(normalization, name="final_norm", dtype=dtype)

        # === Functional model ===
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask", *["source_mask"] * mask.needs_source)
        }
        who = {name: tensor for name, tensor in inputs.items() if name != "token_ids"}
        x = token_embedding(inputs["token_ids"])
        if position_layer is not None:
            x = position_layer(x, padding_mask=inputs["padding_mask"])
        x = embedding_dropout(x)
        for block in blocks:
            x = block(x, **who)
        if final_norm is not None:
            x = final_norm(x)
        super().__init__(inputs=inputs, outputs=x, dtype=dtype, **kwargs)

        # === Config ===
        self.token_embedding = token_embedding
        self.transformer_layers = blocks
        self.mask = mask
        self.mechanism = mechanism
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.max_sequence_length = max_sequence_length
        self.feature_map = feature_maps.get(feature_map)  # not the spec: Keras wraps dicts
        self.kv_heads = kv_heads or num_heads
        self.head_dim = head_dim
        self.positions = positions
        self.normalization = normalization
        self.norm_placement = norm_placement
        self.activation = activation
        self.dropout = dropout
        self.tie_embeddings = tie_embeddings
        self.seed = seed

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "max_sequence_length": self.max_sequence_length,
            "mask": self.mask.get_config(),
            "mechanism": self.mechanism,
            "feature_map": self.feature_map.get_config(),
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "positions": self.positions,
            "normalization": self.normalization,
            "norm_placement": self.norm_placement,
            "activation": self.activation,
            "dropout": self.dropout,
            "tie_embeddings": self.tie_embeddings,
            "seed": self.seed,
        }
