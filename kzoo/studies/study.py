"""A study: what is compared, on what, how long. JSON both ways, checked before anything runs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from kzoo import objectives, presets
from kzoo.errors import InputError, unknown

QUICK = Path(__file__).parent / "quick.json"
ARM_FIELDS = ("preset", "overrides", "data")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        preset: name of a preset.
        overrides: config fields that replace the preset's.
        data: the sources that it is trained on.
    """

    preset: str
    overrides: dict
    data: tuple

    def config(self, seed):
        """The complete config of the arm's model with that seed."""
        return presets.config(self.preset, **{**self.overrides, "seed": seed})


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms × data × seeds.

    Attributes:
        name, description: for people.
        arms: label -> `Arm`.
        data: sources as `kzoo.data.load` takes them.
        seeds: of initial values, order of data, masked positions; a number n means 0 to n-1.
        steps: optimizer steps of each run.
        batch_size: rows.
        learning_rate: the peak of the schedule.
        valid: the part of the data that is held out.
        evaluations: how often the held-out set is measured along a run.
        given: name -> the texts, or the (prompt, response) pairs, of sources in `data` that are
            lists and no names.
    """

    arms: dict
    data: tuple
    steps: int
    seeds: tuple = (0, 1)
    name: str = "study"
    description: str = ""
    batch_size: int = 16
    learning_rate: float = 0.01
    valid: float = 0.1
    evaluations: int = 5
    given: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, fields):
        """A study from JSON; `InputError` for unknown fields, values, presets or overrides."""
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, Mapping):
            raise InputError(f"a study is a JSON object. Received: {type(fields).__name__}")
        for field in fields:
            if field not in names:
                raise unknown("field of a study", field, names)
        fields = dict(fields)
        for field in ("arms", "data", "steps"):
            if not fields.get(field):
                raise InputError(f"a study needs the field {field!r}. Received: {sorted(fields)}")
        for field, least in (("steps", 1), ("batch_size", 1), ("evaluations", 1)):
            if not _is_integer(fields.get(field, 1)) or fields.get(field, 1) < least:
                raise InputError(f"{field} is a positive integer. Received: {fields[field]!r}")
        rate = fields.get("learning_rate", 0.01)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or rate <= 0:
            raise InputError(f"learning_rate is a positive number. Received: {rate!r}")
        fields["data"] = _names("data", fields["data"])
        if not isinstance(fields.get("given", {}), Mapping):
            raise InputError(
                "given is a JSON object of names and lists of texts or pairs. "
                f"Received: {type(fields['given']).__name__}"
            )
        fields["seeds"] = _seeds(fields.get("seeds", 2))
        if not isinstance(fields["arms"], Mapping):
            raise InputError(f"arms are a JSON object of labels. Received: {fields['arms']!r}")
        fields["arms"] = {
            label: _arm(label, arm, fields["data"]) for label, arm in fields["arms"].items()
        }
        study = cls(**fields)
        for arm in study.arms.values():
            for seed in study.seeds:
                arm.config(seed)  # refuses what does not fit, before anything is written
        return study

    @classmethod
    def from_json(cls, path):
        """A study from a JSON file.

        Raises:
            InputError: if the file is missing, no JSON, or no study.

        Example:
            >>> Study.from_json(QUICK).name
            'quick'
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no such file; a study is a JSON file. Received: {path}")
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not JSON ({error}). Received: {path}") from None

    def to_dict(self):
        """JSON of everything that the study says, defaults filled in."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arms = {
            label: {"preset": arm.preset, "overrides": arm.overrides, "data": list(arm.data)}
            for label, arm in self.arms.items()
        }
        if not self.given:
            del fields["given"]
        return {**fields, "arms": arms, "data": list(self.data), "seeds": list(self.seeds)}

    def runs(self):
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
    name = objectives.get(objective).name
    what, unit = {
        "causal_lm": ("every next byte", "bits per byte"),
        "continuation": ("continuation", "bits per byte of target"),
        "seq2seq": ("continuation", "bits per byte of target"),  # the same scored tokens
        "masked_lm": ("masked bytes", "bits per masked byte"),
    }[name]
    return unit, f"{what} on {source}"


def _arm(label, arm, data):
    if isinstance(arm, str):
        arm = {"preset": arm}
    if not isinstance(arm, Mapping) or "preset" not in arm:
        raise InputError(f"the arm {label!r} is an object with a preset. Received: {arm!r}")
    for field in arm:
        if field not in ARM_FIELDS:
            raise unknown("field of an arm", field, ARM_FIELDS)
    own = _names("data", arm.get("data", data))
    for source in own:
        if source not in data:
            raise unknown(f"data of the arm {label!r}", source, data)
    overrides = arm.get("overrides", {})
    if not isinstance(overrides, Mapping) or "seed" in overrides:
        raise InputError(
            f"overrides of {label!r} are config fields; seeds are the study's. "
            f"Received: {overrides!r}"
        )
    return Arm(arm["preset"], dict(overrides), own)


def _names(field, value):
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{field} is a source or a list of them. Received: {value!r:.120}")
    return tuple(value)


def _seeds(value):
    seeds = tuple(range(value)) if _is_integer(value) else tuple(value or ())
    if not seeds or len(set(seeds)) != len(seeds) or not all(map(_is_integer, seeds)):
        raise InputError(f"seeds are a number or a list of distinct integers. Received: {value!r}")
    return seeds


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)
