"""Disks that are full and folders that are odd: what is written is whole, or not there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kzoo import presets
from kzoo.cli import main
from kzoo.errors import InputError
from kzoo.files import check_folder, check_new, parse_json, read_json, whole, whole_folder, write
from kzoo.studies.records import append, read

SMALL = {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "max_sequence_length": 32}
SMALL |= {"intermediate_dim": 64}
SETTINGS = [part for item in SMALL.items() for part in ("--set", "{}={}".format(*item))]


@contextlib.contextmanager
def disk(path, options):
    """A file system of its own in memory, such as `"size=64k"` or `"nr_inodes=4"`."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def full(tmp_path):
    """A disk with room for 64 kB."""
    with disk(tmp_path / "disk", "size=64k") as path:
        yield path


@pytest.fixture(scope="module")
def model():
    return presets.load("gpt_nano", **SMALL)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i} green bottles, hanging on the wall.\n" for i in range(200)))
    return path


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


# Files and folders ----------------------------------------------------------------------------


def test_a_file_is_replaced_or_left(full, tmp_path):
    path = full / "line\nbreak é"
    write(path, "old")
    with pytest.raises(OSError, match="No space left") as error:
        write(path, bytes(100_000))
    assert error.value.filename == str(path)
    assert everything(full) == {path: b"old"}
    (tmp_path / "link").symlink_to(path)
    write(tmp_path / "link", "new")
    assert path.read_text() == "new" and (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"), whole(tmp_path / "pipe"):
        pass
    assert not list(tmp_path.glob(".kzoo*"))


def test_a_folder_is_there_whole_or_not(full):
    new, there = full / "above" / "new", full / "there"
    there.mkdir()
    write(there / "mine", "x")
    write(there / "last", "old")
    before = everything(full)
    for directory in (new, there):
        with pytest.raises(OSError, match="No space left") as error:
            with whole_folder(directory, last="last") as part:
                write(part / "first", "y")
                write(part / "last", bytes(100_000))
        assert error.value.filename == str(directory)
        assert everything(full) == before
    with whole_folder(there, last="last") as part:
        (part / "assets").mkdir()
        write(part / "assets" / "a", "z")
        write(part / "last", "new")
    assert everything(there) == {
        there / "assets": False,
        there / "assets" / "a": b"z",
        there / "last": b"new",
        there / "mine": b"x",
    }


def test_two_processes_make_one_folder(tmp_path):
    """As two that find no index of the same data: the later one puts its files there."""
    place = tmp_path / "kept"
    with whole_folder(place, last="last") as later:
        write(later / "last", "same")
        with whole_folder(place, last="last") as earlier:
            write(earlier / "last", "same")
            write(earlier / "more", "x")
    assert everything(tmp_path) == {
        place: False,
        place / "last": b"same",
        place / "more": b"x",
    }


def odd_folders(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return {
        "/dev/null/x": "not a directory",
        str(tmp_path / "file"): "",
        str(tmp_path / "file" / "x"): "not a directory",
        str(tmp_path / "loop"): "",
        str(tmp_path / "loop" / "x"): "symbolic links",
        str(tmp_path / "dangling"): "",
        str(tmp_path / ("n" * 300)): "name too long",
        "/proc/kzoo": "",
    }


def test_odd_folders_are_refused_and_nothing_is_made(tmp_path):
    folders = odd_folders(tmp_path)
    before = everything(tmp_path)
    for folder, message in folders.items():
        with pytest.raises(InputError, match=message) as error:
            check_folder(Path(folder))
        assert f"Received: {folder}" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="null"):
        check_folder("a\0b")
    check_folder(tmp_path / "new" / "line\nbreak" / "é")
    assert everything(tmp_path) == before
    with pytest.raises(InputError, match=r"needed, and .* free. Use less. Received"):
        check_folder(tmp_path, 2**60, "Use less.")
    for folder, message in (("file", "this is no folder"), (".", "holds dangling, file, loop")):
        with pytest.raises(InputError, match=message):
            check_new(tmp_path / folder)


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1"])
def test_a_disk_that_takes_no_file(tmp_path, options):
    with disk(tmp_path / "disk", options) as path:
        for folder in (path, path / "new"):
            with pytest.raises(InputError, match="cannot: (read-only|no space)"):
                check_folder(folder)
        assert everything(path) == {}


def test_folders_of_others(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can try what another user may not write")
    tmp_path.chmod(0o755)
    for name, mode in (("unwritable", 0o555), ("closed", 0o600)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    for above in tmp_path.parents:  # pytest keeps its folders to the user
        if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        for name in ("unwritable", "unwritable/new", "closed", "closed/new"):
            with pytest.raises(InputError, match="permission denied"):
                check_folder(tmp_path / name)
            if name == "closed/new":
                with pytest.raises(InputError, match="permission denied"):
                    check_new(tmp_path / name)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": NaN}', "no NaN"),
        (b'{"a": -Infinity}', "no -Infinity"),
        (b"", "line 1, column 1"),
        (b"\xff\xfe{\x00}\x00", "UTF-8; byte 0"),
        (b"[" * 100_000, "nests too deep"),
        (b"9" * 10_000, "not JSON"),
    ],
)
def test_json_says_where_it_is_none(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_json(path)
    assert "\n" not in str(error.value) and str(error.value).endswith(f"Received: {path}")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == parse_json('{"a": 1}')


def test_a_file_that_is_not_there_has_a_nearest_name(tmp_path):
    (tmp_path / "mystudy.json").write_text("{}")
    with pytest.raises(InputError, match="did you mean 'mystudy.json'"):
        read_json(tmp_path / "mystdy.json")
    with pytest.raises(InputError, match="cannot be read: [^;]*. Received"):
        read_json(tmp_path / "nothing" / "like.it")
    with pytest.raises(InputError, match="cannot be read"):
        read_json("\0.json")


# What writes with them ------------------------------------------------------------------------


def test_a_model_is_saved_whole_or_not(model, full, tmp_path):
    """HDF5 does not survive a full disk: this would end in a segmentation fault."""
    with pytest.raises(OSError, match="No space left"):
        presets.save(model, full / "model")
    assert everything(full) == {}
    saved = tmp_path / "model"
    for _ in range(2):  # the second time over the first
        presets.save(model, saved)
        copy = presets.load(saved)
        for one, other in zip(model.weights, copy.weights, strict=True):
            np.testing.assert_array_equal(one, other)
    before = everything(saved)
    with pytest.raises(OSError, match="No space left"):
        model.save_weights(full / "x.weights.h5")
    assert everything(full) == {} and everything(saved) == before


def test_a_record_is_written_whole_or_not(full):
    (full / "study.json").write_text(
        json.dumps(
            {"name": "s", "description": "", "arms": {}, "data": [], "seeds": []}
            | {"steps": 1, "batch_size": 1, "learning_rate": 1.0}
        )
    )
    line = {"run": "r", "data": "d", "arm": "a", "seed": 0}
    line = append(full, line)
    before = everything(full)
    with pytest.raises(OSError, match="No space left"):
        append(full, {**line, "run": "s", "more": "x" * 100_000})
    assert everything(full) == before and read(full)[1] == [line]


# Commands -------------------------------------------------------------------------------------


def refused(arguments, capsys):
    assert main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def commands(text, out):
    train = ["train", "gpt_nano", "--text", text, "--steps", 1, *SETTINGS]
    yield [*train, "--out", out]
    yield ["compare", "--out", out]
    yield ["bench", "attention", "--times", 8, "--out", out]


def test_commands_try_the_folder_before_they_work(tmp_path, text, capsys, monkeypatch):
    monkeypatch.setattr("kzoo.bench.bench_attention", None)
    monkeypatch.setattr("kzoo.cli.train._run", None)
    monkeypatch.setattr("kzoo.studies.runner.in_processes", None)
    folders = odd_folders(tmp_path)
    before = everything(tmp_path)
    for folder in folders:
        for arguments in commands(text, folder):
            assert folder in refused(arguments, capsys)
    assert everything(tmp_path) == before


def test_commands_try_the_space_before_they_work(full, text, capsys):
    for arguments in commands(text, full / "new"):
        message = refused(arguments, capsys)
        assert "too little space" in message and "are free" in message
    arguments = ["show", "gpt_nano", "--masks", "--png", "/dev/null/x.png"]
    assert "it is no folder. Received: /dev/null" in refused(arguments, capsys)
    assert everything(full) == {}


def test_a_study_names_no_folder_elsewhere(tmp_path, capsys, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    study = {"name": "../../evil", "arms": {"a": "gpt_nano"}, "data": "pydoc", "steps": 1}
    Path("study.json").write_text(json.dumps(study))
    assert "such as 'evil'" in refused(["compare", "study.json"], capsys)
    assert os.listdir(tmp_path) == ["inner"] and os.listdir() == ["study.json"]


# Commands that are ended from outside ----------------------------------------------------------


def started(arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "kzoo", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_with_signals,
    )


def _with_signals():
    """Tests in the background of a shell have one of them ignored, under `nohup` the other."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ended(process, number, ready):
    """Its exit status and what it said, when a signal has ended it as soon as it is ready."""
    deadline = time.monotonic() + 200
    try:
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, number)  # as a terminal does
        _, stderr = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in stderr, stderr[-2000:]
    return process.returncode, stderr


@pytest.mark.slow
def test_what_is_ended_says_what_is_saved(tmp_path, text):
    train = ["train", "gpt_nano", "--text", text, "--out", "out", *SETTINGS, "--batch-size", 4]
    train += ["--steps", 1_000_000, "--checkpoint-every", 32]
    process = started([*train, "--checkpoint-every", "1000000"], tmp_path)
    # Data are read by then, Keras not.
    status, said = ended(process, signal.SIGINT, lambda: _holds_keras(process.pid))
    assert status == 130 and said.strip().endswith("kzoo: interrupted; nothing is saved")
    assert not (tmp_path / "out").exists()
    checkpoints = tmp_path / "out" / "checkpoints"
    for number, expected in ((signal.SIGINT, 130), (signal.SIGHUP, 75)):
        known = set(checkpoints.glob("[0-9]*"))
        ready = lambda known=known: set(checkpoints.glob("[0-9]*")) - known  # noqa: E731
        status, said = ended(started(train, tmp_path), number, ready)
        newest = max(int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdecimal())
        (line,) = [line for line in said.splitlines() if "is saved in" in line]
        assert status == expected and f"step {newest} is saved in" in line and "goes on" in line
        assert ("SIGHUP" in line) == (number == signal.SIGHUP)
        assert not list((tmp_path / "out").glob(".kzoo*"))


def _holds_keras(pid):
    try:
        return "jaxlib" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return True
