"""The answers in examples/studies: each page, verdict and study against the records beside it."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from kzoo.studies import Study
from kzoo.studies.evidence import draw
from kzoo.studies.folder import as_begun
from kzoo.studies.records import read

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "studies"
spec = importlib.util.spec_from_file_location("answers", FOLDER / "answers.py")
answers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(answers)

RAN = sorted(path.parent for path in FOLDER.glob("q*/*/results.jsonl"))
PAGES = [path for path in answers.pages() if answers.BLOCK.search(path.read_text())]
PUBLISHED = "## Compared with what is published"


def relative(path):
    return str(path.relative_to(FOLDER))


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pages_are_made_of_their_records(path):
    assert answers.page(path) == path.read_text()


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_prose_has_no_number_of_its_own(path):
    """Decimals in the text written by hand stand in a table or a verdict too."""
    text = path.read_text()
    made = "".join(block[2] for block in answers.BLOCK.findall(text))
    written = answers.BLOCK.sub("", text).partition(PUBLISHED)[0]
    written = re.sub(r"arXiv:\d+\.\d+", "", written)
    numbers = re.findall(r"\d+\.\d+", written)
    assert [number for number in numbers if number not in made] == []


@pytest.mark.parametrize("folder", RAN, ids=relative)
def test_studies_are_those_that_ran(folder):
    """The file that a reader runs and the study of the records ask the same, and its verdicts are
    drawn from these records."""
    ran = json.loads((folder / "study.json").read_text())
    ours = as_begun(Study.from_json(folder.with_suffix(".json")), folder)
    asked = [Study.from_dict({**of, "description": ""}).to_dict() for of in (ours.to_dict(), ran)]
    assert asked[0] == asked[1]
    if ours.tuning and ours.tuning.records:
        assert ours.tuning.records_file().is_file()
    study, records = read(folder)
    names = {f"{s}/{label}/{seed}" for s, label, _ in ours.runs() for seed in ours.seeds}
    assert {record["run"] for record in records} <= names
    if ours.hypotheses and (folder / "verdicts.json").is_file():
        written = json.loads((folder / "verdicts.json").read_text())["verdicts"]
        assert [each["text"] for each in written] == [str(each) for each in draw(study, records)]
