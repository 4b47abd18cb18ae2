"""Several devices: a step of training that is split over them against that of one."""

import functools
from collections.abc import Iterator

import keras

from kzoo import mechanisms
from kzoo.doctor.check import Check, Finding
from kzoo.doctor.models import against, load, reference, step
from kzoo.training import distribute

FAMILY = "gpt"  # of one stack, whose mask every mechanism follows


def checks() -> Iterator[Check]:
    """For each mechanism a step whose batch is split, and one whose layers are split too.

    None where there is one device, or on a backend that Keras does not distribute.
    """
    if keras.backend.backend() != "jax" or (count := len(keras.distribution.list_devices())) < 2:
        return
    for mechanism in mechanisms.names():
        for model in (1, 2) if count % 2 == 0 else (1,):
            run = functools.partial(train, mechanism, count // model, model)
            case = f"{count // model} × {model} devices"
            yield Check("devices", f"{FAMILY}, {mechanism}", case, "float32", run)


def train(mechanism: str, data: int, model: int) -> Finding:
    """A step that is split against the reference, which is not.

    Args:
        mechanism: its name.
        data: parts of the batch.
        model: parts of each layer.
    """
    want = reference(FAMILY, mechanism)
    before = keras.distribution.distribution()
    try:
        distribute(data=data, model=model)
        return against(want, step(load(FAMILY, mechanism), copies=data), "float32")
    finally:
        keras.distribution.set_distribution(before)
