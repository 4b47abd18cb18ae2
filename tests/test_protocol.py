"""The protocol of a study: what is refused before anything runs."""

import hashlib
import json

import pytest

from kzoo import presets
from kzoo.errors import InputError
from kzoo.studies import Study
from kzoo.studies.modules import hashes

CONTINUE = {"objective": presets.config("unilm_nano")["objective"]}
ARMS = {
    "GPT": {"preset": "gpt_nano", "overrides": CONTINUE},
    "UniLM": {"preset": "unilm_nano"},
    "GPT linear": {"preset": "gpt_nano", "overrides": {**CONTINUE, "mechanism": "linear"}},
    "BERT": {"preset": "bert_nano"},
    "BERT linear": {"preset": "bert_nano", "overrides": {"mechanism": "linear"}},
}
Q1 = {"name": "Q1", "kind": "equivalence", "arms": ["UniLM", "GPT"], "margin": 0.03}
Q1 |= {"differ_in": ["mask"]}
GAPS = [["BERT linear", "BERT"], ["GPT linear", "GPT"]]
Q5 = {"name": "Q5", "kind": "interaction", "arms": GAPS, "sign": "+", "scale": "ratio"}
Q5 |= {"differ_in": ["mask", "mechanism", "objective"]}
TUNING = {"seeds": [100, 101], "grid": {"learning_rate": [0.003, 0.01, 0.03]}}
STUDY = {"arms": ARMS, "data": ["pydoc"], "steps": 300, "seeds": 10, "looks": [5, 10]}
STUDY |= {"hypotheses": [Q1, Q5], "tuning": TUNING}


def test_a_protocol_is_json_both_ways():
    study = Study.from_dict(STUDY)
    assert [h.name for h in study.hypotheses] == ["Q1", "Q5"]
    assert study.hypotheses[0].data == "pydoc" and study.looks == (5, 10)
    assert study.tuning.of("GPT") == {"learning_rate": (0.003, 0.01, 0.03)}
    again = Study.from_dict(json.loads(json.dumps(study.to_dict())))
    assert again == study and again.to_dict() == study.to_dict()
    own = {**TUNING, "arms": {"BERT": {"learning_rate": [0.001, 0.003]}}}
    study = Study.from_dict({**STUDY, "tuning": own, "budget": "steps"})
    assert study.tuning.of("BERT") == {"learning_rate": (0.001, 0.003)}
    assert Study.from_dict(study.to_dict()) == study


def test_a_study_without_a_protocol_stays_as_it_was_saved():
    later = {"hypotheses", "tuning", "budget", "looks", "imports"}
    plain = {name: value for name, value in STUDY.items() if name not in later}
    assert not later & set(Study.from_dict(plain).to_dict())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hypothesis": []}, "unknown field of a study; did you mean 'hypotheses'?"),
        ({"hypotheses": {"Q1": Q1}}, "hypotheses are a list of JSON objects"),
        ({"hypotheses": [{**Q1, "margin": None}]}, "which needs a margin"),
        ({"hypotheses": [{**Q1, "arms": ["GPT"]}]}, "takes two different arms"),
        ({"hypotheses": [{**Q1, "arms": ["GPT", "T5"]}]}, "unknown arm of the hypothesis 'Q1'"),
        ({"hypotheses": [{**Q1, "differ_in": []}]}, "differ in ['mask'], so that its differ_in"),
        (
            {"hypotheses": [{**Q1, "differ_in": ["mask", "dropout"]}]},
            "differ in ['mask'], so that its differ_in",
        ),
        ({"hypotheses": [{**Q1, "differ_in": ["masks"]}]}, "did you mean 'mask'?"),
        ({"hypotheses": [{**Q1, "differ_in": "mask"}]}, "a list of config fields in differ_in"),
        ({"hypotheses": [{**Q1, "data": "shakespeare"}]}, "which all of its arms have"),
        ({"data": ["pydoc", "synthetic:copy"]}, "'Q1' names the data"),
        ({"hypotheses": [{**Q5, "scale": "difference"}]}, "between gaps, the scale 'ratio' does"),
        (
            {"hypotheses": [{**Q1, "arms": ["BERT", "GPT"], "differ_in": ["mask", "objective"]}]},
            "'Q1' compares bits of the same predictions. Received: {'BERT': 'masked bytes",
        ),
        (
            {"hypotheses": [{**Q5, "arms": [GAPS[0], ["GPT linear", "UniLM"]]}]},
            "the gaps of the hypothesis 'Q5' are of the same fields",
        ),
        ({"seeds": 4, "looks": [5]}, "at least 5 seeds. Received: [0, 1, 2, 3]"),
        ({"seeds": 20}, "the last look is at all 20 seeds"),
        ({"looks": [4, 10]}, "at least 5, such as [5, 10, 20]"),
        ({"looks": []}, "at least 5, such as [5, 10, 20]"),
        ({"looks": 10}, "at least 5, such as [5, 10, 20]"),
        ({"hypotheses": []}, "one or more. Received: []"),
        ({"tuning": {**TUNING, "seeds": [9, 10]}}, "Received in both: [9]"),
        ({"tuning": {**TUNING, "seeds": "9"}}, "seeds of tuning are a number up to"),
        ({"tuning": {**TUNING, "grids": {}}}, "unknown field of tuning; did you mean 'grid'?"),
        ({"tuning": {"seeds": [100]}}, "tuning needs the field 'grid'"),
        ({"tuning": [1]}, "tuning is a JSON object"),
        ({"tuning": {**TUNING, "grid": {}}}, "the tuning grid is a JSON object"),
        ({"tuning": {**TUNING, "grid": {"rate": [1, 2]}}}, "unknown field of the tuning grid"),
        ({"tuning": {**TUNING, "grid": {"learning_rate": [0.01]}}}, "nothing to choose"),
        ({"tuning": {**TUNING, "grid": {"learning_rate": 0.01}}}, "nothing to choose"),
        ({"tuning": {**TUNING, "grid": {"learning_rate": [0.1, 0.01]}}}, "increasing values"),
        ({"tuning": {**TUNING, "grid": {"learning_rate": [None, 0.01]}}}, "increasing values"),
        ({"tuning": {**TUNING, "grid": {"learning_rate": [0.1, "1"]}}}, "is a positive number"),
        ({"tuning": {**TUNING, "grid": {"batch_size": [8, 9.5]}}}, "is a positive integer"),
        ({"tuning": {**TUNING, "arms": {"T5": {}}}}, "unknown arm of tuning"),
        ({"tuning": {**TUNING, "arms": {"GPT": {"learning_rate": [1]}}}}, "has a list of two"),
        ({"tuning": {**TUNING, "arms": ["GPT"]}}, "arms of tuning are a JSON object"),
        ({"budget": "tokens"}, "unknown budget; did you mean 'scored_tokens'?"),
        ({"budget": ["steps"]}, "unknown budget"),
        ({"tuning": {**TUNING, "records": 3}}, "records of tuning is the name of a file"),
        ({"tuning": {**TUNING, "grid": {"optimizer": ["muon", "muon"]}}}, "has distinct values"),
        ({"tuning": {**TUNING, "grid": {"optimizer": ["muon", "sgd"]}}}, "Valid: adamw, muon"),
        ({"tuning": {**TUNING, "grid": {"warmup": [0, 1]}}}, "from 0 up to 1"),
        ({"metrics": []}, "metrics are a list"),
        ({"imports": ["no such module"]}, "names of Python modules"),
        ({"imports": ["no_such_module"]}, "No module named 'no_such_module'"),
        ({"imports": [1]}, "names of Python modules"),
    ],
)
def test_what_a_protocol_refuses(changes, message):
    with pytest.raises(InputError) as error:
        Study.from_dict({**STUDY, **changes})
    assert message in str(error.value) and "Received" in str(error.value)
    assert "\n" not in str(error.value)


def test_looks_are_at_hypotheses():
    with pytest.raises(InputError, match="the study has none. Received: \\[5, 10\\]"):
        Study.from_dict({name: value for name, value in STUDY.items() if name != "hypotheses"})


def test_imported_modules_are_hashed_and_their_mistakes_are_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_mine.py").write_text("VALUE = 3\n")
    (tmp_path / "broken.py").write_text("raise KeyError('a\\nb')\n")
    assert Study.from_dict({**STUDY, "imports": ["of_mine"]}).imports == ("of_mine",)
    assert hashes(["of_mine"]) == {"of_mine": hashlib.sha256(b"VALUE = 3\n").hexdigest()}
    with pytest.raises(InputError, match="modules that Python can import; KeyError") as error:
        Study.from_dict({**STUDY, "imports": "broken"})
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="is a file of Python. Received: 'nowhere'"):
        hashes(["nowhere"])
