"""The reproductions of papers' tables: each run small, and their page against its records."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from keras import ops

from kzoo.studies import Study, run

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "reproductions"


@pytest.fixture(scope="module", autouse=True)
def beside():
    """Scripts import what stands beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


def script(name):
    spec = importlib.util.spec_from_file_location(f"reproduction_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def capacity():
    return script("capacity")


@pytest.mark.parametrize("updates", [False, True])
def test_what_memories_are_asked(capacity, updates):
    rng = np.random.default_rng(0)
    x, answers = capacity.examples(6, updates, 50, rng)
    assert x["keys"].shape == x["values"].shape == (50, 12 if updates else 6)
    for keys, values, query, answer in zip(*x.values(), answers, strict=True):
        assert answer == dict(zip(keys, values, strict=True))[query[0]]  # of equal keys the last
        assert updates or sorted(keys) == sorted(values) == [*range(6)]
    x, _ = capacity.examples(6, updates, 1, rng, all_queries=True)
    assert sorted(x["query"][:, 0]) == sorted({*x["keys"][0]})


@pytest.mark.parametrize("rule", ["softmax", "elu1", "delta"])
def test_memories_answer_as_the_papers_equations_do(capacity, rule):
    """In NumPy, pair by pair; one batch, no training."""
    model = capacity.Memory(5, rule, dim=4)
    x, _ = capacity.examples(5, True, 3, np.random.default_rng(1))
    found = ops.convert_to_numpy(model(x))
    of = lambda layer: [w.astype("float64") for w in layer.get_weights()]  # noqa: E731
    (embedded,), one_hot = of(model.embedding), np.eye(5)
    (wk, bk), (wq, bq), (wb, bb) = of(model.key), of(model.asked), of(model.beta)
    positive = lambda y: np.where(y > 0, y + 1, np.exp(y))  # noqa: E731
    for row in range(3):
        v, k = one_hot[x["values"][row]], embedded[x["keys"][row]]
        pairs = np.concatenate([v, k], axis=1)
        k, q = pairs @ wk + bk, embedded[x["query"][row, 0]] @ wq + bq
        if rule == "softmax":
            weights = np.exp(k @ q / 2)
            want = weights @ v / weights.sum()
        elif rule == "elu1":
            weights = positive(k) @ positive(q)
            want = weights @ v / weights.sum()
        else:
            beta, memory = 1 / (1 + np.exp(-(pairs @ wb + bb))), np.zeros((5, 4))
            for each, key, b in zip(v, positive(k), beta, strict=True):
                key = key / key.sum()
                old = memory @ key
                memory += np.outer(b * (each - old), key)
            want = memory @ (positive(q) / positive(q).sum())
        np.testing.assert_allclose(found[row], want, atol=1e-5)


def test_a_memory_is_trained(capacity, tmp_path):
    record = capacity.measure(3, "elu1", False, steps=2, sequences=1, dim=4)
    capacity.append(tmp_path / "new" / "capacity.jsonl", record)
    (table,) = script("tables").tables(tmp_path / "new").values()
    assert f"| elu1 | {record['loss']:.4f} / |" in table
    assert record["steps"] == 2 and 0 < record["loss"] < 1


@pytest.mark.slow
def test_attention_alone_collapses_at_initialisation():
    records = script("collapse").measure("bert_nano", examples=2, length=32)
    at_end = {record["arm"]: record["residuals"][-1] for record in records}
    assert at_end["attention"] < 1e-3 > at_end["attention and feed-forward"]
    assert at_end["attention and skips"] > 0.1 < at_end["transformer"]


def test_the_study_of_recall_is_one():
    arms = Study.from_json(FOLDER / "mqar.json").arms.values()
    assert len(arms) == 9 and {arm.config(0)["objective"] for arm in arms} == {"prefix_lm"}


@pytest.mark.slow
def test_the_study_of_recall_runs(tmp_path):
    fields = json.loads((FOLDER / "mqar.json").read_text())
    arms = {"elu1, rotary": fields["arms"]["elu1, rotary"]}
    data = ["synthetic:mqar,count=64,length=16,num_pairs=2"]
    small = {"steps": 2, "evaluations": 1, "valid": 0.5, "arms": arms, "data": data}
    (record,) = run(Study.from_dict({**fields, **small}), tmp_path, progress=False)
    assert record["facts"]["valid_rows"] == 32
    assert record["scored_tokens"] == 32 * 2  # of each held-out example two answers
    assert 0 <= record["metrics"]["accuracy"] < 0.2


def test_the_page_shows_its_records():
    page = (FOLDER / "README.md").read_text()
    made = script("tables").tables(FOLDER)
    for name, table in made.items():
        assert table in page, f"python examples/reproductions/tables.py; {name}"
