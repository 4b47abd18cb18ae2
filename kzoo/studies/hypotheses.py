"""Hypotheses of a study: what it asks of its arms, stated as data before anything runs.

Every kind is one contrast of a metric, formed within each seed, so that one paired test serves all:

| kind | contrast of each seed |
|---|---|
| `difference`, `equivalence` | a − b |
| `interaction` | (a − b) − (c − d), the difference of two gaps |
| `trend` | the slope of the arms' values, or of their gaps, over the values of a factor |
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from kzoo.errors import InputError, unknown
from kzoo.values import is_count, is_number, plain, shown

KINDS = ("difference", "equivalence", "interaction", "trend")
SIGNS = {"+": 1, "-": -1, "0": 0}
SCALES = ("difference", "ratio")
LEAST_PAIRS = 5  # seeds, for a verdict


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One claim about arms, which a verdict confirms, refutes or leaves undecided.

    Attributes:
        name: of the hypothesis; a study has no two of one name.
        kind: `"difference"`, `"equivalence"`, `"interaction"` or `"trend"`.
        arms: labels of the study's arms. Of a difference or an equivalence `(a, b)`; of an
            interaction the two gaps `((a, b), (c, d))`; of a trend three labels or more, or as
            many gaps, in the order of the factor.
        question: what the hypotheses of one family ask together; Holm's correction goes over all
            hypotheses of a question. By default the name, a question of its own.
        metric: what is compared, of `kzoo.studies.metrics`: its name, e.g. `"bits"`, or JSON such
            as `{"steps_to": {"bits": 2.5}}`.
        sign: what is expected of the contrast: `"+"`, `"-"`, or `"0"`, nothing beyond the margin,
            which is what an equivalence always expects.
        margin: the largest contrast that does not matter, > 0, in the unit of the metric (of a
            trend: per unit of the factor); on the scale of ratios a factor > 1. `"0"` needs one.
        scale: `"difference"`; or `"ratio"`, in which a gap is log(a ÷ b), for gaps whose metrics
            do not compare, such as bits of masked and of next tokens.
        factor: of a trend, the name of what is varied, e.g. `"d_φ ÷ n"`.
        factor_values: of a trend, the factor of each entry of `arms`, increasing. The slope is per
            unit of these numbers: give logarithms for a slope per doubling.
        data: the source on which the arms are compared; "" where they share only one.
        differ_in: the fields of a config in which the arms differ, e.g. `["mask"]`; a study
            refuses arms that differ in another one.

    Raises:
        InputError: for a field of the wrong type, too few arms, an equivalence without a margin,
            and whatever else does not fit the kind.

    Example:
        >>> q1 = Hypothesis("Q1", "equivalence", ["UniLM", "GPT"], margin=0.03)
        >>> q1.labels, q1.weights
        (('UniLM', 'GPT'), {'UniLM': 1.0, 'GPT': -1.0})
    """

    name: str
    kind: str
    arms: tuple
    question: str = ""
    metric: Any = "bits"
    sign: str = ""
    margin: float | None = None
    scale: str = "difference"
    factor: str = ""
    factor_values: tuple = ()
    data: str = ""
    differ_in: tuple = ()

    def __post_init__(self):
        _check_text(self)
        keep = {
            "arms": _arms(self),
            "question": self.question or self.name,
            "sign": _sign(self),
            "factor_values": _factor_values(self),
            "differ_in": _differ_in(self),
        }
        for field, value in keep.items():
            object.__setattr__(self, field, value)
        _check_margin(self)

    @classmethod
    def from_dict(cls, fields):
        """A hypothesis from its JSON; `InputError` for an unknown or missing field."""
        if not isinstance(fields, Mapping):
            raise InputError(f"a hypothesis is a JSON object. Received: {shown(fields)}")
        valid = [field.name for field in dataclasses.fields(cls)]
        for field in fields:
            if field not in valid:
                raise unknown("field of a hypothesis", field, valid)
        for field in ("name", "kind", "arms"):
            if field not in fields:
                raise InputError(
                    f"a hypothesis needs the field {field!r}. Received: {shown(sorted(fields))}"
                )
        return cls(**plain(fields))

    def to_dict(self):
        """The shortest JSON from which `from_dict` makes the same hypothesis.

        Example:
            >>> Hypothesis("Q4", "difference", ["half heads", "BERT"], sign="-").to_dict()
            {'name': 'Q4', 'kind': 'difference', 'arms': ['half heads', 'BERT'], 'sign': '-'}
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        defaults |= {"question": self.name}
        if self.kind == "equivalence":
            defaults |= {"sign": "0"}
        return plain({name: value for name, value in fields.items() if value != defaults[name]})

    @property
    def hash(self):
        """16 hexadecimal digits, equal for equal hypotheses on every machine and version."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        filled = {name: value for name, value in plain(fields).items() if value not in ("", [])}
        return _digest(filled)

    @property
    def gaps(self):
        """The gaps `((a, b), ...)` that the contrast is formed of, `()` where it is of arms."""
        return self.arms if self.arms and isinstance(self.arms[0], tuple) else ()

    @property
    def labels(self):
        """The labels of the arms that take part, each once, in order: a tuple."""
        return tuple(self.weights)

    @property
    def weights(self):
        """Label -> weight of the arm in the contrast; the weights add up to 0.

        Example:
            >>> Hypothesis("size", "trend", ["s", "m", "l"], sign="-", factor="layers",
            ...            factor_values=[1, 2, 3]).weights
            {'s': -0.5, 'm': 0.0, 'l': 0.5}
        """
        entries = _slope(self.factor_values) if self.kind == "trend" else (1.0, -1.0)
        total = {}
        for weight, entry in zip(entries, self.arms, strict=True):
            pair = entry if isinstance(entry, tuple) else (entry,)
            for label, part in zip(pair, (weight, -weight), strict=False):
                total[label] = total.get(label, 0.0) + part
        return total

    @property
    def direction(self):
        """The expected sign as a number: 1, -1, or 0."""
        return SIGNS[self.sign]

    @property
    def delta(self):
        """The margin on the scale of the contrast, where ratios are logarithms; inf without one."""
        if self.margin is None:
            return math.inf
        return math.log(self.margin) if self.scale == "ratio" else float(self.margin)


def hypotheses(specs, arms):
    """The hypotheses of a study from its JSON.

    Args:
        specs: a list of JSON objects, or of `Hypothesis`.
        arms: labels of the study's arms.

    Returns:
        A tuple of `Hypothesis`, in order.

    Raises:
        InputError: if one is no hypothesis, two have the same name, or an arm is not the study's.

    Example:
        >>> spec = {"name": "Q4", "kind": "difference", "arms": ["half", "BERT"], "sign": "-"}
        >>> hypotheses([spec], ["BERT", "half"])[0].question
        'Q4'
    """
    if not isinstance(specs, list | tuple) or not specs:
        raise InputError(
            f"hypotheses are a list of JSON objects, one or more. Received: {shown(specs)}"
        )
    found = tuple(
        spec if isinstance(spec, Hypothesis) else Hypothesis.from_dict(spec) for spec in specs
    )
    names = [hypothesis.name for hypothesis in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"each hypothesis has a name of its own. Received twice: {name!r}")
    for hypothesis in found:
        for label in hypothesis.labels:
            if label not in arms:
                raise unknown(f"arm of the hypothesis {hypothesis.name!r}", label, arms)
    return found


def hashes(found):
    """Name -> hash of each hypothesis, for a run's record.

    A hypothesis that is missing in a record, or has another hash there, was stated or changed
    after the run: it is post hoc.
    """
    return {hypothesis.name: hypothesis.hash for hypothesis in found}


def fingerprint(found):
    """One hash of all hypotheses of a study, whatever their order: 16 hexadecimal digits."""
    return _digest(hashes(found))


def check_looks(looks):
    """`InputError` unless looks are increasing numbers of pairs, at least 5."""
    fits = isinstance(looks, list | tuple) and len(looks) > 0
    fits = fits and all(is_count(look, least=LEAST_PAIRS) for look in looks)
    if not fits or sorted(set(looks)) != list(looks):
        raise InputError(
            f"looks are increasing numbers of paired seeds, at least {LEAST_PAIRS}, such as "
            f"[5, 10, 20]. Received: {shown(looks)}"
        )


def _digest(value):
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _slope(values):
    """Weights w with Σ w·y the least-squares slope of y over the values."""
    mean = sum(values) / len(values)
    total = sum((value - mean) ** 2 for value in values)
    return [(value - mean) / total for value in values]


# Checks ---------------------------------------------------------------------------------------


def _check_text(hypothesis):
    for field in ("name", "metric"):
        value = getattr(hypothesis, field)
        if field == "metric" and isinstance(value, Mapping):
            continue  # JSON of a metric, which the study looks up
        if not (isinstance(value, str) and value.strip() and value.isprintable()):
            raise InputError(
                f"the {field} of a hypothesis is a line of text. Received: {shown(value)}"
            )
    for field in ("question", "factor", "data"):
        value = getattr(hypothesis, field)
        if not (isinstance(value, str) and value.isprintable()):
            raise _wrong(hypothesis, f"has a {field} that is a line of text", value)
    for field, valid in (("kind", KINDS), ("scale", SCALES)):
        value = getattr(hypothesis, field)
        if value not in valid:
            raise unknown(f"{field} of the hypothesis {hypothesis.name!r}", value, valid)
    if hypothesis.scale == "ratio" and hypothesis.kind in ("difference", "equivalence"):
        raise _wrong(
            hypothesis, "compares arms by 'difference'; 'ratio' is for gaps", hypothesis.scale
        )


def _is_label(value):
    return isinstance(value, str) and bool(value)


def _arms(hypothesis):
    """The arms as tuples, or `InputError` where they do not fit the kind."""
    given, kind = hypothesis.arms, hypothesis.kind
    entries = [
        tuple(entry) if isinstance(entry, list | tuple) else entry
        for entry in (given if isinstance(given, list | tuple) else ())
    ]
    labels = all(_is_label(entry) for entry in entries)
    pairs = all(
        isinstance(entry, tuple)
        and len(entry) == 2
        and all(_is_label(label) for label in entry)
        and entry[0] != entry[1]
        for entry in entries
    )
    of_gaps = hypothesis.scale == "ratio"
    fits = {
        "interaction": pairs and len(entries) == 2,
        "trend": (pairs or labels and not of_gaps) and len(entries) >= 3,
    }.get(kind, labels and len(entries) == 2)
    if fits and len(set(entries)) == len(entries):
        return tuple(entries)
    takes = {
        "interaction": "takes two different gaps, such as [['a', 'b'], ['c', 'd']]",
        "trend": "takes three or more different "
        + ("gaps, such as ['a', 'b']" if of_gaps else "arms, or gaps such as ['a', 'b']"),
    }.get(kind, "takes two different arms, such as ['a', 'b']")
    raise _wrong(hypothesis, takes, given)


def _sign(hypothesis):
    sign = hypothesis.sign
    if hypothesis.kind == "equivalence":
        if sign in ("", "0"):
            return "0"
        raise _wrong(hypothesis, "is an equivalence, which expects no sign", sign)
    if isinstance(sign, str) and sign in SIGNS:
        return sign
    raise _wrong(hypothesis, "needs the expected sign, '+', '-' or '0'", sign)


def _check_margin(hypothesis):
    margin, least = hypothesis.margin, 1 if hypothesis.scale == "ratio" else 0
    if margin is None and hypothesis.sign == "0":
        unit = "a factor above 1, such as 1.05" if least else "such as 0.03 bits"
        raise _wrong(hypothesis, f"expects equivalence, which needs a margin, {unit}", margin)
    if margin is not None and not (is_number(margin) and margin > least):
        raise _wrong(hypothesis, f"has a margin above {least}", margin)


def _factor_values(hypothesis):
    values, entries = hypothesis.factor_values, hypothesis.arms
    if hypothesis.kind != "trend":
        if hypothesis.factor or len(values):
            raise _wrong(hypothesis, "is no trend and has no factor", hypothesis.factor or values)
        return ()
    if not hypothesis.factor:
        raise _wrong(hypothesis, "is a trend, which names its factor", hypothesis.factor)
    numbers = isinstance(values, list | tuple) and all(is_number(value) for value in values)
    if not numbers or len(values) != len(entries) or sorted(set(values)) != list(values):
        what = f"has {len(entries)} increasing factor_values, one for each entry of its arms"
        raise _wrong(hypothesis, what, values)
    return tuple(values)


def _differ_in(hypothesis):
    fields = hypothesis.differ_in
    if isinstance(fields, list | tuple) and all(_is_label(field) for field in fields):
        if len(set(fields)) == len(fields):
            return tuple(sorted(fields))
    raise _wrong(hypothesis, "has a list of config fields in differ_in, such as ['mask']", fields)


def _wrong(hypothesis, what, received):
    return InputError(f"the hypothesis {hypothesis.name!r} {what}. Received: {shown(received)}")
