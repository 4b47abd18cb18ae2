"""Training on from pretrained weights: rates, layers, LoRA, and `kzoo train --from`."""

import json
import os
import signal

import pytest
import small_models

from kzoo import presets, training
from kzoo.cli import main
from kzoo.errors import InputError
from kzoo.training.checkpoints import Checkpoints

WORDS = {"win": "1", "see": "0"}
PAIRS = [(f"{word} {i}", label) for i in range(40) for word, label in WORDS.items()]
PARTS = ("block_1", "final_norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "gpt"
    presets.save(small_models.load("gpt"), path)
    return path


def test_rates():
    assert training.finetuning_rate(768) == pytest.approx(training.learning_rate(768) / 10)
    assert training.finetuning_rate(768, lora=True) == training.learning_rate(768)


def paths(model):
    return {variable.path for variable in model.trainable_variables}


def test_the_last_layers_train_alone(folder):
    model = presets.load(folder, objective="classification")
    every = paths(model)
    training.train_last_layers(model, 1)
    kept = {p for p in every if p.split("/")[0] in ("block_1", "final_norm", "classes")}
    assert paths(model) == kept and len(kept) < len(every)
    training.train_last_layers(model, 0)
    assert {p.split("/")[0] for p in paths(model)} == {"final_norm", "classes"}
    training.train_last_layers(model, 2)
    assert paths(model) == every - {"token_embedding/embeddings"}
    for count in (3, -1, 1.5):
        with pytest.raises(InputError, match="from 0 to 2"):
            training.train_last_layers(model, count)
    t5 = small_models.load("t5")
    training.train_last_layers(t5, 1)
    parts = {f"{stack}_{part}" for stack in ("encoder", "decoder") for part in PARTS}
    assert {p.split("/")[0] for p in paths(t5)} == parts


def test_lora_trains_a_new_head_too(folder):
    model = presets.load(folder, objective="classification")
    model.enable_lora(2)
    lora = {p for p in paths(model) if "lora" in p}
    assert len(lora) == 8 and paths(model) - lora == {"classes/kernel", "classes/bias"}


def test_train_from_a_folder_to_a_classifier_stopped_and_gone_on(
    folder, tmp_path, capsys, monkeypatch
):
    table = tmp_path / "pairs.tsv"
    table.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in PAIRS))
    out = tmp_path / "run"
    command = ["train", "--from", str(folder), "--text", f"table:{table}:text:label"]
    command += ["--set", "objective=classification", "--steps", "18", "--out", str(out)]
    command += ["--batch-size", "4", "--evaluations", "2", "--lora-rank", "2", "--json"]
    after_step = Checkpoints.after_step

    def stopped(self, step, *rest):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "after_step", stopped)
    assert main(command) == 75
    said = capsys.readouterr().err
    assert "classes/kernel" in said and "parameters train" in said and "learning rate 0.01" in said
    monkeypatch.undo()
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 18 and result["from"] == str(folder) and result["preset"] is None
    assert 0 <= result["accuracy"] <= 1 and result["label_entropy"] == pytest.approx(1, abs=0.2)
    model = presets.load(out)
    assert model.objective.labels == ("0", "1")
    assert main([*command, "--set", "seed=1"]) == 2  # another run
    assert main([*command[:-3], "--train-layers", "1", "--json"]) == 2
    assert "lora_rank is 2 there and" in capsys.readouterr().err


SHORT = ["--text", "TMP/text", "--steps", "1", "--out", "TMP/out"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([*SHORT], "Received: neither"),
        (["gpt_nano", "--from", "FOLDER", *SHORT], "Received: both"),
        (["FOLDER", *SHORT], "name it with --from"),
        (["--from", "TMP/none", *SHORT], "no such folder"),
        (["--from", "TMP", *SHORT], "a saved model has the file task.json"),
        (["gpt_nano", "--lora-rank", "2", *SHORT], "goes with --from"),
        (["gpt_nano", "--train-layers", "0", *SHORT], "goes with --from"),
        (["--from", "FOLDER", "--train-layers", "1", "--lora-rank", "1", *SHORT], "not allowed"),
        (["--from", "FOLDER", "--set", "mask=reversed", *SHORT], "would show"),
        (["--from", "FOLDER", "--set", "objective=classification", *SHORT], "'table:FILE:TEXT"),
    ],
    ids=str,
)
def test_what_starts_no_run(arguments, words, folder, tmp_path, capsys):
    (tmp_path / "text").write_text("A text without labels.\n" * 100)
    places = {"FOLDER": str(folder), "TMP": str(tmp_path)}
    for place, path in places.items():
        arguments = [argument.replace(place, path) for argument in arguments]
    assert main(["train", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1, message
