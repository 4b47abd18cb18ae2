"""Trainings on many devices, in processes of their own: the tests read the JSON they print.

many_devices.py devices                    on the eight devices of one process
many_devices.py process '{"port": ...}'    in one of several processes
"""

import json
import logging
import os
import signal
import sys

import keras
import numpy as np

import kzoo
from kzoo.ops.kernels import blockwise

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 4,
    "intermediate_dim": 32,
    "max_sequence_length": 32,
}
TEXTS = [f"{i} and {i + 1} make {2 * i + 1}" for i in range(200)]
PAIRS = [tuple(text.split(" make ")) for text in TEXTS]
# By what runs in them: blockwise softmax with the cross-entropy in rows, gated linear attention
# and all that may stand around it, heads that differ and learn features, a look at an encoder with
# a bias on the scores.
MODELS = {
    "gpt": {"loss_tokens": 64},
    "unilm": {
        "mechanism": {"gated_linear": {"gate": "softplus"}},
        "output_norm": True,
        "output_gate": True,
        "short_convolution": 3,
        "use_bias": False,
        "tie_embeddings": False,
    },
    "bert_mixed_heads": {"mechanism": {"linear": {"feature_map": "hedgehog"}}, "use_bias": False},
    "t5_shared": {"loss_tokens": 64, "positions": "relative", "activation": "swiglu"},
}
LAYOUTS = {
    "gpt": [{"data": 8}, {"model": 2, "fsdp": True}],
    "unilm": [{"model": 4}, {"fsdp": True}],
    "bert_mixed_heads": [{"model": 2}],
    "t5_shared": [{"model": 4}],
}


class Losses(keras.callbacks.Callback):
    """The mean of the losses so far after each step, as Keras shows it."""

    def __init__(self, on_step):
        super().__init__()
        self.means, self.on_step = [], on_step

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(float(logs["loss"]))
        self.on_step(batch + 1)


def make(family):
    return kzoo.presets.load(f"{family}_nano", **SMALL, **MODELS[family])


def train(model, steps, on_step=lambda step: None):
    """The losses of some steps of a model: a slice of the steps of a training."""
    rows = PAIRS if model.objective.has_source else TEXTS
    losses = Losses(on_step)
    dataset = kzoo.data.load(rows, model, batch_size=24).train[steps]
    model.fit(dataset, callbacks=[losses], verbose=0)
    return losses.means


def parts(variable):
    """How many times as large a variable is as what one device holds of it."""
    return variable.value.size // variable.value.addressable_shards[0].data.size


def on_devices():
    families = {k: LAYOUTS[k] for k in sys.argv[2:]} or LAYOUTS
    told = []
    logging.getLogger("kzoo").addHandler(handler := logging.Handler())
    handler.emit = lambda record: told.append(record.getMessage())
    results = {}
    model = make("gpt")
    for _ in range(2):  # on one device, of which is told once
        train(model, slice(1))
    for family, layouts in families.items():
        runs = results[family] = {}
        for how in layouts:
            kzoo.distribute(**how)
            model = make(family)
            run = runs[json.dumps(how)] = {"losses": train(model, slice(3))}
            moments = zip(model.trainable_variables, model.optimizer._momentums, strict=True)
            run["parts"] = {v.path: [parts(v), parts(moment)] for v, moment in moments}
    results["refused"] = refused(model)
    results["told"] = [line for line in told if "devices" in line]
    print(json.dumps(results))


def refused(model):
    """What is said of wrong input to `model`, whose batches are split in two."""
    sources, targets = zip(*PAIRS[:15], strict=True)
    pairs = {"prompts": [*sources], "responses": [*targets]}
    tokens = model.preprocessor(pairs)
    x, y, weight = tokens
    dataset = kzoo.data.load(PAIRS, model, batch_size=5).train
    calls = {
        "arrays": lambda: model.fit(x, y, sample_weight=weight, batch_size=5),
        "last": lambda: model.evaluate(x, y, sample_weight=weight, batch_size=4),
        "dataset": lambda: model.fit(dataset, verbose=0),
        "three": lambda: kzoo.distribute(model=3),
        "sixteen": lambda: kzoo.distribute(data=16),
        "zero": lambda: kzoo.distribute(data=0),
        "late": lambda: (kzoo.distribute(data=4), model.fit(dataset)),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
        except kzoo.errors.InputError as error:
            said[name] = str(error)
    return said


def in_process(port, number, process, how, stop, start=0, save=None, killed=None, state=None):
    """One of several processes: prints the losses of the steps from `start` to `stop`.

    After the step `save` the first process keeps the state in the file `state`, from which a
    later `start` goes on; after the step `killed` the last process is killed.
    """
    kzoo.training.initialize(f"127.0.0.1:{port}", number, process)
    kzoo.distribute(**how)
    model = make("gpt")
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    if start:
        with np.load(state) as arrays:
            for i, variable in enumerate(variables):
                variable.assign(arrays[str(i)])

    def on_step(step):
        if step == save:
            model.jax_state_sync()
            if process == 0:
                np.savez(state, **{str(i): np.array(v) for i, v in enumerate(variables)})
        if step == killed and process == number - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    compute_loss, sizes = model.compute_loss, set()
    model.compute_loss = lambda x, y, *args, **kw: (
        sizes.add(y.shape[0]),
        compute_loss(x, y, *args, **kw),
    )[1]
    losses = train(model, slice(start, stop), on_step)
    print(json.dumps({"losses": losses, "sizes": [*sizes]}))


if __name__ == "__main__":
    blockwise.SHORT = 0  # blockwise at every length
    on_devices() if sys.argv[1] == "devices" else in_process(**json.loads(sys.argv[2]))
