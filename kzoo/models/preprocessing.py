"""Strings and pairs to model inputs, as keras-hub tokenizers and preprocessors."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Self

import keras
import keras_hub
import numpy as np

from kzoo import migrations, objectives
from kzoo.encoder import Encoder, ids
from kzoo.errors import InputError
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.reading import (
    check_ids,
    in_tf_graph,
    is_running_text,
    is_tokens,
    read,
    read_weights,
    strings,
    unpadded,
)
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.tokenizer_bytes import ByteTokenizer
from kzoo.objectives.layouts import layout
from kzoo.typing import ObjectiveSpec

log = logging.getLogger("kzoo")


def _draw(*arrays):
    """A generator of random numbers that follows from token arrays alone."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.asarray(ids(array), "int32").tobytes())
    return np.random.default_rng(int.from_bytes(digest.digest(), "big"))


class _ObjectivePreprocessor:
    """Strings, pairs or token batches to `(x, y, sample_weight)`, as an objective trains on them.

    Where an objective draws at random (masked positions, the boundary of a source), the
    draw depends on the text alone: the same text gives the same example in every epoch and in
    every model. `kzoo.data.load` draws anew in each epoch.

    Args:
        tokenizer: a `ByteTokenizer` or a `FileTokenizer`.
        sequence_length: tokens of a sequence; longer texts are cut, with a warning.
        objective: an objective spec.
        source_mask: whether the model takes a `source_mask`.
        segments: the segment ids of texts and sources, and of the targets of pairs, where the
            model has segment embeddings.

    Call arguments:
        x: texts or pairs, as `kzoo.models.reading.read` takes them; integers [batch, tokens],
            ids of running text; or a dict of token ids and masks, which passes through with y and
            sample_weight.
        y: with texts in x, the responses to them; or None.
        sample_weight: with texts or running text in x, float [texts]: how much each counts.

    Returns:
        `(x, y, sample_weight)`: see `kzoo.encoder.Encoder.batch`.

    Raises:
        InputError: for anything else, prompts and responses of different lengths, or an
            empty text.
    """

    backbone_cls = SingleStackBackbone
    tokenizer_cls = ByteTokenizer
    stack = "single"  # whose layout examples have
    length_names: tuple[str, ...] = ("sequence_length",)  # keras-hub's

    def __init__(
        self,
        tokenizer: Any,
        sequence_length: int,
        objective: ObjectiveSpec,
        source_mask: bool = False,
        segments: Any = None,
        **kwargs: Any,
    ) -> None:
        lengths = dict.fromkeys(self.length_names, sequence_length)
        super().__init__(tokenizer=tokenizer, **lengths, **kwargs)
        self.objective = objectives.get(objective)
        self.source_mask = source_mask
        self.segments = segments and tuple(segments)
        self.built = True

    @property
    def encoder(self) -> Encoder:
        """The `kzoo.encoder.Encoder` of this objective."""
        reads = layout(self.stack, self.source_mask, self.segments)
        return Encoder(self.objective, reads, self.tokenizer)

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if is_tokens(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        if in_tf_graph(x):
            return self._in_tf_graph((x, y, sample_weight))
        if is_running_text(x):
            if y is not None:
                raise InputError(
                    "labels go with a model's inputs, {'token_ids': ..., 'padding_mask': ...}; of "
                    "ids alone they are made. Received: an array of ids and y"
                )
            x, vocabulary = np.asarray(x), self.tokenizer.vocabulary
            if not len(x):
                raise InputError("there is at least one sequence of ids. Received: none")
            check_ids(x, vocabulary.size)
            texts = [unpadded(ids, vocabulary.pad) for ids in x]
            weights = read_weights(sample_weight, len(texts))
            return self.encode(None, texts, complete=False, weights=weights)
        prompts, texts = read(x, y)
        weights = read_weights(sample_weight, len(texts))
        return self.encode(*self.tokenized(prompts, texts), weights=weights)

    def tokenized(self, prompts: Any, texts: Any) -> Any:
        """Lists of strings as lists of token arrays; the first may be None."""
        encode = self.encoder.tokens
        if self.objective.labels is None:
            self.tokenizer.say_loss(texts)
        return None if prompts is None else encode(prompts), encode(texts)

    def tokens(self, texts: Any) -> Any:
        """A string or a list of them as a list of int32 arrays of ids."""
        return [np.asarray(ids(tokens), "int32") for tokens in self.encoder.tokens(strings(texts))]

    def encode(self, sources: Any, targets: Any, **kwargs: Any) -> Any:
        """Token arrays to `(x, y, sample_weight)`; keyword arguments as in `Encoder.batch`."""
        encoder, complete = self.encoder, kwargs.get("complete", True)
        pairs = zip(sources or [None] * len(targets), targets, strict=True)
        needed = [encoder.example_length(*pair, complete) for pair in pairs]
        length = self.sequence_length if complete else min(self.sequence_length, max(needed))
        cut = sum(tokens > length for tokens in needed)
        if cut:
            log.warning(
                "%d of %d texts are cut to %d tokens (the longest needs %d)",
                *(cut, len(needed), length, max(needed)),
            )
        if not self.objective.draws(paired=sources is not None):
            return encoder.batch(sources, targets, length, None, **kwargs)
        weights = kwargs.pop("weights", None)
        examples = [
            encoder.batch(
                sources and sources[i : i + 1],
                targets[i : i + 1],
                length,
                _draw(*(sources or [])[i : i + 1], targets[i]),
                weights=None if weights is None else weights[i : i + 1],
                **kwargs,
            )
            for i in range(len(targets))
        ]
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *examples)

    def _in_tf_graph(self, data):
        """`call` of symbolic tensors of TensorFlow, in a `tf.data` pipeline."""
        import tensorflow as tf

        (token,) = self.encoder.tokens(["a"])
        like = self.encode(None, [np.concatenate([token] * 4)])  # which arrays there are
        leaves = keras.tree.flatten(data)
        given = [i for i, leaf in enumerate(leaves) if leaf is not None]

        def run(*arrays):
            filled = [None] * len(leaves)
            for i, array in zip(given, arrays, strict=True):
                filled[i] = array
            return keras.tree.flatten(self.call(*keras.tree.pack_sequence_as(data, filled)))

        flat = keras.tree.flatten(like)
        types = [array.dtype for array in flat]
        made = tf.numpy_function(run, [leaves[i] for i in given], types, stateful=False)
        for array in made:
            array.set_shape([None, None if is_running_text(data[0]) else self.sequence_length])
        return keras.tree.pack_sequence_as(like, made)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return super().from_config(migrations.config(config))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in self.length_names:
            config.pop(name, None)
        return {
            **config,
            "sequence_length": self.sequence_length,
            "objective": self.objective.get_config(),
            "source_mask": self.source_mask,
            "segments": self.segments,
        }


class _Prompts:
    """A mixin for preprocessors of tasks that generate."""

    def generate_preprocess(self, x: Any) -> dict[str, np.ndarray]:
        """Prompts as the inputs of a model that is to go on from them.

        Args:
            x: a string or a list of them; or `{"prompts": ...}`, the same as sources. Under an
                objective that has a source, plain strings are sources too.

        Returns:
            A dict of int32 arrays [batch, width], up to where the model goes on.

        Raises:
            InputError: for no prompt at all, or anything but strings.
        """
        as_source = isinstance(x, dict) or self.objective.has_source
        if isinstance(x, dict):
            if set(x) != {"prompts"}:
                raise InputError(
                    f"prompts are strings or {{'prompts': ...}}. Received: the keys {sorted(x)}"
                )
            x = x["prompts"]
        prompts = strings(x)
        if not prompts:
            raise InputError("prompts are a string or a list of them. Received: no prompt")
        return self.encoder.prompts(self.tokens(prompts), as_source)

    def generate_postprocess(self, sequences: Any) -> Any:
        """Sequences of token ids, a list of arrays, as strings."""
        return [self.tokenizer.detokenize(ids) for ids in sequences]


@keras.saving.register_keras_serializable(package="kzoo")
class CausalLMPreprocessor(_Prompts, _ObjectivePreprocessor, keras_hub.models.CausalLMPreprocessor):
    __doc__ = _ObjectivePreprocessor.__doc__


@keras.saving.register_keras_serializable(package="kzoo")
class Seq2SeqLMPreprocessor(
    _Prompts, _ObjectivePreprocessor, keras_hub.models.Seq2SeqLMPreprocessor
):
    __doc__ = _ObjectivePreprocessor.__doc__

    backbone_cls = EncoderDecoderBackbone
    stack = "encoder_decoder"
    length_names = ("encoder_sequence_length", "decoder_sequence_length")

    @property
    def sequence_length(self) -> int:
        return self.encoder_sequence_length


@keras.saving.register_keras_serializable(package="kzoo")
class MaskedLMPreprocessor(_ObjectivePreprocessor, keras_hub.models.MaskedLMPreprocessor):
    __doc__ = _ObjectivePreprocessor.__doc__


@keras.saving.register_keras_serializable(package="kzoo")
class TextClassifierPreprocessor(
    _ObjectivePreprocessor, keras_hub.models.TextClassifierPreprocessor
):
    """Texts, with or without labels, as a classifier's inputs, classes and weights.

    Args:
        tokenizer, sequence_length, objective, source_mask, segments: as of the other
            preprocessors; the objective is a `classification`.

    Call arguments:
        x: (text, label) pairs, `{"prompts": texts, "responses": labels}`, or texts.
        y: with texts, the label of each: strings, or integers from 0 on; or None.
        sample_weight: float [texts]: how much each counts.

    Returns:
        `(x, y, sample_weight)`, of which only x where there are no labels: see
        `kzoo.encoder.Encoder.batch`.

    Raises:
        InputError: for a label that the objective does not have, texts and labels of different
            numbers, and what holds no texts.
    """

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if is_tokens(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        if in_tf_graph(x):
            raise InputError(
                "a classifier reads its texts before tf.data does; batch tensors of strings with "
                "as_numpy_iterator(). Received: symbolic tensors"
            )
        texts, classes = self._read(x, y)
        weights = read_weights(sample_weight, len(texts))
        tokens = self.encoder.tokens(texts)
        given = [0] * len(texts) if classes is None else classes
        x, y, weight = self.encode(tokens, np.array(given, "int32")[:, None], weights=weights)
        return (x, y, weight) if classes is not None else (x, None, None)

    def _read(self, x, y):
        """Texts, and the class of each, a list, or None."""
        classes = self.objective.index
        if y is not None and np.asarray(y).dtype.kind in "iu":
            texts, y = strings(x), np.asarray(y)
            if y.shape != (len(texts),):
                raise InputError(
                    f"there are as many labels as texts. Received: {len(texts)} texts and labels "
                    f"of shape {list(y.shape)}"
                )
            check_ids(y, len(self.objective.labels), "classes")
            return texts, y.tolist()
        texts, labels = read(x, y)
        if texts is None:
            return labels, None
        return texts, [classes(label) for label in labels]
