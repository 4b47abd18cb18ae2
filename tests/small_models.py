"""Small models of every family, with inputs and reference functions for tests."""

import numpy as np
from keras import ops

from kzoo import presets

TIME, BATCH = 16, 4
SMALL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": TIME,
}
FAMILIES = ("gpt", "unilm", "bert", "bert_mixed_heads", "bert_mixed_layers")
TEXTS = ["to be", "or not to be", "that is", "the question"]
PAIRS = {
    "prompts": ["to", "or not", "", "the"],
    "responses": ["be", "to be", "that is", "question"],
}


def load(family, **overrides):
    return presets.load(f"{family}_nano", **{**SMALL, **overrides})


def tokens(model, x):
    """The token batch (x, y, sample_weight) of strings or pairs."""
    return model.preprocessor(x)


def logits(model, x):
    return np.asarray(ops.convert_to_numpy(model.predict_on_batch(x)), "float64")


def nll(logits, y):
    """-log softmax(logits)[y], in float64."""
    logits = logits - logits.max(-1, keepdims=True)
    log_total = np.log(np.exp(logits).sum(-1))
    return log_total - np.take_along_axis(logits, y[..., None], -1)[..., 0]


def numpy(x):
    return ops.convert_to_numpy(x)
