"""Tokens become alike in attention alone: Dong et al. 2021, figure 2, BERT at initialisation.

    python examples/reproductions/collapse.py               # about 1 minute on 2 cores
    python examples/reproductions/collapse.py --norm frobenius

The relative residual ‖X - 1xᵀ‖ / ‖X‖ of the hidden states along the depth, by default in the
paper's norm, "composite", √(‖·‖₁ ‖·‖∞), of a BERT of base size (12 layers, width 768, normalisation
after each part) whose kernels and embeddings are drawn from N(0, 0.02²), with and without skips and
feed-forward networks. The paper's texts are biographies from Wikipedia, 128 word pieces each; here
they are 128 bytes each of Python's documentation. Records are appended to
runs/reproductions/collapse.jsonl, and `tables.py` shows them beside the paper's figures.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import numpy as np
from records import append

import kzoo

# The arms of the figure, and the parts that they keep.
ARMS = {
    "attention": {"skips": False, "feed_forward": False},
    "attention and feed-forward": {"skips": False, "feed_forward": True},
    "attention and skips": {"skips": True, "feed_forward": False},
    "transformer": {"skips": True, "feed_forward": True},
}
# The embedding of a segment is common to all tokens of a text, and so of weight here.
BERT = {
    "norm_placement": "post",
    "positions": "learned",
    "embedding_norm": True,
    "num_segments": 2,
}


def model_as_drawn(preset, seed, **overrides):
    """A BERT whose kernels and embeddings are drawn with the standard deviation 0.02."""
    model = kzoo.presets.load(preset, **BERT, **overrides)
    rng = np.random.default_rng(seed)
    for variable in model.backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(0.02 * rng.normal(size=variable.shape))
    return model


def measure(preset="bert_base", norm="composite", examples=2, length=128, seed=0, **overrides):
    """The records: for each arm the residual at every depth."""
    model = model_as_drawn(preset, seed, max_sequence_length=length, **overrides)
    x, _, _ = kzoo.data.load("pydoc", model, batch_size=examples, valid=0.03).valid[0]
    about = {"preset": preset, "norm": norm, "examples": examples, "length": length, "seed": seed}
    found = {arm: kzoo.analysis.collapse(model, x, norm=norm, **ARMS[arm]) for arm in ARMS}
    return [
        {"arm": arm, **about, "residuals": [depth["residual"] for depth in depths]}
        for arm, depths in found.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="bert_base")
    parser.add_argument("--norm", choices=("composite", "frobenius"), default="composite")
    parser.add_argument("--examples", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/reproductions/collapse.jsonl")
    options = parser.parse_args()
    records = measure(options.preset, options.norm, options.examples, seed=options.seed)
    for record in records:
        append(options.out, record)
        along = "  ".join(f"{residual:.3f}" for residual in record["residuals"])
        print(f"{record['arm']:27} {along}")
