"""Models as users have them: a step of training, generation, a save and a reload.

A step is one of plain gradient descent, through Keras's own `train_on_batch`, so that the weights
tell the gradients. Where the machine has an accelerator, the reference is the same step on the CPU,
of the same weights; elsewhere float32 is only looked at for numbers that are none and for a loss
that falls, and bfloat16 is compared with it. Under JAX, float32 is multiplied in float32 here. GPUs
and TPUs do so only where a program asks for it, and would differ from the CPU by that alone.
"""

import functools
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from kzoo import masks, mechanisms, presets
from kzoo.doctor.check import Check, Finding, Refused, once
from kzoo.errors import InputError
from kzoo.ops.context import compiling_for, platform
from kzoo.precision import float32_products

DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
# Of the gradients of a step, by the norm of each variable's.
TOLERANCES = {"float32": 5e-3, "bfloat16": 1e-1}
LOSS_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}
RATE = 0.1
SMALL_GRADIENT = 0.05  # of the norm of all gradients: a variable with less is compared with this
SIZE = {"hidden_dim": 64, "num_heads": 2, "intermediate_dim": 64, "max_sequence_length": 32}
TEXTS = ["To be, or not to be,", "that is", "the question:", "whether 'tis nobler"]
GENERATING = ("gpt", "t5")  # one family of each stack
LOGIT_TOLERANCE = 1e-3


def checks() -> Iterator[Check]:
    """Generation and saving for each mechanism; training for each family and dtype too."""
    for family in GENERATING:
        for mechanism in mechanisms.names():
            run = functools.partial(generate, family, mechanism)
            case = "decoding against the whole"
            yield Check("generation", f"{family}, {mechanism}", case, "float32", run)
            run = functools.partial(save, family, mechanism)
            yield Check("saving", f"{family}, {mechanism}", "a save and a reload", "float32", run)
    for family in families():
        for mechanism in mechanisms.names():
            for dtype in DTYPES:
                run = functools.partial(train, family, mechanism, dtype)
                yield Check("training", f"{family}, {mechanism}", "one step", dtype, run)


def families() -> list[str]:
    """The families of presets."""
    end = "_nano"
    return [name.removesuffix(end) for name in presets.names() if name.endswith(end)]


def load(family: str, mechanism: str, dtype: str = "float32") -> Any:
    """A small model of a family, the same for each call.

    Raises:
        Refused: where the mechanism cannot follow the family's mask.
    """
    fields = {"mechanism": mechanism, "num_layers": 2, **SIZE}
    try:
        config = presets.config(f"{family}_nano", **fields)
        if len(set(masks.per_layer(masks.get(config["mask"]), 2))) == 1:
            fields["num_layers"] = 1
        model = presets.load(f"{family}_nano", dtype=DTYPES[dtype], **fields)
    except InputError as error:
        raise Refused(str(error)) from None
    model.optimizer = keras.optimizers.SGD(RATE)
    return model


# Training -----------------------------------------------------------------------------------------


def train(family: str, mechanism: str, dtype: str) -> Finding:
    """A step's loss and gradients against those of the reference."""
    found = step(family, mechanism, dtype)
    if dtype == "float32" and not accelerated():
        numbers = all(np.isfinite(x).all() for x in found.gradients.values())
        return Finding(found.rise if numbers else np.nan, 0.0, "the loss falls")
    want, tolerance = reference(family, mechanism), TOLERANCES[dtype]
    off = abs(found.loss - want.loss) / abs(want.loss)
    errors = {"loss": off * tolerance / LOSS_TOLERANCES[dtype]}  # in units of the gradients'
    everything = np.sqrt(sum((x**2).sum() for x in want.gradients.values()))
    for path, x in want.gradients.items():
        usual = max(np.linalg.norm(x), SMALL_GRADIENT * everything)
        errors[f"gradient of {path}"] = np.linalg.norm(found.gradients[path] - x) / usual
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    other = "float32 on the CPU" if accelerated() else "float32"
    return Finding(float(errors[worst]), tolerance, f"{worst}, against {other}")


def accelerated() -> bool:
    """Whether the backend computes on something else than the CPU."""
    return platform() != "cpu"


class Step(NamedTuple):
    """What a step of training did.

    Attributes:
        loss: of the batch.
        rise: how much higher it is after the step.
        gradients: float64 arrays by the paths of the variables.
    """

    loss: float
    rise: float
    gradients: dict


@once
def reference(family: str, mechanism: str) -> Step:
    """The step in float32, on the CPU."""
    if not accelerated():
        return step(family, mechanism, "float32")
    with keras.device("cpu"), compiling_for("cpu"):
        return step.__wrapped__(family, mechanism, "float32")


@once
def step(family: str, mechanism: str, dtype: str) -> Step:
    """One step of a small model."""
    model = load(family, mechanism, dtype)
    batch = model.preprocessor(TEXTS)
    before = _values(model)
    with float32_products(dtype):
        loss = float(model.train_on_batch(*batch, return_dict=True)["loss"])
        gradients = {path: (before[path] - x) / RATE for path, x in _values(model).items()}
        after = float(model.train_on_batch(*batch, return_dict=True)["loss"])
    return Step(loss, after - loss, gradients)


def _values(model):
    values = ((x.path, keras.ops.convert_to_numpy(x.value)) for x in model.trainable_variables)
    return {path: np.asarray(x, "float64") for path, x in values}


# Generation and saving ----------------------------------------------------------------------------


@float32_products()
def generate(family: str, mechanism: str) -> Finding:
    """How far a token that was chosen greedily, with a cache, is from the best one of a forward
    pass over the whole: the difference of their logits."""
    model = load(family, mechanism)
    prompts = model.preprocessor.generate_preprocess(TEXTS[:2])
    made = model.generate(prompts, sampler="greedy", stop_token_ids=None)
    tokens, real = np.asarray(made["token_ids"]), np.asarray(made["padding_mask"])
    inputs = {name: np.asarray(prompts[name]) for name in model.input if name in prompts}
    side = "decoder_" if "decoder_token_ids" in model.input else ""
    begun = inputs[f"{side}padding_mask"]
    inputs |= {f"{side}token_ids": tokens, f"{side}padding_mask": real}
    if "source_mask" in inputs:
        inputs["source_mask"] = np.pad(inputs["source_mask"], [(0, 0), (0, tokens.shape[1])])
        inputs["source_mask"] = inputs["source_mask"][:, : tokens.shape[1]]
    logits = keras.ops.convert_to_numpy(model.predict_on_batch(inputs)).astype("float64")
    best = logits[:, :-1].max(-1)
    chosen = np.take_along_axis(logits[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    new = np.arange(1, tokens.shape[1])[None] >= begun.sum(1, keepdims=True)
    short = np.where(new & (real[:, 1:] != 0), best - chosen, 0)
    return Finding(float(short.max()), LOGIT_TOLERANCE, f"{int(new.sum())} tokens")


@float32_products()
def save(family: str, mechanism: str) -> Finding:
    """How far the logits of a saved model differ once it is loaded again."""
    model = load(family, mechanism)
    inputs = model.preprocessor(TEXTS)[0]
    with tempfile.TemporaryDirectory() as folder:
        presets.save(model, f"{folder}/model")
        again = presets.load(f"{folder}/model")
    before, after = (keras.ops.convert_to_numpy(m.predict_on_batch(inputs)) for m in (model, again))
    return Finding(float(np.abs(before - after).max()), 1e-5, "logits")
