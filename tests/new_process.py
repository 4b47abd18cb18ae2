"""Code in a process of its own, in which packages can be hidden."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(code, *, without=(), **environment):
    """Runs code in a new process, in which the packages `without` cannot be found."""
    hide = (
        "import importlib.machinery as m; find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = staticmethod(lambda name, *rest: "
        f"None if name.split('.')[0] in {tuple(without)!r} else find(name, *rest))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
