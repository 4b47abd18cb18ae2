"""Every command on the other backends; on JAX each has tests of its own."""

import json
import os
import signal

import keras
import pytest

import kzoo
from kzoo.cli import main
from kzoo.training import Checkpoints

BACKEND = keras.backend.backend()
SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 36,
}

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(BACKEND == "jax", reason="on JAX each command has tests of its own"),
]


def run(capsys, *arguments, status=0):
    """A command's line of JSON, or what it said on standard error."""
    assert main(list(map(str, arguments))) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.err if status else json.loads(captured.out.strip().splitlines()[-1])


def stopped_after(step, monkeypatch):
    after_step = Checkpoints.after_step

    def stopped(self, made, *rest):
        if made == step:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, made, *rest)

    monkeypatch.setattr(Checkpoints, "after_step", stopped)


@pytest.fixture
def without_graphs():
    """TensorFlow takes ten seconds to build a graph, and each command builds its own."""
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_train_and_generate(capsys, tmp_path, monkeypatch, without_graphs):
    """A run that is stopped and goes on ends like one that is not, to the bit."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} green bottles, hanging on the wall.\n" for i in range(100)))
    fields = {**SMALL, "loss_tokens": 16, "dropout": 0.1}
    settings = [part for item in fields.items() for part in ("--set", "{}={}".format(*item))]
    settings += ["--text", text, "--steps", 4, "--batch-size", 4, "--json"]
    # Eagerly, TensorFlow is slow where an optimizer has many operations.
    settings += ["--optimizer", "muon" if BACKEND == "torch" else "adamw"]
    settings += ["--dtype", "mixed_bfloat16"]
    whole = run(capsys, "train", "unilm_nano", "--out", tmp_path / "whole", *settings)
    assert whole["steps"] == 4 and 0 < whole["loss"] < 10 and 0 < whole["bits_per_byte"] < 10
    stopped_after(2, monkeypatch)
    again = ["train", "unilm_nano", "--out", tmp_path / "again", *settings]
    assert "SIGTERM: step 2 is saved" in run(capsys, *again, status=75)
    monkeypatch.undo()
    result = run(capsys, *again)
    assert all(result[name] == whole[name] for name in ("loss", "bits_per_byte", "steps"))
    prompt = ["--prompt", "9 green", "--max-length", 20, "--sampler", "greedy", "--json"]
    assert run(capsys, "generate", tmp_path / "again", *prompt)["sampler"] == "greedy"
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "to", "choices": ["be", "not"], "answer": 0}')
    asked = ["evaluate", tmp_path / "again", "--task", questions, "--json"]
    assert run(capsys, *asked)["acc"] in (0, 1)


def test_compare_predict_and_report(capsys, tmp_path):
    fields = {**SMALL, "objective": "prefix_lm"}
    arms = {
        mechanism: {"preset": "gpt_nano", "overrides": {**fields, "mechanism": mechanism}}
        for mechanism in ("softmax", "linear")
    }
    study = {
        "data": "synthetic:copy",
        "seeds": 1,
        "steps": 3,
        "batch_size": 4,
        "evaluations": 1,
        "valid": 0.001,
    }
    if BACKEND == "torch":  # on TensorFlow it would build graphs for a minute
        predicted = kzoo.studies.predict({"softmax": ("gpt_nano", fields)}, **study)
        assert predicted.minutes > 0 and predicted.runs == 1
    file, out = tmp_path / "study.json", tmp_path / "out"
    file.write_text(json.dumps({**study, "arms": arms}))
    # In this process: others would load the backend anew.
    results = kzoo.studies.run(kzoo.studies.Study.from_json(file), out, progress=False)
    for record in results:
        assert record["status"] == "finished" and len(record["train_loss"]) == 3
        origin = record["provenance"]
        assert origin["backend"] == BACKEND and origin["device"] and len(origin["kernels"]) == 1
    told = run(capsys, "compare", file, "--out", out, "--json")["results"]
    assert [row["arm"] for row in told] == ["softmax", "linear"]
    assert main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()


def test_list_and_show(capsys):
    assert main(["list"]) == main(["show", "t5_nano"]) == main(["show", "t5_nano", "--masks"]) == 0
    assert "t5_shared_nano" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "compile gpt_nano --topology v5e:2x4 --batch 8",
        "bench attention",
        "bench train",
        "bench generate",
    ],
)
def test_what_is_of_jax_alone_is_refused_by_name(command, capsys):
    message = run(capsys, *command.split(), status=2)
    assert message.count("\n") == 1 and "JAX" in message and f"Received: {BACKEND!r}" in message
