"""A study: what is compared, on what, how long. JSON both ways, checked before anything runs."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from kzoo import objectives, presets
from kzoo.data import tokenizer_spec
from kzoo.errors import InputError, unknown
from kzoo.files import read_json
from kzoo.learning_rate import learning_rate
from kzoo.studies import fields as kinds
from kzoo.studies import modules, protocol, sizes
from kzoo.studies.fields import CHECKS_OF_TRAINING, TRAINING
from kzoo.values import plain, shown

QUICK = Path(__file__).parent / "quick.json"
ARM_FIELDS = ("preset", "overrides", "data", "training", "tokenizer")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Attributes:
        preset: name of a preset.
        overrides: config fields that replace the preset's.
        data: the sources that it is trained on.
        training: training fields that replace the study's.
        tokenizer: its own, or the study's; as there.
        chosen: source -> the training fields that a tuning chose; not of the study's JSON.
        steps: source -> optimizer steps, where a budget decides on them; not of its JSON either.
        tokenizers: source -> the tokenizer, read or trained, of `kzoo.studies.tokenizers.settled`;
            nor are these.
    """

    preset: str
    overrides: dict
    data: tuple
    training: dict = dataclasses.field(default_factory=dict)
    chosen: dict = dataclasses.field(default_factory=dict)
    steps: dict = dataclasses.field(default_factory=dict)
    tokenizer: Any = tokenizer_spec.BYTES
    tokenizers: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def config(self, seed):
        """The complete config of the arm's model with that seed."""
        of_tokenizer = tokenizer_spec.config_fields(self.tokenizer, self.overrides)
        return presets.config(self.preset, **{**self.overrides, **of_tokenizer, "seed": seed})


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms × data × seeds.

    Attributes:
        name: of the study, and of its folder in `runs` on the command line.
        description: for people.
        arms: label -> `Arm`.
        data: sources as `kzoo.data.load` takes them.
        seeds: of initial values, order of data, masked positions; a number n means 0 to n-1.
        steps: optimizer steps of each run; with a budget, of the first arm on a source.
        batch_size: examples of a batch, a training field like the next four: an arm's `training`
            may replace it, and `tuning` may choose it.
        learning_rate: the peak of the schedule; None: by the width of each arm, as
            `kzoo.training.learning_rate` says, so that arms of one size share it.
        optimizer: "adamw" or "muon".
        schedule: "cosine" or "wsd", as of `kzoo.training.adamw`.
        warmup: the part of the steps in which the rate rises.
        valid: the part of the data that is held out.
        tokenizer: `"bytes"`; `{"bpe": 4096}` or `{"unigram": 4096}`, trained on the training part
            of each source; or the path of a `tokenizer.json`. Of all arms but those that name
            their own.
        evaluations: how often the held-out set is measured along a run.
        packing: how examples stand in the rows of a batch, as of `kzoo.data.load`: `"padded"`,
            `"buckets"` or `"first_fit"`, or JSON; None: as the folder's study began, else padded.
        given: name -> the texts, or the (prompt, response) pairs, of sources in `data` that are
            lists and no names.
        hypotheses: what the study asks: `Hypothesis` of its arms.
        tuning: how each arm's training fields are chosen, a `Tuning`; None: they are given.
        budget: what all arms have the same amount of: "steps", "scored_tokens" or "flops". Of the
            last two the first arm on a source sets the amount, by its steps.
        looks: the numbers of seeds at which verdicts are drawn and the study may stop; () for one
            look at all of them.
        failed_runs: "undecided": a hypothesis with a run that diverged or stalled is undecided;
            or "left out": the finished runs decide.
        excluded: the name of a run, such as "pydoc/GPT/3" -> the reason for which verdicts leave
            it out.
        metrics: what runs measure besides what hypotheses ask for, of `kzoo.studies.metrics`.
        examples: whether records have the loss of each held-out example.
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
    optimizer: str = TRAINING["optimizer"]
    schedule: str = TRAINING["schedule"]
    warmup: float = TRAINING["warmup"]
    valid: float = 0.1
    evaluations: int = 5
    packing: Any = None
    given: dict = dataclasses.field(default_factory=dict)
    hypotheses: tuple = ()
    tuning: protocol.Tuning | None = None
    budget: str = "steps"
    looks: tuple = ()
    failed_runs: str = "undecided"
    excluded: dict = dataclasses.field(default_factory=dict)
    metrics: tuple = ()
    examples: bool = False
    imports: tuple = ()
    tokenizer: Any = tokenizer_spec.BYTES

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
        shared = given.get("tokenizer", cls.tokenizer)
        given["arms"] = _arms(given["arms"], given["data"], shared)
        seed = given.get("seeds", cls.seeds)[0]
        # Refuses what does not fit, before anything is written.
        configs = {label: arm.config(seed) for label, arm in given["arms"].items()}
        _check_different(given["arms"], configs)
        if "tuning" in given:
            given["tuning"] = protocol.tuning(
                given["tuning"], configs, {"seeds": kinds.seeds, **CHECKS_OF_TRAINING}
            )
        if "hypotheses" in given:
            of_study = {name: given.get(name, default) for name, default in TRAINING.items()}
            settings = {
                label: _settings(configs[label], of_study, arm)
                for label, arm in given["arms"].items()
            }
            given["hypotheses"] = protocol.settled(
                given["hypotheses"], given["arms"], settings, _group
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
        return cls.from_dict(fields)._beside(folder)

    def at(self, *, size: str | None = None, steps: int | None = None) -> Self:
        """The same study with presets of another size, or other steps.

        Every arm keeps its family. Overrides of what a size sets (`hidden_dim`, `num_heads` and so
        on) keep their ratio to it; learning rates, given or to be tried, follow the width as
        `kzoo.learning_rate` does; the name says the size and the steps. The rest stays, steps too
        unless they are given: larger models need more. `kzoo.studies.sizes.changes` lists what
        was changed.

        Args:
            size: one of `kzoo.presets.sizes()`; None for the study's own.
            steps: optimizer steps of each run; None for the study's own.

        Returns:
            A `Study`.

        Raises:
            InputError: for an unknown size, presets of several sizes, a family whose file sets
                what a size sets, an override that has no whole number in its ratio, and arms that
                do not fit at that size.

        Example:
            >>> Study.from_json(QUICK).at(size="small", steps=3000).name
            'quick-small-3000-steps'
        """
        fields = sizes.at(self.to_dict(), size, steps)
        try:
            study = type(self).from_dict(fields)
        except InputError as error:
            where = "" if size is None else f"at size {size}: "
            raise InputError(f"{where}{error}") from None
        return study._beside(self.tuning.folder if self.tuning else ".")

    def _beside(self, folder):
        """The study, whose tuning looks for its file of records in a folder."""
        if not (self.tuning and self.tuning.records):
            return self
        found = dataclasses.replace(self.tuning, folder=folder)
        return dataclasses.replace(self, tuning=found)

    def to_dict(self) -> dict[str, Any]:
        """JSON of everything that the study says, defaults filled in."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arms = {
            label: {
                **{"preset": arm.preset, "overrides": arm.overrides, "data": list(arm.data)},
                **({"training": arm.training} if arm.training else {}),
                **({"tokenizer": arm.tokenizer} if arm.tokenizer != self.tokenizer else {}),
            }
            for label, arm in self.arms.items()
        }
        fields |= {"arms": arms, "data": list(self.data), "seeds": list(self.seeds)}
        fields |= {name: list(getattr(self, name)) for name in ("looks", "metrics", "imports")}
        fields["hypotheses"] = [hypothesis.to_dict() for hypothesis in self.hypotheses]
        fields["tuning"] = self.tuning.to_dict() if self.tuning else None
        # Fields that came later stand only where they say something: older studies stay equal.
        for field in ("given", "hypotheses", "tuning", "looks", "excluded", "metrics", "examples"):
            if not fields[field]:
                del fields[field]
        if not self.imports:
            del fields["imports"]
        if self.packing is None:
            del fields["packing"]
        of_later = ("budget", "failed_runs", "optimizer", "schedule", "warmup", "tokenizer")
        for field in of_later:
            if fields[field] == type(self).__dataclass_fields__[field].default:
                del fields[field]
        return fields

    def training(self, arm: Arm, source: str | None = None) -> dict[str, Any]:
        """The training fields of an `Arm`, on a source where a tuning chose some: a dict."""
        fields = {name: getattr(self, name) for name in TRAINING}
        fields |= {**arm.training, **arm.chosen.get(source, {})}
        if fields["learning_rate"] is None:
            fields["learning_rate"] = learning_rate(arm.config(self.seeds[0])["hidden_dim"])
        return fields

    def rate(self, arm: Arm, source: str | None = None) -> float:
        """The peak of the schedule of an `Arm`, on a source where a tuning chose it."""
        return self.training(arm, source)["learning_rate"]

    def steps_of(self, arm: Arm, source: str) -> int:
        """The optimizer steps of an `Arm` on a source."""
        return arm.steps.get(source, self.steps)

    def runs(self) -> list[tuple[str, str, Arm]]:
        """(data, label, arm) of every program, in order; each runs once per seed."""
        return [
            (source, label, arm)
            for source in self.data
            for label, arm in self.arms.items()
            if source in arm.data
        ]


def measure(objective, source, tokenizer=tokenizer_spec.BYTES):
    """What held-out bits of an objective count, and the group within which they compare.

    Bits of a text compare whatever its tokens are. Those of hidden tokens and spans compare where
    the same are hidden, which needs the same tokenizer.

    Returns:
        (measure, group): two strings.
    """
    objective = objectives.get(objective)
    unit = "bits per byte of target" if objective.has_source else "bits per byte"
    unit = unit if objective.next_token else "bits per masked byte"
    unit = unit if objective.labels is None else "bits per label"
    names = {
        "causal_lm": "every next byte",
        "prefix_lm": "continuation",
        "masked_lm": "masked bytes",
    }
    group = names.get(objective.name, objective.name)
    if tokenizer != tokenizer_spec.BYTES and objective.name not in ("causal_lm", "prefix_lm"):
        group += f" ({tokenizer_spec.text(tokenizer)})"
    return unit, f"{group} on {source}"


def _group(config, source):
    return measure(config["objective"], source, config["tokenizer"])[1]


def _settings(config, of_study, arm):
    """The fields in which an arm may differ: of its config, its training and its tokenizer."""
    fields = {**config, **of_study, **arm.training}
    own = arm.tokenizer != tokenizer_spec.BYTES
    return {**fields, "tokenizer": arm.tokenizer} if own else fields


# Fields ---------------------------------------------------------------------------------------


def _later(field, value):
    """Checked when the arms are known."""
    return value


_CHECKS = {
    "arms": kinds.mapping,
    "data": kinds.sources,
    "steps": kinds.count,
    "seeds": kinds.seeds,
    "name": kinds.folder_name,
    "description": kinds.text,
    **CHECKS_OF_TRAINING,
    "valid": kinds.share,
    "tokenizer": kinds.tokenizer,
    "evaluations": kinds.count,
    "packing": kinds.rows,
    "given": kinds.given,
    "imports": modules.imports,
    "budget": protocol.budget,
    "looks": protocol.looks,
    "failed_runs": protocol.failed_runs,
    "excluded": kinds.reasons,
    "metrics": protocol.metrics,
    "examples": kinds.switch,
    "tuning": _later,
    "hypotheses": _later,
}


def _arms(arms, data, tokenizer):
    return {_label(label): _arm(label, arm, data, tokenizer) for label, arm in arms.items()}


def _label(label):
    if isinstance(label, str) and label.strip() and label.isprintable():
        return label
    raise InputError(f"the label of an arm is a line of text. Received: {shown(label)}")


def _arm(label, arm, data, tokenizer):
    if isinstance(arm, str):
        arm = {"preset": arm}
    if not isinstance(arm, dict) or "preset" not in arm:
        raise InputError(f"the arm {label!r} is an object with a preset. Received: {shown(arm)}")
    for field in arm:
        if field not in ARM_FIELDS:
            raise unknown("field of an arm", field, ARM_FIELDS)
    if presets.kind(arm["preset"]) != "preset":
        raise InputError(
            "the arms of a study start from random weights, those of a preset; kzoo train --from "
            f"starts from others. Received: preset={shown(arm['preset'])} of the arm {label!r}"
        )
    own = kinds.sources("data", arm.get("data", list(data)))
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
    if "tokenizer" in arm:
        tokenizer = kinds.tokenizer(f"the tokenizer of {label!r}", arm["tokenizer"])
    training = _training(label, arm.get("training", {}))
    return Arm(arm["preset"], overrides, own, training, tokenizer=tokenizer)


def _check_different(arms, configs):
    """`InputError` for two arms that are one: the same model, trained in the same way."""
    for (a, first), (b, second) in itertools.combinations(arms.items(), 2):
        same = configs[a] == configs[b] and first.tokenizer == second.tokenizer
        if not same or first.training != second.training or not set(first.data) & set(second.data):
            continue
        fields = ", ".join({**first.overrides, **second.overrides})
        told = f"; {fields}, which overrides name, is the same in both" if fields else ""
        raise InputError(
            f"the arms {a!r} and {b!r} are the same model, trained in the same way{told}. Give "
            "one of them another value of a field, such as mechanism or mask in its overrides, or "
            f"learning_rate in its training. Received: {first.preset} with "
            f"{shown(first.overrides)}, and {second.preset} with {shown(second.overrides)}"
        )


def _training(label, fields):
    """The training fields of an arm, checked."""
    if not isinstance(fields, dict):
        raise InputError(
            f"training of the arm {label!r} is a JSON object of {', '.join(TRAINING)}. "
            f"Received: {shown(fields)}"
        )
    for field in fields:
        if field not in TRAINING:
            raise unknown(f"training field of the arm {label!r}", field, TRAINING)
    return {name: CHECKS_OF_TRAINING[name](name, value) for name, value in fields.items()}
