"""Strings and pairs to model inputs, as keras-hub preprocessors."""

import hashlib
import logging

import keras
import keras_hub
import numpy as np

from kzoo import objectives
from kzoo.errors import InputError
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.rows import aligned_left
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.vocabulary import BYTES, NUM_BYTES

log = logging.getLogger("kzoo")


@keras.saving.register_keras_serializable(package="kzoo")
class ByteTokenizer(keras_hub.tokenizers.ByteTokenizer):
    """keras-hub's byte tokenizer, with the reserved ids of `kzoo.vocabulary` after the bytes."""

    backbone_cls = SingleStackBackbone
    vocabulary = BYTES
    token_bytes = None  # how many bytes of text each id stands for, where it is not one or none

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pad_token_id = BYTES.pad
        self.start_token_id = BYTES.bos
        self.end_token_id = BYTES.eos
        self.mask_token_id = BYTES.mask
        self.built = True  # an unbuilt layer makes Keras trace its model anew in every `fit`

    def vocabulary_size(self):
        return BYTES.size

    def save_assets(self, directory):
        """Bytes need no files."""

    def load_preset_assets(self, preset):
        """Bytes need no files."""

    def detokenize(self, inputs):
        """Token ids [time], or a batch of them, to a string or strings; reserved ids vanish."""
        rows = inputs if isinstance(inputs, list | tuple) else keras.ops.convert_to_numpy(inputs)
        if len(rows) and np.ndim(rows[0]) > 0:
            return [self.detokenize(row) for row in rows]
        return bytes(i for i in map(int, rows) if i < NUM_BYTES).decode("utf-8", "replace")


def is_tokens(x):
    """Whether a model's inputs are a batch of tokens already."""
    return isinstance(x, dict) and any(name.endswith("token_ids") for name in x)


class _ObjectivePreprocessor:
    """Strings, pairs or token batches to `(x, y, sample_weight)`, laid out by an objective.

    Where an objective draws at random (masked positions, the boundary of a continuation), the
    draw depends on the text alone: the same text gives the same row in every epoch and in
    every model. `kzoo.data.load` draws anew in each epoch.

    Args:
        tokenizer: a keras-hub tokenizer.
        sequence_length: tokens in a row; longer texts are cut, with a warning.
        objective: an objective spec.
        source_mask: whether the model takes a `source_mask`.
        segments: the segment ids of texts and sources, and of the targets of pairs, where the
            model has segment embeddings.

    Call arguments:
        x: a list of strings; `{"prompts": [...], "responses": [...]}`, whose prompts are the
            source; or a dict of token ids and masks, which passes through with y and sample_weight.

    Returns:
        `(x, y, sample_weight)`: see `kzoo.objectives.Objective.encode`.

    Raises:
        InputError: for anything else, prompts and responses of different lengths, or an
            empty text.
    """

    backbone_cls = SingleStackBackbone
    tokenizer_cls = ByteTokenizer
    length_names = ("sequence_length",)  # keras-hub's

    def __init__(
        self, tokenizer, sequence_length, objective, source_mask=False, segments=None, **kwargs
    ):
        lengths = dict.fromkeys(self.length_names, sequence_length)
        super().__init__(tokenizer=tokenizer, **lengths, **kwargs)
        self.objective = objectives.get(objective)
        self.source_mask = source_mask
        self.segments = segments and tuple(segments)
        self.built = True

    def call(self, x, y=None, sample_weight=None):
        if is_tokens(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return self.encode(*self.read(x))

    def read(self, x):
        """Strings or pairs as lists of token arrays: sources (or None) and targets."""
        if isinstance(x, dict):
            if set(x) != {"prompts", "responses"}:
                raise InputError(
                    "pairs are {'prompts': [...], 'responses': [...]}. "
                    f"Received: the keys {sorted(x)}"
                )
            if len(x["prompts"]) != len(x["responses"]):
                raise InputError(
                    "there are as many prompts as responses. Received: "
                    f"{len(x['prompts'])} and {len(x['responses'])}"
                )
            return self.tokens(x["prompts"]), self.tokens(x["responses"])
        return None, self.tokens(x)

    def byte_counts(self, x):
        """How many bytes each source and each target of strings or pairs has: float64."""

        def count(texts):
            texts = [texts] if isinstance(texts, str) else texts
            return np.array([len(text.encode()) for text in texts], "float64")

        if isinstance(x, dict):
            return count(x["prompts"]), count(x["responses"])
        return None, count(x)

    def tokens(self, texts):
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts are strings. Received: {type(texts[0]).__name__}")
        return [np.asarray(ids, "int32") for ids in self.tokenizer(texts)]

    def encode(self, sources, targets, *, complete=True, held_out=False):
        """Token arrays to `(x, y, sample_weight)`."""
        pairs = [*zip(sources or [None] * len(targets), targets, strict=True)]
        vocabulary = self.tokenizer.vocabulary
        needed = [self.objective.row_length(*pair, complete, vocabulary) for pair in pairs]
        cut = sum(length > self.sequence_length for length in needed)
        if cut:
            log.warning(
                "%d of %d texts are cut to %d tokens (the longest needs %d)",
                *(cut, len(needed), self.sequence_length, max(needed)),
            )
        digest = hashlib.blake2b(digest_size=8)
        for array in [*(sources or []), *targets]:
            digest.update(array.tobytes())
        rng = np.random.default_rng(int.from_bytes(digest.digest(), "big"))
        x, y, sample_weight = self.objective.encode(
            sources,
            targets,
            self.sequence_length,
            rng,
            complete=complete,
            held_out=held_out,
            vocabulary=vocabulary,
        )
        if not self.source_mask:
            x.pop("source_mask", None)
        targets = x.pop("segment_ids", None)
        if self.segments is not None:
            x["segment_ids"] = np.array(self.segments, "int32")[targets]
        return x, y, sample_weight

    def get_config(self):
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

    def generate_preprocess(self, x):
        """Prompts as rows that a model goes on with.

        Args:
            x: a string or a list of them; or `{"prompts": ...}`, the same as sources. Under an
                objective that has a source, plain strings are sources too.

        Returns:
            As `lay_out`.

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
        if not isinstance(x, str) and not (isinstance(x, list | tuple) and x):
            raise InputError(f"prompts are a string or a list of them. Received: {x!r}")
        return self.lay_out(self.tokens(x), as_source)

    def lay_out(self, texts, as_source):
        """The inputs of a model that is to go on.

        Args:
            texts: list of sequences of ids.
            as_source: whether they are sources, whose targets are to come.

        Returns:
            A dict of int32 arrays [batch, width], as the objective's `encode` gives, up to where
            the model goes on.
        """
        raise NotImplementedError

    def generate_postprocess(self, rows):
        """Rows of token ids, a list of arrays, as strings."""
        return [self.tokenizer.detokenize(row) for row in rows]


@keras.saving.register_keras_serializable(package="kzoo")
class CausalLMPreprocessor(_Prompts, _ObjectivePreprocessor, keras_hub.models.CausalLMPreprocessor):
    __doc__ = _ObjectivePreprocessor.__doc__

    def lay_out(self, texts, as_source):
        vocabulary = self.tokenizer.vocabulary
        rows = [objectives.prompt(ids, as_source, vocabulary) for ids in texts]
        aligned = aligned_left(rows, pad=vocabulary.pad)
        x = dict(zip(("token_ids", "padding_mask"), aligned, strict=True))
        if self.source_mask:
            x["source_mask"] = x["padding_mask"] * as_source
        if self.segments is not None:
            x["segment_ids"] = x["padding_mask"] * self.segments[0]
        return x


@keras.saving.register_keras_serializable(package="kzoo")
class Seq2SeqLMPreprocessor(
    _Prompts, _ObjectivePreprocessor, keras_hub.models.Seq2SeqLMPreprocessor
):
    __doc__ = _ObjectivePreprocessor.__doc__

    backbone_cls = EncoderDecoderBackbone
    length_names = ("encoder_sequence_length", "decoder_sequence_length")

    @property
    def sequence_length(self):
        return self.encoder_sequence_length

    def lay_out(self, texts, as_source):
        vocabulary = self.tokenizer.vocabulary
        beginnings = [[objectives.decoder_start(vocabulary)]] * len(texts)
        encoded = [objectives.prompt(ids, True, vocabulary) for ids in texts]
        x = {}
        for part, rows in (("encoder", encoded), ("decoder", beginnings)):
            aligned = aligned_left(rows, pad=vocabulary.pad)
            x[f"{part}_token_ids"], x[f"{part}_padding_mask"] = aligned
        return x


@keras.saving.register_keras_serializable(package="kzoo")
class MaskedLMPreprocessor(_ObjectivePreprocessor, keras_hub.models.MaskedLMPreprocessor):
    __doc__ = _ObjectivePreprocessor.__doc__
