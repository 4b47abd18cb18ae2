"""The slice of TPUs that programs are compiled for; this machine needs no TPU."""

import contextlib
import importlib.util
import math
import os
from typing import NamedTuple

import keras

from kzoo.config import check_split
from kzoo.errors import InputError, unknown
from kzoo.training.distribution import DATA, MODEL

GIB = 2**30


class Chip(NamedTuple):
    """A generation of TPUs. Source: docs.cloud.google.com/tpu/docs.

    Attributes:
        memory: bytes.
        peak: multiplications and additions of bfloat16 a second.
        bandwidth: bytes a second between its memory and its cores.
        shapes: of its slices.
        accelerator: its name for libtpu, with the number of chips (v5p: of cores) behind it.
        cores: a chip's.
    """

    memory: int
    peak: float
    bandwidth: float
    shapes: tuple
    accelerator: str
    cores: int = 1

    def seconds(self, work):
        """The least time of a `kzoo.training.roofline` `Work`: of its products or its bytes."""
        return max(work.unit_flops / self.peak, work.bytes / self.bandwidth)


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, _FLAT, "v5litepod"),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, _CUBES, "v5p", 2),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, _FLAT, "v6e"),
}
TOPOLOGIES = [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in chip.shapes]


class Target(NamedTuple):
    """What programs are compiled for: the chip, a `jax.sharding.Mesh`, its axes and their sizes."""

    chip: Chip
    mesh: object
    sizes: dict


def target_of(topology, sizes, batch, config):
    """The `Target`; `InputError` if the mesh does not divide the chips, the batch or the heads."""
    if keras.backend.backend() != "jax":
        raise InputError(
            "programs for TPUs are compiled by JAX: KERAS_BACKEND=jax, or --backend jax. "
            f"Received: the backend {keras.backend.backend()!r}"
        )
    if topology not in TOPOLOGIES:
        raise unknown("topology", topology, TOPOLOGIES)
    shape = topology.partition(":")[2]
    chips = math.prod(map(int, shape.split("x")))
    sizes = _sizes(sizes or {}, chips)
    if batch % sizes[DATA]:
        raise InputError(
            f"batch must divide into {sizes[DATA]} along the mesh axis {DATA!r}. Received: {batch}"
        )
    check_split(config, sizes.get(MODEL, 1))
    return Target(CHIPS[topology.partition(":")[0]], mesh_of(topology, sizes), sizes)


def _sizes(given, chips):
    """The mesh axes that `kzoo.distribute` would make: "data" and, above 1, "model"."""
    for axis in given:
        if axis not in (DATA, MODEL):
            raise unknown("mesh axis", axis, (DATA, MODEL))
    model = given.get(MODEL, 1)
    if model < 1 or chips % model or given.get(DATA, chips // model) != chips // model:
        raise InputError(f"data · model must be the number of chips, {chips}. Received: {given}")
    return {DATA: chips // model} | ({MODEL: model} if model > 1 else {})


@contextlib.contextmanager
def _libtpu_alone(accelerator):
    """A context in which libtpu is loaded without looking for a TPU of this machine.

    Otherwise it would query the machine, write logs to /tmp and lock out other processes.
    """
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def mesh_of(topology, sizes):
    """A `jax.sharding.Mesh` of TPUs for ahead-of-time compilation; this machine needs none."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "compiling for a TPU needs libtpu, on Linux: pip install 'kzoo[tpu]'. "
            "Received: no module libtpu"
        )
    generation, _, shape = topology.partition(":")
    chip = CHIPS[generation]
    chips = math.prod(sizes.values())
    import jax
    import numpy as np
    from jax.experimental import topologies

    alone = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    with _libtpu_alone(f"{chip.accelerator}-{chips * chip.cores}"):
        devices = topologies.get_topology_desc(topology, platform="tpu", **alone).devices
    # In the order of their ids, as Keras arranges devices.
    return jax.sharding.Mesh(np.array(devices).reshape(*sizes.values()), [*sizes])
