"""Large tables that cannot be read by position, made such as can be, once, in the user's cache."""

import contextlib
import gzip
import hashlib
import io
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kzoo.compilation_cache import folder
from kzoo.errors import InputError, missing_package
from kzoo.files import reason, whole_folder

log = logging.getLogger("kzoo")

DEFLATE = 1032  # bytes that a packed one stands for, at most
ROWS = 1024  # of Parquet that are in memory at once
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


def size(file: Path) -> int:
    """The bytes of a file, about, when it is unpacked."""
    packed, name = file.stat().st_size, file.name.lower()
    if name.endswith(".gz") and packed > 4:
        with open(file, "rb") as opened:
            opened.seek(-4, 2)
            stated = int.from_bytes(opened.read(), "little")  # modulo 4 GiB
        # No more than deflate can have packed: the last bytes of a broken file say anything.
        return max(packed, min(stated, DEFLATE * packed))
    if name.endswith(".parquet"):
        with parquet(file) as opened:
            groups = range(opened.metadata.num_row_groups)
            return sum(opened.metadata.row_group(i).total_byte_size for i in groups)
    return packed


def not_gzip(file: Path, error: Exception) -> InputError:
    """The error for a file that gzip cannot read, or not to its end."""
    return InputError(
        f"a file that ends in .gz is compressed by gzip ({error}). Received: {str(file)!r}"
    )


@contextlib.contextmanager
def parquet(file: Path, content: bytes | None = None) -> Iterator[Any]:
    """A context in which a Parquet file is open, a `pyarrow.parquet.ParquetFile`.

    Args:
        file: its path.
        content: what is in it, where that is read already.

    Raises:
        InputError: without pyarrow, or if the file is none or broken.
    """
    try:
        from pyarrow import lib
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise missing_package("pyarrow", "Parquet") from error
    try:
        with ParquetFile(file if content is None else io.BytesIO(content)) as opened:
            yield opened
    except (lib.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system, such as a full disk
            raise
        raise InputError(
            f"the file is no Parquet, or broken ({error!s:.80}). Received: {str(file)!r}"
        ) from error


def gunzipped(file: Path) -> Path:
    """The file without `.gz`, in the cache.

    Raises:
        InputError: if gzip cannot read it, or the cache cannot be written.
    """

    def write(path):
        try:
            with gzip.open(file) as packed, open(path, "wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except GZIP_ERRORS as error:
            raise not_gzip(file, error) from error

    return _kept(file, file.name[: -len(".gz")], [], write)


def as_json_lines(file: Path, columns: list[str], check: Callable[[str, list[Any]], Any]) -> Path:
    """Some columns of a Parquet file as JSON lines, in the cache.

    Args:
        file: a Parquet file.
        columns: their names.
        check: called with the name of a row, for messages, and its cells; raises `InputError`.
    """

    def write(path):
        with open(path, "w", encoding="utf-8") as out:
            for i, cells in enumerate(_rows(file, columns)):
                check(f"row {i}", cells)
                out.write(json.dumps(dict(zip(columns, cells, strict=True))) + "\n")

    return _kept(file, f"{file.stem}.jsonl", columns, write)


def _rows(file: Path, columns: list[str]) -> Iterator[list[Any]]:
    with parquet(file) as opened:
        for batch in opened.iter_batches(ROWS, columns=columns):
            found = [batch.column(name).to_pylist() for name in columns]
            yield from map(list, zip(*found, strict=True))


def _kept(file, name, columns, write):
    """The path of what `write` makes of a file, made unless it is there already."""
    about = file.stat()
    state = [str(file.resolve()), about.st_size, about.st_mtime_ns, *columns]
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:24]
    try:
        place = folder("tables").parent / digest
        if not (place / name).is_file():
            log.info(
                "%s: unpacked into %s, since it holds %s MB, too much for memory",
                *(file, place, f"{size(file) / 1e6:,.0f}"),
            )
            with whole_folder(place, last=name) as part:
                write(part / name)
    except OSError as error:
        raise InputError(
            "a large compressed table is unpacked into the user's cache, for which XDG_CACHE_HOME "
            f"may name a folder: {reason(error)}. Received: {str(file)!r}"
        ) from error
    return place / name
