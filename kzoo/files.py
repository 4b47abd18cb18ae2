"""Files and folders that are written whole or not at all, and tried before long work begins."""

import contextlib
import json
import os
import secrets
import shutil
import stat
from pathlib import Path

from kzoo.errors import InputError

_PROBE = 2**20  # bytes that are written to try a folder, at most


def write(path, content):
    """Replace the file at `path` in one step: a reader sees the old content or the new.

    Args:
        path: of the file; its folder is there.
        content: a string, written as UTF-8, or bytes.

    Raises:
        OSError: if it cannot be written, with the path; the file is then what it was.
    """
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(path):
    """A context in which a file is written under another name, which becomes `path` at its end.

    Links are followed. If the context is left by an error, nothing has changed.

    Args:
        path: of a file, new or to be replaced.

    Returns:
        The `Path` to write to, in the same folder.

    Raises:
        OSError: if it cannot be written, with the path.

    Example:
        >>> with whole("curves.svg") as part:
        ...     part.write_text("<svg/>")
    """
    path = Path(path)
    with _naming(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise FileExistsError(f"what stands there is no regular file: {path}")
        part = target.with_name(_part())
        try:
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(directory, last=None):
    """A context in which a folder is filled under another name; at its end all is in place.

    What a folder that is there holds besides stays.

    Args:
        directory: the folder, new or not. A new one appears in one step.
        last: name of the file without which the folder counts as incomplete. In a folder that
            is there it is removed before the others are replaced and comes back after them.

    Returns:
        The `Path` of the folder to fill.

    Raises:
        OSError: if it cannot be written, with the path; a new folder is then not there.
    """
    directory = Path(directory)
    with _naming(directory):
        there = directory.is_dir()
        parent = directory if there else directory.parent
        part, made = parent / _part(), _missing(parent)
        try:
            part.mkdir(parents=True)
            yield part
            if there:
                _move(part, directory, last)
            else:
                os.replace(part, directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            _remove(made)
            raise
        shutil.rmtree(part, ignore_errors=True)


def _move(part, directory, last):
    files = sorted(file.relative_to(part) for file in part.rglob("*") if not file.is_dir())
    if last is not None:
        (directory / last).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: str(file) == last):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / file, directory / file)


def check_folder(directory, needed=0, advice=""):
    """`InputError` unless so many bytes can be written to a folder. Nothing is left of the trial.

    Args:
        directory: a folder, there or to be made.
        needed: bytes, about.
        advice: a sentence on how to need fewer.
    """
    directory = Path(directory)
    made = []
    try:
        made = _missing(directory)
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        if free >= needed:
            _try(directory / _part(), min(max(needed, 1), _PROBE))
    except (OSError, ValueError) as error:  # a name with a NUL, say
        why = "it is no folder" if isinstance(error, FileExistsError) else reason(error)
        raise InputError(
            f"the output is a folder that can be written; this one cannot: {why}. "
            f"Received: {directory}"
        ) from error
    finally:
        _remove(made)
    if free < needed:
        raise InputError(
            f"too little space: about {needed:,} bytes are needed, and {free:,} are free. "
            f"{advice}{' ' if advice else ''}Received: {directory}"
        )


def _try(path, size):
    try:
        with open(path, "xb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def _missing(directory):
    """The folder and those above it that are not there, the innermost first."""
    missing = []
    for above in (directory, *directory.parents):
        if above.exists():
            break
        missing.append(above)
    return missing


def _remove(folders):
    for made in folders:
        with contextlib.suppress(OSError, ValueError):  # it holds something, or was never made
            made.rmdir()


def numbered(directory):
    """The numbers that name folders in a folder, the greatest first: the steps of checkpoints."""
    with contextlib.suppress(OSError):  # none, or gone since
        names = (entry.name for entry in os.scandir(directory) if entry.is_dir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    return []


def taken(directory):
    """Bytes of all files under a folder; 0 where there is none."""
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # gone since
                total += os.lstat(os.path.join(above, name)).st_size
    return total


def found(directory):
    """What a folder holds, in a few words: `"a.txt, b.txt and 3 more"`; empty if nothing."""
    directory = Path(directory)
    names = sorted(path.name for path in directory.iterdir())
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def check_new(directory):
    """`InputError` for an output folder that holds something, or is none."""
    if directory is None:
        return
    directory = Path(directory)
    try:
        held = found(directory) if directory.is_dir() else ""
        there = os.path.lexists(directory)
    except OSError as error:
        raise InputError(
            f"the output is a new or empty folder; {reason(error)}. Received: {directory}"
        ) from error
    if there and not directory.is_dir():
        raise InputError(
            f"the output is a new or empty folder; this is none. Received: {directory}"
        )
    if held:
        raise InputError(
            f"the output is a new or empty folder; this one holds {held}. Received: {directory}"
        )


def reason(error):
    """Why the system refused, in one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:1].lower() + text[1:200]


# JSON -----------------------------------------------------------------------------------------


def read_json(path):
    """The value in a JSON file, which says nothing twice.

    Raises:
        InputError: if the file cannot be read, is no UTF-8, no JSON (with line and column), names
            a field twice, or has a number that JSON does not have.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not JSON, which is text in UTF-8 (byte {error.start}). Received: {path}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"a file that can be read; this one cannot: {reason(error)}. Received: {path}"
        ) from error
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(f"not JSON ({where}). Received: {path}") from None
    except ValueError as error:
        raise InputError(f"not JSON ({error}). Received: {path}") from None


def parse_json(text):
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: if it is none.
        InputError: if it names a field twice, has NaN or Infinity, or nests too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise InputError("it nests too deep") from None


def _once(pairs):
    fields = {}
    for name, value in pairs:
        if name in fields:
            raise InputError(f"the field {name!r} stands twice in an object")
        fields[name] = value
    return fields


def _no_constant(name):
    raise InputError(f"JSON has no {name}")


def _part():
    return f".kzoo-{os.getpid()}-{secrets.token_hex(4)}.part"


@contextlib.contextmanager
def _naming(path):
    """Errors of the system name `path`, not what it is called while it is written."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or ".part" in str(error.filename)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
