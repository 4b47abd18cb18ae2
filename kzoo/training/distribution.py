"""One model on many devices: which part of each variable a device holds, through Keras.

Devices form a mesh. Its axis "data" splits the examples of a batch; its axis "model" splits
projections and the vocabulary, so that a device computes some of the heads and some of the hidden
units of each layer. XLA inserts the communication that follows. No layout changes a result.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 ("model"); Rajbhandari et al. 2020,
arXiv:1910.02054 (parameters and the optimizer's state split over "data").
"""

import functools
import logging
import re
from typing import Any

import keras

from kzoo import mixers
from kzoo.errors import InputError
from kzoo.mixers import DATA, MODEL
from kzoo.values import is_count, plain

log = logging.getLogger("kzoo")

HEARTBEAT = 30  # seconds of silence after which a process counts as dead

# The end of a variable's path, and the axes of its dimensions; "data" only when parameters are
# split over it too. Those of attention and feed-forward networks stand in `kzoo.mixers`. What is
# in neither is whole on every device: norms, the biases of what is added to the residual stream,
# random states.
_RULES = {
    r"(\w+_)?relative_bias/embeddings": (None, MODEL),  # [buckets, heads]
    # By vocabulary: then the logits, often the largest activations, come out split too.
    r"token_embedding/embeddings": (MODEL, DATA),
    r"token_embedding/reverse_embeddings": (DATA, MODEL),
    r"head/bias": (MODEL,),
    r"(position|segment)_embedding/embeddings": (None, DATA),
    r"(head/dense|pooler)/kernel": (DATA, None),
}
_ANYWHERE = r"(.*/)?"  # before a rule


def initialize(
    job_addresses: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join this process to the others of a run on several hosts; before anything is computed.

    `keras.distribution.initialize`, with one difference: where a process dies, the others stop
    with an error within half a minute, instead of a minute and a half. Start all of them again
    to go on from the last checkpoint.

    Args:
        job_addresses: `"HOST:PORT"` of the first process.
        num_processes: how many there are.
        process_id: which of them this is, from 0.

    All are None on a TPU pod, which knows them, or where the environment names them
    (`KERAS_DISTRIBUTION_JOB_ADDRESSES`, `..._NUM_PROCESSES`, `..._PROCESS_ID`).

    Example:
        >>> kzoo.training.initialize("10.0.0.1:1234", num_processes=2, process_id=0)
        >>> kzoo.distribute()
    """
    import jax

    # Keras hands no timeout on to JAX, whose own is 100 seconds.
    start = jax.distributed.initialize
    jax.distributed.initialize = functools.partial(start, heartbeat_timeout_seconds=HEARTBEAT)
    try:
        keras.distribution.initialize(job_addresses, num_processes, process_id)
    finally:
        jax.distributed.initialize = start


def distribute(data: int | None = None, model: int = 1, fsdp: bool = False) -> Any:
    """Train on every device: set Keras's distribution for the models that are made after it.

    Each batch is split into `data` parts, and each layer into `model` parts. Losses are those of
    one device, up to rounding. On several hosts, call `kzoo.training.initialize` before it;
    every process runs the same script, and `fit` is given the same batches in each.

    Args:
        data: parts of a batch; by default as many as there are devices for.
        model: parts of each layer's projections and of the vocabulary. Heads, key-value heads,
            the masks of heads and `intermediate_dim` divide into them.
        fsdp: split parameters, and so the optimizer's state, over the parts of the batch too.
            Less memory, more communication.

    Returns:
        The `keras.distribution.DataParallel` or `ModelParallel` that is set now. Its mesh has the
        axes "data" and, with `model` above 1, "model".

    Raises:
        InputError: on another backend than JAX, or for more parts than there are devices.

    Example:
        >>> kzoo.distribute()
        >>> model = kzoo.presets.load("gpt_base")
        >>> model.fit(kzoo.data.load("pydoc", model, batch_size=64).train)
    """
    backend = keras.backend.backend()
    if backend != "jax":
        how = {"torch": "; on torch, examples/torchrun.py starts a process for each device"}
        raise InputError(
            f"Keras distributes models on the JAX backend alone{how.get(backend, '')}. "
            f"Received: KERAS_BACKEND={backend}"
        )
    names = keras.distribution.list_devices()
    received = f"Received: data={data!r}, model={model!r} and {len(names)} devices"
    for parts in (model, 1 if data is None else data):
        if not is_count(parts):
            raise InputError(f"data and model are positive integers. {received}")
    data, model = plain(data), plain(model)
    if data is None and len(names) % model:
        raise InputError(f"model divides the number of devices. {received}")
    data = len(names) // model if data is None else data
    if data * model > len(names):
        raise InputError(f"data · model is at most the number of devices. {received}")
    sizes = {DATA: data} | ({MODEL: model} if model > 1 else {})
    devices = names[: data * model]
    mesh = keras.distribution.DeviceMesh(tuple(sizes.values()), [*sizes], devices)
    chosen = distribution(mesh, fsdp)
    if len(devices) < len(names) and chosen.num_processes > 1:
        raise InputError(f"several processes use all of their devices. {received}")
    keras.distribution.set_distribution(chosen)
    return chosen


def layout(path, shape, mesh, fsdp=False):
    """The mesh axis that splits each dimension of a variable.

    An axis that does not divide its dimension splits nothing there (GPT-2's vocabulary of 50257
    is whole on every device). Heads and hidden units always divide: a backbone that is built for
    such a mesh checks it (`kzoo.config.check_split`).

    Args:
        path: the variable's, such as `"block_0/attention/query/kernel"`.
        shape: its shape.
        mesh: the sizes of the mesh by axis, such as `{"data": 4, "model": 2}`.
        fsdp: split parameters over "data" too.

    Returns:
        A tuple as long as the shape, of axis names and None.

    Example:
        >>> layout("block_0/attention/query/kernel", (64, 64), {"data": 4, "model": 2})
        (None, 'model')
    """
    pairs = zip(_wanted(path, shape, mesh, fsdp), shape, strict=True)
    return tuple(None if axis is None or size % mesh[axis] else axis for axis, size in pairs)


def layout_map(device_mesh: Any, fsdp: bool = False) -> Any:
    """The layouts of all families' variables by path, as Keras takes them.

    Keras shows a map no shapes, so that it holds where every dimension divides; `layout`, which
    `distribution` goes by, sees shapes.

    Args:
        device_mesh: a `keras.distribution.DeviceMesh` with the axes "data", "model" or both; its
            devices may be names of devices that are not there.
        fsdp: split parameters, and so the optimizer's state, over "data" too.

    Returns:
        A `keras.distribution.LayoutMap`.

    Example:
        >>> names = [f"tpu:{i}" for i in range(8)]
        >>> mesh = keras.distribution.DeviceMesh((4, 2), ["data", "model"], names)
        >>> layout_map(mesh)["block_0/feed_forward/output_dense/kernel"].axes
        ('model', None)
    """
    layouts = keras.distribution.LayoutMap(device_mesh)
    for rule, axes in _rules().items():
        layouts[_ANYWHERE + rule] = _of_mesh(axes, device_mesh.axis_names, fsdp)
    return layouts


def distribution(device_mesh, fsdp=False):
    """The Keras distribution over a mesh, without making it the current one.

    Args:
        device_mesh, fsdp: as in `layout_map`.

    Returns:
        A `keras.distribution.DataParallel` where variables are whole on every device, else a
        `keras.distribution.ModelParallel`. `get_variable_layout(variable).axes` is the layout of
        a variable, shapes considered.
    """
    if not fsdp and MODEL not in device_mesh.axis_names:
        return keras.distribution.DataParallel(device_mesh, auto_shard_dataset=False)
    return _ModelParallel(device_mesh, fsdp)


class _ModelParallel(keras.distribution.ModelParallel):
    """Lays variables out by path and shape; Keras's own goes by path alone."""

    def __init__(self, device_mesh, fsdp):
        layouts = layout_map(device_mesh, fsdp)
        super().__init__(layout_map=layouts, batch_dim_name=DATA, auto_shard_dataset=False)
        self.fsdp = fsdp
        self._told = set()

    def get_variable_layout(self, variable):
        given = getattr(variable, "_layout", None)
        if given is not None:  # an optimizer's variable, which has its parameter's
            return given
        mesh = dict(zip(self.device_mesh.axis_names, self.device_mesh.shape, strict=True))
        axes = layout(variable.path, variable.shape, mesh, self.fsdp)
        wanted = _wanted(variable.path, variable.shape, mesh, self.fsdp)
        for axis, size in zip(wanted, variable.shape, strict=True):
            if axis not in axes and (axis, size) not in self._told:
                self._told.add((axis, size))
                log.warning(
                    "%s, and others like it: a dimension of %d is not split, as it does not "
                    "divide into %d along the mesh axis %r",
                    *(variable.path, size, mesh[axis], axis),
                )
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _rules():
    return {**mixers.sharding(), **_RULES}


def _wanted(path, shape, mesh, fsdp):
    """`layout`, if every dimension divided."""
    for rule, axes in _rules().items():
        if len(axes) == len(shape) and re.fullmatch(_ANYWHERE + rule, path):
            return _of_mesh(axes, mesh, fsdp)
    return (None,) * len(shape)


def _of_mesh(axes, names, fsdp):
    """`axes` without those that the mesh does not have, and without "data" unless asked for."""
    return tuple(axis if axis in names and (fsdp or axis != DATA) else None for axis in axes)
