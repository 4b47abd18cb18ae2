import argparse
import io
import json
import os
import signal
import subprocess
import sys
import types

import pytest

import kzoo
from kzoo import presets
from kzoo.cli import main, run_folder, train
from kzoo.training import Checkpoints

COMMANDS = ["list", "show", "train", "generate", "compare", "report", "compile", "bench", "doctor"]
SMALL = ["num_layers=1", "hidden_dim=16", "num_heads=2", "intermediate_dim=32"]
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]
FACTS = ("train_rows", "train_bytes")
QUIET = ("TF_CPP_MIN_LOG_LEVEL", "GLOG_minloglevel", "KERAS_BACKEND", "XLA_FLAGS")
TEXT = "It is a truth universally acknowledged, that a single man is in want of a wife.\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i}. {TEXT}" for i in range(100)))
    return path


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_list_names_every_preset(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == presets.names()


def test_list_names_every_mechanism_and_its_masks(capsys):
    assert main(["list", "mechanisms"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    masks = lines[0][1:-1]
    ours = {name: dict(zip(masks, follows, strict=False)) for name, *follows in lines[1:]}
    assert {*ours} >= {"softmax", "linear", "retention", "gated_linear", "delta", "gated_delta"}
    assert {*ours["softmax"].values()} == {"yes"}
    refused = {name for name in masks if ours["retention"][name] == "no"}
    assert refused == {"permuted", "custom"}


def test_show_prints_the_config(capsys):
    assert main(["show", "unilm_base", "--set", "mechanism=linear", "--set", "num_layers=2"]) == 0
    out = capsys.readouterr().out
    config = json.loads(out[out.index("{") :])
    assert config == presets.config("unilm_base", mechanism="linear", num_layers=2)


def test_show_draws_masks(capsys, tmp_path):
    picture = tmp_path / "masks.png"
    assert main(["show", "bert_mixed_heads_tiny", "--masks", "--png", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "causal" in out and "reversed" in out and "█" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_list_and_show_load_no_keras():
    code = (
        "import sys; from kzoo.cli import main; main(['list']); main(['show', 'gpt_nano']);"
        "assert not {'keras', 'keras_hub', 'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_options_inside_a_field(capsys):
    settings = [
        "mechanism.linear.feature_map=relu",
        "objective.prefix_lm.score=all",
        "num_layers=1",
    ]
    settings = [part for setting in settings for part in ("--set", setting)]
    assert main(["show", "gpt_nano", *settings]) == 0
    out = capsys.readouterr().out
    config = json.loads(out[out.index("{") :])
    assert config["mechanism"] == {"linear": {"feature_map": "relu"}}
    assert config["objective"] == {"prefix_lm": {"score": "all"}} and config["num_layers"] == 1


@pytest.mark.parametrize("command", ["", *COMMANDS, "bench attention"])
def test_help_begins_with_what_a_command_does(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    first = capsys.readouterr().out.splitlines()[0]
    assert first[0].isupper() and not first.startswith("usage")


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"kzoo {kzoo.__version__}\n"


def test_train_stopped_goes_on_and_saves_what_it_measured(capsys, tmp_path, text, monkeypatch):
    out = tmp_path / "model"
    # A small model makes 16 steps in a call, after which it can be stopped.
    arguments = ["train", "unilm_nano", "--text", str(text), "--steps", "18", "--out", str(out)]
    arguments += ["--batch-size", "4", "--checkpoint-every", "1000"]
    after_step = Checkpoints.after_step

    def stopped(self, step, *rest):
        if step == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "after_step", stopped)
    assert main([*arguments, *SETTINGS]) == 75
    assert "SIGTERM: step 16 is saved" in capsys.readouterr().err
    monkeypatch.undo()
    assert main([*arguments, *SETTINGS, "--learning-rate", "0.02"]) == 2
    assert "0.01 there and 0.02 here. Name" in capsys.readouterr().err
    assert {"checkpoints", "training.json", "log.jsonl", "best"} >= set(os.listdir(out))
    assert os.listdir(out / "checkpoints") == ["16"]
    assert main([*arguments, "--json", *SETTINGS]) == 0
    assert "checkpoints" not in os.listdir(out)
    result = last_line(capsys)
    assert result["steps"] == 18 and result["tokens_per_second"] > 0 and result["loss"] > 0
    model = presets.load(out)
    from kzoo import data

    valid = data.load(str(text), model, batch_size=4).valid
    bits = model.evaluate(valid, verbose=0, return_dict=True)["bits_per_byte"]
    assert bits == pytest.approx(result["bits_per_byte"], rel=1e-5)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 19))
    measured = {x["step"]: x["held_out_bits"] for x in lines if "held_out_bits" in x}
    assert [*measured] == [18 * i // 10 for i in range(1, 11)]
    assert all(line["tokens_per_second"] > 0 and line["learning_rate"] > 0 for line in lines)
    best = min(measured, key=measured.get)
    assert result["best"] == {"step": best, "held_out_bits": measured[best]}
    assert json.loads((out / "best" / "best.json").read_text()) == result["best"]
    presets.load(out / "best")
    before = sorted((path, path.stat().st_mtime_ns) for path in out.iterdir())
    assert main([*arguments, "--json", *SETTINGS]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == result and "this run is finished" in captured.err
    assert "kzoo.presets.load" in captured.err and "--out" in captured.err
    assert main([*arguments, *SETTINGS, "--schedule", "wsd"]) == 2
    message = capsys.readouterr().err
    assert 'schedule is "cosine" there and "wsd" here' in message and "--out" in message
    assert sorted((path, path.stat().st_mtime_ns) for path in out.iterdir()) == before


def test_generate_streams(capsys, tmp_path, monkeypatch):
    model = presets.load("unilm_nano", **{k: int(v) for k, v in (s.split("=") for s in SMALL)})
    presets.save(model, tmp_path / "model")
    arguments = ["generate", str(tmp_path / "model"), "--max-length", "24"]
    assert main([*arguments, "--prompt", "to be", "--sampler", "greedy"]) == 0
    captured = capsys.readouterr()
    want = model.generate("to be", max_length=24, sampler="greedy")
    assert captured.out == want + "\n"
    assert "weights loaded" in captured.err
    monkeypatch.setattr("sys.stdin", io.StringIO("to be"))
    assert main([*arguments, "--prompt", "-", "--sampler", "beam", "--json"]) == 0
    result = last_line(capsys)
    assert result["text"] == model.generate("to be", max_length=24, sampler="beam")
    drawn = []
    for seed in ("3", "3"):
        assert main([*arguments, "--prompt", "to be", "--seed", seed, "--json"]) == 0
        drawn.append(last_line(capsys))
    assert drawn[0] == drawn[1] and drawn[0]["sampler"] == "top_k"


def test_compare_and_report(capsys, tmp_path, text, no_spectra):
    overrides = dict(setting.split("=") for setting in SMALL)
    overrides = {name: int(value) for name, value in overrides.items()}
    study = {
        "name": "tiny",
        "data": str(text),
        "steps": 2,
        "seeds": 1,
        "batch_size": 4,
        "evaluations": 1,
        "arms": {"gpt": {"preset": "gpt_nano", "overrides": overrides}},
    }
    path, out = tmp_path / "study.json", tmp_path / "out"
    path.write_text(json.dumps(study))
    assert main(["compare", str(path), "--out", str(out), "--json"]) == 0
    result = last_line(capsys)
    assert result["results"][0]["arm"] == "gpt" and result["results"][0]["mean"] > 0
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == page
    assert main(["compare", str(path), "--out", str(out)]) == 0
    assert "gpt" in capsys.readouterr().out


WRONG = [
    (["show", "gpt_nan"], "did you mean 'gpt_nano'"),
    (["show", "gpt_nano", "--set", "mechansim=linear"], "did you mean 'mechanism'"),
    (["show", "gpt_nano", "--set", "mechanism=liner"], "did you mean 'linear'"),
    (["show", "gpt_nano", "--set", "mask=casual"], "did you mean 'causal'"),
    (["show", "gpt_nano", "--set", "objective=causal"], "did you mean 'causal_lm'"),
    (["show", "gpt_nano", "--set", "mask=bidirectional"], "its answer"),
    (["show", "gpt_nano", "--set", "num_heads=5"], "the nearest is 4"),
    (["show", "bert_mixed_layers_nano", "--set", "num_layers=3"], "does not tile 3 layers"),
    (["show", "gpt_nano", "--set", "mask"], "FIELD=VALUE"),
    (["train", "gpt_nano", "--text", "TMP/none", "--steps", "1", "--out", "TMP/o"], "no such file"),
    (["train", "gpt_nano", "--text", "TMP/empty", "--steps", "1", "--out", "TMP/o"], "no text"),
    (["train", "gpt_nano", "--text", "TMP/binary", "--steps", "1", "--out", "TMP/o"], "binary"),
    (["train", "gpt_nano", "--text", "TMP/short", "--steps", "1", "--out", "TMP/o"], "too short"),
    (
        ["train", "gpt_nano", "--text", "pydoc", "--steps", "1", "--out", "TMP/o"]
        + ["--checkpoint-every", "5m"],
        "must be steps, such as 1000",
    ),
    (["train", "gpt_nano", "--text", "x", "--steps", "0", "--out", "TMP/o"], "positive integer"),
    (["generate", "gpt_nan", "--prompt", "x"], "did you mean 'gpt_nano'"),
    (["generate", "gpt_nano", "--prompt", "x", "--sampler", "gredy"], "did you mean 'greedy'"),
    (
        ["generate", "gpt_nano", "--prompt", "x", "--sampler", "beam", "--seed", "1"],
        "draws nothing",
    ),
    (["generate", "gpt_nano", "--prompt", "x", "--max-length", "0"], "positive integer"),
    (["generate", "gpt_nano"], "--prompt"),
    (["compare", "TMP/none.json"], "Received: "),
    (["compare", "TMP/short"], "not JSON"),
    (["report", "TMP"], "study.json"),
    (["compare", "TMP/twice.json"], "'steps' stands twice"),
    (["compare", "TMP/valid.json"], "valid is the part held out"),
    (["compare", "TMP"], "Received: "),
    (["compare", "TMP/good.json", "--out", "TMP"], "other files (binary, empty, good.json and 3"),
    (["compare", "TMP/good.json", "--backend", "jxa"], "invalid choice"),
    (["report", "TMP/empty"], "study.json"),
    (["show", "gpt_nano", "--set", "dropout=NaN"], "no NaN"),
    (["show", "gpt_nano", "--set", "dropout=0", "--set", "dropout=1"], "once"),
    (["show", "gpt_nano", "--masks", "--png", "TMP/x.pngg"], "did you mean 'png'"),
    (["train", "gpt_nano", "--text", "", "--steps", "1", "--out", "TMP/o"], "a name"),
    (["train", "gpt_nano", "--text", "x", "--steps", "1", "--out", ""], "a name"),
    (["train", "gpt_nano", "--text", "x", "--steps", "1", "--out", "TMP"], "holds binary, empty"),
    (["generate", "gpt_nano", "--prompt", "\udcff"], "UTF-8"),
    (["generate", "gpt_nano", "--prompt", "x", "--seed", "-1"], "[0, 2^31)"),
    (["trian"], "invalid choice"),
    ([], "required"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda x: " ".join(x)[:50])
def test_wrong_input_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "short").write_text("short")
    good = {"arms": {"a": "gpt_nano"}, "data": "pydoc", "steps": 1}
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "valid.json").write_text(json.dumps({**good, "valid": "x"}))
    (tmp_path / "twice.json").write_text('{"steps": 1, "steps": 2}')
    before = sorted(tmp_path.iterdir())
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("kzoo: ") and message in captured.err
    assert sorted(tmp_path.iterdir()) == before


NUMBERS = ["0", "-1", "1.5", "nan", "inf", "x", "", "1e9", "[1]", "9" * 50]


@pytest.mark.parametrize(
    ("option", "taken"),
    [
        ("--steps", []),
        ("--batch-size", []),
        ("--keep", []),
        ("--learning-rate", ["1.5", "1e9", "9" * 50]),
        ("--valid", []),
    ],
)
def test_options_take_their_kind_of_number(option, taken, capsys, tmp_path):
    for value in NUMBERS:
        # Whatever is right about the option, there is no such text.
        arguments = ["train", "gpt_nano", "--text", str(tmp_path / "none"), "--out"]
        arguments += [str(tmp_path / "out"), "--steps", "1", f"{option}={value}"]
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert ("no such file" in message) == (value in taken), (value, message)
        assert message.count("\n") == 1 and list(tmp_path.iterdir()) == []


WITHOUT = """
import importlib.abc, sys
missing, arguments = sys.argv[1], sys.argv[2:]

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from kzoo.cli import main, run_folder, train
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "arguments", "package"),
    [
        ("torch", ["generate", "gpt_nano", "--prompt", "x", "--backend", "torch"], "'kzoo[torch]'"),
        ("tensorflow", ["compare", "--backend", "tensorflow"], "'kzoo[tensorflow]'"),
        ("matplotlib", ["show", "gpt_nano", "--masks"], "matplotlib"),
        ("keras_hub", ["generate", "gpt_nano", "--prompt", "x"], "keras-hub"),
    ],
)
def test_a_missing_package_is_named_with_how_to_install_it(missing, arguments, package, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT, missing, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    line = f"needs a package: pip install {package}. Received: no module '{missing}'\n"
    assert done.stderr.endswith(line) and done.stderr.count("\n") == 1


def train_at_the_door(*more):
    return ["train", "gpt_nano", "--text", "pydoc", "--steps", "9", "--out", "TMP/o", *more]


def test_options_of_train_are_refused_before_anything_loads(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    wrong = [
        train_at_the_door("--checkpoint-every", "5m"),
        train_at_the_door("--set", "mask=bidirectional"),
        train_at_the_door("--text", "TMP/none"),
        train_at_the_door("--text", "TMP/table.csv"),
        train_at_the_door("--out", "TMP"),
    ]
    code = (
        "import json, sys; from kzoo.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    assert main(arguments) == 2, arguments\n"
        "    loaded = {'keras', 'keras_hub', 'jax', 'grain'} & set(sys.modules)\n"
        "    assert not loaded, (loaded, arguments)"
    )
    wrong = json.dumps(wrong).replace("TMP", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code, wrong], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 5, done.stderr


def test_a_run_that_was_begun_before_goes_on_with_its_own_rate(tmp_path):
    """Checkpoints of runs that had another default rate, and measured once, at the end."""
    facts = tmp_path / "checkpoints" / "16" / "facts"
    facts.mkdir(parents=True)
    schedule = {"initial_learning_rate": 0.003, "warmup_target": 0.003}
    settings = {"optimizer": {"learning_rate": {"config": schedule}}, "evaluations": 1}
    (facts / "metadata").write_text(json.dumps({"settings": settings}))
    left_out = {"pretrained": None, "evaluations": None, "packing": None}
    for given, expected in [(None, 0.003), (0.02, 0.02)]:
        options = argparse.Namespace(**left_out, out=tmp_path, learning_rate=given)
        run_folder.fill_in(options, {"hidden_dim": 64}, evaluations=10)
        assert (options.learning_rate, options.evaluations) == (expected, 1)
    options = argparse.Namespace(**left_out, out=tmp_path / "new", learning_rate=None)
    run_folder.fill_in(options, {"hidden_dim": 64}, evaluations=10)
    assert (options.learning_rate, options.evaluations) == (0.0063, 10)
    assert options.packing == "padded"


def test_a_small_text_for_many_steps_is_warned_of_before_the_first(tmp_path, monkeypatch):
    """30 kB, 6,000 steps; and what is measured along the way costs about a tenth."""
    warned = []
    monkeypatch.setattr(train.log, "warning", lambda text, *values: warned.append(text % values))
    facts = {**dict.fromkeys(FACTS, 435), "packing": {"rows": 435}}
    splits = types.SimpleNamespace(facts=facts, valid=range(300))
    for steps, warns in [(6000, True), (400, False)]:
        options = {"steps": steps, "batch_size": 16, "learning_rate": 0.0063, "evaluations": 10}
        options = argparse.Namespace(**options, out=tmp_path)
        sample = train._sample(options, splits)
        assert len(sample) * options.evaluations / (3 * steps) <= 0.11
        train._say_what_comes(options, splits, sample)
        assert bool(warned) == warns
        if warns:
            assert "pass 221 times" in warned.pop()


@pytest.mark.slow
def test_commands_and_scripts_say_what_is_ours_and_nothing_else(text, tmp_path):
    """Where libtpu and TensorFlow are installed, which have much to say."""
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", *QUIET)}
    train = ["train", "gpt_nano", "--text", str(text), "--steps", "2", "--out", "out", *SETTINGS]
    script = (
        "import kzoo; model = kzoo.presets.load('gpt_nano', num_layers=1, hidden_dim=16);"
        f"splits = kzoo.data.load({str(text)!r}, model, batch_size=8);"
        "model.fit(splits.train, steps_per_epoch=1, verbose=0);"
        "import keras, os; assert keras.backend.backend() == 'jax';"
        "assert 'KERAS_BACKEND' not in os.environ"
    )
    for arguments, extra in [
        (["-m", "kzoo", *train], {}),
        (["-m", "kzoo", "list"], {}),
        (["-m", "kzoo", "compare", "--help"], {}),
        (["-c", script], {"JAX_PLATFORMS": "cpu"}),
    ]:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**environment, "PYTHONPATH": os.getcwd(), **extra},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ours = ("kzoo: ", "WARNING:kzoo:", "steps ")
        theirs = [line for line in done.stderr.splitlines() if not line.startswith(ours)]
        assert theirs == [], arguments
        if "train" in arguments:
            said = "kzoo: backend jax (the default; KERAS_BACKEND chooses another), cpu, "
            assert done.stderr.count("backend") == 1 and said in done.stderr


def test_the_backend_is_the_users(tmp_path):
    for given, flags, expected in [(None, [], "jax"), ("torch", [], "torch")]:
        environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
        environment |= {"KERAS_BACKEND": given} if given else {}
        code = (
            "import os, sys; from kzoo.cli import main;"
            f"main(['list', *{flags!r}]); sys.stderr.write(os.environ['KERAS_BACKEND'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stderr == expected


def test_train_says_of_how_many_batches_its_best_figure_is(tmp_path, capsys):
    """Of a sample it may lie below the figure of all, which stands in the line above."""
    from kzoo.cli.train import _print_result

    figures = {"bits_per_byte": 0.955, "measure": "bits per byte"}
    figures |= {"unigram_entropy": 4.0, "bigram_entropy": 3.0}
    best = {"step": 3, "held_out_bits": 0.924}
    for measured, said in (([5, 19], "at step 3 on 5 of the 19 held-out"), ([19, 19], "step 3:")):
        _print_result(tmp_path, {**figures, "best": best, "measured_along_the_way": measured})
        assert said in capsys.readouterr().out
    _print_result(tmp_path, {**figures, "best": best})  # of a run before it was kept
    assert "step 3:" in capsys.readouterr().out
