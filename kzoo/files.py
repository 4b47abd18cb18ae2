"""Files and folders that are written completely or not at all, and checked before long work."""

import contextlib
import json
import os
import secrets
import shutil
import stat
from pathlib import Path

from kzoo.errors import InputError, nearest

_PROBE = 2**20  # the most bytes that are written to check a folder


def write(path, content):
    """Replace the file at `path` in one step: a reader sees the old content or the new.

    Args:
        path: of the file, in a folder that exists.
        content: a string, written as UTF-8, or bytes.

    Raises:
        OSError: if it cannot be written, with the path; the file is unchanged then.
    """
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole(path):
    """A context in which a file is written under a temporary name, then renamed to `path`.

    Links are followed. If an error is raised in the context, nothing changes.

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
            raise FileExistsError(f"the path is no regular file: {path}")
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
    """A context in which a folder is filled under a temporary name, and then moved to its own.

    Other files of a folder that exists already stay.

    Args:
        directory: the folder, new or not. A new one appears in one step.
        last: name of the file without which the folder counts as incomplete. In a folder that
            exists it is removed before the others are replaced, and written after them.

    Returns:
        The `Path` of the folder to fill.

    Raises:
        OSError: if it cannot be written, with the path; a new folder is not made then.
    """
    directory = Path(directory)
    with _naming(directory):
        there = directory.is_dir()
        parent = directory if there else directory.parent
        part, made = parent / _part(), _missing(parent)
        try:
            part.mkdir(parents=True)
            yield part
            if there or not _placed(part, directory):
                _move(part, directory, last)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            _remove(made)
            raise
        shutil.rmtree(part, ignore_errors=True)


def _placed(part, directory):
    """Whether a folder has got its own name; not where another process has made one meanwhile."""
    try:
        os.replace(part, directory)
    except OSError:
        if not directory.is_dir():
            raise
        return False
    return True


def _move(part, directory, last):
    files = sorted(file.relative_to(part) for file in part.rglob("*") if not file.is_dir())
    if last is not None:
        (directory / last).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: str(file) == last):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / file, directory / file)


def check_folder(directory, needed=0, advice=""):
    """`InputError` unless a folder can be written to and has space. Nothing is left behind.

    Args:
        directory: a folder, which need not exist.
        needed: about how many bytes will be written.
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
    except (OSError, ValueError) as error:  # such as a name with a NUL
        why = "it is no folder" if isinstance(error, FileExistsError) else reason(error)
        raise InputError(
            f"the output must be a folder that can be written; this one cannot: {why}. "
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
    """The folder and its parents that do not exist, the innermost first."""
    missing = []
    for above in (directory, *directory.parents):
        if above.exists():
            break
        missing.append(above)
    return missing


def _remove(folders):
    for made in folders:
        with contextlib.suppress(OSError, ValueError):  # it is not empty, or was never made
            made.rmdir()


def numbered(directory):
    """The numbers that name folders in a folder, such as the steps of checkpoints, descending."""
    with contextlib.suppress(OSError):  # there is no folder, or no longer
        names = (entry.name for entry in os.scandir(directory) if entry.is_dir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    return []


def taken(directory):
    """The bytes of all files under a folder; 0 if it does not exist."""
    total = 0
    for above, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(above, name)).st_size
    return total


def found(directory):
    """The names in a folder, as text: `"a.txt, b.txt and 3 more"`; empty for an empty folder."""
    directory = Path(directory)
    names = sorted(path.name for path in directory.iterdir())
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def check_new(directory):
    """`InputError` for an output path that exists and is not an empty folder."""
    if directory is None:
        return
    directory = Path(directory)
    try:
        held = found(directory) if directory.is_dir() else ""
        there = os.path.lexists(directory)
    except OSError as error:
        raise InputError(
            f"the output must be a new or empty folder; {reason(error)}. Received: {directory}"
        ) from error
    if there and not directory.is_dir():
        raise InputError(
            f"the output must be a new or empty folder; this is no folder. Received: {directory}"
        )
    if held:
        raise InputError(
            f"the output must be a new or empty folder; this one holds {held}. "
            f"Received: {directory}"
        )


def reason(error):
    """The message of an error of the system, in one line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:1].lower() + text[1:200]


# JSON -----------------------------------------------------------------------------------------


def read_json(path):
    """The value in a JSON file, which must name no field twice.

    Raises:
        InputError: if the file cannot be read, is not UTF-8 or not JSON (with line and column),
            names a field twice, or has NaN or Infinity.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"JSON must be text in UTF-8; byte {error.start} is not. Received: {path}"
        ) from None
    except (OSError, ValueError) as error:
        beside = sorted(each.name for each in path.parent.glob(f"*{path.suffix}"))
        hint = "" if path.exists() else nearest(path.name, beside)
        raise InputError(
            f"the file cannot be read: {reason(error)}{hint or '.'} Received: {path}"
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
        json.JSONDecodeError: if it is not JSON.
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
    """A context in which errors of the system name `path`, not the temporary name."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or ".part" in str(error.filename)
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
