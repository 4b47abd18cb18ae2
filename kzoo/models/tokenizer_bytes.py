"""Strings to their bytes, as a keras-hub tokenizer."""

import logging
from collections.abc import Mapping
from typing import Any, Self

import keras
import keras_hub
import numpy as np

from kzoo.encoder import Bytes
from kzoo.models.reading import strings
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.typing import Path
from kzoo.vocabulary import BYTES

log = logging.getLogger("kzoo")

# What keras-hub's tokenizer of bytes says of itself, in files of models that had it.
KERAS_HUBS = ("lowercase", "sequence_length", "normalization_form", "errors", "replacement_char")
_told = []  # of tokenizers that folded case; once in a process


@keras.saving.register_keras_serializable(package="kzoo")
class ByteTokenizer(keras_hub.tokenizers.Tokenizer):
    """Strings to their bytes in UTF-8, as they are; the ids of `kzoo.vocabulary`.

    Nothing is folded, normalised or stripped, as keras-hub's tokenizer of bytes would, so that
    `detokenize` gives any text back.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.detokenize(tokenizer("Straße"))
        'Straße'
    """

    backbone_cls = SingleStackBackbone
    vocabulary = BYTES
    token_bytes = None  # how many bytes of text each id stands for, where it is not one or none
    encode = staticmethod(Bytes.encode)

    def say_loss(self, texts: list[str]) -> None:
        """As a file's tokenizer has it: bytes lose nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_token_id = BYTES.pad
        self.start_token_id = BYTES.bos
        self.end_token_id = BYTES.eos
        self.mask_token_id = BYTES.mask
        self.built = True  # an unbuilt layer makes Keras trace its model anew in every `fit`

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Files written when this was keras-hub's tokenizer say how that folds text. None of it is
        followed: `kzoo.data.load`, by which most weights are trained, never folded text."""
        folded = config.get("lowercase")
        config = {name: x for name, x in config.items() if name not in KERAS_HUBS}
        if folded and not _told:
            _told.append(config)
            log.warning(
                "this model was saved when fit, score and generate lowered the case of text, as "
                "kzoo.data.load never did: now text reaches it as written. If it was trained by "
                "fit(strings), give it text.lower()"
            )
        return super().from_config(config)

    def vocabulary_size(self) -> int:
        return BYTES.size

    def save_assets(self, directory: Path) -> None:
        """Bytes need no files."""

    def load_preset_assets(self, preset: Any) -> None:
        """Bytes need no files."""

    def tokenize(self, inputs: Any) -> Any:
        """A string to int32 [bytes], or a list of strings to a list of them."""
        if isinstance(inputs, str):
            return self.tokenize([inputs])[0]
        return [array.astype("int32") for array in self.encode(strings(inputs))]

    # Not keras-hub's: with TensorFlow installed that turns strings into its tensors.
    def call(self, inputs: Any) -> Any:
        return self.tokenize(inputs)

    def detokenize(self, inputs: Any) -> Any:
        """Token ids [time], or a batch of them, to a string or strings; reserved ids vanish."""
        ids = inputs if isinstance(inputs, list | tuple) else keras.ops.convert_to_numpy(inputs)
        if len(ids) and np.ndim(ids[0]) > 0:
            return [self.detokenize(sequence) for sequence in ids]
        return Bytes.detokenize(ids)
