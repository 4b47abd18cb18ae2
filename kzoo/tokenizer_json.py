"""A `tokenizer.json` of the package `tokenizers`: read, without Keras, and tried on a text."""

import functools
from pathlib import Path

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


def lossless_size(path):
    """The number of ids of a file's tokenizer that gives every text back as it was.

    Args:
        path: of the file or its folder.

    Returns:
        An integer.

    Raises:
        InputError: where there is no such file, it is no tokenizer, or a text does not come back.
    """
    size, lost = _tried(find(path))
    if lost:
        raise InputError(
            "a tokenizer gives every text back exactly, else bits per byte would leave out what it "
            "loses; kzoo.data.train_tokenizer makes one that does. "
            f"Received: {str(path)!r}, which {lost}"
        )
    return size


def lost(path):
    """What a file's tokenizer loses of a text, as in "makes 'the' of 'The'"; "" for nothing."""
    return _tried(find(path))[1]


def _tried(file):
    about = file.stat()
    return _size_and_loss(file, (about.st_mtime_ns, about.st_size))


@functools.lru_cache(maxsize=32)
def _size_and_loss(file, _):
    tokenizer = parse(read_text(file))
    ids = tokenizer.encode(PROBE, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
    if back == PROBE:
        return size, ""
    at = next((i for i, (a, b) in enumerate(zip(PROBE, back, strict=False)) if a != b), 0)
    return size, f"makes {back[at : at + 12]!r} of {PROBE[at : at + 12]!r}"
