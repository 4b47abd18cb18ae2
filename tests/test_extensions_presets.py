"""What is added from outside the package, without an edit inside it."""

import json

import pytest

import kzoo
from kzoo import presets
from kzoo.cli import main
from kzoo.errors import InputError

# A family of presets ---------------------------------------------------------------------------

FAMILY = {
    "description": "Half of the heads see the source whole, half what comes before.",
    "paper": "none",
    "config": {
        "mask": {"heads": ["prefix", "causal"]},
        "mechanism": {"linear": {"feature_map": "relu"}},
        "objective": "prefix_lm",
        "num_layers": 1,
        "config_version": 2,
    },
}


@pytest.fixture
def family(tmp_path):
    file = tmp_path / "my_family.json"
    file.write_text(json.dumps(FAMILY))
    return file


def test_a_family_of_presets_is_a_file(family, capsys):
    name = f"{family}:nano"
    config = presets.config(name, seed=3)
    for field, value in {**FAMILY["config"], "hidden_dim": 64, "seed": 3}.items():
        assert config[field] == value
    assert presets.describe(name) == {"description": FAMILY["description"], "paper": "none"}
    assert presets.load(name, seed=3, hidden_dim=16, num_heads=2).config["num_layers"] == 1
    assert main(["show", name]) == 0
    assert FAMILY["description"] in capsys.readouterr().out
    arms = {"mine": {"preset": name}, "theirs": {"preset": "unilm_nano"}}
    study = {"arms": arms, "data": "synthetic:copy", "steps": 1}
    study = kzoo.studies.Study.from_dict(study)
    assert study.arms["mine"].config(0)["mechanism"] == FAMILY["config"]["mechanism"]
    assert not any("my_family" in name for name in presets.names())


@pytest.mark.parametrize(
    "change, size, said",
    [
        ({}, "nan", "did you mean 'nano'?"),
        ({}, "", "unknown size"),
        ({"config": None}, "nano", 'with a "config"'),
        ({"sizes": {}}, "nano", "unknown key of the family"),
        ({"config": {"mask": "causal", "objective": "seq2seq"}}, "nano", "is 'prefix_lm' now"),
        ({"config": {"mask": "causal", "feature_map": "relu"}}, "nano", "mechanism.linear"),
        ({"config": {"mask": "causal"}}, "nano", "needs the fields objective"),
    ],
)
def test_what_a_family_must_be(family, change, size, said):
    family.write_text(json.dumps({**FAMILY, **change}))
    with pytest.raises(InputError) as caught:
        presets.config(f"{family}:{size}")
    assert said in str(caught.value) and "Received: " in str(caught.value)


def test_a_family_without_its_file(tmp_path):
    with pytest.raises(InputError, match="none.json"):
        presets.config(f"{tmp_path}/none.json:nano")
