"""Batches and checks for models that a Keras distribution spreads over several devices.

`fit` and `evaluate` are given the same whole batches in every process. Each process takes the
examples that its own devices compute, and Keras makes global arrays of them.
"""

import logging

import keras
import numpy as np

from kzoo.errors import InputError

log = logging.getLogger("kzoo")

_warned = []  # of idle devices, once in a process


def mesh_axes():
    """The sizes of the current distribution's mesh by axis; empty without a distribution."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return {}
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


def warn_of_idle_devices():
    """Warn, once, if JAX has several devices and no distribution says which to use."""
    if _warned or keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
        return
    import jax

    count = jax.device_count()
    if count > 1 and jax.config.jax_default_device is None:
        _warned.append(count)
        log.warning(
            "only one of %d devices is used: kzoo.distribute(), called before the model is made, "
            "uses them all (and kzoo.distribute(data=1) one of them, without this warning)",
            count,
        )


def check_placed(model):
    """`InputError` unless the model was made under the current distribution."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return
    mesh = distribution.device_mesh.backend_mesh
    for variable in model.weights:
        sharding = variable.value.sharding
        # On a mesh of one device Keras puts values there without a mesh.
        alone = mesh.size == 1 and sharding.device_set == set(mesh.devices.flat)
        if getattr(sharding, "mesh", None) != mesh and not alone:
            raise InputError(
                "a model must be made after the distribution, which does not move it: "
                "call kzoo.distribute() first, then make the model. Received: "
                f"{variable.path} on {len(sharding.device_set)} device(s), not on the mesh"
            )


def check_batches(count, batch_size):
    """`InputError` unless `count` examples, by `batch_size`, divide over the devices."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        for size in {min(batch_size, count), count % batch_size or batch_size}:
            _check_batch(size, distribution)


def own_examples(batch, distribution):
    """The examples of a batch that this process's devices compute.

    Args:
        batch: a nest of arrays [batch, ...] and None, the same in every process.
        distribution: a `keras.distribution.Distribution`, passed since Keras knows the current one
            only in the thread that set it, and other threads read batches.

    Returns:
        The same nest; with one process the whole batch.

    Raises:
        InputError: if the mesh axis "data" does not divide the batch, or if there are several
            processes and the size of the batch is not known.
    """
    size = next(x for x in keras.tree.flatten(batch) if x is not None).shape[0]
    several = distribution.num_processes > 1
    if size is not None:  # in a tf.data pipeline it may not be known
        _check_batch(size, distribution)
    elif several:
        raise InputError(
            "with several processes the batch size must be known: use arrays or a Grain dataset. "
            "Received: a tf.data.Dataset"
        )
    if not several:
        return batch
    layout = distribution.get_data_layout((size,)).backend_layout
    spans = layout.addressable_devices_indices_map((size,)).values()
    # In the order of the examples, as JAX joins the parts of a process.
    spans = sorted({span.indices(size)[:2] for (span,) in spans})
    examples = np.concatenate([np.arange(*span) for span in spans])
    return keras.tree.map_structure(lambda x: None if x is None else x[examples], batch)


def _check_batch(size, distribution):
    mesh = distribution.device_mesh
    data = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if size % data:
        raise InputError(
            f"every batch, the last one of an epoch too, must divide over the {data} devices along "
            f"the mesh axis 'data'. Received: a batch of {size} examples"
        )
