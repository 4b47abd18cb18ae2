"""Files of running text: what is read, what is refused by name, and how to make text of it."""

import difflib
import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

from kzoo.data.sources import stored
from kzoo.data.sources.base import Source, classes, register
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

# Endings of files whose lines or cells are examples, or settings: as text, a model would learn
# their commas and quotes.
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather"}
TABLES |= {".xlsx", ".xls"}  # those of `kzoo.data.sources.table` among them

# How files of known formats begin, and what makes text of them.
FORMATS = {
    b"%PDF-": ("a PDF", "pdftotext FILE"),
    b"{\\rtf": ("RTF", "textutil or LibreOffice"),
    b"PK\x03\x04": ("a ZIP archive (.docx, .xlsx and .epub are such)", "unzip, or pandoc -t plain"),
    b"\x1f\x8b": ("compressed by gzip", "gunzip -k FILE"),
    b"BZh": ("compressed by bzip2", "bunzip2 -k FILE"),
    b"\xfd7zXZ\0": ("compressed by xz", "unxz -k FILE"),
    b"(\xb5/\xfd": ("compressed by zstd", "unzstd FILE"),
    b"7z\xbc\xaf": ("a 7z archive", "7z x FILE"),
    b"PAR1": ("Parquet", "pandas.read_parquet"),
    b"ARROW1": ("Arrow", "pandas.read_feather"),
    b"\x89PNG": ("an image", None),
    b"\xff\xd8\xff": ("an image", None),
    b"GIF8": ("an image", None),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "LibreOffice"),
    b"SQLite format 3\0": ("an SQLite database", None),
    b"\x80\x04\x95": ("a Python pickle", None),
    b"\x93NUMPY": ("a NumPy array", None),
}
# UTF-32 before UTF-16, whose mark it begins with.
MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
BOM = b"\xef\xbb\xbf"
LINES = 20  # that are looked at to tell a table from text


@register
class Files(Source):
    """A file of running text, or a folder of them.

    Attributes:
        path: `~` is the home folder.
    """

    path: str

    name = "files"

    def read(self) -> list[Any] | stored.Stored:
        return read(self.path)

    @classmethod
    def form(cls) -> str:
        return "a path"


def read(name):
    """The texts of a file, or of each file of a folder and of those in it, sorted by path.

    Hidden files are left out; in a folder also, with a warning that counts them, tables, files
    of other formats and broken links. A byte order mark is taken off. Bytes are else as written.

    Args:
        name: a path; `~` is the home folder.

    Returns:
        A list of bytes, each of them UTF-8; of 64 MB and more, a `stored.Stored`.

    Raises:
        InputError: there is no such file or folder; it cannot be read; it holds no text; a
            single file is a table or of another format; a text is in another encoding.
    """
    try:
        path = Path(name).expanduser()
        # os.path answers False where Path raises: names too long, NUL.
        if os.path.isdir(path):
            return _folder(path)
        if os.path.isfile(path):
            if path.stat().st_size > stored.LARGE:
                return _large([path])
            texts = [_text(path)]
        else:
            raise missing(str(name), path)
    except OSError as error:
        raise InputError(
            f"the file cannot be read ({error.strerror}). Received: {str(error.filename)!r}"
        ) from error
    except RuntimeError as error:  # a user whose home is not known
        raise InputError(
            f"no such file or folder: the home folder is not known. Received: {str(name)!r:.120}"
        ) from error
    if not texts[0].strip():
        what = "nothing but white space" if texts[0] else "an empty file"
        raise InputError(f"there is no text in it. Received: {str(name)!r} ({what})")
    return texts


def _folder(path):
    files = [p for p in sorted(path.rglob("*")) if p.is_file() or p.is_symlink() and not p.exists()]
    files = [p for p in files if not any(x[0] == "." for x in p.relative_to(path).parts)]
    is_text = [
        file.exists() and file.suffix.lower() not in TABLES and not _format(file) for file in files
    ]
    found = [file for file, kept in zip(files, is_text, strict=True) if kept]
    left_out = [
        str(file.relative_to(path)) for file, kept in zip(files, is_text, strict=True) if not kept
    ]
    large = sum(file.stat().st_size for file in found) > stored.LARGE
    texts = [] if large else [_text(file) for file in found]
    about = (
        f"{len(left_out)} of {len(files)} files are no running text (tables, other formats, "
        "broken links)"
    )
    named = ", ".join(left_out[:3]) + ", …" * (len(left_out) > 3)
    if not large and not any(text.strip() for text in texts):
        reason = f"; {about}: {named}" if left_out else ""
        raise InputError(
            f"there is no text in it{reason}. Received: {str(path)!r}, a folder of "
            f"{len(files)} files"
        )
    if left_out:
        log.warning("%s: %s and are left out: %s", path, about, named)
    return _large(found) if large else texts


def _large(paths):
    """The text of files that are not held in memory."""
    for path in paths:
        _check_format(path)

    def check(piece, path, at):
        check_encoding(piece, path, at)
        if at < 4:
            _warn_of_syntax(piece, path)

    return stored.scan(paths, check, BOM)


def missing(name, path):
    """The error for a path that is neither file nor folder."""
    forms = [cls.form() for cls in classes() if cls is not Files]
    others = f"Other sources: {', '.join(forms)}."
    if "\n" in name or len(name) > 250:
        return InputError(
            "no such file or folder: a string is a path or the name of a source; a text stands in "
            f"a list, [text]. {others} Received: a string of {len(name)} characters"
        )
    received = f"Received: {name!r:.120}"
    if "://" in name:
        return InputError(f"no such file or folder: nothing is downloaded. {others} {received}")
    if os.path.islink(path):
        return InputError(f"a broken link: {os.readlink(path)!r} is not there. {received}")
    if os.path.exists(path):
        return InputError(f"neither a file nor a folder. {received}")
    known = {text: text for cls in classes() for text in cls.known()}
    if os.path.isdir(path.parent):
        beside = Path(name).parent
        known |= {str(path.parent / p.name): str(beside / p.name) for p in path.parent.iterdir()}
    near = difflib.get_close_matches(name, known, n=1)
    near = near or difflib.get_close_matches(str(path), known, n=1)
    hint = f"; did you mean {known[near[0]]!r}?" if near else "."
    return InputError(f"no such file or folder{hint} {others} {received}")


def _format(file):
    """What a file is by its first bytes, and what makes text of it, or None: no known format."""
    with open(file, "rb") as opened:
        start = opened.read(16)
    return next((what for begin, what in FORMATS.items() if start.startswith(begin)), None)


def _text(file):
    """The bytes of a text file, without a byte order mark."""
    _check_format(file)
    text = file.read_bytes()
    if text.startswith(BOM):
        log.info("%s: its byte order mark is left out", file)
        text = text.removeprefix(BOM)
    check_encoding(text, file)
    _warn_of_syntax(text, file)
    return text


def _check_format(file):
    """`InputError` for a file that is known not to be text, by its name and first bytes."""
    if file.suffix.lower() in TABLES:
        raise InputError(
            f"{file.suffix} files hold examples or cells, not running text; save them as CSV or "
            "JSON lines ('table:FILE:SOURCE:TARGET'), or read them in Python and pass "
            f"{{'prompts': [...], 'responses': [...]}}. Received: {str(file)!r}"
        )
    if known := _format(file):
        what, command = known
        first = f"; make text of it first ({command})" if command else ""
        raise InputError(f"a text is UTF-8{first}. Received: {str(file)!r}, {what}")


def _warn_of_syntax(text, file):
    if kind := _looks_like(text):
        log.warning("%s looks like %s: its syntax is learned as text", file, kind)


def check_encoding(text, file, at=0):
    """`InputError` unless the text, which begins at byte `at` of a file, is UTF-8 without NUL."""
    wide = next((encoding for mark, encoding in MARKS.items() if text.startswith(mark)), None)
    wide = wide or _without_mark(text[:4096])
    if wide:
        raise _convert(file, f"looks like {wide}", f"-f {wide}")
    if b"\0" in text:
        raise InputError(
            f"a text is UTF-8 without NUL bytes. Received: {str(file)!r}, a binary file (NUL at "
            f"byte {at + text.index(0)})"
        )
    try:
        text.decode()
    except UnicodeDecodeError as error:
        bad = text.decode(errors="replace").count("\ufffd")
        if any(byte < 32 and byte not in b"\t\n\v\f\r\x1a\x1b" for byte in text[:4096]):
            raise InputError(f"a text is UTF-8. Received: {str(file)!r}, a binary file") from None
        if 100 * bad < len(text.translate(None, bytes(range(128)))):  # nearly all is UTF-8
            where = f"has {bad} broken characters, the first at byte {at + error.start}"
            raise _convert(file, where, "-c -f UTF-8", "leaves them out") from None
        where = f"is in an 8-bit encoding (byte {at + error.start} is no UTF-8)"
        raise _convert(
            file, where, "-f WINDOWS-1252", "converts Western European text, another -f others"
        ) from None


def _convert(file, what, options, does="converts it"):
    return InputError(
        f"a text is UTF-8; `iconv {options} -t UTF-8 {shlex.quote(str(file))} > new.txt` {does}. "
        f"Received: {str(file)!r}, which {what}"
    )


def _without_mark(start):
    """The encoding of ASCII in units of two or four bytes without a mark, or None."""
    zeros = [start[i::4].count(0) / max(1, len(start) // 4) for i in range(4)]
    patterns = {"UTF-32LE": "0111", "UTF-32BE": "1110", "UTF-16LE": "0101", "UTF-16BE": "1010"}
    found = "".join("1" if part > 0.6 else "0" for part in zeros)
    name = next((name for name, pattern in patterns.items() if pattern == found), None)
    if name is None:
        return None
    try:  # programs are full of zeros, too
        text = start[: len(start) // 4 * 4].decode(name)
    except UnicodeDecodeError as error:
        text = "" if error.end >= len(start) // 4 * 4 else "\0"  # half a surrogate pair at the end
    return None if "\0" in text else name


def _looks_like(text):
    """What a text is that was probably not meant as running text, or None."""
    start = text[:65536].decode(errors="ignore").strip()
    if start[:15].lower().startswith(("<!doctype html", "<html")):
        return "HTML"
    lines = [line for line in start.splitlines()[:LINES] if line.strip()]
    if lines and all(map(_is_json, lines[:-1] or lines)):
        return "JSON lines"
    tabs = {line.count("\t") for line in lines}
    if len(lines) == LINES and len(tabs) == 1 and tabs != {0}:
        return "a table with tabs"
    if b"\r\n" in text[:65536]:
        return "text with line ends of Windows (`dos2unix` makes one byte of the two)"
    return None


def _is_json(line):
    try:
        return isinstance(json.loads(line), dict | list)
    except ValueError:
        return False
