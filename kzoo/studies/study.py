"""A study: what is compared, on what, how long. JSON both ways, checked before anything runs."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from kzoo import objectives, presets
from kzoo.errors import InputError, unknown
from kzoo.files import read_json
from kzoo.learning_rate import learning_rate
from kzoo.studies import protocol
from kzoo.values import LARGEST, is_count, is_number, plain, shown

QUICK = Path(__file__).parent / "quick.json"
ARM_FIELDS = ("preset", "overrides", "data")
TRAINING_FIELDS = ("learning_rate", "batch_size")  # that tuning may choose
_LONGEST = 100  # characters of a name
_MOST_SEEDS = 10_000


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        preset: name of a preset.
        overrides: config fields that replace the preset's.
        data: the sources that it is trained on.
        rates: source -> learning rate, once a tuning has chosen it; not of the study's JSON.
    """

    preset: str
    overrides: dict
    data: tuple
    rates: dict = dataclasses.field(default_factory=dict)

    def config(self, seed):
        """The complete config of the arm's model with that seed."""
        return presets.config(self.preset, **{**self.overrides, "seed": seed})


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms × data × seeds.

    Attributes:
        name: of the study, and of its folder in `runs` on the command line.
        description: for people.
        arms: label -> `Arm`.
        data: sources as `kzoo.data.load` takes them.
        seeds: of initial values, order of data, masked positions; a number n means 0 to n-1.
        steps: optimizer steps of each run.
        batch_size: rows.
        learning_rate: the peak of the schedule; None: by the width of each arm, as
            `kzoo.training.learning_rate` says, so that arms of one size share it.
        valid: the part of the data that is held out.
        evaluations: how often the held-out set is measured along a run.
        given: name -> the texts, or the (prompt, response) pairs, of sources in `data` that are
            lists and no names.
        hypotheses: what the study asks: `Hypothesis` of its arms.
        tuning: how each arm's training fields are chosen, a `Tuning`; None: they are given.
        budget: what all arms have the same amount of: "steps", "scored_tokens" or "flops".
        looks: the numbers of seeds at which verdicts are drawn and the study may stop; () for one
            look at all of them.
        imports: modules that register what arms use.

    Example:
        >>> fields = {"name": "mine", "arms": {"GPT": {"preset": "gpt_nano"}}, "data": "pydoc"}
        >>> Study.from_dict({**fields, "seeds": 2, "steps": 100}).seeds
        (0, 1)
    """

    arms: dict
    data: tuple
    steps: int
    seeds: tuple = (0, 1)
    name: str = "study"
    description: str = ""
    batch_size: int = 16
    learning_rate: float | None = None
    valid: float = 0.1
    evaluations: int = 5
    given: dict = dataclasses.field(default_factory=dict)
    hypotheses: tuple = ()
    tuning: protocol.Tuning | None = None
    budget: str = "steps"
    looks: tuple = ()
    imports: tuple = ()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """A study from JSON; `InputError` for unknown fields, values, presets or overrides."""
        if not isinstance(fields, Mapping):
            raise InputError(f"a study is a JSON object. Received: {shown(fields)}")
        for field in fields:
            if field not in _CHECKS:
                raise unknown("field of a study", field, _CHECKS)
        for field in ("arms", "data", "steps"):
            if field not in fields:
                raise InputError(f"a study needs the field {field!r}. Received: {sorted(fields)}")
        given = {field: _CHECKS[field](field, plain(value)) for field, value in fields.items()}
        for name in given.get("given", {}):
            if name not in given["data"]:
                raise unknown("source of the field 'given'", name, given["data"])
        given["arms"] = _arms(given["arms"], given["data"])
        seed = given.get("seeds", cls.seeds)[0]
        # Refuses what does not fit, before anything is written.
        configs = {label: arm.config(seed) for label, arm in given["arms"].items()}
        if "tuning" in given:
            checks = {field: _CHECKS[field] for field in ("seeds", *TRAINING_FIELDS)}
            given["tuning"] = protocol.tuning(given["tuning"], configs, checks)
        if "hypotheses" in given:
            given["hypotheses"] = protocol.settled(
                given["hypotheses"], given["arms"], configs, _group
            )
        study = cls(**given)
        protocol.check(study)
        return study

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """A study from a JSON file; modules of its `imports` may stand beside it.

        Raises:
            InputError: if the file is missing, no JSON (with line and column), or no study.

        Example:
            >>> Study.from_json(QUICK).name
            'quick'
        """
        fields = read_json(path)
        folder = str(Path(path).resolve().parent)
        if isinstance(fields, Mapping) and fields.get("imports") and folder not in sys.path:
            sys.path.append(folder)
        return cls.from_dict(fields)

    def to_dict(self) -> dict[str, Any]:
        """JSON of everything that the study says, defaults filled in."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arms = {
            label: {"preset": arm.preset, "overrides": arm.overrides, "data": list(arm.data)}
            for label, arm in self.arms.items()
        }
        fields |= {"arms": arms, "data": list(self.data), "seeds": list(self.seeds)}
        fields |= {"looks": list(self.looks), "imports": list(self.imports)}
        fields["hypotheses"] = [hypothesis.to_dict() for hypothesis in self.hypotheses]
        fields["tuning"] = self.tuning.to_dict() if self.tuning else None
        # Fields that came later stand only where they say something: older studies stay equal.
        for field in ("given", "hypotheses", "tuning", "looks", "imports"):
            if not fields[field]:
                del fields[field]
        if self.budget == "steps":
            del fields["budget"]
        return fields

    def rate(self, arm: Arm, source: str | None = None) -> float:
        """The peak of the schedule of an `Arm`, on a source where a tuning chose it."""
        if source in arm.rates:
            return arm.rates[source]
        return self.learning_rate or learning_rate(arm.config(self.seeds[0])["hidden_dim"])

    def runs(self) -> list[tuple[str, str, Arm]]:
        """(data, label, arm) of every program, in order; each runs once per seed."""
        return [
            (source, label, arm)
            for source in self.data
            for label, arm in self.arms.items()
            if source in arm.data
        ]


def measure(objective, source):
    """What held-out bits of an objective count, and the group within which they compare.

    Returns:
        (measure, group): two strings.
    """
    objective = objectives.get(objective)
    unit = "bits per byte of target" if objective.has_source else "bits per byte"
    unit = unit if objective.next_token else "bits per masked byte"
    names = {
        "causal_lm": "every next byte",
        "prefix_lm": "continuation",
        "masked_lm": "masked bytes",
    }
    return unit, f"{names.get(objective.name, objective.name)} on {source}"


def _group(config, source):
    return measure(config["objective"], source)[1]


# Fields: each check returns the value as it is kept, or raises `InputError` ------------------


def _count(field, value):
    if is_count(value):
        return value
    try:
        near = min(max(int(float(value)), 1), LARGEST)
    except (TypeError, ValueError, OverflowError):
        near = {"steps": 300, "batch_size": 16, "evaluations": 5}[field]
    raise InputError(
        f"{field} is a positive integer, at most {LARGEST}, such as {near}. "
        f"Received: {shown(value)}"
    )


def _rate(field, value):
    if value is None or is_number(value) and value > 0:
        return value
    raise InputError(f"{field} is a positive number, such as 0.003. Received: {shown(value)}")


def _share(field, value):
    if is_number(value) and 0 < value < 1:
        return value
    raise InputError(
        f"{field} is the part held out, a number between 0 and 1, such as 0.1. "
        f"Received: {shown(value)}"
    )


def _text(field, value):
    if isinstance(value, str):
        return value
    raise InputError(f"{field} is a string. Received: {shown(value)}")


def _name(field, value):
    """Also the name of a folder, which stands where the user means it to stand."""
    name = value if isinstance(value, str) else ""
    fit = re.sub(r"[/\\]+|\s+", " ", "".join(c for c in name if c.isprintable())).strip(" .")
    fit = fit[:_LONGEST] or "study"
    if name == fit:
        return name
    raise InputError(
        f"{field} names a folder too: up to {_LONGEST} characters, no slashes, and no dots or "
        f"spaces at its ends, such as {fit!r}. Received: {shown(value)}"
    )


def _sources(field, value):
    names = [value] if isinstance(value, str) else value
    strings = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if strings and names and len(set(names)) == len(names):
        return tuple(names)
    raise InputError(
        f"{field} is a source or a list of distinct ones, such as 'pydoc'. Received: {shown(value)}"
    )


def _seeds(field, value):
    if is_count(value) and value <= _MOST_SEEDS:
        return tuple(range(value))
    seeds = value if isinstance(value, list) else []
    distinct = seeds and all(is_count(seed, least=0) for seed in seeds)
    if distinct and len(set(seeds)) == len(seeds) <= _MOST_SEEDS:
        return tuple(seeds)
    raise InputError(
        f"{field} are a number up to {_MOST_SEEDS:,}, or a list of distinct integers in [0, 2^31), "
        f"such as 2 or [0, 1]. Received: {shown(value)}"
    )


def _mapping(field, value):
    if isinstance(value, dict) and value:
        return value
    raise InputError(f"{field} are a JSON object of labels. Received: {shown(value)}")


def _later(field, value):
    """Checked when the arms are known."""
    return value


def _given(field, value):
    """Sources in memory, which `kzoo.data.load` checks row by row."""
    lists = isinstance(value, dict) and [isinstance(rows, list) for rows in value.values()]
    if lists and all(lists):
        return value
    raise InputError(
        f"{field} is a JSON object of names and lists of texts or pairs. Received: {shown(value)}"
    )


_CHECKS = {
    "arms": _mapping,
    "data": _sources,
    "steps": _count,
    "seeds": _seeds,
    "name": _name,
    "description": _text,
    "batch_size": _count,
    "learning_rate": _rate,
    "valid": _share,
    "evaluations": _count,
    "given": _given,
    "imports": protocol.imports,
    "budget": protocol.budget,
    "looks": protocol.looks,
    "tuning": _later,
    "hypotheses": _later,
}


def _arms(arms, data):
    return {_label(label): _arm(label, arm, data) for label, arm in arms.items()}


def _label(label):
    if isinstance(label, str) and label.strip() and label.isprintable():
        return label
    raise InputError(f"the label of an arm is a line of text. Received: {shown(label)}")


def _arm(label, arm, data):
    if isinstance(arm, str):
        arm = {"preset": arm}
    if not isinstance(arm, dict) or "preset" not in arm:
        raise InputError(f"the arm {label!r} is an object with a preset. Received: {shown(arm)}")
    for field in arm:
        if field not in ARM_FIELDS:
            raise unknown("field of an arm", field, ARM_FIELDS)
    own = _sources("data", arm.get("data", list(data)))
    for source in own:
        if source not in data:
            raise unknown(f"data of the arm {label!r}", source, data)
    overrides = arm.get("overrides", {})
    fields = isinstance(overrides, dict) and all(isinstance(field, str) for field in overrides)
    if not fields or "seed" in overrides:
        raise InputError(
            f"overrides of {label!r} are config fields; seeds are the study's. "
            f"Received: {shown(overrides)}"
        )
    return Arm(arm["preset"], overrides, own)
