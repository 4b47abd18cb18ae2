"""The fields of a model's config, each declared once, and what must hold between them.

A config is a frozen dataclass and JSON both ways: `Config.get(spec)` and `get_config()`. It is
known without Keras, so that names and mistakes are answered at once.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Mapping
from typing import Any, Self

from kzoo import attention_options, masks, mechanisms, migrations, mixers, names, objectives
from kzoo.errors import InputError, nearest, unknown
from kzoo.values import (
    plain,
    shown,
    take_boolean,
    take_count,
    take_number,
    take_seed,
)
from kzoo.vocabulary import VOCABULARY_SIZE

STACKS = ("single", "encoder_decoder", "encoder_decoder_shared")
TOKENIZERS = ("bytes", "file")
MOST_MASKS = 10_000  # of layers, or of heads of a layer: each has a mask of its own
CHECKPOINT_BESIDES = 100_000  # bytes that a checkpoint takes besides its arrays, about


# What a field takes: each is called with the field's name and a value, and returns the value as a
# config holds it, or raises `InputError`.


def _count_or_none(name, value):
    return None if value is None else take_count(name, value)


def _layers_or_none(name, value):
    return None if value is None else take_count(name, value, most=MOST_MASKS)


def _one_of(valid):
    def take(name, value):
        if not isinstance(value, str | int) or value not in valid:
            raise unknown(f"value of {name}", value, valid)
        return value

    return take


def _tokenizer(name, value):
    if isinstance(value, str) and value in TOKENIZERS:
        return value
    hint = nearest(value, TOKENIZERS) or "."
    raise InputError(
        f"unknown value of {name}{hint} A config has 'bytes', or 'file', where one comes with the "
        "weights; kzoo.presets.load takes the path of a tokenizer.json too, as "
        "kzoo.data.train_tokenizer returns it, and studies and commands also its kind and size, "
        f"such as {{'bpe': 4096}}. Received: {shown(value)}"
    )


def _spec(get):
    """JSON of a mask, a mechanism or an objective, or the object itself."""
    return lambda name, value: get(value)


def _field(takes, doc, default=dataclasses.MISSING, **options):
    """A field of a config: what it takes, what it means, and its default if it has one."""
    takes = functools.partial(takes, **options) if options else takes
    return dataclasses.field(default=default, metadata={"takes": takes, "doc": doc})


# Configs -------------------------------------------------------------------------------------


def _documented(cls):
    """Fields of a config, for its docstring."""
    cls.__doc__ = f"{cls.__doc__.rstrip()}\n\n    Attributes:\n{cls.documentation()}\n    "
    return cls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """Base of configs: fields that check themselves, by the declarations of `_field`."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            self._set(field.name, field.metadata["takes"](field.name, getattr(self, field.name)))

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of the fields, a tuple."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def get(cls, spec: Any) -> Self:
        """The config of JSON, or `spec` if it is one.

        Args:
            spec: a mapping of the names of fields to values; those without a default must be
                there.

        Raises:
            InputError: for an unknown or missing field, a value that a field does not take, and
                for fields that do not fit together.
        """
        if isinstance(spec, cls):
            return spec
        if not isinstance(spec, Mapping):
            raise InputError(
                "a config is a JSON object of its fields; kzoo.presets.config(NAME) is that of a "
                f"preset. Received: {spec!r:.120}"
            )
        valid = dataclasses.fields(cls)
        for name in spec:
            if name not in cls.field_names():
                migrations.refuse_old_field(name, spec[name])
                raise unknown("field", name, cls.field_names())
        required = [field.name for field in valid if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in spec]
        if missing:
            raise InputError(f"a config needs the fields {', '.join(missing)}. Received: {spec!r}")
        return cls(**plain(spec))

    def get_config(self) -> dict[str, Any]:
        """JSON of all fields, with nothing left to resolve; masks, mechanisms and objectives
        in their shortest form."""
        values = {name: getattr(self, name) for name in self.field_names()}
        return {name: getattr(x, "get_config", lambda x=x: x)() for name, x in values.items()}

    def part(self, cls: "type[Fields]") -> Any:
        """The fields that are those of `cls`, of which this class is a subclass."""
        return cls(**{name: getattr(self, name) for name in cls.field_names()})

    @classmethod
    def documentation(cls) -> str:
        """A line or more on each field, for docstrings."""
        entries = [f"{field.name}: {field.metadata['doc']}" for field in dataclasses.fields(cls)]
        first, then = " " * 8, " " * 12
        lines = (
            textwrap.fill(entry, 96, initial_indent=first, subsequent_indent=then)
            for entry in entries
        )
        return "\n".join(lines)


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig(Fields):
    """What a backbone computes."""

    vocabulary_size: int = _field(take_count, "number of token ids.", VOCABULARY_SIZE)
    num_layers: int = _field(take_count, "number of blocks of a stack.", most=MOST_MASKS)
    decoder_layers: int | None = _field(
        _layers_or_none,
        "number of blocks of the decoder, where it is not `num_layers`, the encoder's.",
        None,
    )
    num_heads: int = _field(take_count, "number of heads of queries.", most=MOST_MASKS)
    kv_heads: int | None = _field(
        _count_or_none, "number of heads of keys and values; by default `num_heads`.", None
    )
    head_dim: int | None = _field(
        _count_or_none, "size of a head; by default hidden_dim / num_heads.", None
    )
    hidden_dim: int = _field(take_count, "size of a token's state.")
    intermediate_dim: int = _field(take_count, "size of the inner layer of feed-forward networks.")
    max_sequence_length: int = _field(
        take_count, "the most tokens of a sequence; the size of a table of learned positions."
    )
    mask: masks.Mask = _field(
        _spec(masks.get),
        "which keys a query sees, a spec or object of `kzoo.masks`; `layers` repeats over the "
        "blocks. Of an encoder and a decoder, the encoder's.",
    )
    mechanism: mechanisms.Mechanism = _field(
        _spec(mechanisms.get),
        "how attention is computed, a spec or object of `kzoo.mechanisms`.",
        "softmax",
    )
    qk_norm: str = _field(
        _one_of(attention_options.QK_NORMS),
        "how each head of queries and keys is normalised: default (as the mechanism needs it), "
        "none, l2 or rms, as in `kzoo.attention_options`.",
        "default",
    )
    output_norm: bool = _field(
        take_boolean, "whether each head of an attention's output has an RMS norm.", False
    )
    output_gate: bool = _field(
        take_boolean, "whether an attention's output is multiplied by silu of a projection.", False
    )
    short_convolution: int = _field(
        attention_options.taps,
        "how many tokens a convolution of queries, keys and values over time takes, which follows "
        "the mask; 0 for none.",
        0,
    )
    short_convolution_activation: str = _field(
        _one_of(attention_options.CONVOLUTION_ACTIVATIONS),
        "after a short convolution: " + ", ".join(attention_options.CONVOLUTION_ACTIVATIONS) + ".",
        "silu",
    )
    identity_mix: float = _field(
        take_number, "ε in (1-ε)A + εI, which the attention weights A become.", 0.0, below=1
    )
    positions: str = _field(
        _one_of(names.POSITIONS),
        ", ".join(names.POSITIONS) + ". Relative ones are a bias on the scores, "
        "`kzoo.layers.RelativeBias`, one table for all blocks of a stack.",
        "rotary",
    )
    relative_buckets: int = _field(take_count, "of relative positions: the number of biases.", 32)
    relative_distance: int = _field(
        take_count, "of relative positions: the distance from which on all share a bias.", 128
    )
    num_segments: int = _field(take_count, "number of segment embeddings; 0 for none.", 0, least=0)
    normalization: str = _field(
        _one_of(names.NORMALIZATIONS), "layer_norm or rms_norm.", "layer_norm"
    )
    norm_placement: str = _field(
        _one_of(names.NORM_PLACEMENTS), "pre: x + f(norm(x)); or post: norm(x + f(x)).", "pre"
    )
    norm_epsilon: float = _field(take_number, "what norms add to the variance.", 1e-5)
    embedding_norm: bool = _field(
        take_boolean, "whether the sum of the embeddings is normalised.", False
    )
    activation: str = _field(
        _one_of(names.ACTIVATIONS),
        "of feed-forward networks: " + ", ".join(names.ACTIVATIONS) + ".",
        "gelu",
    )
    use_bias: bool = _field(take_boolean, "whether projections have biases.", True)
    dropout: float = _field(
        take_number,
        "rate on embeddings and on what blocks add; never on attention weights.",
        0.0,
        below=1,
    )
    initialization: str = _field(
        _one_of(names.INITIALIZATIONS),
        "of kernels: fan_in or gpt2, as in `kzoo.layers.initializers.stddevs`.",
        "fan_in",
    )
    pooler: bool = _field(
        take_boolean,
        "whether there is a `pooler`, tanh of a dense layer, for the first token's state.",
        False,
    )
    tie_embeddings: bool = _field(
        take_boolean, "whether the output matrix is the transposed embedding.", True
    )
    seed: int = _field(
        take_seed, "the integer from which all initial values and dropout derive.", 0
    )

    def __post_init__(self):
        super().__post_init__()
        self._resolve_heads()
        for layer in masks.per_layer(self.mask, self.num_layers):
            self.check_mechanism(layer)

    @property
    def decoder_depth(self) -> int:
        """The number of blocks of a decoder."""
        return self.decoder_layers or self.num_layers

    def check_mechanism(self, mask: masks.Mask) -> None:
        """`InputError` unless the mechanism can follow the mask of a layer."""
        heads = mask.per_head(self.num_heads)
        self.mechanism.check(heads, bias=self.positions == "relative")
        options = attention_options.AttentionOptions.of(self)
        options.check(self.mechanism, heads, heads, self.kv_heads or self.num_heads)

    def _resolve_heads(self):
        heads, width = self.num_heads, self.hidden_dim
        if self.kv_heads is None:
            self._set("kv_heads", heads)
        if self.head_dim is None:
            if width % heads:
                near = sorted(range(1, min(width, MOST_MASKS) + 1), key=lambda n: abs(n - heads))
                nearest = next(n for n in near if width % n == 0)
                raise InputError(
                    f"num_heads must divide hidden_dim={width} where no head_dim is given; the "
                    f"nearest is {nearest}. Received: num_heads={heads}"
                )
            self._set("head_dim", width // heads)
        if heads % self.kv_heads:
            raise InputError(
                f"kv_heads must divide num_heads={heads}. Received: kv_heads={self.kv_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(
                f"rotary positions need an even head_dim. Received: head_dim={self.head_dim}"
            )


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(Fields):
    """What a task makes of hidden states."""

    output_transform: bool = _field(
        take_boolean,
        "whether a dense layer, the activation and a norm stand before the output matrix, which "
        "then has a bias (BERT's).",
        False,
    )
    output_scale: float = _field(take_number, "factor on what the output matrix receives.", 1.0)
    prediction_site: str = _field(
        _one_of(("next", "mask")),
        "where `generate` reads a token's logits: at the token before it (next), or at a mask "
        "token that stands in its place (mask).",
        "next",
    )
    loss_tokens: int = _field(
        take_count,
        "the number of tokens whose logits exist at once in `fit`, `evaluate` and `score`; 0 for "
        "all. The loss is the same.",
        0,
        least=0,
    )


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(HeadConfig, BackboneConfig):
    """A complete config: of a backbone, its head, and the task.

    Example:
        >>> from kzoo import presets
        >>> config = Config.get(presets.config("gpt_nano"))
        >>> config.mask, config.head_dim
        (Causal(), 16)
    """

    stack: str = _field(_one_of(STACKS), "which parameters: " + ", ".join(STACKS) + ".", "single")
    objective: objectives.Objective = _field(
        _spec(objectives.get), "what is predicted, a spec or object of `kzoo.objectives`."
    )
    tokenizer: str = _field(_tokenizer, "bytes, or file: one that comes with the weights.", "bytes")
    config_version: int = _field(
        _one_of((migrations.CONFIG_VERSION,)),
        "of the names and meanings of these fields.",
        migrations.CONFIG_VERSION,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.vocabulary_size < VOCABULARY_SIZE and self.tokenizer == "bytes":
            raise InputError(
                "bytes and their special tokens need a vocabulary_size of "
                f"{VOCABULARY_SIZE} or more. Received: {self.vocabulary_size}"
            )
        if self.stack != "single":
            check_two_stacks(self, shared=self.stack == "encoder_decoder_shared")
        elif self.decoder_layers is not None:
            raise InputError(
                "only an encoder and a decoder have decoder_layers. "
                f"Received: decoder_layers={self.decoder_layers} with stack='single'"
            )
        objectives.check(self.stack, self.mask, self.objective)
        if self.objective.labels is not None:
            self._check_no_head_of_tokens()

    def _check_no_head_of_tokens(self):
        for field in dataclasses.fields(HeadConfig):
            if (value := getattr(self, field.name)) != field.default:
                raise InputError(
                    f"{field.name} is of a language model's head, which a classifier has not: it "
                    f"must be {field.default!r}. Received: {field.name}={value!r} with "
                    f"objective={self.objective.get_config()!r:.120}"
                )


def get(spec: Any) -> BackboneConfig:
    """The complete config of JSON, or `spec` if it is a config, of a backbone alone too."""
    return spec if isinstance(spec, BackboneConfig) else Config.get(spec)


def check_split(config: Any, model: int) -> None:
    """`InputError` unless a model can be split over `model` devices, each with its own heads.

    Every device holds the same masks of heads in the same order, or they would run different
    programs.

    Args:
        config: of the model, or of its backbone: a config or its JSON.
        model: the size of the mesh axis "model".
    """
    config = get(config)
    for field in ("num_heads", "kv_heads", "intermediate_dim"):
        if getattr(config, field) % model:
            raise InputError(
                f"{field} must be a multiple of {model}, the number of devices along the mesh axis "
                f"'model'. Received: {field}={getattr(config, field)}"
            )
    heads = config.num_heads
    for mask in masks.per_layer(config.mask, config.num_layers):
        orders = mask.per_head(heads)
        if orders != orders[: heads // model] * model:
            raise InputError(
                f"each of the {model} devices along the mesh axis 'model' must hold whole "
                f"repetitions of the pattern of heads. Received: num_heads={heads} with "
                f"mask={mask!r}"
            )


def check_two_stacks(config: BackboneConfig, shared: bool = False) -> None:
    """`InputError` for what an encoder and a decoder cannot have, or one that shares its blocks."""
    if shared and config.decoder_depth != config.num_layers:
        raise InputError(
            f"a decoder that shares the encoder's blocks has as many, {config.num_layers}. "
            f"Received: decoder_layers={config.decoder_layers}"
        )
    objectives.check_two_stacks(config)
    config.check_mechanism(masks.causal())  # the decoder's
    config.mechanism.check_cross()


def tokenizer_kind(cls: str | None, vocabulary_size: int) -> str:
    """The field `tokenizer` of a model whose tokenizer has the class of this name, or None.

    Without a tokenizer the number of ids tells whether they are bytes.
    """
    bytes_alone = cls is None and vocabulary_size == VOCABULARY_SIZE
    return "bytes" if cls == "ByteTokenizer" or bytes_alone else "file"


def count_parameters(config: Any) -> int:
    """The number of parameters of the model of a complete config, or of its JSON.

    Example:
        >>> from kzoo import presets
        >>> count_parameters(presets.config("gpt_nano"))
        124672
    """
    config = Config.get(config)
    d, v = config.hidden_dim, config.vocabulary_size
    norm = names.NORMALIZATIONS[config.normalization] * d
    attention = mixers.sequence_mixer(config).parameters()
    feed_forward = mixers.channel_mixer(config).parameters()
    final_norm = norm if config.norm_placement == "pre" else 0
    relative = config.relative_buckets * config.num_heads
    relative *= config.positions == "relative"

    layers, own = config.num_layers, attention + feed_forward + 2 * norm
    stacks = layers * own + final_norm + relative
    if config.stack != "single":
        depth, shared = config.decoder_depth, config.stack == "encoder_decoder_shared"
        stacks += 0 if shared else depth * own + final_norm + relative
        cross = mixers.sequence_mixer(config, cross=True).parameters()
        stacks += depth * (cross + norm)  # the decoder's cross-attention
    embeddings = v * d * (1 if config.tie_embeddings else 2) + config.num_segments * d
    embeddings += config.max_sequence_length * d * (config.positions == "learned")
    embeddings += norm * config.embedding_norm
    pooler = config.pooler * (d + 1) * d
    transform = config.output_transform * ((d + 1) * d + norm + v)
    classes = (d + 1) * len(config.objective.labels or ())
    return stacks + embeddings + pooler + transform + classes


def checkpoint_bytes(parameters: int, keep: int) -> int:
    """Bytes that the checkpoints of a run take, about: those that are kept, and a new one.

    Args:
        parameters: of the model; in float32, with the two of AdamW for each.
        keep: how many are kept.

    Example:
        >>> checkpoint_bytes(124_672, keep=3)
        6384256
    """
    return (keep + 1) * (12 * parameters + CHECKPOINT_BESIDES)
