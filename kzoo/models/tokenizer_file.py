"""Tokenizers from `tokenizer.json` files: word pieces, byte-level BPE, unigrams."""

import itertools
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from kzoo.encoder import ids as ids_of
from kzoo.encoder import utf8
from kzoo.errors import InputError
from kzoo.files import read_json
from kzoo.models.reading import strings
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.tokenizer_json import FILE, Loss, find, loss, parse, read_text
from kzoo.vocabulary import Vocabulary

log = logging.getLogger("kzoo")
TRIED = 256  # strings, to see whether they come back: a sample of what is read

# For each special token of kzoo's sequences: the roles in a file that provide it, the best first.
ROLES = {
    "pad": ("pad_token", "eos_token", "sep_token"),
    "bos": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "eos": ("eos_token", "sep_token"),
    "mask": ("mask_token",),
}


# The names by which a file without a tokenizer_config.json is asked for its special tokens.
USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "bos_token": ("[BOS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]", "<sep>"),
    "eos_token": ("[EOS]", "</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>"),
}
SPLIT = "split_special_tokens"  # in a tokenizer_config.json
MODES = ("[R]", "[S]", "[X]")  # of UL2


def read_file(path: str | Path) -> "FileTokenizer":
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one.

    Its special tokens are those that a `tokenizer_config.json` beside it states, else those of the
    usual names.

    Args:
        path: of the file or its folder; `~` is the home folder.

    Raises:
        InputError: where there is no such file, or it is no tokenizer with an end or a separator.

    Example:
        >>> read_file(kzoo.data.train_tokenizer("pydoc", size=512)).vocabulary.size
        512
    """
    file = find(path)
    content = read_text(file)
    known = parse(content).get_vocab(with_added_tokens=True)
    beside = file.with_name("tokenizer_config.json")
    stated = read_json(beside) if beside.is_file() else {}
    split = bool(stated.get(SPLIT))
    stated = {role: stated.get(role) for role in USUAL}
    named = {
        role: token["content"] if isinstance(token, Mapping) else token
        for role, token in stated.items()
        if token
    }
    usual = ((role, next((n for n in found if n in known), None)) for role, found in USUAL.items())
    roles = named or {role: token for role, token in usual if token}
    return FileTokenizer(roles, content=content, split_special_tokens=split)


@keras.saving.register_keras_serializable(package="kzoo")
class FileTokenizer(keras_hub.tokenizers.Tokenizer):
    """Strings to token ids by a `tokenizer.json` of the package `tokenizers`.

    Special tokens are recognised in texts: `"Paris is [MASK]."` holds a mask token, unless
    `split_special_tokens`. None are added; objectives and layouts do that.

    Args:
        special_tokens: role -> string, with the roles of Hugging Face's files: `"pad_token"`,
            `"bos_token"`, `"cls_token"`, `"sep_token"`, `"eos_token"`, `"mask_token"`,
            `"unk_token"`. Without a padding token the end token pads.
        decoder_start: id of the first token of a decoder, or None.
        content: the text of the file; None if `load_assets` follows.
        split_special_tokens: whether what looks like a special token in a text is text as all of
            it is, and comes back.

    Attributes:
        vocabulary: a `kzoo.vocabulary.Vocabulary`.
        pad_token_id, start_token_id, end_token_id, mask_token_id: integers, or None.
        token_bytes: int32 [size], how many bytes of text each token stands for on its own. Within
            a text it may stand for more (spaces before it, for example) or fewer: `encode` counts
            them.
        spells: whether `token_bytes` is exact within every text, as in byte-level BPE.

    Raises:
        InputError: if the content is no tokenizer, lacks a special token, or has neither
            a separator nor an end.

    Example:
        >>> tokenizer = kzoo.presets.load("hf://openai-community/gpt2").preprocessor.tokenizer
        >>> tokenizer.detokenize(tokenizer("Call me Ishmael."))
        'Call me Ishmael.'
    """

    backbone_cls = SingleStackBackbone

    def __init__(
        self,
        special_tokens: Mapping[str, Any],
        decoder_start: Any = None,
        content: str | None = None,
        split_special_tokens: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._special_tokens = tuple(sorted(special_tokens.items()))
        self.decoder_start, self.split_special_tokens = decoder_start, split_special_tokens
        self._to_try = TRIED
        self.built = True  # an unbuilt layer makes Keras trace its model anew in every `fit`
        if content is not None:
            self._read(content)

    def _read(self, content):
        tokenizer = parse(content)
        tokenizer.encode_special_tokens = self.split_special_tokens
        roles = dict(self._special_tokens)
        missing = [token for token in roles.values() if tokenizer.token_to_id(token) is None]
        if missing:
            raise InputError(
                f"special_tokens must be tokens of the tokenizer. Received unknown ones: {missing}"
            )
        self._tokenizer = tokenizer
        ids = {role: tokenizer.token_to_id(token) for role, token in roles.items()}
        parts = {
            part: next((ids[role] for role in candidates if role in ids), None)
            for part, candidates in ROLES.items()
        }
        if parts["eos"] is None:
            raise InputError(
                "special_tokens must have eos_token or sep_token. "
                f"Received: {sorted(roles) or 'none'}"
            )
        added = tokenizer.get_added_tokens_decoder()
        unknown = ids.pop("unk_token", None)
        special = {id for id, token in added.items() if token.special}
        # The unknown token stands for text, unless it has another role too, as GPT-2's has.
        special = special - {unknown} | set(ids.values())
        self.vocabulary = Vocabulary(
            size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
            special=tuple(sorted(special)),
            decoder_start=self.decoder_start,
            sentinels=_sentinels(tokenizer),
            modes=_modes(tokenizer),
            continuing=_continuing(tokenizer, special),
            **parts,
        )
        self.pad_token_id = parts["pad"]
        self.start_token_id = parts["bos"]
        self.end_token_id = parts["eos"]
        self.mask_token_id = parts["mask"]
        self.spells = "ByteLevel" in _kinds(tokenizer)
        self.token_bytes = _token_bytes(tokenizer, {*special, unknown}, self.vocabulary.size)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Role -> string, as they were given."""
        return dict(self._special_tokens)

    @property
    def content(self) -> Any:
        """The text of `tokenizer.json`."""
        return self._tokenizer.to_str()

    def vocabulary_size(self) -> int:
        return self.vocabulary.size

    def get_vocabulary(self) -> list[str]:
        return self._tokenizer.get_vocab(with_added_tokens=True)

    def token_to_id(self, token: str) -> int:
        return self._tokenizer.token_to_id(token)

    def id_to_token(self, id: int) -> str:
        return self._tokenizer.id_to_token(int(id))

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Strings as token arrays (see `kzoo.encoder`): a list of int32 [tokens, 2]."""
        for text in texts:
            utf8(text)  # raises for lone surrogates, at which the package would panic
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            np.stack([one.ids, self._sizes(text, one)], axis=-1).astype(np.int32).reshape(-1, 2)
            for text, one in zip(texts, encoded, strict=True)
        ]

    def loss(self, texts: Iterable[str]) -> Loss:
        """Which of some strings `encode` makes tokens of that are not all of their text: a
        `kzoo.tokenizer_json.Loss`."""
        return loss(self._tokenizer, texts)

    def say_loss(self, texts: list[str]) -> None:
        """A warning, once, where some of the first 256 strings that are read do not come back."""
        some = texts[: self._to_try]
        self._to_try -= len(some)
        count, lost, example = self.loss(text[:4096] for text in some)
        if lost:
            self._to_try = 0
            log.warning(
                "%d of %d texts do not come back from the tokenizer as they were, which %s: bits "
                "per byte leave out what it loses",
                *(lost, count, example),
            )

    def _sizes(self, text, encoding):
        """How many bytes of the text each token stands for; the sum is the size of the text."""
        if self.spells:
            sizes = self.token_bytes[np.array(encoding.ids, int)]
            if sizes.sum() == len(text.encode()):
                return sizes
        return spread_bytes(text, encoding.offsets)

    def tokenize(self, inputs: Any) -> Any:
        """A string to int32 [time], or a list of strings to a list of them."""
        if isinstance(inputs, str):
            return self.tokenize([inputs])[0]
        return [ids_of(tokens) for tokens in self.encode(strings(inputs))]

    # Not keras-hub's: with TensorFlow installed that turns strings into its tensors.
    def call(self, inputs: Any) -> Any:
        return self.tokenize(inputs)

    def detokenize(self, inputs: Any) -> Any:
        """Token ids [time], or a batch of them, to a string or strings, without special tokens."""
        ids = inputs if isinstance(inputs, list | tuple) else keras.ops.convert_to_numpy(inputs)
        if len(ids) and np.ndim(ids[0]) > 0:
            return [self.detokenize(one) for one in ids]
        ids = np.asarray(ids, "int32")
        return self._tokenizer.decode(ids[self.vocabulary.is_text(ids)].tolist())

    def save_assets(self, directory: Path) -> None:
        Path(directory, FILE).write_text(self.content, encoding="utf-8")

    def load_assets(self, directory: Path) -> None:
        self._read(Path(directory, FILE).read_text(encoding="utf-8"))

    @property
    def file_assets(self) -> Any:
        return [FILE]

    @file_assets.setter
    def file_assets(self, value: Any) -> Any:
        """keras-hub's constructor sets it to None."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "special_tokens": self.special_tokens,
            "decoder_start": self.decoder_start,
            SPLIT: self.split_special_tokens,
        }


def spread_bytes(text, spans):
    """The bytes of a text, divided among its tokens.

    Characters between two tokens, such as spaces that a tokenizer drops, count for the token after
    them, and those at the end for the last token. Tokens that share characters share their bytes.

    Args:
        text: a string.
        spans: a list of (start, end), the characters of the text that each token stands for.

    Returns:
        Integers [tokens], whose sum is the number of bytes of the text.

    Example:
        >>> spread_bytes(" to  bé ", [(1, 3), (5, 7)]).tolist()
        [3, 6]
    """
    if not spans:
        return np.zeros(0, int)
    lengths = [0, *(len(character.encode()) for character in text)]
    ends = np.minimum(np.maximum.accumulate([end for _, end in spans]), len(text))
    ends[ends == ends[-1]] = len(text)
    reached, first, count = np.unique(ends, return_index=True, return_counts=True)
    shared = np.diff(np.cumsum(lengths)[reached], prepend=0)
    group = np.repeat(np.arange(len(count)), count)
    index = np.arange(len(ends)) - first[group]  # among the tokens that share characters
    total, among = shared[group], count[group]
    return total * (index + 1) // among - total * index // among


def _kinds(tokenizer):
    """The types of a tokenizer's pre-tokenizers and decoders: a set of names."""
    steps = json.loads(tokenizer.to_str())
    steps = json.dumps([steps["pre_tokenizer"], steps["decoder"]])
    return set(re.findall(r'"type": "(\w+)"', steps))


def _sentinels(tokenizer):
    """The ids of T5's sentinels `<extra_id_0>`, `<extra_id_1>` and so on."""
    ids = (tokenizer.token_to_id(f"<extra_id_{k}>") for k in itertools.count())
    return tuple(itertools.takewhile(lambda id: id is not None, ids))


def _modes(tokenizer):
    """The ids of UL2's mode tokens, where all of them are there."""
    ids = tuple(tokenizer.token_to_id(token) for token in MODES)
    return () if None in ids else ids


def _continuing(tokenizer, special):
    """The ids whose tokens continue the word of the token before them: of word pieces those with
    `##`, of others those without the mark of a space, and without a sign other than letters and
    digits at their beginning. None where all tokens would be."""
    pieces = json.loads(tokenizer.to_str())["model"]["type"] == "WordPiece"
    vocabulary = tokenizer.get_vocab(with_added_tokens=True).items()
    ids = {
        id
        for token, id in vocabulary
        if id not in special and (token.startswith("##") if pieces else token[:1].isalnum())
    }
    every = len(ids) + len(special) >= len(vocabulary)
    return None if every else tuple(sorted(ids))


def _token_bytes(tokenizer, without, size):
    """How many bytes of text each id stands for, 0 for the ids in `without` (special tokens and
    the unknown one). Word pieces do not keep the spaces between them, and so count none."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    spelt = "ByteLevel" in _kinds(tokenizer)
    sizes = np.zeros(size, np.int32)
    for token, id in tokenizer.get_vocab(with_added_tokens=True).items():
        if id in without:
            continue
        if token in added:
            sizes[id] = len(token.encode())
        elif spelt:
            sizes[id] = len(token)  # a character for each byte
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            sizes[id] = 1
        else:
            sizes[id] = len(token.removeprefix("##").replace("▁", " ").encode())
    return sizes
