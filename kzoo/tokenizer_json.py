"""A `tokenizer.json` of the package `tokenizers`: read, without Keras, and tried on a text."""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from kzoo.errors import InputError

FILE = "tokenizer.json"
# What a tokenizer that loses nothing gives back: cases, accents, spaces, line breaks, any script.
PROBE = "  The Owl's naïve  café:\tcosts £3\r\n\nΣΊΣΥΦΟΣ, 日本語, e\u0301 and 🎉 \u00a0(x != y);\n "


def find(path):
    """The `tokenizer.json` at a path, or in the folder there: a `Path`.

    Raises:
        InputError: where there is none.
    """
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise InputError(
            f"a tokenizer is the path of a {FILE}, as kzoo.data.train_tokenizer returns it, or of "
            f"its folder. Received: {str(path)!r}"
        )
    return file


def read_text(file):
    """The text of a `tokenizer.json`: a string; `InputError` if it is no UTF-8."""
    try:
        return Path(file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{FILE} is UTF-8 ({error}). Received: {str(file)!r}") from error


def parse(content):
    """A `tokenizers.Tokenizer`, without truncation and padding, from the text of a tokenizer.json.

    Raises:
        InputError: if the text is no tokenizer, or the package `tokenizers` is not installed.
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


class Loss(NamedTuple):
    """Which texts a tokenizer does not give back as they were.

    Attributes:
        texts: how many were tried.
        lost: how many of them came back otherwise, or not whole.
        example: of the first of them, as in "makes 'the' of 'The'"; "" where none is lost.
    """

    texts: int
    lost: int
    example: str


def loss(tokenizer: Any, texts: Iterable[str]) -> Loss:
    """What a tokenizer loses of some texts.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        texts: strings.

    Example:
        >>> import tokenizers
        >>> loss(tokenizers.Tokenizer(tokenizers.models.BPE()), ["", "a"])
        Loss(texts=2, lost=1, example="makes '' of 'a'")
    """
    texts = list(texts)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    back = tokenizer.decode_batch([one.ids for one in encoded], skip_special_tokens=False)
    pairs = [(one, other) for one, other in zip(texts, back, strict=True) if one != other]
    return Loss(len(texts), len(pairs), _difference(*pairs[0]) if pairs else "")


def _difference(text, back):
    """What is made of a text, from the first difference on."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, back, strict=False))
    at = sum(1 for _ in same)
    return f"makes {back[at : at + 12]!r} of {text[at : at + 12]!r}"


def size(path):
    """The number of ids of a file's tokenizer: an integer.

    Args:
        path: of the file or its folder.

    Raises:
        InputError: where there is no such file, or it is no tokenizer.
    """
    return _tried(find(path))[0]


def lost(path):
    """What a file's tokenizer loses of a text with all that tokenizers lose, as in "makes 'the' of
    'The'"; "" for nothing."""
    return _tried(find(path))[1]


def _tried(file):
    about = file.stat()
    return _size_and_loss(file, (about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=32)
def _size_and_loss(file, _):
    tokenizer = parse(read_text(file))
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    return 1 + max(ids), loss(tokenizer, [PROBE]).example
