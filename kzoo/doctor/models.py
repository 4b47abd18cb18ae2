"""Models as users have them: a step of training; generation after a save and a reload.

A step is one of plain gradient descent, through Keras's own `train_on_batch`, so that the weights
tell the gradients. The reference is the same step of the same weights in float32, on the CPU,
operation by operation and by dense weights of attention: no compiled program, and no kernel (but
for the delta rule, whose weights come from one). Under JAX, float32 is multiplied in float32 here.
GPUs and TPUs do so only where a program asks for it, and would differ from the CPU by that alone.
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
from kzoo.layers import Attention
from kzoo.mechanisms import Delta
from kzoo.ops.context import compiling_for
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
    """Generation for each mechanism; training for each family and dtype too."""
    for family in GENERATING:
        for mechanism in mechanisms.names():
            run = functools.partial(generate, family, mechanism)
            case = "saved, reloaded, decoding"
            yield Check("generation", f"{family}, {mechanism}", case, "float32", run)
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
    fields: dict[str, Any] = {"mechanism": mechanism, "num_layers": 2, **SIZE}
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


class Step(NamedTuple):
    """What a step of training did.

    Attributes:
        loss: of the batch, before the step.
        gradients: float64 arrays by the paths of the variables.
    """

    loss: float
    gradients: dict


def train(family: str, mechanism: str, dtype: str) -> Finding:
    """A step's loss and gradients against those of the reference."""
    return against(reference(family, mechanism), step(load(family, mechanism, dtype)), dtype)


def against(want: Step, found: Step, dtype: str) -> Finding:
    """The largest difference of two steps, and of what it is."""
    tolerance = TOLERANCES[dtype]
    off = abs(found.loss - want.loss) / abs(want.loss)
    errors = {"loss": off * tolerance / LOSS_TOLERANCES[dtype]}  # in units of the gradients'
    everything = np.sqrt(sum((x**2).sum() for x in want.gradients.values()))
    for path, x in want.gradients.items():
        usual = max(np.linalg.norm(x), SMALL_GRADIENT * everything)
        errors[f"gradient of {path}"] = np.linalg.norm(found.gradients[path] - x) / usual
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    return Finding(float(errors[worst]), tolerance, worst)


@once
def reference(family: str, mechanism: str) -> Step:
    """The step in float32, operation by operation on the CPU."""
    with keras.device("cpu"), compiling_for("cpu"):
        model = load(family, mechanism)
        model.run_eagerly = True
        for layer in model.backbone._flatten_layers():
            if isinstance(layer, Attention) and not isinstance(layer.mechanism, Delta):
                layer.attend = functools.partial(_dense, layer)  # type: ignore[method-assign]
        return step(model)


def _dense(layer, *tensors, initial_state=None, return_state=False, **sequence):
    """What the heads of a layer gather, by their dense weights."""
    return layer.attend_with_weights(*tensors, **sequence)[0]


def step(model: Any, copies: int = 1) -> Step:
    """One step of a model that `load` made.

    Args:
        model: it changes.
        copies: how often the batch has each example, which changes neither loss nor gradients.
    """
    batch = model.preprocessor(TEXTS * copies)
    before = _values(model)
    with float32_products(model.dtype_policy.compute_dtype):
        loss = float(model.train_on_batch(*batch, return_dict=True)["loss"])
    gradients = {path: (before[path] - x) / RATE for path, x in _values(model).items()}
    return Step(loss, gradients)


def _values(model):
    values = ((x.path, keras.ops.convert_to_numpy(x.value)) for x in model.trainable_variables)
    return {path: np.asarray(x, "float64") for path, x in values}


# Generation ---------------------------------------------------------------------------------------


@float32_products()
def generate(family: str, mechanism: str) -> Finding:
    """How far a token that a saved and reloaded model chose greedily, with a cache, is from the
    best one of the first model's forward pass over the whole: the difference of their logits."""
    model = load(family, mechanism)
    with tempfile.TemporaryDirectory() as folder:
        presets.save(model, f"{folder}/model")
        again = presets.load(f"{folder}/model")
    prompts = model.preprocessor.generate_preprocess(TEXTS[:2])
    made = again.generate(prompts, sampler="greedy", stop_token_ids=None)
    tokens, real = np.asarray(made["token_ids"]), np.asarray(made["padding_mask"])
    logits = model.predict_on_batch(_whole(model, prompts, tokens, real))
    logits = keras.ops.convert_to_numpy(logits).astype("float64")[:, :-1]
    chosen = np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    begun = np.asarray(prompts[f"{_side(model)}padding_mask"]).sum(1, keepdims=True)
    new = (np.arange(1, tokens.shape[1])[None] >= begun) & (real[:, 1:] != 0)
    short = np.where(new, logits.max(-1) - chosen, 0)
    return Finding(float(short.max()), LOGIT_TOLERANCE, f"{int(new.sum())} tokens")


def _side(model):
    return "decoder_" if "decoder_token_ids" in model.input else ""


def _whole(model, prompts, tokens, real):
    """The inputs of a forward pass over prompts and what was made of them."""
    inputs = {name: np.asarray(prompts[name]) for name in model.input if name in prompts}
    inputs |= {f"{_side(model)}token_ids": tokens, f"{_side(model)}padding_mask": real}
    if "source_mask" in inputs:
        source = np.pad(inputs["source_mask"], [(0, 0), (0, tokens.shape[1])])
        inputs["source_mask"] = source[:, : tokens.shape[1]]
    return inputs
