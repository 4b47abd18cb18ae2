"""The data pipeline beside the training that it feeds."""

import time
from typing import Any

import numpy as np

from kzoo import data, presets
from kzoo.bench.measure import Ready, check_jax, counts, machine, race
from kzoo.data import pipeline, tokenizer_spec
from kzoo.data import text as texts

BAR = 10  # times the tokens of training
BATCH = 16
PRESET = "gpt_tiny"
TOKENIZERS: dict[str, Any] = {"bytes": "bytes", "bpe": {"bpe": 4096}}
SECONDS = 0.5  # of batches in a round, about
VALID = 0.1


def bench_data(source="pydoc", rounds=5, *, preset=PRESET, tokenizers=None, say=lambda text: None):
    """Time what the data pipeline does, in one process, and the train steps that it feeds.

    For each tokenizer: text to tokens, tokens to batches, and whole train steps of a model on a
    batch that is there already. They take turns. A text is tokenized once and a batch is made in
    every step, so that in the first epoch both are paid; it is the rate of both that is compared.

    Args:
        source: as of `kzoo.data.load`.
        rounds: how often each one runs.
        preset: of the model.
        tokenizers: name -> JSON of a tokenizer; by default bytes and BPE of 4096 ids.
        say: called with lines about the progress.

    Returns:
        A dict of JSON values: `settings`, `machine`, `bar`, and `rows`, one for each tokenizer:
        `contestant`, `tokenize_tokens_per_second`, `batches_tokens_per_second`,
        `pipeline_tokens_per_second` (of both), `train_tokens_per_second`, `ratio` of the last two,
        and `first_batch_seconds`, from the source to the first batch, without training the
        tokenizer.

    Raises:
        InputError: for rounds that are no positive integer, another backend than JAX, and as
            `kzoo.data.load`.

    Example:
        >>> [(row["contestant"], row["ratio"]) for row in bench_data()["rows"]]
    """
    check_jax()
    rounds = counts({"rounds": rounds})["rounds"]
    specs = TOKENIZERS if tokenizers is None else tokenizers
    about = machine()
    entries: dict[str, Any] = {}
    for name, spec in specs.items():
        say(f"{name}: getting ready")
        kind = _Contestant(source, preset, tokenizer_spec.get(spec))
        entries |= {f"{name} {part}": prepare for part, prepare in kind.parts().items()}
    results = race(entries, rounds, say=say)
    return {
        "bench": "data",
        "settings": {
            "source": str(source),
            "preset": preset,
            "rounds": rounds,
            "batch": BATCH,
            "time": presets.config(preset)["max_sequence_length"],
        },
        "machine": about,
        "bar": BAR,
        "rows": [_row(name, results) for name in specs],
    }


def _row(name, results):
    rates = {
        part: results[f"{name} {part}"]["tokens"] / results[f"{name} {part}"]["median_seconds"]
        for part in ("tokenize", "batches", "train")
    }
    pipeline_rate = 1 / (1 / rates["tokenize"] + 1 / rates["batches"])
    return {
        "contestant": name,
        **{f"{part}_tokens_per_second": rate for part, rate in rates.items()},
        "pipeline_tokens_per_second": pipeline_rate,
        "ratio": pipeline_rate / rates["train"],
        "first_batch_seconds": results[f"{name} batches"]["first_batch_seconds"],
    }


class _Contestant:
    """A tokenizer's part of the pipeline, and the model that reads its tokens."""

    def __init__(self, source, preset, spec):
        from kzoo.models.tokenizer_file import read_file

        fields = tokenizer_spec.config_fields(spec, {})
        self.config = presets.config(preset, **fields)
        file = tokenizer_spec.file(spec, source, VALID)
        self.tokenizer = file and read_file(file)
        self.preset, self.fields = preset, {**fields, "tokenizer": file or "bytes"}
        begin = time.perf_counter()
        self.read = data.sources.read(source)
        self.splits = data.load(
            self.read, self.config, batch_size=BATCH, valid=VALID, tokenizer=self.tokenizer
        )
        self.batch = self.splits.train[0]
        self.first_batch = time.perf_counter() - begin
        self.tokens = _tokens(self.batch)

    def parts(self):
        """The work to be timed, by name: functions that prepare it."""
        return {"tokenize": self._tokenize, "batches": self._batches, "train": self._train}

    def _tokenize(self):
        encoder = pipeline.encoder_of(self.config, self.config, self.tokenizer)
        if self.read.examples is None:
            some = texts.pieces(np.frombuffer(self.read.text, np.uint8))
        else:
            some = [part for pair in self.read.examples for part in pair if part]
        count = sum(len(tokens) for tokens in encoder.tokens(some))
        return Ready(lambda: encoder.tokens(some), {"tokens": count})

    def _batches(self):
        train = self.splits.train.repeat()
        begin = time.perf_counter()
        train[1]
        count = max(1, round(SECONDS / (time.perf_counter() - begin)))
        facts = {"tokens": count * self.tokens, "first_batch_seconds": self.first_batch}
        at = iter(range(2, 10**9))

        def run():
            for _ in range(count):
                train[next(at)]

        return Ready(run, facts)

    def _train(self):
        model = presets.load(self.preset, **self.fields)
        x, y, weight = self.batch

        def run():
            float(model.train_on_batch(x, y, sample_weight=weight, return_dict=True)["loss"])

        return Ready(run, {"tokens": self.tokens})


def _tokens(batch):
    """The tokens of a batch that are no padding, of both stacks."""
    x, _, _ = batch
    return int(sum((m > 0).sum() for name, m in x.items() if name.endswith("padding_mask")))
