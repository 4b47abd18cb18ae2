"""A hook of the build: it puts the commit that a wheel is built from into it."""

import json
import subprocess
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):
    def initialize(self, version, build_data):
        found = _commit(self.root)
        if version == "editable" or found is None:  # a checkout tells its commit itself
            return
        folder = tempfile.mkdtemp()
        path = Path(folder) / "_build.json"
        path.write_text(json.dumps(found))
        build_data["force_include"][str(path)] = "kzoo/_build.json"


def _commit(root):
    """The commit of a checkout, and whether it has changes; None where there is no git."""

    def git(*arguments):
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        if git("ls-files", "--error-unmatch", "build_commit.py") is None:
            return None  # a folder in another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except OSError:
        return None
