"""One layer of a stack: a sequence mixer, cross-attention if asked for, and a channel mixer."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import keras
from keras import ops

from kzoo.errors import unknown
from kzoo.layers.arguments import check
from kzoo.layers.attention import Attention
from kzoo.layers.feed_forward import FeedForward
from kzoo.layers.initializers import by_token, derive_seed
from kzoo.layers.keras_arguments import counted
from kzoo.layers.normalization import norm
from kzoo.names import NORM_PLACEMENTS
from kzoo.ops.decoding import Window
from kzoo.typing import Shape, Tensor

REMAT = ("none", "block", "attention")


@keras.saving.register_keras_serializable(package="kzoo")
class Block(keras.layers.Layer):
    """x + f(norm(x)) for each part ("pre"), or norm(x + f(x)) ("post").

    The parts are a sequence mixer, cross-attention where one is given, and a channel mixer.
    Dropout acts on what is added to the residual stream, never on attention weights.

    Args:
        attention: the sequence mixer, an `Attention` or a layer that is called and decodes as one.
        feed_forward: the channel mixer, a `FeedForward` or another layer of one tensor.
        cross_attention: an `Attention` over a second sequence, which has no positions there, and
            a mask that shows everything; None for none.
        normalization: `"layer_norm"` or `"rms_norm"`; epsilon: what is added to the variance.
        norm_placement: `"pre"` or `"post"`.
        dropout: rate.
        shares: a `Block` whose norms this one uses, all but that of the cross-attention.
        remat: what the gradient computes again instead of keeping it: `"none"`, `"block"` (all
            but the inputs, the least memory), or `"attention"` (its projections and its kernel).
            Results are the same: dropout draws the same noise again.
        seed: integer from which dropout derives.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the example.
        source_mask: integers [batch, time], 1 for source; needed by a prefix mask.
        bias: floats [1, heads, time, time], with an attention that is `relative`.
        encoded: floats [batch, encoder_time, hidden_dim], with `cross_attention`.
        encoder_padding_mask: integers [batch, encoder_time]: 0 padding, k for what the k-th
            document of `padding_mask` attends to.
        mask, inputs_mask, encoded_mask: booleans [batch, time], the masks that Keras hands on,
            as in `Attention`; `mask` is that of the inputs, and replaces `inputs_mask`.

    Returns:
        The shape of `inputs`. It carries on Keras's mask of them.

    Raises:
        InputError: for an unknown name.

    Example:
        >>> block = Block(Attention(4, 16, mask="causal"), FeedForward(256))
        >>> block(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    def __init__(
        self,
        attention: Any,
        feed_forward: Any,
        *,
        cross_attention: Any = None,
        normalization: str = "layer_norm",
        epsilon: float = 1e-5,
        norm_placement: str = "pre",
        dropout: float = 0.0,
        shares: Any = None,
        remat: str = "none",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(epsilon=epsilon, dropout=dropout, seed=seed)
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

        def own_norm(name):
            return norm(normalization, epsilon, name=name, dtype=self.dtype_policy)

        def drop(name):
            seed = derive_seed(self.seed, name)
            return keras.layers.Dropout(dropout, seed=seed, name=name, dtype=self.dtype_policy)

        names = ("attention_norm", "feed_forward_norm")
        norms = [getattr(shares, name) if shares else own_norm(name) for name in names]
        self.attention_norm, self.attention = norms[0], attention
        self.feed_forward_norm, self.feed_forward = norms[1], feed_forward
        self.attention_dropout = drop("attention_dropout")
        self.feed_forward_dropout = drop("feed_forward_dropout")
        self.cross_attention = None
        if cross_attention is not None:
            self.cross_attention_norm = own_norm("cross_attention_norm")
            self.cross_attention = cross_attention
            self.cross_attention_dropout = drop("cross_attention_dropout")

    def build(self, inputs_shape: Shape) -> None:
        layers = [self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward]
        if self.cross_attention is not None:
            self.cross_attention_norm.build(inputs_shape)
            self.cross_attention.build(inputs_shape, inputs_shape)
        for layer in layers:
            if not layer.built:
                layer.build(inputs_shape)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs: Tensor, **kwargs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        bias: Tensor | None = None,
        encoded: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        training: bool | None = None,
        mask: Tensor | None = None,
        inputs_mask: Tensor | None = None,
        encoded_mask: Tensor | None = None,
    ) -> Tensor:
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

        def cross_attend(x, others):
            masks = {"key_padding_mask": others.get("encoder_padding_mask")}
            if masks["key_padding_mask"] is not None:  # whose documents are those of the queries
                masks["padding_mask"] = others.get("padding_mask")
            return self.cross_attention(x, others["encoded"], **masks)

        if self.remat == "attention":
            attend, cross_attend = keras.remat(attend), keras.remat(cross_attend)

        def whole(x, others):
            parts = (lambda x: attend(x, others)), (lambda x: cross_attend(x, others))
            return self.assemble(x, *parts, seeds)

        return (keras.remat(whole) if self.remat == "block" else whole)(inputs, others)

    def assemble(
        self,
        inputs: Tensor,
        attend: Callable[..., Any],
        cross_attend: Callable[..., Any] | None = None,
        seeds: Any = None,
    ) -> Tensor:
        """The block around what its attention and its cross-attention compute.

        Args:
            inputs: floats [batch, time, hidden_dim].
            attend, cross_attend: functions of such tensors.
            seeds: of the dropouts by name; by default they do nothing.
        """
        seeds = seeds or {}
        x = self._add(inputs, attend, self.attention_norm, seeds.get("attention_dropout"))
        if self.cross_attention is not None:
            seed = seeds.get("cross_attention_dropout")
            x = self._add(x, cross_attend, self.cross_attention_norm, seed)
        seed = seeds.get("feed_forward_dropout")
        return self._add(x, self.feed_forward, self.feed_forward_norm, seed)

    def init_cache(
        self,
        batch: int,
        time: int,
        encoded: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
    ) -> dict[str, Any]:
        """What `decode` reads and extends: the cache of no tokens, and that of a second sequence.

        Args:
            batch: number of examples.
            time: the most tokens of one.
            encoded, encoder_padding_mask: as in the call.
        """
        cache = {"attention": self.attention.init_cache(batch, time)}
        if self.cross_attention is not None:
            other = self.cross_attention.init_cross_cache(encoded, encoder_padding_mask)
            cache["cross_attention"] = other
        return cache

    def decode(
        self, inputs: Tensor, cache: Mapping[str, Any], window: Window, bias: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The call for new columns of examples whose earlier columns are in a cache.

        Args:
            inputs: floats [batch, window.size, hidden_dim].
            cache: from `init_cache` or an earlier call.
            window, bias: as in `Attention.decode`.

        Returns:
            Floats [batch, window.size, hidden_dim], and the cache.
        """
        added = {}

        def attend(x):
            with keras.name_scope(self.attention.name):
                x, added["attention"] = self.attention.decode(x, cache["attention"], window, bias)
            return x

        def cross_attend(x):
            own = cache["cross_attention"]
            with keras.name_scope(self.cross_attention.name):
                x, added["cross_attention"] = self.cross_attention.cross_attend(x, own, window)
            return x

        return self.assemble(inputs, attend, cross_attend), {**cache, **added}

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

    def attention_inputs(self, inputs: Tensor) -> Any:
        """What the attention of this block receives, given what the block receives."""
        return self.attention_norm(inputs) if self.norm_placement == "pre" else inputs

    def get_config(self) -> dict[str, Any]:
        mixers = {"attention": self.attention, "feed_forward": self.feed_forward}
        if self.cross_attention is not None:
            mixers["cross_attention"] = self.cross_attention
        return {
            **super().get_config(),
            **{name: keras.saving.serialize_keras_object(x) for name, x in mixers.items()},
            "normalization": self.normalization,
            "epsilon": self.epsilon,
            "norm_placement": self.norm_placement,
            "dropout": self.dropout,
            "remat": self.remat,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = _mixers_of_fields(config) if "num_heads" in config else dict(config)
        for name in ("attention", "feed_forward", "cross_attention"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return super().from_config(config)


def _mixers_of_fields(config):
    """The arguments of a `Block` that was saved when it took the fields of its mixers."""
    config = dict(config)
    common = {"use_bias": config.pop("use_bias"), "stddev": config.pop("stddev")}
    of_both = ("num_heads", "head_dim", "mechanism", "feature_map", "kv_heads", "scale")
    of_own = ("mask", "rotary", "relative", "identity_mix")
    heads, own = ({name: config.pop(name) for name in names} for names in (of_both, of_own))
    inner = {name: config.pop(name) for name in ("intermediate_dim", "activation")}
    crosses = config.pop("cross_attention")

    def child(name):
        seed = derive_seed(config["seed"], name)
        return {"name": name, "seed": seed, "dtype": config.get("dtype"), **common}

    config["attention"] = Attention.from_config({**heads, **own, **child("attention")})
    config["feed_forward"] = FeedForward(**inner, **child("feed_forward"))
    if crosses:
        config["cross_attention"] = Attention.from_config({**heads, **child("cross_attention")})
    return config


class _Drawn(keras.random.SeedGenerator):
    """A seed that is drawn already, in the form in which Keras takes seeds."""

    def __init__(self, value):  # no variable of its own
        self.value = value
        self._initial_seed = 0

    def next(self, ordered=True):
        return self.value
