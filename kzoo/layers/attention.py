"""Self-attention: any mask, softmax or linear."""

import keras
from keras import ops

from kzoo import masks
from kzoo.errors import InputError, unknown
from kzoo.layers.initializers import RESIDUAL_SCALE, dense
from kzoo.ops import feature_maps, linear_attention, reference_attention, softmax_attention

MECHANISMS = ("softmax", "linear")


@keras.saving.register_keras_serializable(package="kzoo")
class Attention(keras.layers.Layer):
    """Multi-head self-attention under any mask.

    Its variables, their shapes and their initial values are the same for every mask and
    mechanism.

    Args:
        num_heads: number of heads.
        head_dim: size of a head.
        mechanism: `"softmax"` or `"linear"`.
        mask: a mask spec or `Mask` that does not differ by layer.
        feature_map: of linear attention, a name in `kzoo.ops.feature_maps.NAMES`.
        kv_heads: number of heads of keys and values, a divisor of `num_heads`; the same
            number by default.
        rotary: rotate by the place within the document.
        use_bias: whether the projections have biases.
        seed: integer from which the initial values derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the row.
        source_mask: integers [batch, time], 1 for source; needed by a prefix mask.

    Returns:
        Floats [batch, time, hidden_dim]; at padded positions the bias of the output
        projection.

    Raises:
        InputError: for an unknown mechanism or feature map, heads that do not divide, a mask
            that does not tile the heads, or one that linear attention cannot follow.

    Example:
        >>> layer = Attention(4, 16, mechanism="linear", mask="half_heads")
        >>> layer(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    def __init__(
        self,
        num_heads,
        head_dim,
        mechanism="softmax",
        mask="bidirectional",
        feature_map="elu1",
        kv_heads=None,
        rotary=False,
        use_bias=True,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mechanism = mechanism
        self.mask = masks.get(mask)
        self.feature_map = feature_map
        self.kv_heads = kv_heads or num_heads
        self.rotary = rotary
        self.use_bias = use_bias
        self.seed = seed
        if mechanism not in MECHANISMS:
            raise unknown("mechanism", mechanism, MECHANISMS)
        feature_maps.get(feature_map)
        if num_heads % self.kv_heads:
            raise InputError(f"kv_heads divides num_heads={num_heads}. Received: {kv_heads}")
        if rotary and head_dim % 2:
            raise InputError(f"rotary positions need an even head_dim. Received: {head_dim}")
        for head in self.mask.per_head(num_heads):
            if mechanism == "linear" and not isinstance(head, masks.Order):
                raise InputError(
                    f"linear attention follows orders, not custom masks or &. Received: {head!r}"
                )

    def build(self, input_shape):
        width, inner = input_shape[-1], self.num_heads * self.head_dim

        def project(inputs, units, name, scale=1.0):
            kwargs = {"use_bias": self.use_bias, "dtype": self.dtype_policy}
            return dense(inputs, units, self.seed, name, scale, **kwargs)

        self.query = project(width, inner, "query")
        self.key = project(width, self.kv_heads * self.head_dim, "key")
        self.value = project(width, self.kv_heads * self.head_dim, "value")
        self.output_dense = project(inner, width, "output_dense", RESIDUAL_SCALE)

    def compute_output_spec(self, inputs, **kwargs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs, padding_mask=None, source_mask=None):
        x = self.attend(inputs, padding_mask, source_mask)
        time = ops.shape(inputs)[1]
        return self.output_dense(ops.reshape(x, (-1, time, self.num_heads * self.head_dim)))

    def attend(self, inputs, padding_mask=None, source_mask=None):
        """What the heads gather, before the output projection: [batch, time, heads, head_dim]."""
        q, k, v = self._project(inputs)
        kwargs = {"padding_mask": padding_mask, "source_mask": source_mask, "rotary": self.rotary}
        if self.mechanism == "softmax":
            return softmax_attention(q, k, v, self.mask, **kwargs)
        return linear_attention(q, k, v, self.mask, feature_map=self.feature_map, **kwargs)

    @property
    def kernel(self):
        """What computes this attention, on every backend and platform."""
        return {"softmax": "dense", "linear": "chunked"}[self.mechanism]

    def attention_weights(self, inputs, padding_mask=None, source_mask=None):
        """The weights as a dense matrix, for a look: [batch, heads, query_time, key_time]."""
        q, k, v = self._project(inputs)
        _, weights = reference_attention(
            q,
            k,
            v,
            self.mask,
            mechanism=self.mechanism,
            feature_map=self.feature_map,
            padding_mask=padding_mask,
            source_mask=source_mask,
            rotary=self.rotary,
            return_weights=True,
        )
        return weights

    def _project(self, inputs):
        time = ops.shape(inputs)[1]

        def split(x, heads):
            return ops.reshape(x, (-1, time, heads, self.head_dim))

        return (
            split(self.query(inputs), self.num_heads),
            split(self.key(inputs), self.kv_heads),
            split(self.value(inputs), self.kv_heads),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "mechanism": self.mechanism,
            "mask": self.mask.get_config(),
            "feature_map": self.feature_map,
            "kv_heads": self.kv_heads,
            "rotary": self.rotary,
            "use_bias": self.use_bias,
            "seed": self.seed,
        }
