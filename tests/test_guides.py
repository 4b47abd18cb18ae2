"""README and guides: their code runs, and their tables say what the package says."""

import itertools
import json
import pkgutil
import re
import subprocess
import sys

import guides
import numpy as np
import pytest

import kzoo
from kzoo import feature_maps, masks, mechanisms, objectives, presets
from kzoo.backend import BACKENDS
from kzoo.config import Config
from kzoo.data import tasks
from kzoo.data.sources.base import classes as sources
from kzoo.errors import InputError
from kzoo.ops import dispatch
from kzoo.studies import Study, tuning
from kzoo.studies import study as study_module
from kzoo.studies.evidence import draw
from kzoo.studies.records import read, read_tuning, run_name

ROOT = guides.ROOT
README = (ROOT / "README.md").read_text()
QUICK = ROOT / "examples" / "quick"
EVERY = [block for document in guides.DOCUMENTS for block in guides.blocks(document)]
PAGES = [*guides.DOCUMENTS, QUICK / "README.md", ROOT / "examples" / "LOG.md"]


def table(text, first):
    """The rows of the table whose first heading is `first`: lists of cells without backticks."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows[:1] + rows[2:]


# Code --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_code_of_readme_and_guides_runs(tmp_path):
    """In order, in one process and one fresh folder, with `guides.CUT` in place of long runs."""
    command = [sys.executable, guides.__file__, *map(str, guides.DOCUMENTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    print(done.stdout)


@pytest.mark.parametrize("block", EVERY, ids=str)
def test_every_block_is_run_or_says_why_not(block):
    if block.language in ("text", "bibtex"):
        return
    assert block.language in guides.PROGRAMS, "a block names its language"
    kind, words = block.comment or (None, "")
    if kind == "not run":
        assert len(words) > 5
        for name in re.findall(r"tests/\w+\.py", words):
            assert (ROOT / name).is_file(), name
    elif block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "json":
        assert kind == "file", "a comment before a block of JSON names its file"
        json.loads(block.text)
    else:
        assert {command[0] for command in guides.commands(block)} == {"kzoo"}


def test_each_cut_is_needed():
    runs = "\n".join(block.text for block in EVERY if block.runs)
    for long in guides.CUT:
        assert re.search(long, runs), f"no block says {long}"


def test_ten_lines_are_ten():
    block = next(b for b in guides.blocks(ROOT / "README.md") if b.language == "python")
    assert len([line for line in block.text.splitlines() if line]) == 10
    assert len(README.splitlines()) <= 165


# Tables ------------------------------------------------------------------------------------------


def test_results_are_those_of_the_records():
    """Of the study's own page: every number of its table, and each verdict."""
    study, records = read(QUICK)
    runs = {}
    for record in records:
        runs.setdefault(record["arm"], []).append(record)
    mean = {arm: f"{np.mean([run['bits'] for run in of]):.3f}" for arm, of in runs.items()}
    page = (QUICK / "README.md").read_text()
    _, *rows = table(page, "arm")
    assert [arm for arm, *_ in rows] == list(study["arms"])
    for arm, _, rate, bits, span, accuracy in rows:
        of = runs[arm]
        losses = [run["bits"] for run in of]
        assert len(of) == len(study["seeds"]) and bits == mean[arm]
        assert span == f"{min(losses):.3f} to {max(losses):.3f}"
        assert {f"{run['learning_rate']:g}" for run in of} == {rate}
        assert accuracy == f"{np.mean([run['metrics']['accuracy'] for run in of]):.3f}"
    drawn = draw(study, records)
    written = json.loads((QUICK / "verdicts.json").read_text())["verdicts"]
    assert [verdict["text"] for verdict in written] == [str(verdict) for verdict in drawn]
    said = {verdict.hypothesis.name: verdict.sentence for verdict in drawn}
    bullets = r"- \*\*(.+?)\.\*\* (.+?)\.(?= - \*\*| ##)"
    quoted = dict(re.findall(bullets, " ".join(page.split())))
    assert quoted == {name: words[0].upper() + words[1:] for name, words in said.items()}


def test_the_readme_quotes_the_first_answers():
    answers = " ".join((ROOT / "examples" / "studies" / "README.md").read_text().split())
    quoted = re.findall(r"- (Q\d): (.+?\)\.)(?= - | There)", " ".join(README.split()))
    assert [question for question, _ in quoted] == ["Q1", "Q4", "Q5"]
    assert [sentence for _, sentence in quoted if sentence not in answers] == []


def test_the_quick_study_is_that_of_its_records():
    """What the package runs is what ran, and its tuning runs are all there."""
    ours, ran = (
        json.loads(path.read_text()) for path in (study_module.QUICK, QUICK / "study.json")
    )
    asked = [Study.from_dict({**of, "description": ""}).to_dict() for of in (ours, ran)]
    for of in asked:
        del of["tuning"]["records"]
    assert asked[0] == asked[1]
    quick = Study.from_json(study_module.QUICK)
    tuned = {
        record["run"] for record in read_tuning(study_module.QUICK.parent, "quick_tuning.jsonl")
    }
    assert tuned == {
        run_name(s, label, seed)
        for s, label, _ in tuning.asked(quick, []).runs()
        for seed in quick.tuning.seeds
    }


def test_families_and_sizes():
    stacks = {
        "single": "single",
        "encoder and decoder": "encoder_decoder",
        "shared encoder and decoder": "encoder_decoder_shared",
    }
    words = {"half heads": "half_heads"}
    guide = (guides.GUIDES / "presets.md").read_text()
    _, *families = table(guide, "family")
    _, *sizes = table(guide, "size")
    assert {f"{row[0]}_{size[0]}" for row in families for size in sizes} == set(presets.names())
    named = re.findall(
        r"`(\w+)`", README[README.index("## Presets") :].partition("; [the guide]")[0]
    )
    assert [row[0] for row in families] == named[: len(families)]
    for family, mask, stack, objective, paper in families:
        config = presets.config(f"{family}_nano")
        stated = mask.removesuffix(" in the encoder")
        assert (stated != mask) == (stack != "single")
        assert masks.get(config["mask"]) == masks.get(words.get(stated, stated))
        assert (config["stack"], config["objective"]) == (stacks[stack], objective)
        author, year = paper.split()[0], re.search(r"\d{4}", paper)[0]
        described = presets.describe(f"{family}_nano")["paper"]
        assert author in described and year in described
    for size, *row in sizes:
        configs = [presets.config(f"{family}_{size}") for family in ("gpt", "t5", "t5_shared")]
        counts = [f"{kzoo.config.count_parameters(config):,}" for config in configs]
        fields = ("num_layers", "hidden_dim", "num_heads", "max_sequence_length")
        assert row == [*counts, *(str(configs[0][field]) for field in fields)]


@pytest.mark.parametrize("row", table(README, "`mask`")[1:], ids=lambda row: row[0])
def test_masks_and_mechanisms(row):
    heads = [cell.split(", ") for cell in table(README, "`mask`")[0][2:]]
    assert {name for names in heads for name in names} == set(mechanisms.names())
    spec, _, *answers = row
    if spec.startswith("kzoo.masks.custom"):
        mask = masks.custom(lambda query, key: query.position >= key.position)
        every = [mask, masks.causal() & masks.block(4)]
    else:
        every = masks.per_layer(json.loads(spec), 2)
    for names, answer in zip(heads, answers, strict=True):
        for name, mask in itertools.product(names, every):
            try:
                mechanisms.get(name).check(mask.per_head(4))
                assert answer == "yes"
            except InputError:
                assert answer == "refused"


def test_readme_lists_sources_objectives_and_tasks():
    listed = {" ".join(re.findall(r"\w+", row[0])[:2]): row[1] for row in table(README, "what")}
    parts = {
        "sources examples": sources(),
        "objectives examples": [type(objectives.get(name)) for name in objectives.names()],
        "synthetic tasks": [type(tasks.get(name)) for name in tasks.names()],
    }
    for kind, every in parts.items():
        names = {x.name for x in every if x.__module__.startswith("kzoo.")}  # tests register theirs
        assert names <= set(re.findall(r"\w+", listed[kind]))


def test_every_order_feature_map_kernel_and_objective_is_named():
    stated = " ".join(row[0] for row in table(README, "`mask`"))
    for order in ("bidirectional", "causal", "reversed", "prefix", "block", "permuted"):
        assert f'"{order}"' in stated
    kernels = (guides.GUIDES / "kernels.md").read_text()
    for name in feature_maps.names():
        assert f"`{name}`" in README and f"`{name}`" in kernels
    ours = {n for m in ("softmax", "linear") for b in BACKENDS for n in dispatch.kernels(m, b)}
    assert {row[0] for row in table(kernels, "kernel")[1:]} == ours
    data = table((guides.GUIDES / "data.md").read_text(), "objective")[1:]
    every = [objectives.get(name) for name in objectives.names()]  # other tests register theirs
    ours = {x.name for x in every if type(x).__module__.startswith("kzoo.")}
    assert ours <= {next(iter(json.loads(row[0])), "") if "{" in row[0] else row[0] for row in data}


# Links and names -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert heading in slugs, target
    for name in re.findall(r"`((?:kzoo|tests|examples|presets)/[\w./]*)(?:::\w+)?`", text):
        assert (ROOT / name).exists(), name
    for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
        assert f"def {test}(" in (ROOT / file).read_text(), test


def test_names_of_the_package_exist():
    for page in guides.DOCUMENTS:
        text = page.read_text()
        for name in set(re.findall(r"\bkzoo(?:\.[a-zA-Z_]\w*)+", text)):
            if re.search(rf"{re.escape(name)}\.md", text) or name == "kzoo.git":
                continue
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                pytest.fail(f"{page.name}: {name}")


def test_fields_named_are_fields():
    fields = {*Config.field_names()}
    for page in guides.DOCUMENTS:
        for name in re.findall(r"--set (\w+)", page.read_text()):
            assert name in fields, f"{page.name}: {name}"


def test_readme_names_every_guide():
    for guide in guides.GUIDES.glob("*.md"):
        assert f"(examples/guides/{guide.name})" in README
        text = guide.read_text()
        assert text.split("\n\n")[1].startswith("You want to "), "it begins with what is wanted"


def test_names_that_were_renamed_are_gone():
    old = (
        r"`(?:continuation|seq2seq)`|objective=\"continuation\"|kzoo\.ops\.choice|that is not there"
    )
    for page in guides.DOCUMENTS:
        assert not re.findall(old, page.read_text()), page
