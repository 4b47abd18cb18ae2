"""One layer of a stack: attention and feed-forward, each with norm, dropout and residual."""

import keras

from kzoo.errors import unknown
from kzoo.layers.attention import Attention
from kzoo.layers.feed_forward import FeedForward
from kzoo.layers.initializers import derive_seed

EPSILON = 1e-5
# Both compute in float32 whatever the dtype policy.
NORMALIZATIONS = {
    "layer_norm": keras.layers.LayerNormalization,
    "rms_norm": keras.layers.RMSNormalization,
}
NORM_PLACEMENTS = ("pre", "post")


def norm(normalization, **kwargs):
    """A normalisation layer by name: `"layer_norm"` or `"rms_norm"`."""
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    return NORMALIZATIONS[normalization](epsilon=EPSILON, **kwargs)


@keras.saving.register_keras_serializable(package="kzoo")
class Block(keras.layers.Layer):
    """x + f(norm(x)) for attention, then for feed-forward ("pre"); or norm(x + f(x)) ("post").

    Dropout acts on what is added to the residual stream, never on attention weights.

    Args:
        num_heads, head_dim, mechanism, mask, feature_map, kv_heads, rotary: as in `Attention`.
        intermediate_dim, activation: as in `FeedForward`.
        normalization: `"layer_norm"` or `"rms_norm"`.
        norm_placement: `"pre"` or `"post"`.
        dropout: rate.
        seed: integer from which initial values and dropout derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the row.
        source_mask: integers [batch, time], 1 for source; needed by a prefix mask.

    Returns:
        The same shape.
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        intermediate_dim,
        mechanism="softmax",
        mask="bidirectional",
        feature_map="elu1",
        kv_heads=None,
        rotary=False,
        activation="gelu",
        normalization="layer_norm",
        norm_placement="pre",
        dropout=0.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm_placement not in NORM_PLACEMENTS:
            raise unknown("norm_placement", norm_placement, NORM_PLACEMENTS)
        self.normalization = normalization
        self.norm_placement = norm_placement
        self.dropout = dropout
        self.seed = seed
        common = {"dtype": self.dtype_policy}

        def child(name):
            return {"name": name, "seed": derive_seed(seed, name), **common}

        self.attention_norm = norm(normalization, name="attention_norm", **common)
        self.attention = Attention(
            num_heads,
            head_dim,
            mechanism=mechanism,
            mask=mask,
            feature_map=feature_map,
            kv_heads=kv_heads,
            rotary=rotary,
            **child("attention"),
        )
        self.attention_dropout = keras.layers.Dropout(dropout, **child("attention_dropout"))
        self.feed_forward_norm = norm(normalization, name="feed_forward_norm", **common)
        self.feed_forward = FeedForward(intermediate_dim, activation, **child("feed_forward"))
        self.feed_forward_dropout = keras.layers.Dropout(dropout, **child("feed_forward_dropout"))

    def build(self, input_shape):
        for layer in (
            self.attention_norm,
            self.attention,
            self.feed_forward_norm,
            self.feed_forward,
        ):
            layer.build(input_shape)

    def compute_output_spec(self, inputs, **kwargs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs, padding_mask=None, source_mask=None, training=None):
        masks = {"padding_mask": padding_mask, "source_mask": source_mask}
        x = self.attention(self.attention_inputs(inputs), **masks)
        x = inputs + self.attention_dropout(x, training=training)
        if self.norm_placement == "pre":
            y = self.feed_forward(self.feed_forward_norm(x))
            return x + self.feed_forward_dropout(y, training=training)
        x = self.attention_norm(x)
        y = self.feed_forward(x)
        return self.feed_forward_norm(x + self.feed_forward_dropout(y, training=training))

    def attention_inputs(self, inputs):
        """What the attention of this block receives, given what the block receives."""
        return self.attention_norm(inputs) if self.norm_placement == "pre" else inputs

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.attention.num_heads,
            "head_dim": self.attention.head_dim,
            "intermediate_dim": self.feed_forward.intermediate_dim,
            "mechanism": self.attention.mechanism,
            "mask": self.attention.mask.get_config(),
            "feature_map": self.attention.feature_map.get_config(),
            "kv_heads": self.attention.kv_heads,
            "rotary": self.attention.rotary,
            "activation": self.feed_forward.activation,
            "normalization": self.normalization,
            "norm_placement": self.norm_placement,
            "dropout": self.dropout,
            "seed": self.seed,
        }
