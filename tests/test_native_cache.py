"""The folders of compiled programs, in processes of their own that a bad library could end.

Compilers are shell scripts that copy a library that is there, or do what bad compilers do.
"""

import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kzoo.ops.kernels.native import library

# `library` by itself, and as little of JAX as it asks for, so that a process starts at once.
ASK = f"""
import importlib.util, logging, resource, sys, types
logging.basicConfig(format="%(message)s", stream=sys.stdout)
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
jax = sys.modules["jax"] = types.ModuleType("jax")
jax.ffi = types.SimpleNamespace(
    include_dir=lambda: "/usr/include", pycapsule=id, register_ffi_target=lambda *_, **__: None
)
spec = importlib.util.spec_from_file_location("library", {library.__file__!r})
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
reasons = library.missing(), library.missing()
print("works" if reasons == (None, None) else "does without")
"""
KEEP = """
import logging, os, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from kzoo.compilation_cache import use_compilation_cache
use_compilation_cache()
print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
"""
NO_HOME = """
import pathlib
def home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = home
"""
ROOT = Path(__file__).parent.parent
COPIES = 'if [ "$1" = --version ]; then echo {version}; else\n{before}\n' + (
    'while [ "$1" != -o ]; do shift; done; cp {library} "$2"; {after}\nfi'
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A library of the real compiler's, copied from where it is kept."""
    if reason := library.missing():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("good") / "good.so"
    shutil.copy(library._library()._name, path)
    return path


@pytest.fixture(scope="module")
def planted(good):
    """A library with all symbols that tells that it was loaded."""
    source = "#include <fcntl.h>\n#include <stdlib.h>\n" + (
        '__attribute__((constructor)) void loaded() { creat(getenv("LOADED"), 0600); }\n'
    )
    source += "".join(f"void {name}() {{}}\n" for name in library.TARGETS)
    path = good.with_name("planted.so")
    command = ["c++", "-x", "c++", "-shared", "-fPIC", "-", "-o", str(path)]
    source = 'extern "C" {\n' + source + "}\n"
    subprocess.run(command, input=source, text=True, check=True)
    return path


class Machine:
    """A user's machine: a home, and compilers."""

    def __init__(self, path, good):
        self.path, self.good, self.bin = path, good, path / "bin"
        self.bin.mkdir()
        self.home = path / "home"
        self.home.mkdir()
        self.loaded = path / "loaded"
        for name in library.COMPILERS:
            self.compiler(name, "exit 1")
        self.compiler("c++")

    def compiler(self, name, script=None, **parts):
        words = {"library": self.good, "version": "some version", "before": "", "after": ""}
        path = self.bin / name
        script = script or COPIES.format(**{**words, **parts})
        path.write_bytes(b"#!/bin/sh\n" + script.encode("latin-1"))
        path.chmod(0o755)

    def start(self, code, *arguments, **environment):
        own = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LOADED": str(self.loaded),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            **environment,
        }
        own = {name: value for name, value in own.items() if value is not None}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(
            command, env=own, cwd=self.path, text=True, stdout=-1, stderr=subprocess.STDOUT
        )

    def asks(self, *arguments, code=ASK, **environment):
        """What a process says: lines of its log, then whether it has the C++."""
        child = self.start(code, *arguments, **environment)
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0, out
        return out.splitlines()

    def kept(self, below=None):
        return [path for path in (below or self.home).rglob("*") if path.is_file()]


@pytest.fixture
def machine(tmp_path, good):
    return Machine(tmp_path, good)


def test_a_kept_library_is_not_made_again_and_a_damaged_one_is(machine, good):
    assert machine.asks() == ["works"]
    (path,) = machine.kept()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    machine.compiler("c++", before="exit 1")
    assert machine.asks() == ["works"]
    machine.compiler("c++")
    whole = path.read_bytes()
    # Cut, where loading ends a process; with another byte; and empty.
    for damaged in (whole[:5000], whole[:-1] + b"?", b""):
        path.write_bytes(damaged)
        assert machine.asks() == ["works"]
        assert [p.read_bytes() for p in machine.kept()] == [whole]


def test_a_library_without_the_symbols_under_a_right_name_is_made_again(machine):
    assert machine.asks() == ["works"]
    (path,) = machine.kept()
    empty = path.with_name("empty.so")
    subprocess.run(
        ["c++", "-x", "c++", "-shared", "-fPIC", "/dev/null", "-o", str(empty)], check=True
    )
    path.unlink()
    key = path.name.split("-")[0]
    empty.chmod(0o600)
    empty.rename(empty.with_name(library._name(key, empty)))
    assert machine.asks() == ["works"]
    assert machine.kept() == [path]


BROKEN = {
    "fails": {"before": "echo 'error: no' >&2; exit 1"},
    "fails in Latin-1": {"before": "printf 'erreur: \\374\\377 error\\n' >&2; exit 1"},
    "is killed": {"before": "kill -9 $$"},
    "makes nothing": {"before": "exit 0"},
    "makes an empty file": {"library": "/dev/null"},
    "makes half of it": {"after": 'head -c 5000 {good} > "$2"'},
    "knows no version": {"version": "; exit 1"},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_after_a_compiler_that_does_not_work_comes_one_that_does(machine, kind):
    parts = {key: part.replace("{good}", str(machine.good)) for key, part in BROKEN[kind].items()}
    machine.compiler("c++", **parts)
    machine.compiler("g++", version="$(printf '\\374\\377')")  # which is no UTF-8
    assert machine.asks() == ["works"]
    assert len(machine.kept()) == 1


def test_without_one_that_works_a_line_says_so_once_and_nothing_is_left(machine):
    machine.compiler("c++", **BROKEN["fails in Latin-1"])
    line, last = machine.asks()
    assert last == "does without"
    assert "kernels in C++ could not be made" in line and "XLA's operations" in line
    assert not machine.kept()


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"HOME": "home"}, "there is no home directory; XDG_CACHE_HOME"),
        ({"XDG_CACHE_HOME": "/dev/null/cache"}, "Not a directory"),
        ({"XDG_CACHE_HOME": "/proc/cache"}, "/proc/cache"),
    ],
)
def test_without_a_folder_to_keep_it_in_a_line_says_so_once(machine, environment, words):
    line, last = machine.asks(**environment)
    assert last == "does without" and words in line
    line, last = machine.asks(code=KEEP, **environment)
    assert last == "None" and "compiled programs are not kept" in line and words in line
    assert not machine.kept(machine.home)


def test_without_a_home_a_line_says_so_once(machine):
    for code, end in ((ASK, "does without"), (KEEP, "None")):
        line, last = machine.asks(code=NO_HOME + code)
        assert last == end and "there is no home directory; XDG_CACHE_HOME" in line
    named = {"XDG_CACHE_HOME": str(machine.path / "cache")}
    assert machine.asks(code=NO_HOME + ASK, **named) == ["works"]


def test_a_relative_folder_is_passed_over(machine):
    relative = {"XDG_CACHE_HOME": "cache"}
    assert machine.asks(**relative) == ["works"]
    (folder,) = machine.asks(code=KEEP, **relative)
    assert folder.startswith(str(machine.home / ".cache/kzoo/jax"))
    assert len(machine.kept(machine.home)) == 1
    assert not (machine.path / "cache").exists()


def test_a_full_disk_leaves_nothing(machine):
    machine.compiler("c++", before="trap '' XFSZ")  # so that the copy is told
    line, last = machine.asks(4096)
    assert last == "does without" and "could not be made" in line
    assert not machine.kept()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_two_processes_make_it_at_once(machine):
    machine.compiler("c++", before="sleep 1")
    children = [machine.start(ASK) for _ in range(2)]
    assert [child.communicate(timeout=120)[0] for child in children] == ["works\n"] * 2
    assert len(machine.kept()) == 1


# What others can write -----------------------------------------------------------------------


def _planted(machine, planted):
    """The path under which a library that somebody else made would be found."""
    assert machine.asks() == ["works"]
    (path,) = machine.kept()
    path.unlink()
    fake = path.with_name(library._name(path.name.split("-")[0], planted))
    shutil.copy(planted, fake)
    return fake


def test_the_planted_library_would_tell(machine, planted):
    _planted(machine, planted).chmod(0o600)
    assert machine.asks() == ["works"]
    assert machine.loaded.exists()


def test_what_others_could_write_is_made_again_and_its_folder_closed(machine, planted):
    fake = _planted(machine, planted)
    fake.chmod(0o666)
    fake.parent.chmod(0o777)
    fake.parent.parent.chmod(0o775)
    assert machine.asks() == ["works"]
    assert not machine.loaded.exists()
    assert fake not in machine.kept()
    for folder in (fake.parent, fake.parent.parent):
        assert not folder.stat().st_mode & 0o022


def test_a_link_is_not_followed(machine, planted):
    fake = _planted(machine, planted)
    fake.unlink()
    fake.symlink_to(planted)
    assert machine.asks() == ["works"]
    assert not machine.loaded.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_what_is_anothers_is_not_run(machine, planted):
    fake = _planted(machine, planted)
    fake.chmod(0o600)
    os.chown(fake, 12345, 12345)
    assert machine.asks() == ["works"]
    assert not machine.loaded.exists()
    os.chown(fake.parent, 12345, 12345)
    line, last = machine.asks()
    assert last == "does without" and f"{fake.parent} belongs to another user" in line
    (folder,) = machine.asks(code=KEEP)
    os.chown(folder, 12345, 12345)
    line, last = machine.asks(code=KEEP)
    assert last == "None" and f"{folder} belongs to another user" in line
