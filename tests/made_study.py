"""A study whose records are made up, as files: no model is trained."""

import json
import math

import numpy as np

from kzoo.config import count_parameters
from kzoo.studies.hypotheses import hashes
from kzoo.studies.study import Study, measure
from kzoo.training.flops import count_flops

ARMS = {
    "GPT": {"preset": "gpt_nano", "overrides": {"objective": "prefix_lm"}},
    "UniLM": {"preset": "unilm_nano", "overrides": {}},
    "GPT linear": {
        "preset": "gpt_nano",
        "overrides": {"objective": "prefix_lm", "mechanism": "linear"},
    },
    "BERT": {"preset": "bert_nano", "overrides": {}},
    "half heads": {"preset": "bert_mixed_heads_nano", "overrides": {}},
    "BERT linear": {"preset": "bert_nano", "overrides": {"mechanism": "linear"}},
}
# Where an arm ends above the first, in bits.
GAPS = dict(zip(ARMS, (0.0, 0.004, 0.42, 0.3, 0.05, 1.28), strict=True))
GPT_GAP, BERT_GAP = ["GPT linear", "GPT"], ["BERT linear", "BERT"]
HYPOTHESES = [
    {"name": "Q1", "kind": "equivalence", "arms": ["UniLM", "GPT"], "margin": 0.03}
    | {"differ_in": ["mask"]},
    {"name": "Q4", "kind": "difference", "arms": ["half heads", "BERT"], "sign": "-"}
    | {"differ_in": ["mask"]},
    {"name": "mechanism", "kind": "difference", "arms": GPT_GAP, "sign": "-"}
    | {"differ_in": ["mechanism"]},
    {"name": "Q5", "kind": "interaction", "arms": [BERT_GAP, GPT_GAP], "sign": "+"}
    | {"scale": "ratio", "margin": 1.05, "differ_in": ["mask", "mechanism", "objective"]},
]
RATES = [0.001, 0.003, 0.01, 0.03]
_HEAD = {"tokens": 64.0, "numerical_rank": 60.0, "stable_rank": 2.0, "k99": 9.0, "condition": 1e4}


def study(**changes):
    """The made-up study, with some fields changed; None leaves a field out."""
    fields = {
        "name": "made up",
        "description": "A study <of> nothing.",
        "arms": ARMS,
        "data": ["a/folder/my_book.txt"],
        "seeds": 6,
        "steps": 300,
        "tuning": {"seeds": [100, 101, 102], "grid": {"learning_rate": RATES}},
        "hypotheses": HYPOTHESES,
        **changes,
    }
    return Study.from_dict({name: value for name, value in fields.items() if value is not None})


def write(directory, asked, change=lambda record: record):
    """The files of a study whose runs are all there; `change` edits or drops (None) a record."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "study.json").write_text(json.dumps(asked.to_dict()))
    rows = [
        _run(asked, source, label, arm, seed)
        for source, label, arm in asked.runs()
        for seed in asked.seeds
    ]
    _write(directory / "results.jsonl", filter(None, map(change, rows)))
    if asked.tuning:
        tuned = [
            {**_run(asked, source, label, arm, seed, rate), "tuning": True}
            for source, label, arm in asked.runs()
            for rate in asked.tuning.of(label)["learning_rate"]
            for seed in asked.tuning.seeds
        ]
        _write(directory / "tuning.jsonl", filter(None, map(change, tuned)))
    return directory


def _write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def _run(asked, source, label, arm, seed, rate=None):
    rng, number = np.random.default_rng([seed, len(label)]), list(asked.arms).index(label)
    config = arm.config(seed)
    unit, group = measure(config["objective"], source)
    end = 2.8 + list(GAPS.values())[number % len(GAPS)] + rng.normal() / 60 + (seed % 7) / 50
    end += 0.25 * math.log10((rate or 0.01) / 0.01) ** 2
    steps = np.arange(1, asked.steps + 1)
    curve = end + (8 - end) * np.exp(-steps / (0.14 * asked.steps)) + 0.25 / np.sqrt(steps)
    held_out = curve[asked.steps // asked.evaluations - 1 :: asked.steps // asked.evaluations]
    seconds = 5.0 + number + rng.uniform()
    heads = [
        {"stack": "", "layer": layer, "head": head, "mask": "causal", **_HEAD}
        | {"entropy_rank": float(rng.uniform(5, 60)), "concentration": float(rng.uniform(0.2, 0.9))}
        for layer in range(config["num_layers"])
        for head in range(config["num_heads"])
    ]
    chosen = {"rate": 0.01, "grid": RATES, "seeds": 3, "widened": 0, "at_edge": False}
    record = {
        "run": f"{source}/{label}/{seed}" if rate is None else f"{source}/{label} at {rate}/{seed}",
        **{"arm": label, "data": source, "seed": seed, "group": group, "measure": unit},
        **{"status": "finished", "steps": asked.steps, "bits": float(held_out[-1])},
        "train_loss": ((curve + rng.normal(size=len(steps)) / 20) * math.log(2)).tolist(),
        "held_out": [
            [int(step), float(bits)] for step, bits in zip(_points(asked), held_out, strict=True)
        ],
        **{"scored_tokens": 30989, "parameters": count_parameters(config)},
        **{"tokens_seen": 900 * asked.steps, "tokens_scored": 600 * asked.steps},
        **{"flops": 3 * sum(count_flops(config).values()) * asked.batch_size * asked.steps},
        **{"seconds": seconds, "tokens_per_second": 64 * 16 * asked.steps / seconds},
        **{"learning_rate": rate or 0.01, "batch_size": asked.batch_size},
        **{"config": config, "overrides": arm.overrides},
        "spectrum": heads if rate is None else [],
        "facts": {
            **{"source": source, "sha256": "ab" * 32, "row_length": 64, "train_rows": 1000},
            **{"train_bytes": 60_000, "unigram_entropy": 4.72, "bigram_entropy": 3.68},
        },
        "provenance": {
            **{"commit": "1234abc", "dirty": False, "backend": "jax", "device": "cpu × 1"},
            **{"versions": {"kzoo": "0.1.0", "jax": "0.10.2"}, "platform": "Linux"},
            **{"kernels": ["native", "native"], "started": "2026-01-01T00:00:00"},
        },
        "hypotheses": hashes(asked.hypotheses),
        "seeds_planned": len(asked.seeds),
    }
    return record if not asked.tuning or rate else {**record, "rate_chosen": chosen}


def _points(asked):
    every = asked.steps // asked.evaluations
    return np.arange(every, asked.steps + 1, every)
