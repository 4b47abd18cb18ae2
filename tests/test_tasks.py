"""The synthetic tasks against their published rules, told again here."""

import collections

import numpy as np
import pytest

import kzoo
from kzoo.data import tasks
from kzoo.errors import InputError

COUNT = 4000
BUILT_IN = (
    "copy",
    "copy_varying",
    "reverse",
    "sort",
    "selective_copy",
    "addition",
    "induction",
    "mapping",
)


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
def test_every_task_is_a_source(name):
    config = {"max_sequence_length": 64, "mask": "prefix", "objective": "prefix_lm"}
    source = {"synthetic": {"task": {name: {"count": 200}}}}
    splits = kzoo.data.load(source, config, batch_size=8, valid=0.2)
    assert splits.facts["train_rows"] >= 100 and splits.facts["valid_rows"] >= 20
    assert splits.facts["cut_rows"] == 0
    _, y, weight = splits.train[0]
    rows = zip(y, weight, strict=True)
    scored = [bytes(ids[w > 0][:-1].astype(np.uint8)).decode() for ids, w in rows]  # all but EOS
    assert {*scored} <= {target for _, target in tasks.get({name: {"count": 200}}).pairs()}


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
        ({"mapping": {"shot": 3}}, "did you mean 'shots'"),
        ("revers", "did you mean 'reverse'"),
    ],
)
def test_bad_fields(spec, message):
    with pytest.raises(InputError, match=message):
        tasks.get(spec)
