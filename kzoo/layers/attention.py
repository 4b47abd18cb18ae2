"""Attention under any mask, softmax or linear, of one sequence or of two."""

import keras
from keras import ops

from kzoo import masks
from kzoo.errors import InputError, unknown
from kzoo.layers.initializers import by_token, dense
from kzoo.ops import feature_maps, linear_attention, reference_attention, softmax_attention
from kzoo.ops.choice import Shape, kernel_for
from kzoo.ops.decoding import linear_read, linear_step, softmax_step
from kzoo.ops.features import Features
from kzoo.ops.rotary import rotate
from kzoo.ops.rows import by_rows

MECHANISMS = ("softmax", "linear")


@keras.saving.register_keras_serializable(package="kzoo")
class Attention(keras.layers.Layer):
    """Multi-head attention under any mask, of one sequence or of a second one.

    Its variables, their shapes and their initial values are the same for every mask and
    mechanism (a learned feature map has weights of its own besides).

    Args:
        num_heads: number of heads.
        head_dim: size of a head.
        mechanism: `"softmax"` or `"linear"`.
        mask: a mask spec or `Mask` that does not differ by layer.
        feature_map: of linear attention, a name, JSON or `FeatureMap` of
            `kzoo.ops.feature_maps`.
        kv_heads: number of heads of keys and values, a divisor of `num_heads`; the same
            number by default.
        rotary: rotate by the place within the document.
        scale: factor on q·k under softmax; 1/√head_dim by default.
        relative: whether calls come with a `bias`, as of `kzoo.layers.RelativeBias`.
        identity_mix: ε in (1-ε)A + εI, which the attention weights A become.
        use_bias: whether the projections have biases.
        stddev: of initial kernels, as in `kzoo.layers.initializers.dense`.
        shares: a built `Attention` whose projections this one uses.
        seed: integer from which the initial values derive.

    Call arguments:
        query: floats [batch, query_time, width].
        value: floats [batch, key_time, value_width]: another sequence, which the queries look
            at. By default they look at their own.
        key: like `value`, which it is by default.
        padding_mask: integers [batch, query_time]: 0 padding, k the k-th document of the row.
        source_mask: integers [batch, query_time], 1 for source; needed by a prefix mask.
        key_padding_mask: integers [batch, key_time], beside a `value`: 0 padding, k what the
            k-th document of the queries looks at. Without a `padding_mask` the queries are
            one document.
        bias: floats [batch or 1, heads or 1, query_time, key_time], added to softmax's scores.
        query_mask, value_mask: the masks that Keras hands on, from `Embedding(mask_zero=True)`
            say; they stand in where `padding_mask` and `key_padding_mask` are not given.
        initial_state, return_state, query_offset: of linear attention, as in
            `kzoo.ops.linear_attention`: to go on where an earlier call ended.

    Returns:
        Floats [batch, query_time, width]; at padded positions the bias of the output
        projection. With `return_state` also the state.

    Raises:
        InputError: for an unknown mechanism or feature map, heads that do not divide, a mask
            that does not tile the heads, or one that linear attention or the feature map
            cannot follow; a state of softmax attention.

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
        scale=None,
        relative=False,
        identity_mix=0.0,
        use_bias=True,
        stddev=None,
        shares=None,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.mechanism = mechanism
        self.mask = masks.get(mask)
        self.feature_map = feature_maps.get(feature_map)
        self.kv_heads = kv_heads or num_heads
        self.rotary = rotary
        self.scale = scale
        self.relative = relative
        self.identity_mix = identity_mix
        self.use_bias = use_bias
        self.stddev = stddev and tuple(stddev)
        self.seed = seed
        self.across = False  # whether calls look at another sequence
        for name in ("query", "key", "value", "output_dense", "feature_weights"):
            setattr(self, name, None if shares is None else getattr(shares, name))
        self.supports_masking = True
        if mechanism not in MECHANISMS:
            raise unknown("mechanism", mechanism, MECHANISMS)
        if num_heads % self.kv_heads:
            raise InputError(f"kv_heads divides num_heads={num_heads}. Received: {kv_heads}")
        if rotary and head_dim % 2:
            raise InputError(f"rotary positions need an even head_dim. Received: {head_dim}")
        heads = self.mask.per_head(num_heads)
        if mechanism == "linear":
            if relative or scale is not None:
                raise InputError(
                    "a bias or a scale of the scores belongs to softmax attention. "
                    f"Received: mechanism='linear' with relative={relative}, scale={scale}"
                )
            for head in heads:
                if not isinstance(head, masks.Order):
                    raise InputError(
                        "linear attention follows orders, not custom masks or &. "
                        f"Received: {head!r}"
                    )
            self.feature_map.check(heads)

    def build(self, query_shape, value_shape=None, key_shape=None):
        self.across = value_shape is not None
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
        self.feature_weights = {}
        if self.mechanism == "linear":
            initial = self.feature_map.initial_weights(self.num_heads, self.head_dim)
            for name, values in initial.items():  # [heads, dim, features] as a matrix
                matrix = values.reshape(-1, values.shape[-1])
                self.feature_weights[name] = self.add_weight(
                    name=f"feature_map_{name}",
                    shape=matrix.shape,
                    initializer=lambda shape, dtype, matrix=matrix: ops.cast(matrix, dtype),
                )

    def compute_output_spec(self, query, *args, return_state=False, **kwargs):
        out = keras.KerasTensor(query.shape, dtype=self.compute_dtype)
        if not return_state:
            return out
        shape = (query.shape[0], self.num_heads, self.feature_map.size(self.head_dim))
        return out, {
            "matrix": keras.KerasTensor((*shape, self.head_dim), dtype="float32"),
            "normaliser": keras.KerasTensor(shape, dtype="float32"),
        }

    def call(
        self,
        query,
        value=None,
        key=None,
        padding_mask=None,
        source_mask=None,
        key_padding_mask=None,
        query_mask=None,
        value_mask=None,
        bias=None,
        initial_state=None,
        return_state=False,
        query_offset=0,
    ):
        padding_mask = query_mask if padding_mask is None else padding_mask
        if value is not None and key_padding_mask is None:
            key_padding_mask = value_mask
        x = self.attend(
            query,
            value,
            key,
            padding_mask=padding_mask,
            source_mask=source_mask,
            key_padding_mask=key_padding_mask,
            query_offset=query_offset,
            **self._biased(bias),
            **self._states(initial_state, return_state),
        )
        if not return_state:
            return self._output(x)
        x, state = x
        return self._output(x), state

    def attend(self, query, value=None, key=None, **kwargs):
        """What the heads gather, before the output projection: [batch, time, heads, head_dim].

        Further arguments are those of `kzoo.ops.softmax_attention` or `linear_attention`.
        """
        operands = self._project(query, value, key)
        if value is not None and kwargs.get("key_padding_mask") is None:
            # Two sequences even where they are equally long: all of it is there.
            kwargs["key_padding_mask"] = ops.ones((1, ops.shape(value)[1]), dtype="int32")
        if self.mechanism == "softmax":
            softmax = {"rotary": self.rotary, "scale": self.scale}
            x = softmax_attention(*operands, self.mask, **softmax, **kwargs)
        else:
            x = linear_attention(*operands, self.mask, **self._linear(), **kwargs)
        if not self.identity_mix:
            return x
        x, *state = x if isinstance(x, tuple) else (x,)
        x = self._mixed(x, operands[2], kwargs.get("padding_mask"))
        return (x, *state) if state else x

    def _mixed(self, x, v, padding_mask):
        """(1-ε)Av + εv for x = Av, both [batch, time, heads, head_dim]."""
        v = ops.repeat(v, self.num_heads // self.kv_heads, axis=2)
        if padding_mask is not None:
            v = ops.where(ops.cast(padding_mask, "bool")[:, :, None, None], v, ops.zeros_like(v))
        return (1 - self.identity_mix) * x + self.identity_mix * v

    def empty_cache(self, batch, time):
        """What `extend` adds to: a dict of zeros, batch first.

        Softmax keeps `key` and `value` [batch, time, kv_heads, head_dim]; linear attention
        keeps a state whose size does not depend on the time.
        """
        if self.mechanism == "softmax":
            shape = (batch, time, self.kv_heads, self.head_dim)
            return {name: ops.zeros(shape, self.compute_dtype) for name in ("key", "value")}
        shape = (batch, self.num_heads, self.feature_map.size(self.head_dim))
        return {
            "matrix": ops.zeros((*shape, self.head_dim), "float32"),
            "normaliser": ops.zeros(shape, "float32"),
        }

    def extend(self, x, cache, window, bias=None):
        """The call for new columns of rows whose earlier columns are in a cache.

        Args:
            x: floats [batch, window.size, width].
            cache: from `empty_cache` or an earlier call; keys are rotated by their place.
            window: the `kzoo.ops.decoding.Window` of the new columns.
            bias: floats [1, heads, window.size, window.key_time(time)], as in the call.

        Returns:
            Floats [batch, window.size, width], and the cache with the new columns.
        """
        q, k, v = self._project(x, None, None)
        queries = window.queries()
        if self.mechanism == "linear":
            out, cache = self._extend_state(q, k, v, cache, window, queries)
        else:
            if self.rotary:
                q, k = (rotate(ops.cast(x, "float32"), queries.position) for x in (q, k))
            written = zip(("key", "value"), (k, v), strict=True)
            cache = {name: window.write(cache[name], x) for name, x in written}
            out = self._look_back(q, cache, window, queries, bias)
        if self.identity_mix:
            out = self._mixed(out, v, queries.segment)
        return self._output(out), cache

    def _look_back(self, q, cache, window, queries, bias):
        """Of rotated queries, over cached keys."""
        time = window.key_time(cache["key"].shape[1])
        key, value = (cache[name][:, :time] for name in ("key", "value"))
        keys = window.keys(time)
        if window.size == 1:
            visible = self.mask.between(queries, keys, self.num_heads)
            return softmax_step(q, key, value, visible, self.scale, bias)
        who = {"query_offset": window.index, **self._who(keys), **self._biased(bias)}
        return softmax_attention(q, key, value, self.mask, scale=self.scale, **who)

    def _extend_state(self, q, k, v, cache, window, queries):
        if window.size == 1:
            features = Features(self.feature_map, self.rotary)
            weights = self._linear()["feature_weights"]
            args = (weights, queries.position, window.writes(), cache)
            return linear_step(features, q, k, v, *args)
        beginning = isinstance(window.index, int) and window.index == 0
        return linear_attention(
            q,
            k,
            v,
            self.mask,
            query_offset=0 if beginning else ops.maximum(window.index - window.start, 0),
            initial_state=None if beginning else cache,
            return_state=True,
            **self._who(queries),
            **self._linear(),
        )

    def remember(self, value, key_padding_mask):
        """What `recall` needs of another sequence, batch first: keys and values, or a state.

        Args:
            value: floats [batch, key_time, width].
            key_padding_mask: integers [batch, key_time], 1 for what counts.
        """
        q, k, v = self._project(value[:, :1], value, None)
        if self.mechanism == "softmax":
            shown = ops.cast(key_padding_mask, "int32")
            # Zeros, not whatever stands in padding: 0 · NaN is NaN.
            counts = shown[:, :, None, None] != 0
            k, v = (ops.where(counts, x, ops.zeros_like(x)) for x in (k, v))
            return {"key": k, "value": v, "shown": shown}
        own = {"key_padding_mask": key_padding_mask, "return_state": True}
        return linear_attention(q, k, v, self.mask, **own, **self._linear())[1]

    def recall(self, x, cache):
        """The call with another sequence that `remember` made a cache of.

        Args:
            x: floats [batch, time, width].

        Returns:
            The same shape.
        """
        q = self._heads(by_token(self.query, x), self.num_heads)
        if self.mechanism == "linear":
            features = self.feature_map.query(
                ops.cast(q, "float32"), self._linear()["feature_weights"]
            )
            return self._output(linear_read(features, features, cache))
        k, v, shown = (cache[name] for name in ("key", "value", "shown"))
        if x.shape[1] == 1:
            visible = shown[:, None, None, :] != 0
            return self._output(softmax_step(q, k, v, visible, self.scale))
        out = softmax_attention(q, k, v, self.mask, key_padding_mask=shown, scale=self.scale)
        return self._output(out)

    def _who(self, places):
        source = ops.cast(places.in_source, "int32") if self.mask.needs_source else None
        return {"padding_mask": places.segment, "source_mask": source}

    def kernel_for(self, query_time, platform, key_time=None, padded=True):
        """The kernel that computes this attention, a name of `kzoo.ops.choice.KERNELS`."""
        shape = Shape(
            query_time=query_time,
            key_time=key_time or query_time,
            num_heads=self.num_heads,
            dim=self.head_dim,
            value_dim=self.head_dim,
            mask=self.mask,
            padded=padded,
            same_places=not self.across and key_time is None,
            bias=self.relative,
            dtype=self.compute_dtype,
            features=self.feature_map.size(self.head_dim) if self.mechanism == "linear" else None,
        )
        return kernel_for(self.mechanism, shape, keras.backend.backend(), platform)

    def attention_weights(self, query, value=None, key=None, **kwargs):
        """The weights as a dense matrix, for a look: [batch, heads, query_time, key_time].

        Arguments as in the call: `padding_mask`, `source_mask`, `key_padding_mask`, `bias`.
        """
        if self.mechanism == "linear":
            own = self._linear()
        else:
            own = {"rotary": self.rotary, "scale": self.scale}
        _, weights = reference_attention(
            *self._project(query, value, key),
            self.mask,
            mechanism=self.mechanism,
            return_weights=True,
            **own,
            **kwargs,
        )
        if self.identity_mix:
            itself = ops.eye(ops.shape(weights)[-1], dtype=weights.dtype)
            if kwargs.get("padding_mask") is not None:
                real = ops.cast(kwargs["padding_mask"], "bool")[:, None, :, None]
                itself = ops.where(real, itself, ops.zeros_like(itself))
            weights = (1 - self.identity_mix) * weights + self.identity_mix * itself
        return weights

    def _linear(self):
        weights = {
            name: ops.reshape(matrix, (self.num_heads, self.head_dim, -1))
            for name, matrix in self.feature_weights.items()
        }
        return {
            "feature_map": self.feature_map,
            "feature_weights": weights or None,
            "rotary": self.rotary,
        }

    def _biased(self, bias):
        if (bias is not None) != self.relative:
            raise InputError(
                "an attention has a bias in every call or in none, as `relative` says. "
                f"Received: relative={self.relative} and {'no' if bias is None else 'a'} bias"
            )
        return {} if bias is None else {"bias": bias}

    def _states(self, initial_state, return_state):
        if self.mechanism == "linear":
            return {"initial_state": initial_state, "return_state": return_state}
        if initial_state is not None or return_state:
            raise InputError(
                "only linear attention has a state of fixed size; use mechanism='linear'. "
                f"Received: mechanism={self.mechanism!r} with a state"
            )
        return {}

    def _project(self, query, value, key):
        value = query if value is None else value
        key = value if key is None else key

        return (
            self._heads(by_token(self.query, query), self.num_heads),
            self._heads(by_token(self.key, key), self.kv_heads),
            self._heads(by_token(self.value, value), self.kv_heads),
        )

    def _heads(self, x, heads):
        return ops.reshape(x, (-1, ops.shape(x)[1], heads, self.head_dim))

    def _output(self, x):
        """What the heads gathered, [batch, time, heads, head_dim], projected."""
        x = ops.reshape(x, (-1, ops.shape(x)[1], self.num_heads * self.head_dim))
        return by_rows(by_token(self.output_dense, ops.cast(x, self.compute_dtype)))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "mechanism": self.mechanism,
            "mask": self.mask.get_config(),
            "feature_map": self.feature_map.get_config(),
            "kv_heads": self.kv_heads,
            "rotary": self.rotary,
            "scale": self.scale,
            "relative": self.relative,
            "identity_mix": self.identity_mix,
            "use_bias": self.use_bias,
            "stddev": self.stddev,
            "seed": self.seed,
        }


class _OneMechanism(Attention):
    def __init__(self, num_heads, head_dim, mask="bidirectional", **kwargs):
        super().__init__(num_heads, head_dim, mechanism=self.only, mask=mask, **kwargs)

    def get_config(self):
        config = super().get_config()
        del config["mechanism"]
        return config


@keras.saving.register_keras_serializable(package="kzoo")
class SoftmaxAttention(_OneMechanism):
    """`Attention` with `mechanism="softmax"`: the same arguments and call.

    Example:
        >>> SoftmaxAttention(4, 16, mask="causal")(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    only = "softmax"


@keras.saving.register_keras_serializable(package="kzoo")
class LinearAttention(_OneMechanism):
    """`Attention` with `mechanism="linear"`: the same arguments and call.

    Example:
        >>> layer = LinearAttention(4, 16, mask="causal", feature_map="relu")
        >>> out, state = layer(first, return_state=True)
        >>> out = layer(second, initial_state=state)
    """

    only = "linear"


def kernels(model, batch_shape, platform):
    """Which kernel each attention layer of a model runs.

    Args:
        model: a Keras model, ours or one with our layers in it.
        batch_shape: `(batch, time)` of the tokens; for a second sequence `(batch, time,
            key_time)`.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.

    Returns:
        A dict from the paths of the `Attention` layers to names of `kzoo.ops.choice.KERNELS`,
        with a padding mask.

    Raises:
        InputError: for an unknown platform, or a shape that is none.

    Example:
        >>> kernels(kzoo.presets.load("gpt_nano"), (8, 1024), "tpu")
        {'block_0/attention': 'splash', 'block_1/attention': 'splash'}
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
