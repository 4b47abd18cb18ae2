"""Ranks of attention and collapse of tokens, under every mask and mechanism, along training.

    python examples/studies/q3-q7-rank-and-collapse/measure.py    # about an hour on 2 cores

trains a BERT of nano width with six layers on masked bytes of Python's documentation, under each
mask with each mechanism, with learned positions, and measures it at its initial values and along
the way: the spectrum of each head's attention matrix, the same with controls that take rank and
direction apart, and the relative residual of the tokens' states at every depth, with and without
parts. A prefix mask, which masked bytes do not have, is measured on a UniLM at its initial values.
What stands in the file of records is not made again.
"""

import argparse
import json
import os
from itertools import product
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import keras
import numpy as np

import kzoo
from kzoo.analysis import collapse, control_spectrum
from kzoo.studies.provenance import provenance

HERE = Path(__file__).parent
MASKS = ("bidirectional", "half_heads", "alternating", "causal", "prefix")
MECHANISMS = ("softmax", "linear", "retention", "gated_linear", "delta", "gated_delta")
ONE_DIRECTION = ("delta", "gated_delta")  # whose states depend on the order of the tokens
FIGURES = ("numerical_rank", "entropy_rank", "stable_rank", "k99", "concentration")
PARTS = ("skips", "feed_forward", "norms")
STEPS = (0, 30, 100, 300)
EPOCH = 10  # steps between which the model is looked at
RATE, BATCH, EXAMPLES = 0.003, 16, 4


def measured(model, batch):
    """The figures of a model: a dict of JSON values.

    `spectrum`: control -> figure -> mean over heads and layers. `residual`: the parts that are left
    out -> the residual at each depth, None where there is none; `residual_last_half`: that of
    the last half of the tokens.
    """
    heads = control_spectrum(model, batch)
    spectrum = {
        control: {
            figure: float(np.mean([h[figure] for h in heads if h["control"] == control]))
            for figure in FIGURES
        }
        for control in dict.fromkeys(head["control"] for head in heads)
    }
    found = {"spectrum": spectrum, "residual": {}, "residual_last_half": {}}
    for without in ((), *((part,) for part in PARTS), PARTS):
        depths = collapse(model, batch, **{part: part not in without for part in PARTS})
        for figure in ("residual", "residual_last_half"):
            values = [None if np.isnan(depth[figure]) else depth[figure] for depth in depths]
            found[figure][", ".join(without) or "nothing"] = values
    return found


class Follow(keras.callbacks.Callback):
    """Measures the model after each epoch that ends at one of `steps`."""

    def __init__(self, steps, batch, held_out):
        super().__init__()
        self.steps, self.batch, self.held_out, self.found = steps, batch, held_out, []

    def on_epoch_end(self, epoch, logs=None):
        step = (epoch + 1) * EPOCH
        if step in self.steps:
            bits = self.model.evaluate(self.held_out, verbose=0, return_dict=True)["bits_per_byte"]
            self.found.append((step, bits, measured(self.model, self.batch)))


def follow(mask, mechanism, seed, steps, **smaller):
    """Train one model: a list of (step, held-out bits, figures), at 0 without bits; and where they
    come from."""
    fields = {"mask": mask, "mechanism": mechanism, "positions": "learned", "num_layers": 6}
    preset = "unilm_nano" if mask == "prefix" else "bert_nano"
    model = kzoo.presets.load(preset, seed=seed, **{**fields, **smaller})
    splits = kzoo.data.load("pydoc", model, batch_size=BATCH, valid=0.03)
    x, *_ = splits.valid[0]
    batch = {name: array[:EXAMPLES] for name, array in x.items()}
    initial = [(0, None, measured(model, batch))]
    origin = provenance(model, splits.facts["row_length"])
    if steps[-1] == 0:
        return initial, origin
    model.compile(optimizer=kzoo.training.adamw(RATE, steps[-1]))
    watch = Follow(steps, batch, splits.valid)
    model.fit(
        splits.train.repeat(),
        steps_per_epoch=EPOCH,
        epochs=steps[-1] // EPOCH,
        callbacks=[watch],
        verbose=0,
    )
    return initial + watch.found, origin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "records.jsonl")
    parser.add_argument("--seeds", type=int, default=5, help="of the initial values")
    parser.add_argument("--trained", type=int, default=2, help="of these, how many are trained")
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    there = {(r["mask"], r["mechanism"], r["seed"], r["step"]) for r in map(json.loads, lines)}
    for seed, mask, mechanism in product(range(options.seeds), MASKS, MECHANISMS):
        trained = seed < options.trained and mask != "prefix"
        steps = STEPS if trained else STEPS[:1]
        if mechanism in ONE_DIRECTION and mask in ("bidirectional", "prefix"):
            continue
        if all((mask, mechanism, seed, step) in there for step in steps):
            continue
        about = {"mask": mask, "mechanism": mechanism, "seed": seed}
        found, origin = follow(mask, mechanism, seed, steps)
        with options.out.open("a") as file:
            for step, bits, figures in found:
                if (mask, mechanism, seed, step) not in there:
                    record = {**about, "step": step, "bits": bits, **figures, "provenance": origin}
                    file.write(json.dumps(record, allow_nan=False) + "\n")
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
