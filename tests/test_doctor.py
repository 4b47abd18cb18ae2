"""kzoo doctor: small parts of it through the command line, and faults that it must find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

from kzoo import doctor
from kzoo.cli import main
from kzoo.doctor import Check, Finding
from kzoo.doctor.report import checks, examine
from kzoo.ops import dispatch
from kzoo.ops.kernels import dense

ROOT = Path(__file__).resolve().parents[1]
FIELDS = {"group", "subject", "case", "dtype", "result", "error", "tolerance", "note"}
FIELDS |= {"traceback", "seconds"}


def chosen(*words):
    """The checks whose group, subject, case and dtype hold all the words."""
    for check in checks():
        if all(
            word in f"{check.group} {check.subject} {check.case} {check.dtype}" for word in words
        ):
            yield check


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with some checks alone: its exit status, and the report in its file."""

    def command(some, *arguments):
        monkeypatch.setattr(doctor, "examine", lambda **rest: examine(some, **rest))
        out = tmp_path / "new" / "report.json"
        status = main(["doctor", "--out", str(out), *arguments])
        return status, json.loads(out.read_text())

    return command


def check(compute):
    return Check("attention", "a kernel", "a case", "float32", compute)


@pytest.mark.torch
def test_a_part_of_it_on_this_machine(run, capsys):
    some = [*chosen("attention softmax", "96 tokens"), *chosen("training gpt, retention")]
    some += [*chosen("generation gpt, gated_linear")]
    some += [*chosen("attention gated_delta", "causal, rev", "float32")][:1]
    status, report = run(some, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert [(row["subject"], row["note"]) for row in report["rows"] if row["result"] != "ok"] == []
    assert status == 0 and report["off"] == 0 and len(report["rows"]) == len(some) > 4
    assert all(row.keys() == FIELDS and row["error"] <= row["tolerance"] for row in report["rows"])
    machine = report["machine"]
    assert machine["backend"] == keras.backend.backend() and machine["devices"]
    assert machine["versions"]["keras"] == keras.__version__


def test_every_mechanism_and_family_has_its_checks():
    """Retention, gated_linear and what is registered later are among them by themselves."""
    from kzoo import mechanisms, presets

    found = {(check.group, check.subject) for check in checks()}
    for mechanism in mechanisms.names():
        assert any(name.startswith(f"{mechanism} by ") for group, name in found)
        for family in {name.rpartition("_")[0] for name in presets.names()}:
            assert ("training", f"{family}, {mechanism}") in found
    assert len({(c.group, c.subject, c.case, c.dtype) for c in checks()}) == len([*checks()])


def wrong_kernel(change):
    """A softmax kernel that would be taken before all others, and is not quite right."""
    return SimpleNamespace(
        NAME="wrong",
        MECHANISM="softmax",
        preferred=lambda spec: True,
        unsupported_reason=lambda spec: None,
        run=lambda q, k, *rest, **more: dense.run(change(q), k, *rest, **more),
    )


def steeper(q):
    """q, with 1.05 times its gradient."""
    return q + 0.05 * (q - keras.ops.stop_gradient(q))


@pytest.mark.parametrize("change, at", [(lambda q: q * 1.01, ""), (steeper, "gradient of q")])
def test_a_wrong_kernel_is_found_and_named(change, at, run, capsys, monkeypatch):
    monkeypatch.setattr(dispatch, "_registered", dict(dispatch._registered))
    dispatch.register(wrong_kernel(change))
    status, report = run(chosen("attention softmax", "96 tokens", "float32"))
    (row,) = report["rows"]
    assert status == 1 and report["off"] == 1
    assert row["subject"] == "softmax by wrong" and row["result"] == "off"
    assert row["note"].startswith(at) and row["error"] > row["tolerance"]
    out = capsys.readouterr().out
    assert "softmax by wrong" in out and "1 of 1 checks found something wrong" in out


def test_what_is_raised_and_what_is_no_number_are_rows(run, capsys):
    def fail():
        raise RuntimeError("[no] such device\nmore")

    some = [check(fail), check(lambda: Finding(float("nan"), 1.0, "values"))]
    some += [check(lambda: Finding(0.5, 1.0))]
    status, report = run(some)
    raised, none, well = report["rows"]
    assert status == 1 and report["off"] == 2 and well["result"] == "ok"
    assert raised["result"] == "raised" and raised["note"] == "RuntimeError: [no] such device"
    assert "in fail" in raised["traceback"] and raised["error"] is None
    assert none["result"] == "off" and none["note"] == "not a number: values"
    assert "[no] such device" in capsys.readouterr().out


@pytest.mark.parametrize("processors", [1, 16])
def test_an_interrupt_leaves_a_whole_file(processors, run, capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    status, report = run([check(lambda: Finding(0.5, 1.0)), *[check(interrupt)] * 100])
    assert status == 130 and "report.json" in capsys.readouterr().err
    results = sorted(row["result"] for row in report["rows"])
    assert results[0] == "ok" and {*results[1:]} == {"running"}
    assert processors > 1 or len(results) == 2


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras distributes on JAX alone")
def test_several_devices():
    code = """
import sys
from kzoo.doctor.report import checks, examine
some = [c for c in checks() if c.group == "devices" and "softmax" in c.subject]
report = examine(some)
for row in report["rows"]: print(row)
assert [row["case"] for row in report["rows"]] == ["2 × 1 devices", "1 × 2 devices"]
sys.exit(report["off"])
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
