"""The modules of a study, which register what its arms and metrics use."""

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path

from kzoo.errors import InputError
from kzoo.values import shown


def imports(field, value):
    """The names of modules that register what arms use, imported here: a tuple.

    Raises:
        InputError: for what is no list of dotted names, and for a module that cannot be imported.
    """
    names = [value] if isinstance(value, str) else value
    dotted = isinstance(names, list | tuple) and len(names) > 0
    dotted = dotted and all(
        isinstance(name, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) for name in names
    )
    if not dotted or len(set(names)) != len(names):
        raise InputError(
            f"{field} are names of Python modules, such as ['my_attention']. "
            f"Received: {shown(value)}"
        )
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module's own code runs, and may raise anything
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"{field} are modules that Python can import; {what:.200}. Received: {name!r:.120}"
            ) from error
    return tuple(names)


def hashes(names):
    """Module name -> SHA-256 of its source file (hexadecimal), for the records of a study.

    Raises:
        InputError: for a module without a source file.
    """
    found = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not Path(spec.origin).is_file():
            raise InputError(f"a module of imports is a file of Python. Received: {name!r}")
        found[name] = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    return found


def load(study, directory):
    """Import the modules of a study that ran, so that its configs can be read.

    They are looked for where Python finds modules, then in the study's folder, in the two folders
    above it (a study in `runs/NAME` has its module in the parent of `runs`), and in the working
    directory. A folder in which one is found is added to `sys.path`.

    Args:
        study: its JSON.
        directory: of its files.

    Raises:
        InputError: as `imports`.
    """
    directory = Path(directory).resolve()
    for name in study.get("imports", ()):
        first = str(name).partition(".")[0]
        for folder in (directory, *directory.parents[:2], Path.cwd()):
            there = (folder / f"{first}.py").is_file() or (folder / first / "__init__.py").is_file()
            if there and str(folder) not in sys.path:
                sys.path.append(str(folder))
    if study.get("imports"):
        imports("imports", study["imports"])
