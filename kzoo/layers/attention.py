"""Attention under any mask and mechanism, of one sequence or of two."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import keras
from keras import ops

from kzoo import masks, mechanisms
from kzoo.attention_options import AttentionOptions
from kzoo.errors import InputError, unknown
from kzoo.layers.arguments import check
from kzoo.layers.attention_options import HasOptions, check_shapes
from kzoo.layers.decoding import Decodes
from kzoo.layers.initializers import by_token, dense
from kzoo.layers.keras_arguments import counted, narrowed, refuse
from kzoo.ops.context import here
from kzoo.ops.dispatch import Spec
from kzoo.typing import FeatureMapSpec, MaskSpec, MechanismSpec, Model, Shape, Stddev, Tensor
from kzoo.values import is_count

MASKS_OF_KEYS = ("key_padding_mask", "value_mask", "key_mask")


@keras.saving.register_keras_serializable(package="kzoo")
class Attention(Decodes, HasOptions, keras.layers.Layer):
    """Multi-head attention under any mask, of one sequence or over a second one.

    The layer has the projections, the options that every mechanism can have, and the output; the
    `kzoo.mechanisms.Mechanism` computes what the heads gather. Variables, their shapes and their
    initial values are the same for every mask and mechanism; a mechanism may have variables of its
    own besides. It stands in for `keras.layers.MultiHeadAttention` in a model: same calls, same
    results from the same weights (its kernels are those of `MultiHeadAttention` with heads and
    their sizes in one axis). Two things differ: a mask of the query alone hides its tokens as keys
    too in self-attention, and a query that sees no key gathers zeros, not a mean of all values.

    Args:
        num_heads: number of heads.
        head_dim: size of a head.
        mechanism: a name, JSON or `Mechanism` of `kzoo.mechanisms`: `"softmax"`, `"linear"`,
            `{"linear": {"feature_map": "relu"}}`.
        mask: a mask spec or `Mask` that does not differ by layer.
        feature_map: short for that field of the mechanism, as in
            `Attention(4, 16, "linear", feature_map="relu")`.
        kv_heads: number of heads of keys and values, a divisor of `num_heads`; the same
            number by default.
        rotary: rotate by the position within the document.
        scale: short for that field of the mechanism: the factor on q·k under softmax.
        relative: whether calls come with a `bias`, as of `kzoo.layers.RelativeBias`.
        identity_mix: ε in (1-ε)A + εI, which the attention weights A become.
        use_bias: whether the projections have biases.
        stddev: of initial kernels, as in `kzoo.layers.initializers.dense`.
        shares: a built `Attention` whose projections and variables this one uses.
        qk_norm, output_norm, output_gate, short_convolution, short_convolution_activation: as in
            `kzoo.attention_options.AttentionOptions`.
        query_order, key_order: of cross-attention with a short convolution, the masks that those of
            queries, and of keys and values, follow; by default `mask`.
        seed: integer from which the initial values derive.

    Call arguments:
        query: floats [batch, query_time, width].
        value: floats [batch, key_time, value_width]: another sequence, for cross-attention. By
            default it is self-attention; so it is where `value` is the query itself, and neither a
            `key` nor a mask of keys is given.
        key: like `value`, which it is by default.
        padding_mask: integers [batch, query_time]: 0 padding, k the k-th document of the example.
        source_mask: integers [batch, query_time], 1 for source; needed by a prefix mask.
        key_padding_mask: integers [batch, key_time], beside a `value`: 0 padding, k for the keys
            of the queries' k-th document. Without a `padding_mask` the queries are one document.
        bias: floats [batch or 1, heads or 1, query_time, key_time], added to the scores of a
            mechanism that has them.
        mask, query_mask, value_mask, key_mask: booleans [batch, time], the masks that Keras
            hands on, from `Embedding(mask_zero=True)` say; `mask` is that of the query, and
            replaces `query_mask`. What one of them hides is padding, also where
            `padding_mask` or `key_padding_mask` has a document.
        attention_mask: under softmax, booleans [query_time, key_time], [batch, query_time,
            key_time] or [batch, 1 or heads, query_time, key_time], True where a query may see a
            key that the layer's mask shows; memory is quadratic in the time.
        use_causal_mask: hide keys at later positions of the document too.
        return_attention_scores: also return the weights, dense, floats [batch, heads,
            query_time, key_time]; the output is the same.
        initial_state, return_state, query_offset: as in `kzoo.ops.linear_attention`, of a mechanism
            with a state of fixed size: to go on where an earlier call ended.

    Returns:
        Floats [batch, query_time, width]; at padded positions the bias of the output
        projection. With `return_state` also the state, with `return_attention_scores` the
        weights. The output carries on Keras's mask of the query.

    Raises:
        InputError: for an unknown mechanism, or a field that it has not; an argument that
            `MultiHeadAttention` has and this layer has not; heads that do not divide; a mask that
            does not tile the heads, or that the mechanism cannot follow; a state of a mechanism
            that has none; tensors of other shapes.

    Example:
        >>> layer = Attention(4, 16, mechanism="linear", mask="half_heads")
        >>> layer(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    def __new__(cls, *args, **kwargs):
        refuse(kwargs)  # before Python says that head_dim is missing where key_dim was given
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        mechanism: MechanismSpec = "softmax",
        mask: MaskSpec = "bidirectional",
        feature_map: FeatureMapSpec | None = None,
        kv_heads: int | None = None,
        rotary: bool = False,
        scale: float | None = None,
        relative: bool = False,
        identity_mix: float = 0.0,
        use_bias: bool = True,
        stddev: Stddev = None,
        qk_norm: str = "default",
        output_norm: bool = False,
        output_gate: bool = False,
        short_convolution: int = 0,
        short_convolution_activation: str = "silu",
        query_order: MaskSpec | None = None,
        key_order: MaskSpec | None = None,
        shares: Any = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        kv_heads = num_heads if kv_heads is None else kv_heads
        _check_heads(num_heads, head_dim, kv_heads, rotary)
        check(rotary=rotary, relative=relative, identity_mix=identity_mix, use_bias=use_bias)
        check(stddevs=stddev, seed=seed)
        self.mechanism = mechanisms.with_fields(mechanism, feature_map=feature_map, scale=scale)
        self.sizes = mechanisms.HeadSizes(num_heads, kv_heads, head_dim)
        self.mask = masks.get(mask)
        self.mechanism.check(self.mask.per_head(num_heads), bias=relative)
        self.query_order, self.key_order = (
            None if order is None else masks.get(order) for order in (query_order, key_order)
        )
        self.options = AttentionOptions(
            qk_norm, output_norm, output_gate, short_convolution, short_convolution_activation
        )
        queries, keys = (
            (self.mask if order is None else order).per_head(num_heads)
            for order in (self.query_order, self.key_order)
        )
        self.options.check(self.mechanism, queries, keys, kv_heads)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.kv_heads = kv_heads
        self.rotary = rotary
        self.relative = relative
        self.identity_mix = identity_mix
        self.use_bias = use_bias
        self.stddev = stddev and tuple(stddev)
        self.seed = seed
        self.cross = False  # whether calls come with a second sequence
        self.supports_masking = True
        for name in _SHARED:
            setattr(self, name, None if shares is None else getattr(shares, name))

    def build(
        self, query_shape: Shape, value_shape: Shape | None = None, key_shape: Shape | None = None
    ) -> None:
        self.cross = value_shape is not None
        if self.cross:
            self.mechanism.check_cross()
            if self.identity_mix:
                raise InputError(
                    "identity_mix mixes in a token's own value, which cross-attention has none of: "
                    f"it must be 0 there. Received: {self.identity_mix}"
                )
        self.sizes = dataclasses.replace(self.sizes, cross=self.cross)
        if self.query is not None:  # another's
            return
        width, inner = query_shape[-1], self.num_heads * self.head_dim
        value_shape = value_shape or query_shape
        key_width = (key_shape or value_shape)[-1]

        def project(inputs, units, name, residual=False):
            kwargs = {"use_bias": self.use_bias, "dtype": self.dtype_policy}
            return dense(inputs, units, self.seed, name, self.stddev, residual, **kwargs)

        self.query = project(width, inner, "query")
        self.key = project(key_width, self.kv_heads * self.head_dim, "key")
        self.value = project(value_shape[-1], self.kv_heads * self.head_dim, "value")
        self.output_dense = project(inner, width, "output_dense", residual=True)
        self.extra_projections = {
            name: project(key_width, size, name)
            for name, size in self.mechanism.projections(self.sizes).items()
        }
        self._build_options(project, width)
        self.extra_variables = {
            name: self.add_weight(
                name=name,
                shape=values.shape,
                initializer=lambda shape, dtype, values=values: ops.cast(values, dtype),
                autocast=values.ndim > 1,  # one number of each head, as of a decay, is float32
            )
            for name, values in self.mechanism.variables(self.sizes).items()
        }

    def __call__(
        self, query: Tensor, value: Tensor | None = None, key: Tensor | None = None, **kwargs: Any
    ) -> Any:
        # Before Keras converts them, which gives one tensor back as two.
        own = key is None or key is query
        if value is query and own and kwargs.keys().isdisjoint(MASKS_OF_KEYS):
            value = key = None
        others = {"value": value, "key": key}
        kwargs |= {name: x for name, x in others.items() if x is not None}
        return super().__call__(query, **kwargs)

    def compute_output_shape(
        self, query_shape: Shape, value_shape: Shape | None = None, key_shape: Shape | None = None
    ) -> Any:
        check_shapes(query_shape, value_shape, key_shape)
        return tuple(query_shape)

    def compute_output_spec(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        *args: Any,
        return_state: bool = False,
        return_attention_scores: bool = False,
        **kwargs: Any,
    ) -> Any:
        shapes: Any = (None if x is None else x.shape for x in (query, value, key))
        out = keras.KerasTensor(self.compute_output_shape(*shapes), dtype=self.compute_dtype)
        if return_attention_scores:
            times = query.shape[1], (query if value is None else value).shape[1]
            shape = (query.shape[0], self.num_heads, *times)
            return out, keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_state:
            return out
        self._check_state(return_state)
        return out, {
            name: keras.KerasTensor((query.shape[0], *shape), dtype="float32")
            for name, shape in (self.mechanism.state_shape(self.sizes) or {}).items()
        }

    def call(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        padding_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        bias: Tensor | None = None,
        initial_state: Mapping[str, Tensor] | None = None,
        return_state: bool = False,
        query_offset: int | Tensor = 0,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        mask = query_mask if mask is None else mask
        if value is None:
            padding_mask = counted(padding_mask, mask, key_mask)
        else:
            padding_mask = counted(padding_mask, mask)
            key_padding_mask = counted(key_padding_mask, value_mask, key_mask)
        self._check_state(return_state, initial_state, return_attention_scores)
        arguments = {
            "padding_mask": padding_mask,
            "source_mask": source_mask,
            "key_padding_mask": key_padding_mask,
            "query_offset": query_offset,
            **self._biased(bias),
        }
        if use_causal_mask or attention_mask is not None:
            sizes = (*query.shape[:2], (query if value is None else value).shape[1])
            hides = {"use_causal_mask": use_causal_mask, "attention_mask": attention_mask}
            arguments["mask"] = narrowed(self.mask, self.num_heads, self.mechanism, sizes, **hides)
        if return_attention_scores:
            x, weights = self.attend_with_weights(query, value, key, **arguments)
            return self._output(x, query), ops.cast(weights, self.compute_dtype)
        if attention_mask is not None:
            arguments["implementation"] = "dense"  # others take a mask apart by positions
        states = {"initial_state": initial_state, "return_state": return_state}
        x = self.attend(query, value, key, **arguments, **states)
        if not return_state:
            return self._output(x, query)
        x, state = x
        return self._output(x, query), state

    def attend(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """What the heads gather, before the output projection: [batch, time, heads, head_dim].

        Further arguments are those of `Mechanism.attend`; a `mask` stands in for the layer's own.
        """
        mask = self.mask if mask is None else mask
        kwargs = _two_sequences(value, kwargs)
        padding = kwargs.get("padding_mask"), kwargs.get("key_padding_mask")
        q, k, v, extras = self._project(query, value, key, mask, *padding)
        x = self.mechanism.attend(q, k, v, extras, mask, rotary=self.rotary, **kwargs)
        if not self.identity_mix:
            return x
        x, *state = x if isinstance(x, tuple) else (x,)
        x = self._mixed(x, v, kwargs.get("padding_mask"))
        return (x, *state) if state else x

    def _mixed(self, x, v, padding_mask):
        """(1-ε)Av + εv for x = Av, both [batch, time, heads, head_dim]."""
        v = ops.repeat(v, self.num_heads // self.kv_heads, axis=2)
        if padding_mask is not None:
            v = ops.where(ops.cast(padding_mask, "bool")[:, :, None, None], v, ops.zeros_like(v))
        return (1 - self.identity_mix) * x + self.identity_mix * v

    def kernel_for(
        self, query_time: int, platform: str, key_time: int | None = None, padded: bool = True
    ) -> str:
        """The name of the kernel that computes this attention: `Mechanism.kernel`."""
        spec = Spec(
            query_time=query_time,
            key_time=key_time or query_time,
            num_heads=self.num_heads,
            kv_heads=self.kv_heads,
            dim=self.head_dim,
            value_dim=self.head_dim,
            mask=self.mask,
            padded=padded,
            same_sequence=not self.cross and key_time is None,
            bias=self.relative,
            dtype=self.compute_dtype,
            **{**here(), "platform": platform},
        )
        return self.mechanism.kernel(spec)

    def attention_weights(
        self, query: Tensor, value: Tensor | None = None, key: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """The weights as a dense matrix, for analysis: [batch, heads, query_time, key_time].

        Arguments as in the call: `padding_mask`, `source_mask`, `key_padding_mask`, `bias`. A
        `mask` stands in for the layer's own, and a `dtype` is that in which the mechanism computes
        weights from q, k and v, such as `"float64"`.
        """
        return self.attend_with_weights(query, value, key, **kwargs)[1]

    def attend_with_weights(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        mask: Any = None,
        dtype: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """`attend`, and the weights [batch, heads, query_time, key_time], densely; in `dtype`
        where one is given."""
        mask = self.mask if mask is None else mask
        kwargs = _two_sequences(value, kwargs)
        padding = kwargs.get("padding_mask"), kwargs.get("key_padding_mask")
        q, k, v, extras = self._project(query, value, key, mask, *padding)
        if dtype is not None:
            q, k, v = (ops.cast(x, dtype) for x in (q, k, v))
            extras = mechanisms.Extras(
                *({name: ops.cast(x, dtype) for name, x in group.items()} for group in extras)
            )
        x, weights = self.mechanism.attend_with_weights(
            q, k, v, extras, mask, rotary=self.rotary, **kwargs
        )
        if self.identity_mix:
            itself = ops.eye(ops.shape(weights)[-1], dtype=weights.dtype)
            if kwargs.get("padding_mask") is not None:
                real = ops.cast(kwargs["padding_mask"], "bool")[:, None, :, None]
                itself = ops.where(real, itself, ops.zeros_like(itself))
            weights = (1 - self.identity_mix) * weights + self.identity_mix * itself
            x = self._mixed(x, ops.cast(v, x.dtype), kwargs.get("padding_mask"))
        return x, weights

    def _biased(self, bias):
        if (bias is not None) != self.relative:
            raise InputError(
                "an attention has a bias in every call or in none, as `relative` says. "
                f"Received: relative={self.relative} and {'no' if bias is None else 'a'} bias"
            )
        return {} if bias is None else {"bias": bias}

    def _check_state(self, return_state, initial_state=None, return_attention_scores=False):
        if not return_state and initial_state is None:
            return
        if return_attention_scores:
            raise InputError(
                "weights are of the keys of one call, and a state is of those before it too; ask "
                "for one of them. Received: return_attention_scores=True with a state"
            )
        if self.options.short_convolution:
            raise InputError(
                "a state has no place for the tokens before a short convolution; `decode` with a "
                "cache has. Received: a state with "
                f"short_convolution={self.options.short_convolution}"
            )
        if self.mechanism.state_shape(self.sizes) is None:
            raise InputError(
                "a state needs a mechanism that has one of fixed size, as mechanism='linear' has. "
                f"Received: mechanism={self.mechanism.get_config()!r} with a state"
            )

    def _extras(self, key=None):
        layers = {} if key is None else self.extra_projections
        projected = {name: by_token(layer, key) for name, layer in layers.items()}
        return mechanisms.Extras(projected, dict(self.extra_variables))

    def _heads(self, x, heads):
        return ops.reshape(x, (*ops.shape(x)[:2], heads, self.head_dim))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "mechanism": self.mechanism.get_config(),
            "mask": self.mask.get_config(),
            "kv_heads": self.kv_heads,
            "rotary": self.rotary,
            "relative": self.relative,
            "identity_mix": self.identity_mix,
            "use_bias": self.use_bias,
            "stddev": self.stddev,
            **dataclasses.asdict(self.options),
            "query_order": None if self.query_order is None else self.query_order.get_config(),
            "key_order": None if self.key_order is None else self.key_order.get_config(),
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        # Layers were saved with `feature_map` and `scale` beside the mechanism, whatever it was.
        mechanism = mechanisms.get(config.get("mechanism", getattr(cls, "only", "softmax")))
        valid = [field.name for field in dataclasses.fields(mechanism)]
        unused = {"feature_map", "scale"} - set(valid)
        return super().from_config({n: v for n, v in config.items() if n not in unused})


# What a layer takes over from the one whose projections it shares.
_SHARED = (
    *("query", "key", "value", "output_dense", "extra_projections", "extra_variables"),
    *("gate", "option_variables"),
)


def _check_heads(num_heads, head_dim, kv_heads, rotary):
    sizes = {"num_heads": num_heads, "head_dim": head_dim, "kv_heads": kv_heads}
    for name, size in sizes.items():
        if not is_count(size):
            raise InputError(f"{name} is a positive integer. Received: {size!r}")
    if num_heads % kv_heads:
        raise InputError(f"kv_heads must divide num_heads={num_heads}. Received: {kv_heads}")
    if rotary and head_dim % 2:
        raise InputError(f"rotary positions need an even head_dim. Received: {head_dim}")


def _two_sequences(value, call):
    """The arguments of a call that says of a second sequence that none of it is padding.

    So it is a second one also where both are equally long.
    """
    if value is None or call.get("key_padding_mask") is not None:
        return call
    return {**call, "key_padding_mask": ops.ones((1, ops.shape(value)[1]), dtype="int32")}


def kernels(model: Model, batch_shape: Shape, platform: str) -> dict[str, str]:
    """Which kernel each attention layer of a model runs.

    Args:
        model: a Keras model, ours or one with our layers in it.
        batch_shape: `(batch, time)` of the tokens; for a second sequence `(batch, time,
            key_time)`.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.

    Returns:
        A dict from the paths of the `Attention` layers to names of kernels, those of
        `kzoo.ops.dispatch.kernels`, with a padding mask.

    Raises:
        InputError: for an unknown platform, or a shape that is none.

    Example:
        >>> kernels(kzoo.presets.load("gpt_nano"), (8, 1024), "tpu")["block_0/attention"]
        'splash'
    """
    if platform not in ("cpu", "gpu", "tpu"):
        raise unknown("platform", platform, ["cpu", "gpu", "tpu"])
    if not isinstance(batch_shape, tuple | list) or len(batch_shape) not in (2, 3):
        raise InputError(f"batch_shape is (batch, time). Received: {batch_shape!r}")
    return {
        layer.path: layer.kernel_for(batch_shape[1], platform, *batch_shape[2:])
        for layer in model._flatten_layers()
        if isinstance(layer, Attention)
    }
