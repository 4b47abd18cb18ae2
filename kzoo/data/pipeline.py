"""From a source to two Grain datasets of batches: one to train on, one held out."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import NamedTuple

import grain
import numpy as np

from kzoo import masks, objectives
from kzoo.data import sources, text
from kzoo.errors import InputError, unknown
from kzoo.vocabulary import PAD

log = logging.getLogger("kzoo")

_HELD_OUT_SEED = 9529


@dataclasses.dataclass(frozen=True)
class Splits:
    """What `load` returns. `train, valid = load(...)` works too.

    Attributes:
        train: `grain.MapDataset` of one epoch of batches, `len(train)` of them.
        valid: `grain.MapDataset` of the held-out batches.
        facts: a dict that JSON can hold: `source`, `sha256` of the data, `row_length` in
            tokens, `train_rows`, `valid_rows`, `train_bytes`, `valid_bytes` (of rows: of
            their targets), `cut_rows` (longer than a row), and `unigram_entropy` and
            `bigram_entropy` of the held-out bytes, in bits per byte.
    """

    train: grain.MapDataset
    valid: grain.MapDataset
    facts: dict

    def __iter__(self):
        return iter((self.train, self.valid))


def load(source, model_or_config, *, batch_size, objective=None, valid=0.1, seed=0):
    """Data for a model: batches to train on and held-out batches, which never overlap.

    Args:
        source: `"pydoc"` (Python's own documentation, about 2 MB, no network),
            `"tfds:NAME"` (the text of a TFDS data set), `"synthetic:copy"`, the path of a
            text file or of a folder of them, a list of strings, a list of
            `(prompt, response)` pairs, or `{"prompts": [...], "responses": [...]}`.
        model_or_config: a model, or a mapping with its fields `max_sequence_length`,
            `mask`, `objective` and `tokenizer`.
        batch_size: rows of a batch.
        objective: what is predicted, instead of the config's.
        valid: the part that is held out, between 0 and 1. Which part depends on nothing
            else.
        seed: of the order and of the random choices (boundaries, masks) in training.

    Returns:
        `Splits(train, valid)`, whose elements are `(x, y, sample_weight)` as
        `kzoo.objectives.Objective.encode` makes them, `[batch_size, row_length]` each;
        `x` has `"source_mask"` where the model's mask contains a prefix. Rows of running
        text have `max_sequence_length` tokens; of strings and pairs, as many as the longest
        needs, and at most that.

        `train` is one epoch, in random order. `train.repeat()` goes on with a new order and
        new random choices in each epoch, and `train.repeat()[k:]` goes on at batch k.
        `valid` is the same for every seed; its last batch is filled with rows of padding
        and zero weight.

    Raises:
        InputError: an unknown source or objective; a file that is missing, empty or
            binary; too little text for a row, or too few rows for a batch; `valid` outside
            0 to 1.

    Example:
        >>> config = {"max_sequence_length": 64, "mask": "causal", "objective": "causal_lm"}
        >>> train, valid = load("synthetic:copy", config, batch_size=32)
        >>> x, y, sample_weight = train[0]
        >>> x["token_ids"].shape
        (32, 34)
    """
    config = _config(model_or_config, objective)
    objective = objectives.get(config["objective"])
    needs_source = masks.get(config["mask"]).needs_source
    _check(config, batch_size, valid)
    corpus = sources.read(source)
    split = _split_text if corpus.rows is None else _split_rows
    train, held_out, length, cut = split(corpus, objective, config["max_sequence_length"], valid)
    if len(train.targets) < batch_size:
        raise InputError(
            "too little data for a batch: use more data, shorter rows, or a batch_size of at most "
            f"{len(train.targets)}. Received: {len(train.targets)} rows, batch_size={batch_size}"
        )

    def encode(rows, indices, rng, **kwargs):
        x, y, sample_weight = objective.encode(
            rows.sources and [rows.sources[i] for i in indices],
            [rows.targets[i] for i in indices],
            length,
            rng,
            complete=rows.complete,
            **kwargs,
        )
        if not needs_source:
            x.pop("source_mask", None)
        x.pop("segment_ids", None)
        return x, y, sample_weight

    # The shortest row speaks for all: what it cannot do is said here, not in mid-training.
    rng = np.random.default_rng(_HELD_OUT_SEED)
    encode(train, [min(range(len(train.targets)), key=lambda i: len(train.targets[i]))], rng)
    # Rows are drawn first and encoded a batch at a time: vectorised, and a batch's random
    # choices follow from its place alone.
    batches = grain.MapDataset.range(len(train.targets)).seed(seed).shuffle()
    batches = batches.batch(batch_size, drop_remainder=True, batch_fn=list)
    batches = batches.random_map(lambda indices, rng: encode(train, indices, rng))

    # All at once, so that the choices do not depend on the batch size either.
    rng = np.random.default_rng(_HELD_OUT_SEED)
    count = len(held_out.targets)
    encoded = encode(held_out, range(count), rng, held_out=True)
    streams = [np.concatenate(rows.targets, axis=None) for rows in (train, held_out)]
    facts = {
        "source": corpus.name,
        "sha256": corpus.sha256,
        "row_length": length,
        "train_rows": len(train.targets),
        "valid_rows": count,
        "train_bytes": len(streams[0]),
        "valid_bytes": len(streams[1]),
        "cut_rows": cut,
        "unigram_entropy": text.unigram_entropy(streams[1]),
        "bigram_entropy": text.bigram_entropy(streams[1]),
    }
    return Splits(batches, _batches(encoded, count, batch_size), facts)


def _config(model_or_config, objective):
    """The fields of a model, with its objective replaced if there is another."""
    config = getattr(model_or_config, "config", model_or_config)
    needed = ["max_sequence_length", "mask", "objective"]
    if isinstance(config, Mapping):
        config = dict(config) if objective is None else {**config, "objective": objective}
    if not isinstance(config, Mapping) or not set(needed) <= set(config):
        received = sorted(config) if isinstance(config, Mapping) else config
        raise InputError(
            f"data is made for a model, or a mapping with {', '.join(needed)}, such as "
            f"kzoo.presets.config(name). Received: {received!r:.120}"
        )
    return config


def _check(config, batch_size, valid):
    if config.get("num_segments"):
        raise InputError(
            "kzoo.data.load makes no segment ids; `fit` takes strings and pairs of models that "
            f"have them. Received: num_segments={config['num_segments']}"
        )
    if config.get("tokenizer", "bytes") != "bytes":
        raise unknown("tokenizer", config["tokenizer"], ["bytes"])
    if config["max_sequence_length"] < 4:
        raise InputError(
            "a row has at least 4 tokens. "
            f"Received: max_sequence_length={config['max_sequence_length']!r}"
        )
    if batch_size < 1:
        raise InputError(f"a batch has at least 1 row. Received: batch_size={batch_size!r}")
    if not 0 < valid < 1:
        raise InputError(
            f"valid is the part held out, between 0 and 1; usual is 0.1. Received: {valid!r}"
        )


def _batches(encoded, count, batch_size):
    """Encoded rows in their order, the last batch filled with padding of zero weight."""
    fill = (0, -count % batch_size), (0, 0)
    x, y, sample_weight = encoded
    padding = {name: PAD if name.endswith("token_ids") else 0 for name in x}
    x = {name: np.pad(a, fill, constant_values=padding[name]) for name, a in x.items()}
    y, sample_weight = np.pad(y, fill, constant_values=PAD), np.pad(sample_weight, fill)

    def batch(start):
        at = slice(start, start + batch_size)
        return {name: a[at] for name, a in x.items()}, y[at], sample_weight[at]

    return grain.MapDataset.range(0, count, batch_size).map(batch)


class _Rows(NamedTuple):
    sources: list | None  # of uint8 arrays
    targets: list | np.ndarray
    complete: bool  # whether EOS follows


def _split_text(corpus, objective, length, valid):
    """Windows of a text's two parts; the row length; no row is cut."""
    size = objective.window(length)
    parts = [text.windows(part, size) for part in text.split(corpus.text, valid)]
    if not all(len(part) for part in parts):
        raise InputError(
            f"the text is too short: its {valid:.0%} to hold out and the rest need {size} bytes or "
            f"more each, for one row of {length} tokens. Received: {len(corpus.text)} bytes"
        )
    train, held_out = (_Rows(None, part, complete=False) for part in parts)
    return train, held_out, length, 0


def _split_rows(corpus, objective, length, valid):
    """Rows, whole ones held out; the row length that they need; how many it cuts."""
    targets = [_bytes(target) for _, target in corpus.rows]
    paired = corpus.rows[0][0] is not None
    sources = [_bytes(source) if paired else None for source, _ in corpus.rows]

    needed = np.array([objective.row_length(*row) for row in zip(sources, targets, strict=True)])
    cut = int((needed > length).sum())
    if cut:
        log.warning("%d of %d rows are longer than %d tokens and are cut", cut, len(needed), length)

    count = len(targets)
    chosen = text.spread(count, max(1, round(count * valid)))
    if len(chosen) == count:
        raise InputError(f"rows are trained on or held out: two or more. Received: {count} rows")
    held_out = np.zeros(count, bool)
    held_out[chosen] = True

    def rows(indices):
        return _Rows(
            [sources[i] for i in indices] if paired else None,
            [targets[i] for i in indices],
            complete=True,
        )

    train, valid = rows(np.flatnonzero(~held_out)), rows(np.flatnonzero(held_out))
    return train, valid, int(min(length, needed.max())), cut


def _bytes(string):
    return np.frombuffer(string.encode(), np.uint8)
