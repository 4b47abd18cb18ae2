"""A study that asks, whose runs make up their records: for the tests of verdicts and of tuning."""

import json
import math

import numpy as np

from kzoo.data.pipeline import Splits
from kzoo.studies import Study, amounts, run
from kzoo.studies import runner as runner_module

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 16,
    "max_sequence_length": 36,
}
DIFFERENCE = {"name": "Q1", "kind": "difference", "arms": ["linear", "softmax"], "sign": "+"}
DIFFERENCE |= {"differ_in": ["mechanism"]}
EQUAL = {**DIFFERENCE, "name": "Q2", "kind": "equivalence", "margin": 0.2}
del EQUAL["sign"]
STUDY = {
    "name": "asks",
    "arms": {
        "softmax": {"preset": "gpt_nano", "overrides": SMALL},
        "linear": {"preset": "gpt_nano", "overrides": {**SMALL, "mechanism": "linear"}},
    },
    "data": ["synthetic:copy"],
    "seeds": 5,
    "steps": 2,
    "evaluations": 1,
    "batch_size": 4,
    "valid": 0.001,
    "learning_rate": 0.003,
    "hypotheses": [DIFFERENCE],
}
NOISE = [0.01, -0.02, 0.005, 0.015, -0.01, 0.0, 0.008, -0.008, 0.012, -0.012]


def study(**changes):
    return Study.from_dict({**STUDY, **changes})


class Made:
    """In place of `runner.Trainer`: records that are made up, with a gap of 0.5 bits."""

    gap = 0.5
    made = []
    changes = {}

    def __init__(self, study, source, arm):
        self.study, self.source, self.arm = study, source, arm

    def run(self, seed, path, on_step):
        linear = self.arm.overrides.get("mechanism") == "linear"
        Made.made.append((linear, seed))
        bits = 3.0 + seed / 100 + linear * (self.gap + NOISE[seed % 10])
        return {
            "group": f"every next byte on {self.source}",
            "measure": "bits per byte",
            "status": "finished",
            "steps": 2,
            "train_loss": [3.0, 2.9],
            "held_out": [[2, bits]],
            "bits": bits,
            "scored_tokens": 10,
            "parameters": 100,
            "seconds": 1.0,
            "tokens_per_second": 10.0,
            "learning_rate": self.study.rate(self.arm, self.source),
            "batch_size": self.study.training(self.arm, self.source)["batch_size"],
            "training": {**self.study.training(self.arm, self.source), "steps": 2},
            "config": self.arm.config(seed),
            "overrides": self.arm.overrides,
            "spectrum": [],
            "facts": {"sha256": "ab", "unigram_entropy": 4.7, "bigram_entropy": 3.5},
            "provenance": {
                "commit": None,
                "dirty": None,
                "versions": {},
                "kernels": [],
                "processor": "EPYC",
                "started": "2026",
            },
            **self.changes,
        }


def made_splits(batch_size, facts=None):
    """Three batches of rows of 9 tokens, all scored."""
    ones = np.ones((batch_size, 9))
    batch = {"padding_mask": ones}, 0 * ones, ones
    return Splits([batch] * 3, [batch], facts or {"sha256": "ab"})


def without_training(monkeypatch):
    """`monkeypatch`, once studies make records by `Made` of data that are not loaded."""
    monkeypatch.setattr(runner_module, "Trainer", Made)
    monkeypatch.setattr(runner_module.control, "compared", lambda study: None)
    monkeypatch.setattr(amounts, "_load", lambda *key: made_splits(key[3]))
    amounts._counts.cache_clear()
    monkeypatch.setattr(Made, "made", [])
    return monkeypatch


def go(asked, directory):
    return run(asked, directory, progress=False, at_once=1)


def said(directory):
    return [
        verdict["text"]
        for verdict in json.loads((directory / "verdicts.json").read_text())["verdicts"]
    ]


TUNED = {**STUDY, "tuning": {"seeds": [7, 8], "grid": {"learning_rate": [0.003, 0.01, 0.03]}}}
del TUNED["learning_rate"]


def tuned_by(best):
    """A made trainer whose bits grow with the distance of the rate from the best of its arm."""

    class ByRate(Made):
        def run(self, *arguments):
            record = super().run(*arguments)
            away = abs(math.log(record["learning_rate"] / best[len(self.arm.overrides) > 5]))
            return {**record, "bits": record["bits"] + away}

    return ByRate


def rates(records):
    return {record["arm"]: record["learning_rate"] for record in records}
