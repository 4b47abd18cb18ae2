"""Tokenizers that are read from files: word pieces, byte-level BPE, unigrams."""

import json
import re
from pathlib import Path

import keras
import keras_hub
import numpy as np

from kzoo.errors import InputError
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.vocabulary import Vocabulary

FILE = "tokenizer.json"
# The part of a row that each special token plays, and who plays it where there is none.
ROLES = {
    "pad": ("pad_token", "eos_token", "sep_token"),
    "bos": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "eos": ("eos_token", "sep_token"),
    "mask": ("mask_token",),
}


def parse(content):
    """What a tokenizer.json holds, a string, as a `tokenizers.Tokenizer` that neither cuts nor
    pads.

    Raises:
        InputError: if it is no tokenizer, or the library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "this tokenizer needs a package: pip install tokenizers. Received: a file's tokenizer"
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{FILE} is no tokenizer ({error}). Received: {content[:60]!r}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@keras.saving.register_keras_serializable(package="kzoo")
class FileTokenizer(keras_hub.tokenizers.Tokenizer):
    """Strings to token ids as a `tokenizer.json` of the library `tokenizers` says.

    Special tokens are found in texts: `"Paris is [MASK]."` holds a mask. None are added;
    objectives do that.

    Args:
        special_tokens: role -> string, with the roles of Hugging Face's files: `"pad_token"`,
            `"bos_token"`, `"cls_token"`, `"sep_token"`, `"eos_token"`, `"mask_token"`,
            `"unk_token"`. Without padding of its own it pads with the end.
        decoder_start: id of the first token of a decoder, or None.
        content: what the file holds, a string; None if `load_assets` follows.

    Attributes:
        vocabulary: a `kzoo.vocabulary.Vocabulary`.
        pad_token_id, start_token_id, end_token_id, mask_token_id: integers, or None.
        token_bytes: int32 [size], how many bytes of text each token stands for.

    Raises:
        InputError: if the content is no tokenizer, lacks a special token, or has neither
            a separator nor an end.

    Example:
        >>> tokenizer = kzoo.presets.load("hf://openai-community/gpt2").preprocessor.tokenizer
        >>> tokenizer.detokenize(tokenizer("Call me Ishmael."))
        'Call me Ishmael.'
    """

    backbone_cls = SingleStackBackbone

    def __init__(self, special_tokens, decoder_start=None, content=None, **kwargs):
        super().__init__(**kwargs)
        self._special_tokens = tuple(sorted(special_tokens.items()))
        self.decoder_start = decoder_start
        self.built = True  # an unbuilt layer makes Keras trace its model anew in every `fit`
        if content is not None:
            self._read(content)

    def _read(self, content):
        tokenizer = parse(content)
        roles = dict(self._special_tokens)
        missing = [token for token in roles.values() if tokenizer.token_to_id(token) is None]
        if missing:
            raise InputError(
                f"the tokenizer has the special tokens that it is given. Received: {missing}"
            )
        self._tokenizer = tokenizer
        ids = {role: tokenizer.token_to_id(token) for role, token in roles.items()}
        parts = {
            part: next((ids[role] for role in players if role in ids), None)
            for part, players in ROLES.items()
        }
        if parts["eos"] is None:
            raise InputError(
                f"a tokenizer has a separator or an end. Received: {sorted(roles) or 'neither'}"
            )
        added = tokenizer.get_added_tokens_decoder()
        unknown = ids.pop("unk_token", None)
        special = {id for id, token in added.items() if token.special}
        # The unknown token stands for text, unless it has another part too, as GPT-2's has.
        special = special - {unknown} | set(ids.values())
        self.vocabulary = Vocabulary(
            size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
            special=tuple(sorted(special)),
            decoder_start=self.decoder_start,
            **parts,
        )
        self.pad_token_id = parts["pad"]
        self.start_token_id = parts["bos"]
        self.end_token_id = parts["eos"]
        self.mask_token_id = parts["mask"]
        self.token_bytes = _token_bytes(tokenizer, {*special, unknown}, self.vocabulary.size)

    @property
    def content(self):
        """What `tokenizer.json` holds: a string."""
        return self._tokenizer.to_str()

    def vocabulary_size(self):
        return self.vocabulary.size

    def get_vocabulary(self):
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def token_to_id(self, token):
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, id):
        return self._tokenizer.id_to_token(int(id))

    def tokenize(self, inputs):
        """A string to int32 [time], or a list of strings to a list of them."""
        if isinstance(inputs, str):
            return self.tokenize([inputs])[0]
        encoded = self._tokenizer.encode_batch(list(inputs), add_special_tokens=False)
        return [np.asarray(row.ids, "int32") for row in encoded]

    # Not keras-hub's: with TensorFlow installed that turns strings into its tensors.
    def call(self, inputs):
        return self.tokenize(inputs)

    def detokenize(self, inputs):
        """Token ids [time], or a batch of them, to a string or strings; special ids vanish."""
        rows = inputs if isinstance(inputs, list | tuple) else keras.ops.convert_to_numpy(inputs)
        if len(rows) and np.ndim(rows[0]) > 0:
            return [self.detokenize(row) for row in rows]
        ids = np.asarray(rows, "int32")
        return self._tokenizer.decode(ids[self.vocabulary.is_text(ids)].tolist())

    def save_assets(self, directory):
        Path(directory, FILE).write_text(self.content, encoding="utf-8")

    def load_assets(self, directory):
        self._read(Path(directory, FILE).read_text(encoding="utf-8"))

    @property
    def file_assets(self):
        return [FILE]

    @file_assets.setter
    def file_assets(self, value):
        """keras-hub's constructor sets it to None."""

    def get_config(self):
        return {
            **super().get_config(),
            "special_tokens": dict(self._special_tokens),
            "decoder_start": self.decoder_start,
        }


def _token_bytes(tokenizer, without, size):
    """How many bytes of text each id stands for; those in `without` for none, the unknown token
    among them. Word pieces do not say which spaces stood between them, and count none."""
    steps = json.loads(tokenizer.to_str())
    steps = json.dumps([steps["pre_tokenizer"], steps["decoder"]])
    kinds = set(re.findall(r'"type": "(\w+)"', steps))
    sizes = np.zeros(size, np.int32)
    for token, id in tokenizer.get_vocab(with_added_tokens=True).items():
        if id in without:
            continue
        if "ByteLevel" in kinds:
            sizes[id] = len(token)  # a character for each byte
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            sizes[id] = 1
        else:
            sizes[id] = len(token.removeprefix("##").replace("▁", " ").encode())
    return sizes
