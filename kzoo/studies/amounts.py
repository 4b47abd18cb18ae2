"""What a run costs and sees: steps, tokens, FLOPs; and arms that have equal amounts of one."""

import bisect
import dataclasses
import functools
import json
import logging

import numpy as np

from kzoo import data
from kzoo.data import tokenizer_spec
from kzoo.studies import tokenizers
from kzoo.training.flops import count_flops

log = logging.getLogger("kzoo")
_COUNTED = 1024  # batches of an epoch whose tokens are counted; of more, so many evenly spaced
_PASSES = 3  # forward, and twice as much backward


def load_splits(study, source, arm, seed=None):
    """The data of a run. Arms that differ in mechanism only share them.

    Args:
        study, source, arm: of the run.
        seed: of the run; None for the study's first.
    """
    return _load(*_key(study, source, arm, seed))


def tokens(study, source, arm, steps, seed=None):
    """What a run trains on: `(seen, scored)`, numbers of tokens.

    Those that are seen are all but padding, of both stacks. They are counted on the first epoch,
    which later ones resemble.
    """
    seen, scored, _ = _counts(*_key(study, source, arm, seed))
    return tuple(round(_total(each, steps)) for each in (seen, scored))


def flops(study, source, arm, steps, seed=None):
    """Floating-point operations of a training, by `kzoo.training.flops`: an integer.

    The rows of batches count as long as they are, padding too: those of pairs are often shorter
    than `max_sequence_length`, and those of an encoder and a decoder have lengths of their own.
    """
    *_, shapes = _counts(*_key(study, source, arm, seed))
    config = arm.config(study.seeds[0] if seed is None else seed)
    rows = {shape: sum(count_flops(config, *shape[1:]).values()) for shape in {*shapes}}
    each = np.array([_PASSES * shape[0] * rows[shape] for shape in shapes], float)
    return round(_total(each, steps))


def with_steps(study, given):
    """The study whose arms have the steps that its budget asks for.

    Args:
        study: a `Study`, whose arms may have training fields that a tuning chose or tries.
        given: the study as it was given; the first arm on a source has its steps and sets the
            amount. Tokens are counted for each seed, of which the mean counts; FLOPs for the first.

    Returns:
        A `Study`.
    """
    if study.budget == "steps":
        return study
    arms = {label: dataclasses.replace(arm, steps={}) for label, arm in study.arms.items()}
    amounts = {source: _first(given, source) for source in given.data}
    for source, label, arm in study.runs():
        per_step = _amount(study, source, arm, given.steps) / given.steps
        about = max(1, round(amounts[source] / per_step))
        arms[label].steps[source] = _nearest(study, source, arm, amounts[source], about)
    return dataclasses.replace(study, arms=arms)


def _nearest(study, source, arm, wanted, about):
    """The number of steps whose amount is nearest to the one wanted; `about` so many."""

    def amount(steps):
        return _amount(study, source, arm, steps)

    reached = 1 + bisect.bisect_left(range(1, 2 * about + 2), wanted, key=amount)
    return min((max(1, reached - 1), reached), key=lambda steps: abs(amount(steps) - wanted))


def _first(study, source):
    arm = next(arm for of, _, arm in study.runs() if of == source)
    return _amount(study, source, arm, study.steps)


def _amount(study, source, arm, steps):
    if study.budget == "flops":
        return flops(study, source, arm, steps)
    return np.mean([tokens(study, source, arm, steps, seed)[1] for seed in study.seeds])


def planned(study):
    """What every arm will cost: a list of dicts, one for each program of a study, of its `data`,
    `arm`, `steps`, `batch_size`, `tokens_seen`, `tokens_scored` and `flops`."""
    rows = []
    for source, label, arm in study.runs():
        steps, batch_size = study.steps_of(arm, source), study.training(arm, source)["batch_size"]
        seen, scored = tokens(study, source, arm, steps)
        of_run = {"data": source, "arm": label, "steps": steps, "batch_size": batch_size}
        of_run |= {"tokens_seen": seen, "tokens_scored": scored}
        rows.append({**of_run, "flops": flops(study, source, arm, steps)})
    return rows


def _total(counts, steps):
    """The sum over the batches of so many steps."""
    epochs, rest = divmod(steps, len(counts))
    return float(epochs * counts.sum() + counts[:rest].sum())


def _key(study, source, arm, seed):
    config = arm.config(study.seeds[0] if seed is None else seed)
    names = ("max_sequence_length", "mask", "stack", "objective", "tokenizer")
    fields = {name: config[name] for name in names}
    given = json.dumps(study.given.get(source))
    size, packing = study.training(arm, source)["batch_size"], json.dumps(study.packing or "padded")
    tokenizer = tokenizers.packed(study, source, arm)
    of_data = source, given, json.dumps(fields), size, study.valid, config["seed"]
    return *of_data, packing, tokenizer


@functools.lru_cache(maxsize=16)
def _load(source, given, fields, batch_size, valid, seed, packing, tokenizer):
    splits = data.load(
        json.loads(given) or source,
        json.loads(fields),
        batch_size=batch_size,
        valid=valid,
        seed=seed,
        packing=json.loads(packing),
        tokenizer=tokenizers.unpacked(tokenizer),
    )
    if splits.facts.get("tokenizer_loss", {}).get("lost_texts"):
        raise tokenizer_spec.lossy(
            f"a tokenizer for {source}", splits.facts["tokenizer_loss"]["example"]
        )
    return splits


@functools.lru_cache(maxsize=64)
def _counts(*key):
    """The tokens seen and scored of each batch of the first epoch, two arrays, `[batches]`, and its
    shapes: a list of (rows, tokens of a row), of two stacks the encoder's and the decoder's."""
    train = _load(*key).train
    total = len(train)
    some = np.unique(np.linspace(0, total - 1, min(total, _COUNTED)).round().astype(int))
    seen, scored, shapes = [], [], []
    for index in some:
        x, _, weight = train[int(index)]
        # The encoder's first.
        real = [x[name] for name in sorted(x, reverse=True) if name.endswith("padding_mask")]
        seen.append(sum((mask > 0).sum() for mask in real))
        shapes.append((len(real[0]), *(mask.shape[1] for mask in real)))
        scored.append(weight.sum())
    # Batches that were not counted are as the one counted before them.
    nearest = np.searchsorted(some, np.arange(total), side="right") - 1
    counts = np.array(seen, float)[nearest], np.array(scored, float)[nearest]
    return *counts, [shapes[i] for i in nearest]
