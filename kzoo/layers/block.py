"""One layer of a stack: attention, a look at another sequence where there is one, feed-forward."""

import keras
from keras import ops

from kzoo.errors import unknown
from kzoo.layers.attention import Attention
from kzoo.layers.feed_forward import FeedForward
from kzoo.layers.initializers import by_token, derive_seed
from kzoo.layers.keras_arguments import counted
from kzoo.layers.normalization import norm
from kzoo.names import NORM_PLACEMENTS

REMAT = ("none", "block", "attention")


@keras.saving.register_keras_serializable(package="kzoo")
class Block(keras.layers.Layer):
    """x + f(norm(x)) for each part ("pre"), or norm(x + f(x)) ("post").

    The parts are attention, with `cross_attention` a look at another sequence, and feed-forward.
    Dropout acts on what is added to the residual stream, never on attention weights.

    Args:
        num_heads, head_dim, mechanism, mask, feature_map, kv_heads, rotary, scale, relative,
            identity_mix: as in `Attention`. The look at another sequence has no positions, an
            order of its own has no meaning there, and everything is seen.
        intermediate_dim, activation: as in `FeedForward`.
        use_bias, stddev: as in both.
        normalization: `"layer_norm"` or `"rms_norm"`; epsilon: what is added to the variance.
        norm_placement: `"pre"` or `"post"`.
        dropout: rate.
        cross_attention: whether the block looks at another sequence too.
        shares: a `Block` whose norms, projections and feed-forward this one uses; its look at
            another sequence is its own.
        remat: what the gradient computes again instead of keeping it: `"none"`, `"block"` (all
            but the inputs, the least memory), or `"attention"` (its projections and its kernel).
            Results are the same: dropout draws the same noise again.
        seed: integer from which initial values and dropout derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the row.
        source_mask: integers [batch, time], 1 for source; needed by a prefix mask.
        bias: floats [1, heads, time, time], with `relative`.
        encoded: floats [batch, encoder_time, hidden_dim], with `cross_attention`.
        encoder_padding_mask: integers [batch, encoder_time], 1 for what counts of it.
        mask, inputs_mask, encoded_mask: booleans [batch, time], the masks that Keras hands on,
            as in `Attention`; `mask` is that of the inputs, and replaces `inputs_mask`.

    Returns:
        The shape of `inputs`. It carries on Keras's mask of them.

    Raises:
        InputError: as `Attention` and `FeedForward`, or for an unknown name.
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
        scale=None,
        relative=False,
        identity_mix=0.0,
        activation="gelu",
        use_bias=True,
        normalization="layer_norm",
        epsilon=1e-5,
        norm_placement="pre",
        dropout=0.0,
        stddev=None,
        cross_attention=False,
        shares=None,
        remat="none",
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if remat not in REMAT:
            raise unknown("remat", remat, REMAT)
        if norm_placement not in NORM_PLACEMENTS:
            raise unknown("norm_placement", norm_placement, NORM_PLACEMENTS)
        self.normalization = normalization
        self.epsilon = epsilon
        self.norm_placement = norm_placement
        self.dropout = dropout
        self.remat = remat
        self.seed = seed
        self.supports_masking = True
        common = {"dtype": self.dtype_policy}

        def child(name):
            return {"name": name, "seed": derive_seed(seed, name), **common}

        def attention(name, **own):
            return Attention(
                num_heads,
                head_dim,
                mechanism=mechanism,
                feature_map=feature_map,
                kv_heads=kv_heads,
                scale=scale,
                use_bias=use_bias,
                stddev=stddev,
                **own,
                **child(name),
            )

        def own_norm(name):
            return norm(normalization, epsilon, name=name, **common)

        def drop(name):
            return keras.layers.Dropout(dropout, **child(name))

        own = {"mask": mask, "rotary": rotary, "relative": relative, "identity_mix": identity_mix}
        if shares is None:
            self.attention_norm = own_norm("attention_norm")
            self.attention = attention("attention", **own)
            self.feed_forward_norm = own_norm("feed_forward_norm")
            self.feed_forward = FeedForward(
                intermediate_dim, activation, use_bias, stddev, **child("feed_forward")
            )
        else:
            self.attention_norm = shares.attention_norm
            self.attention = attention("attention", **own, shares=shares.attention)
            self.feed_forward_norm = shares.feed_forward_norm
            self.feed_forward = shares.feed_forward
        self.attention_dropout = drop("attention_dropout")
        self.feed_forward_dropout = drop("feed_forward_dropout")
        self.cross_attention = None
        if cross_attention:
            self.cross_attention_norm = own_norm("cross_attention_norm")
            self.cross_attention = attention("cross_attention")
            self.cross_attention_dropout = drop("cross_attention_dropout")

    def build(self, inputs_shape):
        layers = [self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward]
        if self.cross_attention is not None:
            self.cross_attention_norm.build(inputs_shape)
            self.cross_attention.build(inputs_shape, inputs_shape)
        for layer in layers:
            if not layer.built:
                layer.build(inputs_shape)

    def compute_output_shape(self, inputs_shape):
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs, **kwargs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(
        self,
        inputs,
        padding_mask=None,
        source_mask=None,
        bias=None,
        encoded=None,
        encoder_padding_mask=None,
        training=None,
        mask=None,
        inputs_mask=None,
        encoded_mask=None,
    ):
        padding_mask = counted(padding_mask, inputs_mask if mask is None else mask)
        encoder_padding_mask = counted(encoder_padding_mask, encoded_mask)
        others = {
            "padding_mask": padding_mask,
            "source_mask": source_mask,
            "bias": bias,
            "encoded": encoded,
            "encoder_padding_mask": encoder_padding_mask,
        }
        others = {name: tensor for name, tensor in others.items() if tensor is not None}
        # Drawn out here, so that what is computed again draws the same noise.
        seeds = self._draw_seeds(training)

        def attend(x, others):
            names = ("padding_mask", "source_mask", "bias")
            return self.attention(x, **{name: others.get(name) for name in names})

        def look(x, others):
            shown = others.get("encoder_padding_mask")
            return self.cross_attention(x, others["encoded"], key_padding_mask=shown)

        if self.remat == "attention":
            attend, look = keras.remat(attend), keras.remat(look)

        def whole(x, others):
            parts = (lambda x: attend(x, others)), (lambda x: look(x, others))
            return self.assemble(x, *parts, seeds)

        return (keras.remat(whole) if self.remat == "block" else whole)(inputs, others)

    def assemble(self, inputs, attend, look=None, seeds=None):
        """The block around what its attention, and its look at another sequence, compute.

        Args:
            inputs: floats [batch, time, hidden_dim].
            attend, look: functions of such tensors.
            seeds: of the dropouts by name; by default they do nothing.
        """
        seeds = seeds or {}
        x = self._add(inputs, attend, self.attention_norm, seeds.get("attention_dropout"))
        if self.cross_attention is not None:
            seed = seeds.get("cross_attention_dropout")
            x = self._add(x, look, self.cross_attention_norm, seed)
        seed = seeds.get("feed_forward_dropout")
        return self._add(x, self.feed_forward, self.feed_forward_norm, seed)

    def empty_cache(self, batch, time, encoded=None, encoder_padding_mask=None):
        """What `extend` adds to; with `cross_attention` also what it looks at."""
        cache = {"attention": self.attention.empty_cache(batch, time)}
        if self.cross_attention is not None:
            look = self.cross_attention.remember(encoded, encoder_padding_mask)
            cache["cross_attention"] = look
        return cache

    def extend(self, inputs, cache, window, bias=None):
        """The call for new columns of rows, given a cache of those before: `Attention.extend`.

        Returns:
            Floats [batch, window.size, hidden_dim], and the cache.
        """
        added = {}

        def attend(x):
            with keras.name_scope(self.attention.name):
                x, added["attention"] = self.attention.extend(x, cache["attention"], window, bias)
            return x

        def look(x):
            with keras.name_scope(self.cross_attention.name):
                return self.cross_attention.recall(x, cache["cross_attention"])

        return self.assemble(inputs, attend, look), {**cache, **added}

    def _add(self, x, part, norm, seed):
        # The residual stream and its gradient are added up by token, as the projections give
        # them: XLA would move the reshapes between past one sum at a time, and simplify the whole
        # program again after each, in six layers 13 times instead of 8.
        tokens = ops.reshape(x, (-1, x.shape[-1]))
        x = ops.reshape(tokens, ops.shape(x))

        def add(part):
            return by_token(lambda added: tokens + added, self._drop(part(x), seed))

        if self.norm_placement == "pre":
            return add(lambda x: part(norm(x)))
        return norm(add(part))

    def _draw_seeds(self, training):
        if not training or not self.dropout:
            return {}
        layers = [self.attention_dropout, self.feed_forward_dropout]
        layers += [self.cross_attention_dropout] if self.cross_attention is not None else []
        return {layer.name: _Drawn(layer.seed_generator.next()) for layer in layers}

    def _drop(self, x, seed):
        return x if seed is None else keras.random.dropout(x, self.dropout, seed=seed)

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
            "scale": self.attention.scale,
            "relative": self.attention.relative,
            "identity_mix": self.attention.identity_mix,
            "activation": self.feed_forward.activation,
            "use_bias": self.feed_forward.use_bias,
            "normalization": self.normalization,
            "epsilon": self.epsilon,
            "norm_placement": self.norm_placement,
            "dropout": self.dropout,
            "stddev": self.feed_forward.stddev,
            "cross_attention": self.cross_attention is not None,
            "remat": self.remat,
            "seed": self.seed,
        }


class _Drawn(keras.random.SeedGenerator):
    """A seed that is drawn already, in the form in which Keras takes seeds."""

    def __init__(self, value):  # no variable of its own
        self.value = value
        self._initial_seed = 0

    def next(self, ordered=True):
        return self.value
