"""The synthetic tasks against their published rules, told again here."""

import collections
import itertools
import json
import pickle

import numpy as np
import pytest

import kzoo
from kzoo import objectives
from kzoo.data import tasks
from kzoo.data.tasks import regression
from kzoo.encoder import Encoder
from kzoo.errors import InputError

COUNT = 2000
BUILT_IN = (
    "copy",
    "copy_varying",
    "reverse",
    "sort",
    "selective_copy",
    "addition",
    "induction",
    "mapping",
    "mqar",
    "capacity",
    "linear_regression",
)
PARTLY = ("mqar", "capacity", "linear_regression")


def pairs(name, **fields):
    return tasks.get({name: {"count": COUNT, **fields}}).pairs()


def evenly(counts, cells):
    """Whether counts of equally likely cells are within five standard deviations of even."""
    mean = sum(counts.values()) / cells
    assert len(counts) == cells
    assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5, counts


@pytest.mark.parametrize("name", BUILT_IN)
def test_sources_are_distinct_and_the_same_each_time(name):
    found = pairs(name)
    assert len({source for source, _ in found}) == COUNT
    assert found == pairs(name)
    assert found[:100] == pairs(name, count=100)


@pytest.mark.parametrize("name", ["copy_varying", "reverse", "sort"])
def test_varying_lengths(name):
    answer = {"copy_varying": str, "reverse": lambda x: x[::-1], "sort": lambda x: sorted(x)}[name]
    found = pairs(name, least=3, most=7)
    assert all(target == "".join(answer(source)) for source, target in found)
    evenly(collections.Counter(len(source) for source, _ in found), 5)


def test_selective_copy():
    found = pairs("selective_copy", length=10, symbols=3)
    for source, target in found:
        assert len(source) == 10 and source.replace(".", "") == target and len(target) == 3
    where = (i for source, _ in found for i, symbol in enumerate(source) if symbol != ".")
    evenly(collections.Counter(where), 10)


def test_addition():
    for (source, target), (_, backwards) in zip(
        pairs("addition"), pairs("addition", reverse=True), strict=True
    ):
        a, b = map(int, source.split("+"))
        assert str(a + b) == target == backwards[::-1]
    assert max(len(source.split("+")[0]) for source, _ in pairs("addition")) == 4
    assert len(pairs("addition", count=100, digits=1)) == 100  # all there are


def test_induction():
    found = pairs("induction", length=8)
    for source, target in found:
        first = source.index("#")
        assert source.count("#") == 2 and source[-1] == "#" and source[first + 1] == target
        assert len(source) == 10
    evenly(collections.Counter(source.index("#") for source, _ in found), 8)


def test_mapping_by_recall():
    for source, target in pairs("mapping", shots=4):
        *shown, asked = source.split(" ")
        assert len(shown) == 4 == len({pair[0] for pair in shown})
        assert target == dict(shown)[asked]


def test_mapping_by_rule():
    symbols = "abcdefghijklmnopqrstuvwxyz012345"
    distance = lambda a, b: (symbols.index(b) - symbols.index(a)) % len(symbols)  # noqa: E731
    for source, target in pairs("mapping", shots=3, rule="shift"):
        *shown, asked = source.split(" ")
        assert asked not in {pair[0] for pair in shown}
        assert {distance(*pair) for pair in shown} == {distance(asked, target)} != {0}


@pytest.mark.parametrize("name", BUILT_IN)
def test_endless_from_a_seed(name):
    task = tasks.get(name)
    first = lambda seed: list(itertools.islice(task.endless(seed), 50))  # noqa: E731
    assert first(3) == first(3) != first(4)
    assert list(dict(first(0)).items()) == pairs(name, count=50)[: len(dict(first(0)))]


@pytest.mark.parametrize("passes", [1, 2])
def test_mqar(passes):
    found = pairs("mqar", length=24, num_pairs=3, num_passes=passes)
    slots = collections.Counter()
    for source, target in found:
        once = source[: len(source) // passes]
        assert source == once * passes and len(source + target) == 24
        known = dict(zip(once[::2], once[1::2], strict=True))
        assert len(known) == len({*known.values()}) == 3
        assert all(key.isalpha() for key in known)
        assert not any(value.isalpha() for value in known.values())
        # Each key stands in a slot once, before its value, and nothing else is scored.
        assert [known[target[i - 1]] for i in target.scored] == [target[i] for i in target.scored]
        assert {target[i - 1] for i in target.scored} == {*known}
        slots.update((list(known).index(target[i - 1]), i // 2) for i in target.scored)
    # As zoology draws the slots of the keys in turn, by NumPy's choice without replacement.
    count = (24 - 6 * passes) // 2
    p = np.arange(1, count + 1) ** (0.01 - 1)
    p, rng = p / p.sum(), np.random.default_rng(0)
    drawn = [rng.choice(count, 3, replace=False, p=p) for _ in range(COUNT)]
    theirs = collections.Counter((key, slot) for row in drawn for key, slot in enumerate(row))
    for cell in theirs | slots:
        assert abs(theirs[cell] - slots[cell]) < 5 * (theirs[cell] + slots[cell]) ** 0.5, cell


def test_mqar_with_even_distances():
    found = pairs("mqar", length=16, num_pairs=2, power=1.0)
    evenly(collections.Counter(i for _, target in found for i in target.scored), 6)


def test_capacity():
    asked = collections.Counter()
    for source, target in pairs("capacity", symbols=5, queries=2):
        known = dict(zip(source[::2], source[1::2], strict=True))
        assert {*known} == {*"abcde"} and {*known.values()} == {*"01234"}
        assert target[1::2] == known[target[0]] + known[target[2]] and target[0] != target[2]
        assert target.scored == (1, 3)
        asked.update(source.index(key) for key in target[::2])
    evenly(asked, 5)


def test_capacity_with_updates():
    replaced = 0
    for source, target in pairs("capacity", symbols=6, updates=True):
        assert len(source) == 24 and len(target) == 2 and target.scored == (1,)
        assert target[1] == source[source.rindex(target[0]) + 1]
        replaced += target[1] != source[source.index(target[0]) + 1]
    assert 0.3 * COUNT < replaced < 0.9 * COUNT


def test_linear_regression():
    symbols = "abcdefghijklmnopqrstuvwxyz012345"
    number = lambda text: np.array([6 * symbols.index(c) / 31 - 3 for c in text])  # noqa: E731
    task = tasks.get({"linear_regression": {"count": 1500}})
    spread, errors, answers = [], [], []
    for source, target in task.pairs():
        points = [number(point) for point in f"{source} {target}".split(" ")]
        assert len(points) == 7 and all(len(point) == 4 for point in points)
        x, y = np.array(points)[:, :3], np.array(points)[:, 3]
        assert "".join(target[i] for i in target.scored) == target.replace(" ", "")[3::4]
        spread.append(x)
        answers.append(y[3:])
        errors.append(y[3:] - task.least_squares(source, target))
        normal = np.linalg.pinv(x.T @ x) @ x.T @ y  # of all points: they lie on one plane
        assert abs(x @ normal - y).max() < 6 / 31
    assert abs(np.std(spread) - 1) < 0.02 and abs(np.mean(spread)) < 0.03
    assert 0.8 < np.mean(np.square(answers)) < 1.0  # 1, less what lies beyond the levels
    # The more points, the smaller the error, down to that of rounding.
    medians = np.median(np.square(errors), axis=0)
    assert medians[0] > medians[1] > medians[3] and medians[3] < 0.05


def test_squared_errors_of_a_model_that_knows():
    """One that is certain of each answer errs nowhere; one that says zero, as the answers do."""
    splits = load("gpt_nano", "linear_regression")
    x, y, weight = splits.valid[0]
    certain = np.where(np.arange(384) == y[..., None], 50.0, 0.0)
    errors = regression.squared_errors(certain, y, weight)
    assert errors.shape == (8, 4) and errors.max() < 1e-6
    even = regression.squared_errors(np.zeros_like(certain), y, weight)
    letters = [chr(i) for i in y[weight > 0]]
    np.testing.assert_allclose(even.ravel(), regression.numbers("".join(letters)) ** 2)
    x, y, weight = load("gpt_nano", "copy").valid[0]
    with pytest.raises(InputError, match="Received: the label 258"):  # an end
        regression.squared_errors(np.zeros((*y.shape, 384)), y, weight)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_task_is_a_source(name):
    scored = {preset: scored_of(preset, name) for preset in ("gpt_nano", "unilm_nano", "t5_nano")}
    assert scored["gpt_nano"] == scored["unilm_nano"] == scored["t5_nano"]
    answers = {answer_of(target) for _, target in tasks.get({name: {"count": 200}}).pairs()}
    assert {*scored["gpt_nano"]} <= answers


def scored_of(preset, name):
    """What a model of a preset is scored on in the first batch of a task, an end token left out."""
    splits = load(preset, name)
    assert splits.facts["train_rows"] >= 100 and splits.facts["valid_rows"] >= 20
    assert splits.facts["cut_rows"] == 0
    _, y, weight = splits.train[0]
    ends = ((y == 258) & (weight > 0)).sum(1)
    assert (ends == (name not in PARTLY)).all()
    rows = zip(y, weight, strict=True)
    return [bytes(i for i in ids[w > 0].tolist() if i < 256).decode() for ids, w in rows]


def answer_of(target):
    return "".join(target[i] for i in getattr(target, "scored", range(len(target))))


def load(preset, name):
    config = {**kzoo.presets.config(preset), "objective": "prefix_lm"}
    source = {"synthetic": {"task": {name: {"count": 200}}}}
    return kzoo.data.load(source, config, batch_size=8, valid=0.2)


def test_partly_scored_texts():
    answer = tasks.PartlyScored("é1x2", scored=[3, 1])
    again = pickle.loads(pickle.dumps(answer))
    assert again == "é1x2" == json.loads(json.dumps(answer)) and again.scored == (1, 3)
    for scored in ([], [4], [-1]):
        with pytest.raises(InputError, match="indices of the 4 characters"):
            tasks.PartlyScored("é1x2", scored=scored)
    encoder = Encoder(objectives.get("prefix_lm"))

    def batch(texts):
        sources = encoder.tokens(["q"] * len(texts))
        return encoder.batch(sources, encoder.tokens(texts), 12)[1:]

    y, weight = batch([answer, "ab", tasks.PartlyScored("cd", scored=[0, 1])])
    assert bytes(y[0][weight[0] > 0].tolist()) == b"12"
    # What is scored whole ends with a scored end.
    assert weight[1].sum() == weight[2].sum() == 3
    with pytest.raises(InputError, match="predicted as next tokens"):
        Encoder(objectives.get("masked_lm")).batch(
            None, encoder.tokens([answer]), 12, np.random.default_rng(0)
        )


def test_a_token_is_scored_if_one_of_its_characters_is():
    class Twos:
        vocabulary = Encoder(objectives.get("prefix_lm")).vocabulary

        @staticmethod
        def encode(texts):
            return [
                np.array([[1, 2], [2, 2], [3, 1]])[: -(-len(text.encode()) // 2)] for text in texts
            ]

    encoder = Encoder(objectives.get("prefix_lm"), tokenizer=Twos)
    (tokens,) = encoder.tokens([tasks.PartlyScored("é1x2", scored=[2])])
    assert tokens.tolist() == [[1, 2, 0], [2, 2, 1], [3, 1, 0]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"copy_varying": {"least": 5, "most": 4}}, "least is at most `most`"),
        ({"sort": {"least": 1, "most": 1}}, "at most"),
        ({"reverse": {"count": 0}}, "count of the task 'reverse' is a positive integer"),
        ({"selective_copy": {"symbols": 40}}, "among the `length`"),
        ({"addition": {"digits": 1}}, "100 different sources"),
        ({"addition": {"digits": 2.5}}, "digits of the task 'addition' is a positive integer"),
        ({"induction": {"length": True}}, "length of the task 'induction'"),
        ({"mapping": {"rule": "swap"}}, "'random' or 'shift'"),
        ({"mapping": {"shots": 32}}, "fewer than its 32 symbols"),
        ({"mqar": {"length": 31}}, "an even number, at least 2"),
        ({"mqar": {"length": 30}}, "= 32. Received: 30"),
        ({"mqar": {"length": 400, "num_pairs": 43}}, "num_pairs of the task 'mqar' is at most 42"),
        ({"mqar": {"power": 0}}, "power of the task 'mqar' is a number above 0"),
        ({"mqar": {"num_passes": 0}}, "num_passes of the task 'mqar' is a positive integer"),
        ({"capacity": {"symbols": 50}}, "symbols of the task 'capacity' is at most 42"),
        ({"capacity": {"symbols": 3, "queries": 4}}, "different keys of a source, at most 3"),
        ({"capacity": {"updates": True, "queries": 2}}, "at most 1 here"),
        ({"capacity": {"updates": "yes"}}, "updates of the task 'capacity' is true or false"),
        ({"capacity": {"symbols": 3}}, "36 different sources"),
        ({"linear_regression": {"dimensions": 1, "shots": 2}}, "about 400 sources"),
        ({"linear_regression": {"shots": 0}}, "shots of the task 'linear_regression'"),
        ({"mapping": {"shot": 3}}, "did you mean 'shots'"),
        ("revers", "did you mean 'reverse'"),
    ],
)
def test_bad_fields(spec, message):
    with pytest.raises(InputError, match=message):
        tasks.get(spec)
