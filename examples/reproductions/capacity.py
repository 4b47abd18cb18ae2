"""How many associations a linear attention holds: Schlag et al. 2021, section 6.1, figures 2 and 3.

    python examples/reproductions/capacity.py               # about 10 minutes on 2 cores
    python examples/reproductions/capacity.py --sizes 20 80 --rules softmax elu1

The model, data, loss and training are those of the paper's code: one attention of one head with 64
features, keys projected from a key and its value, values as one-hot vectors, and at the end one
query. Each memory is trained until its held-out loss, half the squared error, is 0.001 or has
stopped falling. In setting 1 each of `size` keys has one value; in setting 2 (`updates`) twice as
many pairs are drawn with replacement, and the last value of a key counts. Records are appended to
runs/reproductions/capacity.jsonl, and `tables.py` shows them beside the paper's figures.
"""

import argparse
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import keras
import numpy as np
from keras import ops
from records import append

from kzoo.ops import delta_attention, linear_attention, softmax_attention

DIM, BATCH, STEPS, SOLVED = 64, 32, 100, 0.001
# The rule of a memory, and whether keys come again.
RULES = {
    "softmax": ("softmax", False),
    "elu1": ("elu1", False),
    "elu1, updates": ("elu1", True),
    "delta, updates": ("delta", True),
}


def examples(size, updates, count, rng, all_queries=False):
    """`count` sequences of keys and values, a query for each, and the value to answer.

    With `all_queries` every sequence comes once for each key in it.
    """
    length = 2 * size if updates else size
    if updates:
        keys, values = (rng.integers(size, size=(count, length)) for _ in range(2))
    else:
        keys, values = (rng.permuted(np.tile(np.arange(size), (count, 1)), axis=1) for _ in "kv")
    if all_queries:
        rows, queries = np.transpose([(i, key) for i in range(count) for key in {*keys[i]}])
        keys, values = keys[rows], values[rows]
    else:
        queries = keys[np.arange(count), rng.integers(length, size=count)]
    last = length - 1 - np.argmax(keys[:, ::-1] == queries[:, None], axis=1)
    answers = values[np.arange(len(keys)), last]
    x = {"keys": keys, "values": values, "query": queries[:, None]}
    return {name: array.astype("int32") for name, array in x.items()}, answers.astype("int32")


class Memory(keras.Model):
    """Pairs of keys and values, and what a query finds among them.

    Args:
        size: different keys, and different values.
        rule: "softmax", "elu1" (a sum of outer products, normalised) or "delta".
        dim: features of a key.
    """

    def __init__(self, size, rule, dim=DIM):
        super().__init__()
        self.size, self.rule = size, rule
        # As the paper's code draws them.
        uniform = keras.initializers.RandomUniform(-(dim**-0.5), dim**-0.5)
        kernel = "glorot_uniform" if rule == "softmax" else uniform
        self.embedding = keras.layers.Embedding(
            size, int(2.2 * size), keras.initializers.RandomNormal(stddev=1.0)
        )
        self.key = keras.layers.Dense(dim, kernel_initializer=kernel)
        self.asked = keras.layers.Dense(dim, kernel_initializer=kernel)
        self.beta = keras.layers.Dense(1, activation="sigmoid")

    def call(self, x):
        v = ops.one_hot(x["values"], self.size)
        pairs = ops.concatenate([v, self.embedding(x["keys"])], axis=-1)
        q, k, v = (  # one head
            y[:, :, None] for y in (self.asked(self.embedding(x["query"])), self.key(pairs), v)
        )
        beta = self.beta(pairs)  # built under every rule, so that all have the same variables
        if self.rule == "softmax":
            return softmax_attention(q, k, v)[:, 0, 0]
        if self.rule == "elu1":
            return linear_attention(q, k, v, feature_map="elu1")[:, 0, 0]
        # Features that sum to one (the paper's equation 25).
        q, k = (y / ops.sum(y, axis=-1, keepdims=True) for y in (ops.elu(q) + 1, ops.elu(k) + 1))
        _, state = delta_attention(k, k, v, beta, scale=1.0, return_state=True)
        return ops.einsum("bhd,bhdv->bhv", q[:, 0], state["kv_state"])[:, 0]


def half_squared_error(answers, found):
    """Half the squared distance to the one-hot vector of the answer: [batch]."""
    wanted = ops.one_hot(ops.cast(answers[:, 0], "int32"), found.shape[-1])
    return 0.5 * ops.sum(ops.square(wanted - found), axis=-1)


class Solved(keras.callbacks.Callback):
    """Stops where the held-out loss is small enough."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training |= logs["val_loss"] <= SOLVED


def measure(size, rule, updates, *, steps, sequences=4, dim=DIM, seed=1):
    """The record of one memory: its smallest held-out loss, and the steps of its training."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model = Memory(size, rule, dim)
    model.compile(keras.optimizers.Adam(1e-3), half_squared_error)
    held_out = examples(size, updates, sequences, np.random.default_rng(9529), all_queries=True)
    batches = (examples(size, updates, BATCH, rng) for _ in iter(int, 1))
    begin, every = time.time(), min(steps, STEPS)
    history = model.fit(
        ((x, y[:, None]) for x, y in batches),
        steps_per_epoch=every,
        epochs=steps // every,
        validation_data=(held_out[0], held_out[1][:, None]),
        callbacks=[Solved(), keras.callbacks.EarlyStopping(patience=10)],
        verbose=0,
    )
    losses = history.history["val_loss"]
    return {
        "size": size,
        "rule": rule,
        "updates": updates,
        "loss": min(losses),
        "steps": every * len(losses),
        "seconds": round(time.time() - begin, 1),
        "seed": seed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 60, 80, 100])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--steps", type=int, default=4000, help="of each memory, at most")
    parser.add_argument("--out", default="runs/reproductions/capacity.jsonl")
    options = parser.parse_args()
    for size in options.sizes:
        for name in options.rules:
            record = measure(size, *RULES[name], steps=options.steps)
            append(options.out, record)
            print(f"{size:4} keys, {name:14}  loss {record['loss']:.4f}  {record['steps']} steps")
