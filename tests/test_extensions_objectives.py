"""Parts from outside the package, each one class here, and nothing else changed."""

import numpy as np
import pytest

import kzoo
from kzoo import presets

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 24,
}


# An objective, a source and a synthetic task --------------------------------------------------


@kzoo.objectives.register
class Backwards(kzoo.objectives.Objective):
    """The next token of texts and targets that are read from right to left."""

    name = "toy_backwards"
    keep: int = 0  # tokens at the beginning that stay where they are

    def examples(self, sources, targets, room, rng, vocabulary):
        turned = [np.concatenate([x[: self.keep], x[self.keep :][::-1]]) for x in targets]
        return sources, turned

    def scored(self, held_out=False):
        return "all"

    def draws(self, paired):
        return False


@kzoo.data.sources.register
class Squares(kzoo.data.sources.Source):
    name = "toy_squares"
    count: str

    def read(self):
        return [(f"{i} * {i}", f"is {i * i}") for i in range(int(self.count))]


@kzoo.data.tasks.register
class Reverse(kzoo.data.tasks.Task):
    name = "toy_reverse"
    count: int = 40

    def pairs(self):
        return [(f"abc{i}", f"abc{i}"[::-1]) for i in range(self.count)]


@pytest.fixture(scope="module")
def backwards():
    return presets.load("gpt_nano", objective={"toy_backwards": {"keep": 1}}, **SMALL)


def spelled(ids):
    return bytes(ids[ids < 256].astype("uint8")).decode()


def test_an_objective_from_outside_trains_scores_and_saves(backwards, tmp_path):
    assert type(backwards) is kzoo.models.CausalLM
    assert backwards.config["objective"] == {"toy_backwards": {"keep": 1}}
    x, y, weight = backwards.preprocessor(["abcd"])
    assert spelled(x["token_ids"][0]) == "adcb" and weight.sum() == 5

    splits = kzoo.data.load("toy_squares:40", backwards, batch_size=4)
    backwards.fit(splits.train, epochs=1, verbose=0)
    backwards.fit(["abcd"] * 4, batch_size=4, verbose=0)
    bits = backwards.evaluate(["abcd"] * 4, batch_size=4, verbose=0, return_dict=True)
    scored = backwards.score(["abcd"])
    np.testing.assert_allclose(scored["bits_per_byte"][0], bits["bits_per_byte"], rtol=1e-5)

    presets.save(backwards, tmp_path)
    again = presets.load(tmp_path)
    assert again.objective == backwards.objective
    np.testing.assert_allclose(again.score(["abcd"])["nats"], scored["nats"], rtol=1e-6)


def test_a_source_from_outside(backwards):
    corpus = kzoo.data.sources.read("toy_squares:3")
    assert corpus.name == "toy_squares:3"
    assert corpus.examples == [("0 * 0", "is 0"), ("1 * 1", "is 1"), ("2 * 2", "is 4")]
    as_json = kzoo.data.sources.read({"toy_squares": {"count": "3"}})
    assert (as_json.sha256, as_json.examples) == (corpus.sha256, corpus.examples)
    with pytest.raises(kzoo.errors.InputError, match="toy_squares:COUNT"):
        kzoo.data.load("toy_squaers", backwards, batch_size=4)


def test_a_synthetic_task_from_outside(backwards):
    splits = kzoo.data.load("synthetic:toy_reverse", backwards, batch_size=4)
    assert splits.facts["train_rows"] + splits.facts["valid_rows"] == 40
    assert kzoo.data.sources.read("synthetic:toy_reverse").examples[7] == ("abc7", "7cba")
    few = {"synthetic": {"task": {"toy_reverse": {"count": 5}}}}
    assert len(kzoo.data.sources.read(few).examples) == 5
