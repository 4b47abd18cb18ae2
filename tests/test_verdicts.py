"""Hypotheses as data, and the sentences of their verdicts."""

import json
import math

import numpy as np
import pytest

from kzoo.errors import InputError
from kzoo.studies.hypotheses import Hypothesis, fingerprint, hashes, hypotheses
from kzoo.studies.verdicts import ArmFacts, Evidence, verdicts

ARMS = ("GPT", "GPT linear", "UniLM", "BERT", "BERT linear")
Q1 = {"name": "Q1", "kind": "equivalence", "arms": ["UniLM", "GPT"], "margin": 0.03}
Q4 = {"name": "Q4", "kind": "difference", "arms": ["UniLM", "GPT"], "sign": "-"}
GAPS = [["BERT linear", "BERT"], ["GPT linear", "GPT"]]
Q5 = {"name": "Q5", "kind": "interaction", "arms": GAPS, "sign": "+", "scale": "ratio"}
TREND = {"name": "depth", "kind": "trend", "arms": ["GPT", "UniLM", "BERT"], "sign": "-"}
TREND |= {"factor": "layers", "factor_values": [1, 2, 4]}
SPREAD = np.array([0.010, -0.020, 0.005, 0.015, -0.010, 0.0, 0.008, -0.008, 0.012, -0.012])
GRID = (0.001, 0.003, 0.01, 0.03)


def runs(*means, pairs=6, noise=SPREAD):
    """Arm -> {seed: value}; the first arm's contrast to the others has the spread of `noise`."""
    noise = noise[:pairs] - noise[:pairs].mean()
    return {
        arm: {seed: mean + (noise[seed] if k == 0 else 0.0) for seed in range(pairs)}
        for k, (arm, mean) in enumerate(means)
    }


def verdict(spec, values, *, looks=(), failed_runs="undecided", **evidence):
    item = Evidence(Hypothesis.from_dict(spec), values, **evidence)
    return verdicts([item], looks=looks, failed_runs=failed_runs)[0]


# Hypotheses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Q1, Q4, Q5, TREND, {**Q5, "sign": "0", "margin": 1.05}])
def test_hypotheses_are_json_both_ways(spec):
    found = Hypothesis.from_dict(json.loads(json.dumps(spec)))
    assert found.to_dict() == spec
    assert found == Hypothesis.from_dict(found.to_dict())
    assert sum(found.weights.values()) == pytest.approx(0)
    assert hash(found) and found.question == spec["name"]


def test_hashes_are_stable_and_tell_changes():
    a, b = (Hypothesis.from_dict(spec) for spec in (Q1, Q4))
    assert a.hash == "8a091ae36f9a8167"
    assert fingerprint([a, b]) == fingerprint([b, a]) != fingerprint([a])
    assert hashes([a]) == {"Q1": a.hash}
    changed = [{**Q1, "margin": 0.031}, {**Q1, "metric": "accuracy"}, {**Q1, "question": "other"}]
    assert len({a.hash, *(Hypothesis.from_dict(spec).hash for spec in changed)}) == 4
    assert Hypothesis.from_dict({**Q1, "question": "Q1", "scale": "difference"}).hash == a.hash


@pytest.mark.parametrize(
    "spec, message",
    [
        ([], "a hypothesis is a JSON object"),
        ({**Q1, "margins": 0.1}, "unknown field of a hypothesis; did you mean 'margin'?"),
        ({"name": "x", "kind": "trend"}, "needs the field 'arms'"),
        ({**Q1, "name": ""}, "the name of a hypothesis is a line of text"),
        ({**Q1, "name": 3}, "the name of a hypothesis is a line of text"),
        ({**Q1, "metric": None}, "the metric of a hypothesis is a line of text"),
        ({**Q1, "question": 1}, "has a question that is a line of text"),
        ({**Q1, "kind": "equal"}, "unknown kind of the hypothesis 'Q1'"),
        ({**Q1, "kind": ["trend"]}, "unknown kind of the hypothesis 'Q1'"),
        ({**Q1, "scale": "log"}, "unknown scale of the hypothesis 'Q1'"),
        ({**Q1, "scale": "ratio"}, "'ratio' is for gaps"),
        ({**Q1, "arms": ["UniLM"]}, "takes two different arms"),
        ({**Q1, "arms": ["UniLM", "UniLM"]}, "takes two different arms"),
        ({**Q1, "arms": "UniLM"}, "takes two different arms"),
        ({**Q1, "arms": ["UniLM", 3]}, "takes two different arms"),
        ({**Q1, "arms": GAPS}, "takes two different arms"),
        ({**Q5, "arms": ["GPT", "BERT"]}, "takes two different gaps"),
        ({**Q5, "arms": [GAPS[0], GAPS[0]]}, "takes two different gaps"),
        ({**Q5, "arms": [["GPT", "GPT"], GAPS[0]]}, "takes two different gaps"),
        ({**TREND, "arms": ["GPT", "UniLM"]}, "three or more different arms"),
        ({**TREND, "scale": "ratio"}, "three or more different gaps"),
        ({**TREND, "factor": ""}, "which names its factor"),
        ({**TREND, "factor_values": [1, 2]}, "has 3 increasing factor_values"),
        ({**TREND, "factor_values": [1, 2, 2]}, "has 3 increasing factor_values"),
        ({**TREND, "factor_values": [1, "2", 3]}, "has 3 increasing factor_values"),
        ({**Q4, "factor": "layers"}, "is no trend"),
        ({**Q1, "margin": None}, "expects equivalence, which needs a margin"),
        ({**Q5, "sign": "0"}, "needs a margin, a factor above 1"),
        ({**Q5, "margin": 0.9}, "has a margin above 1"),
        ({**Q1, "margin": -0.1}, "has a margin above 0"),
        ({**Q1, "margin": "0.1"}, "has a margin above 0"),
        ({**Q1, "margin": math.nan}, "has a margin above 0"),
        ({**Q1, "margin": True}, "has a margin above 0"),
        ({**Q1, "sign": "+"}, "an equivalence, which expects no sign"),
        ({**Q4, "sign": ""}, "needs the expected sign"),
        ({**Q4, "sign": 1}, "needs the expected sign"),
    ],
)
def test_what_is_no_hypothesis_is_refused_in_a_line(spec, message):
    with pytest.raises(InputError) as error:
        Hypothesis.from_dict(spec)
    assert message in str(error.value) and "Received: " in str(error.value)
    assert "\n" not in str(error.value)


def test_hypotheses_are_of_the_studys_arms_and_of_different_names():
    assert [h.name for h in hypotheses([Q1, Hypothesis.from_dict(Q5)], ARMS)] == ["Q1", "Q5"]
    with pytest.raises(InputError, match="unknown arm of the hypothesis 'Q1'; did you mean 'GPT'"):
        hypotheses([{**Q1, "arms": ["UniLM", "GPT2"]}], ARMS)
    with pytest.raises(InputError, match="a name of its own. Received twice: 'Q1'"):
        hypotheses([Q1, Q1], ARMS)
    with pytest.raises(InputError, match="hypotheses are a list"):
        hypotheses(Q1, ARMS)


# Sentences ------------------------------------------------------------------------------------


def test_the_sentence_of_an_equivalence():
    tuned = ArmFacts(rate=0.01, grid=GRID, tuning_seeds=5)
    found = verdict(
        Q1,
        runs(("UniLM", 2.503), ("GPT", 2.5)),
        facts={"UniLM": tuned, "GPT": tuned},
        setting="on continuations, at 300 steps",
    )
    assert found.sentence == (
        "UniLM against GPT on continuations, at 300 steps: equivalent within 0.03 bits "
        "(+0.003, 95% interval −0.011 to 0.017, 6 paired seeds; "
        "rate 0.01 chosen from {0.001, 0.003, 0.01, 0.03} on 5 other seeds)"
    )
    assert found.notes == ("The interval leaves out the uncertainty of choosing the rates.",)
    assert found.outcome == "equivalent" and found.level == 0.05 and found.pairs == 6
    assert found.p_equivalence < 0.025 < found.p and found.p_sign_flip is None
    assert json.loads(json.dumps(found.to_dict()))["hypothesis"] == Q1


@pytest.mark.parametrize(
    "spec, means, said",
    [
        (Q4, (2.25, 2.5), "confirmed, lower (−0.250 bits, 95% interval −0.264 to −0.236, 6 "),
        (Q4, (2.75, 2.5), "refuted, higher (+0.250 bits, 95% interval 0.236 to 0.264, 6 "),
        (Q4, (2.5, 2.5), "undecided; more than 10,000 paired seeds would decide it (+0.000 bits"),
        (Q4, (2.493, 2.5), "undecided; about 30 paired seeds would decide it (−0.007 bits"),
        ({**Q4, "margin": 0.3}, (2.25, 2.5), "different but within 0.3 bits (−0.250, "),
        ({**Q4, "margin": 0.1}, (2.25, 2.5), "confirmed, lower by more than 0.1 bits (−0.250, "),
        ({**Q4, "margin": 0.25}, (2.25, 2.5), "confirmed, lower (−0.250, "),
        ({**Q4, "margin": 0.03}, (2.5, 2.5), "equivalent within 0.03 bits (+0.000, "),
        (Q1, (2.52, 2.5), "undecided; different, but whether within 0.03 bits is open; about "),
        (Q1, (2.515, 2.5), "different but within 0.03 bits (+0.015, 95% interval 0.001 to 0.029"),
        (Q1, (2.6, 2.5), "refuted, higher by more than 0.03 bits (+0.100, "),
        (
            {**Q1, "margin": 0.01},
            (2.5, 2.5),
            "undecided; whether within 0.01 bits is open; about 20 paired seeds would decide it",
        ),
    ],
)
def test_every_outcome_has_its_words(spec, means, said):
    found = verdict(spec, runs(("UniLM", means[0]), ("GPT", means[1])))
    assert f"UniLM against GPT: {said}" in found.sentence


def test_an_interaction_is_said_in_bits_or_as_a_ratio():
    values = runs(("BERT linear", 3.72), ("BERT", 2.73), ("GPT linear", 2.98), ("GPT", 2.57))
    found = verdict({**Q5, "scale": "difference"}, values, setting="at 300 steps")
    assert found.sentence == (
        "The gap of BERT linear to BERT against the gap of GPT linear to GPT, at 300 steps: "
        "confirmed, higher (+0.990 against +0.410: +0.580 bits, 95% interval 0.566 to 0.594, "
        "6 paired seeds)"
    )
    found = verdict({**Q5, "margin": 1.3}, values)
    said = "within a factor of 1.3 (1.3626 against 1.1595: ratio 1.1752, 95% interval 1.1708"
    assert f"different but {said}" in found.sentence
    assert math.exp(found.estimate) == pytest.approx(3.72 / 2.73 / (2.98 / 2.57), rel=1e-4)
    flat = verdict({**Q5, "sign": "0", "margin": 1.1}, runs(*((arm, 2.5) for arm in values)))
    assert "equivalent within a factor of 1.1 (1.0000 against 1.0000: ratio 1.0000" in flat.sentence


def test_a_trend_is_said_per_unit_of_its_factor():
    values = runs(("GPT", 2.9), ("UniLM", 2.7), ("BERT", 2.3))
    found = verdict(TREND, values)
    assert found.sentence == (
        "GPT, UniLM and BERT over layers: confirmed, falling "
        "(−0.2000 bits per unit of layers, 95% interval −0.2039 to −0.1961, 6 paired seeds)"
    )
    other = verdict({**TREND, "metric": "final_accuracy", "sign": "+"}, values)
    assert "BERT over layers in final accuracy: refuted, falling" in other.sentence


def test_rounding_never_contradicts_the_outcome():
    noise = SPREAD[:6] - SPREAD[:6].mean()
    half = 2.570581836 * noise.std(ddof=1) / 6**0.5
    found = verdict(Q4, runs(("UniLM", 2.5 - half - 1e-6), ("GPT", 2.5)))
    assert found.outcome == "confirmed" and "to −0.000001," in found.sentence


def test_a_question_shares_its_level_and_others_have_their_own():
    values = runs(("GPT", 2.5), ("UniLM", 2.502), ("BERT", 2.501), pairs=10)
    specs = [
        {**Q1, "question": "prefix"},
        {**Q1, "name": "Q1b", "arms": ["BERT", "GPT"], "question": "prefix"},
        {**Q4, "arms": ["GPT", "BERT"]},
    ]
    evidence = [Evidence(Hypothesis.from_dict(spec), values) for spec in specs]
    found = verdicts(evidence)
    assert [v.level for v in found] == [0.025, 0.025, 0.05]
    assert [v.hypothesis.name for v in found] == ["Q1", "Q1b", "Q4"]
    assert "97.5% interval" in found[0].sentence
    looks = verdicts(evidence, looks=[5, 10, 20])
    assert [v.level for v in looks] == pytest.approx([0.0125 / 2, 0.0125 / 2, 0.0125])
    assert "99.375% interval" in looks[0].sentence


def test_rates_are_said():
    values = runs(("UniLM", 2.503), ("GPT", 2.5))

    def rates(unilm, gpt):
        facts = {"UniLM": unilm, "GPT": gpt}
        return verdict(Q1, values, facts=facts).sentence.partition("seeds; ")[2][:-1]

    low, high = ArmFacts(rate=0.003, grid=GRID, tuning_seeds=5), ArmFacts(0.01, GRID, 5)
    grid = "{0.001, 0.003, 0.01, 0.03}"
    assert rates(ArmFacts(rate=0.01), ArmFacts(rate=0.01)) == "untuned, rate 0.01"
    assert rates(ArmFacts(rate=0.01), ArmFacts(rate=0.1)) == "untuned, rates: UniLM 0.01, GPT 0.1"
    assert rates(low, high) == (
        f"rates chosen from {grid} on 5 other seeds, each arm its own: UniLM 0.003, GPT 0.01"
    )
    wide = ArmFacts(0.01, (*GRID, 0.1), 5, widened=2)
    assert rates(wide, high) == (
        "rate 0.01 chosen from {0.001, 0.003, 0.01, 0.03, 0.1} on 5 other seeds (UniLM) and "
        f"{grid} on 5 other seeds (GPT)"
    )
    assert (
        rates(ArmFacts(0.01), high)
        == f"rate 0.01 chosen from {grid} on 5 other seeds (GPT), UniLM untuned"
    )


# Doubts ---------------------------------------------------------------------------------------


def test_failed_runs_leave_a_hypothesis_undecided_with_the_finished_ones_beside_it():
    values = runs(("UniLM", 2.25), ("GPT", 2.5), pairs=10)
    values["GPT"][3] = math.nan
    values["UniLM"][4] = None
    del values["UniLM"][9]
    facts = {"GPT": ArmFacts(stalled=(7,))}
    found = verdict(Q4, values, facts=facts)
    assert found.outcome == "undecided" and found.finished_runs == "confirmed"
    assert (
        "undecided, since runs failed or stalled; the others alone: confirmed, lower (−0.2"
        in str(found)
    )
    assert found.notes[0] == (
        "Failed runs: seed 4 of UniLM diverged; seed 9 of UniLM is missing; "
        "seed 3 of GPT diverged; seed 7 of GPT stalled."
    )
    kept = verdict(Q4, values, facts=facts, failed_runs="left out")
    assert kept.outcome == "confirmed" and kept.pairs == 6 and kept.notes[0] == found.notes[0]


def test_a_hypothesis_that_cannot_be_judged_still_counts_in_its_family():
    values = runs(("GPT", 2.5), ("UniLM", 2.502), ("BERT", 2.25))
    values["BERT"] |= {0: math.nan, 1: math.nan}
    specs = [{**Q1, "question": "all"}, {**Q4, "question": "all", "arms": ["BERT", "GPT"]}]
    first, second = verdicts([Evidence(Hypothesis.from_dict(spec), values) for spec in specs])
    assert first.level == second.level == 0.025
    assert first.outcome == "equivalent" and second.estimate is None


def test_too_few_finished_runs_are_no_estimate():
    values = runs(("UniLM", 2.25), ("GPT", 2.5))
    values["GPT"] |= {0: math.inf, 1: math.nan}
    found = verdict(Q4, values, failed_runs="left out")
    assert found.outcome == "undecided" and found.estimate is None and found.pairs == 4
    assert found.sentence.endswith("undecided, with fewer than 5 finished pairs (4 paired seeds)")


def test_excluded_runs_are_named_and_no_failure():
    facts = {"GPT": ArmFacts(excluded={2: "the machine was out of memory"})}
    found = verdict(Q4, runs(("UniLM", 2.25), ("GPT", 2.5)), facts=facts)
    assert found.outcome == "confirmed" and found.pairs == 5
    assert found.notes == ("GPT: seed 2 is excluded (the machine was out of memory).",)


def test_doubtful_arms_and_spreads_are_named():
    facts = {
        "UniLM": ArmFacts(0.03, GRID, 5, widened=1, at_edge=True, still_falling=True),
        "GPT": ArmFacts(0.03, GRID, 5, above_bigram=True),
        "BERT": ArmFacts(0.03, still_falling=True),  # of no arm of the hypothesis
    }
    noise = np.array([0.1] * 7 + [3.0])
    values = runs(("UniLM", 2.5), ("GPT", 2.5), pairs=8, noise=noise)
    found = verdict(Q4, values, facts=facts)
    assert found.outcome == "undecided"
    said = " ".join(found.notes)
    for words in (
        "The 8 paired contrasts are far from normal (Shapiro–Wilk p = ",
        "The sign-flip test has p = ",
        "UniLM: the rate chosen, 0.03, is at the edge of its grid.",
        "UniLM: the grid of rates was widened once.",
        "UniLM: the curves still fall steeply; the gap may be one of speed only.",
        "GPT: the loss stays above the bigram entropy of the data.",
    ):
        assert words in said
    assert "BERT" not in said


def test_the_sign_flip_test_stands_beside_the_interval():
    found = verdict(Q4, runs(("UniLM", 2.25), ("GPT", 2.5), pairs=8))
    assert found.p_sign_flip == 2 / 2**8
    assert "The sign-flip test has p = 0.0078." in found.notes
    strict = verdict(Q4, runs(("UniLM", 2.25), ("GPT", 2.5), pairs=8), looks=[8, 80])
    assert strict.level == pytest.approx(0.005)
    assert "whose least p is 0.0078, does not confirm the sign at this level" in strict.notes[0]


def test_equal_runs_are_equivalent_and_say_so():
    found = verdict(Q1, {arm: dict.fromkeys(range(5), 2.5) for arm in ("UniLM", "GPT")})
    assert found.outcome == "equivalent" and found.low == found.high == 0
    assert found.notes == ("All 5 paired contrasts are equal, to the last bit.",)


def test_post_hoc_is_said():
    assert str(verdict(Q1, runs(("UniLM", 2.5), ("GPT", 2.5)), post_hoc=True)).startswith(
        "Post hoc: "
    )


def test_what_cannot_be_judged_is_refused():
    values = runs(("UniLM", 2.5), ("GPT", 2.5), pairs=4)
    with pytest.raises(InputError, match="at least 5 paired seeds. Received: 4"):
        verdict(Q1, values)
    with pytest.raises(InputError, match=r"looks of \[5, 10\] seeds. Received: 6"):
        verdict(Q1, runs(("UniLM", 2.5), ("GPT", 2.5)), looks=[5, 10])
    with pytest.raises(InputError, match="unknown arm of the hypothesis 'Q1'"):
        verdict(Q1, {"UniLM": {}})
    with pytest.raises(InputError, match="unknown treatment of failed runs"):
        verdict(Q1, values, failed_runs="ignored")
    with pytest.raises(InputError, match="each hypothesis has one Evidence"):
        verdicts([Evidence(Hypothesis.from_dict(Q1), values)] * 2)
