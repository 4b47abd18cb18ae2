"""What a family of checkpoints is: how its config and its tensors' names map to kzoo's.

Every mapping is a table that is read in both directions: from their file to our variables and
back.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kzoo.errors import InputError, unknown

# transformers' names of the activations without a gate -> ours; the first of a kind is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
}
UNSCALED = {"softmax": {"scale": 1.0}}  # the mechanism of scores without 1/√head_dim
# The letters of a pair's shape, as in "vd": which fields of a config a dimension is.
_DIMENSIONS = {
    "v": lambda c: c.vocabulary_size,
    "d": lambda c: c.hidden_dim,
    "f": lambda c: c.intermediate_dim,
    "p": lambda c: c.max_sequence_length,
    "s": lambda c: c.num_segments,
    "n": lambda c: c.num_heads,
    "h": lambda c: c.num_heads * c.head_dim,
    "b": lambda c: c.relative_buckets,
}


class TensorPair(NamedTuple):
    """One tensor of theirs and the variables of ours that hold the same numbers.

    Attributes:
        theirs: its name.
        ours: the paths of the variables, in the order in which it holds them.
        shape: of each variable of ours, a letter a dimension.
        how: `"same"`; `"transposed"`; `"joined"`, ours side by side on the last axis;
            `"reshaped"`, the same numbers in the same order.
    """

    theirs: str
    ours: tuple
    shape: str
    how: str = "same"

    def our_shape(self, config):
        return tuple(_DIMENSIONS[letter](config) for letter in self.shape)

    def their_shape(self, config):
        shape = self.our_shape(config)
        if self.how == "transposed":
            return shape[::-1]
        return (*shape[:-1], shape[-1] * len(self.ours))

    def read(self, array, config):
        """Their array as `(path, array)` of each variable of ours."""
        if self.how == "transposed":
            array = array.T
        if self.how == "reshaped":
            array = array.reshape(self.our_shape(config))
        return [*zip(self.ours, np.split(array, len(self.ours), axis=-1), strict=True)]

    def write(self, arrays):
        """Our arrays, in the order of `ours`, as their array."""
        array = np.concatenate(arrays, axis=-1)
        return np.ascontiguousarray(array.T if self.how == "transposed" else array)


def one(ours, theirs, shape, how="same"):
    """The pairs of a single variable."""
    return [TensorPair(theirs, (ours,), shape, how)]


def dense(ours, theirs, shape, bias=True):
    """The pairs of a projection, whose kernel PyTorch stores as [out, in]."""
    pairs = one(f"{ours}/kernel", f"{theirs}.weight", shape, "transposed")
    return pairs + one(f"{ours}/bias", f"{theirs}.bias", shape[-1]) if bias else pairs


def layer_norm(ours, theirs):
    parts = {"gamma": "weight", "beta": "bias"}
    return [TensorPair(f"{theirs}.{b}", (f"{ours}/{a}",), "d") for a, b in parts.items()]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints in Hugging Face's format.

    Attributes:
        model_type: of its config.json.
        architecture: given a config, the class of transformers that an export is for.
        read_config: given a config.json and the names of the tensors, fields of a config
            (`tie_embeddings` is found by comparing).
        write_config: given a complete config, what its config.json holds.
        pairs: given a complete config, the pairs of its tensors.
        prefix: of the names of its tensors, left out by classes without a head.
        heads: beginnings of the names that never have the prefix.
        renamed: (pattern, replacement) of names that older versions wrote.
        copies: names that may repeat another tensor, and whose. The output matrix, which is
            among them, may differ; the others must not.
        overruling: names that transformers computes with, where a file has them, instead of
            another, and whose; both are written.
        output: the name of the output matrix.
        harmless: patterns of names that hold no weight of the model, and why.
        tokenizer_class: the class of transformers that is usual.
        special_tokens: the usual strings, for folders that do not state them.
        decoder_start: the id with which decoders usually start.
        notes: given a complete config, sentences about what an export leaves to transformers.
    """

    model_type: str
    architecture: Callable
    read_config: Callable
    write_config: Callable
    pairs: Callable
    output: str
    copies: dict
    overruling: dict = dataclasses.field(default_factory=dict)
    prefix: str = ""
    heads: tuple = ()
    renamed: tuple = ()
    harmless: dict = dataclasses.field(default_factory=dict)
    tokenizer_class: str = ""
    special_tokens: dict = dataclasses.field(default_factory=dict)
    decoder_start: int | None = None
    notes: Callable = lambda config: ()  # noqa: E731 (a default)

    def name(self, theirs):
        """A tensor's name as the pairs have it."""
        for pattern, replacement in self.renamed:
            theirs = re.sub(pattern, replacement, theirs)
        bare = not theirs.startswith((self.prefix, *self.heads))
        return self.prefix + theirs if bare else theirs

    def is_harmless(self, name):
        """Why a tensor may be left out, or None."""
        return next((why for p, why in self.harmless.items() if re.fullmatch(p, name)), None)


def scale(config):
    """The factor on q·k of a config, or None where its mechanism has none."""
    own = getattr(config.mechanism, "scale", None)
    return own or (config.head_dim**-0.5 if config.mechanism.name == "softmax" else None)


def take(config, keys):
    """The sizes of a config.json under our names.

    Raises:
        InputError: one is missing, or no positive integer; all are named.
    """
    sizes = {key: config.get(key) for key in keys}
    wrong = {key: size for key, size in sizes.items() if type(size) is not int or size < 1}
    if wrong:
        raise InputError(
            f"config.json gives a positive integer for {', '.join(wrong)}. Received: {wrong}"
        )
    return {ours: sizes[key] for key, ours in keys.items()}


def renamed(config, aliases):
    """A config.json in which the other names that transformers takes for some keys are theirs."""
    return {**config, **{key: config[other] for other, key in aliases.items() if other in config}}


def choose(config, key, known, default):
    """The value of ours for one of a config.json."""
    value = config.get(key, default)
    if value not in known:
        raise unknown(f"{key} in config.json", value, known)
    return known[value]


def require(config, **values):
    """`InputError` unless what a config.json says about `values` is what kzoo computes."""
    for key, value in values.items():
        if config.get(key, value) != value:
            raise InputError(f"kzoo computes {key}={value!r} only. Received: {key}={config[key]!r}")


def name_of(known, ours):
    """The first key of a table whose value is `ours`; or the first of all, which reads back as
    another value, so that an export names the field."""
    return next((theirs for theirs, value in known.items() if value == ours), next(iter(known)))
