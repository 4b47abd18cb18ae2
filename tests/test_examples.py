"""The examples: scripts run as they stand for a few steps, and notebooks, made from their scripts,
with tiny models."""

import base64
import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jupytext
import keras
import nbclient
import nbformat
import pytest
from packaging.requirements import Requirement

import kzoo
from kzoo.studies import Study
from kzoo.studies.records import read

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("colab_tpu", "kaggle_tpu")
# What a cell says to the machine that it runs on. All other code is the same in both.
OWN = {"Settings"}

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="they choose JAX")


def notebook(name):
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def cells(book, kind=("code", "markdown")):
    return [(cell.cell_type, cell.source) for cell in book.cells if cell.cell_type in kind]


def titled(book):
    return {c.metadata["title"]: c.source for c in book.cells if c.cell_type == "code"}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_what_their_scripts_make(name):
    made, book = jupytext.read(ROOT / "examples" / f"{name}.py"), notebook(name)
    again = f"jupytext --to ipynb examples/{name}.py"
    assert cells(book) == cells(made), f"make it again: {again}"
    assert book.metadata["kernelspec"] == made.metadata["kernelspec"]
    assert book.metadata["accelerator"] == "TPU"
    for cell in book.cells:
        assert not cell.get("outputs") and not cell.get("execution_count"), "no outputs are kept"


def test_the_two_differ_in_their_settings_only():
    colab, kaggle = (titled(notebook(name)) for name in NAMES)
    assert [*colab] == [*kaggle]
    assert [title for title in colab if colab[title] != kaggle[title]] == [*OWN]


def test_what_is_installed_by_hand_is_what_the_package_needs():
    guide = (ROOT / "examples" / "guides" / "devices.md").read_text()
    block = re.search(r"```sh\n(pip install \"jax\[tpu\].*?)```", guide, re.DOTALL)[1]
    for text in (titled(notebook(NAMES[0]))["Install"], block.replace("jax[tpu]", "jax")):
        named = re.split(r"[\s\"',()]+", text)
        for needed in project()["dependencies"]:
            assert needed in named, f"{needed} is missing"
        names = {re.split(r"[!=<>]", word)[0].lower().replace("_", "-") for word in named}
        for line in metadata.requires("keras-hub"):
            needed = Requirement(line)
            if needed.name != "tensorflow-text" and "extra" not in line:
                assert needed.name.lower() in names, f"keras-hub's {needed.name} is missing"


def test_badges_and_notebooks_name_the_one_address_of_the_repository():
    address = project()["urls"]["Repository"]
    owner_and_name = address.removeprefix("https://github.com/")
    assert owner_and_name.count("/") == 1
    notebooks = "blob/main/examples"
    targets = [
        f"https://colab.research.google.com/github/{owner_and_name}/{notebooks}/colab_tpu.ipynb",
        f"https://kaggle.com/kernels/welcome?src={address}/{notebooks}/kaggle_tpu.ipynb",
    ]
    readme = (ROOT / "README.md").read_text()
    linked = re.findall(r"\[!\[.*?\]\((examples/badges/.*?)\)\]\((.*?)\)", readme)
    assert [target for _, target in linked] == targets
    assert all((ROOT / badge).is_file() for badge, _ in linked)
    for name in NAMES:
        assert f'SOURCE = "git+{address}"\n' in titled(notebook(name))["Settings"]


@pytest.mark.parametrize("image", ["0.9.1", None])
def test_an_image_with_an_older_jax_is_told_in_one_line(image, monkeypatch):
    cell = titled(notebook(NAMES[0]))["Install"]
    assert Requirement(re.search(r'^JAX = Requirement\("(.*)"\)', cell, re.MULTILINE)[1]) in map(
        Requirement, project()["dependencies"]
    )

    def version(name):
        if image is None:
            raise metadata.PackageNotFoundError(name)
        return image

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("it installs"))
    with pytest.raises(Exception, match="kzoo needs jax>=0.10, and this image has") as error:
        exec(cell, {"sys": sys, "Path": Path})
    (line,) = error.value._render_traceback_()
    assert line.endswith(f"{image or 'none'}: choose a newer image") and "\n" not in line


@pytest.mark.parametrize(("name", "size"), [("colab_tpu", "tiny"), ("kaggle_tpu", "small")])
def test_the_studies_of_a_notebook_are_in_the_repository(name, size, monkeypatch):
    monkeypatch.setattr(os, "environ", {"KZOO_EXAMPLE_SIZE": "full"})
    settings = {}
    exec(titled(notebook(name))["Settings"], settings)
    for file, how in settings["STUDIES"].items():
        study = Study.from_json(ROOT / "examples" / "studies" / file).at(**how)
        assert study.hypotheses and study.tuning and f"-{size}-" in study.name


@on_jax
@pytest.mark.slow
def test_ranked_choices_runs(monkeypatch, capsys, tmp_path):
    script = ROOT / "examples" / "ranked_choices.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--steps", "2"])
    asked = runpy.run_path(str(script), run_name="__main__")["asked"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("as loaded, 0 shots", "as loaded, 2 shots"),
        *("after 2 steps, 0 shots", "after 2 steps, 2 shots"),
    ]
    assert all(re.search(r"acc 0\.\d\d ± 0\.\d\d, .* of 25 questions$", line) for line in lines)
    assert all(q["choices"][q["answer"]] == chr(ord(q["question"][6]) + 1) for q in asked)


def execute(name, folder, monkeypatch, devices=1):
    flags = os.environ.get("XLA_FLAGS", "")
    settings = {
        "KZOO_EXAMPLE_SIZE": "smoke",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    book = notebook(name)
    manager = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    manager.create_kernel_manager()
    # This environment's Python, whatever kernels the machine has besides.
    manager.km.kernel_spec.argv[0] = sys.executable
    manager.execute()
    return book


def output(book, title):
    """What a cell printed, and the kinds of what it showed."""
    cell = next(c for c in book.cells if c.metadata.get("title") == title)
    printed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    shown = {}
    for out in cell.outputs:
        shown |= out.get("data", {})
    return printed, shown


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("name, devices", [("colab_tpu", 1), ("kaggle_tpu", 8)])
def test_notebooks_run(name, devices, tmp_path, monkeypatch):
    book = execute(name, tmp_path, monkeypatch, devices)
    assert f"{devices} × cpu" in output(book, "Devices")[0]
    assert f"shape=({devices},)" in output(book, "Devices")[0]

    timed, _ = output(book, "How long the training takes")
    assert re.search(r"fit: about \d+\.\d minutes", timed)
    assert ("of a session" in timed) == (name == "kaggle_tpu")
    foreseen, _ = output(book, "How long the comparison takes")
    places = "1 device," if devices == 1 else "2 devices,"
    study = "q4-rotary-8-steps"
    assert re.search(rf"compare: {study}, about .* minutes? for 2 runs on {places}", foreseen)
    fits = re.search(r"1 session\(s\); into a week's quota of 20 hours it fits", foreseen)
    assert bool(fits) == (name == "kaggle_tpu")
    assert f"{study}: it took" in output(book, "Compare")[0]
    assert f"{study}: 2 runs" in output(book, "Verdicts")[0]

    assert len(output(book, "Generate")[0].splitlines()) == 4
    assert "<table" in output(book, "The table")[1]["text/html"]
    image = base64.b64decode(output(book, "Its curve")[1]["image/png"])
    assert image.startswith(b"\x89PNG") and len(image) > 5000
    curves = output(book, "Their curves")[1]["image/svg+xml"]
    assert curves.startswith("<svg") and len(curves) > 5000
    page = output(book, "Report")[1]["text/html"]
    assert "<iframe srcdoc=" in page and "provenance" in page.lower()

    model = kzoo.presets.load(tmp_path / "runs" / "model")
    text = model.generate("Return ", max_length=12, sampler="greedy")
    assert text.startswith("Return ") and len(text) > len("Return ")
    records = read(tmp_path / "runs" / "studies" / study)[1]
    assert len(records) == 2
    assert len({tuple(r["provenance"]["device_ids"]) for r in records}) == min(devices, 2)
    assert {r["provenance"]["dtype"] for r in records} == {"mixed_bfloat16"}


SCRIPTS = {
    "translate_pairs": (["--steps", "2"], r"t5: \d\.\d{3} held-out bits"),
    "span_corruption": (["--steps", "2", "--text", "TEXT"], r"cut out: +'<0>.*\npredicted: '"),
    "fine_tune_classifier": (
        ["--steps", "2", "--pretraining", "2", "--text", "TEXT"],
        r"pretrained weights: accuracy \d+\.\d%.*\nrandom weights: accuracy [^\n]*\n\[",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name, monkeypatch, capsys, tmp_path):
    arguments, printed = SCRIPTS[name]
    (tmp_path / "TEXT").write_text("".join(f"Sentence {i} of a text. " for i in range(800)))
    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "bits_per" not in line]
    assert re.search(printed, "\n".join(lines))


@pytest.mark.slow
def test_a_bpe_of_ones_own(tmp_path, monkeypatch, capsys):
    text = tmp_path / "my_book.txt"
    text.write_text(
        "".join(
            f"The owl number {i} sat down in the house, and saw {i * i} of them.\n"
            for i in range(400)
        )
    )
    own = tmp_path / "cache"
    monkeypatch.setattr("kzoo.data.tokenizer_training.folder", lambda name: own / name)
    arguments = ["--text", str(text), "--size", "420", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["own_bpe.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "own_bpe.py"), run_name="__main__")
    printed = capsys.readouterr().out
    in_bytes, in_bpe = re.findall(r"(\d+) tokens in 57 bytes", printed)
    assert int(in_bytes) == 57 > int(in_bpe)
    assert "saved and loaded: the same scores" in printed
