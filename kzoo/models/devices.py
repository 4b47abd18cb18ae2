"""What a task does about devices, where a distribution gives it several.

`fit` and `evaluate` are given the same batches in every process, the whole ones; each process
takes the rows that its devices compute, and Keras makes global arrays of them.
"""

import logging

import keras
import numpy as np

from kzoo.errors import InputError

log = logging.getLogger("kzoo")

_told = []  # of idle devices; once in a process


def mesh_axes():
    """The sizes of the current distribution's mesh by axis; empty without a distribution."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return {}
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


def warn_of_idle_devices():
    """Warn, once, where JAX has several devices and nothing says which to use."""
    if _told or keras.backend.backend() != "jax" or keras.distribution.distribution() is not None:
        return
    import jax

    count = jax.device_count()
    if count > 1 and jax.config.jax_default_device is None:
        _told.append(count)
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
        # On a mesh of one device Keras leaves values as they are, without a mesh.
        alone = mesh.size == 1 and sharding.device_set == set(mesh.devices.flat)
        if getattr(sharding, "mesh", None) != mesh and not alone:
            raise InputError(
                "this model was made before the distribution, and Keras leaves it where it is: "
                "call kzoo.distribute() first, then make the model. Received: "
                f"{variable.path} on {len(sharding.device_set)} device(s), not on the mesh"
            )


def check_batches(count, batch_size):
    """`InputError` unless `count` rows in batches of `batch_size` all divide over the devices."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        for size in {min(batch_size, count), count % batch_size or batch_size}:
            _check_batch(size, distribution)


def own_examples(batch, distribution):
    """The rows of a batch that this process's devices compute.

    Args:
        batch: a nest of arrays [rows, ...] and None, the same in every process.
        distribution: of Keras, which knows the current one only in the thread that set it, and
            batches are read by others.

    Returns:
        The same nest; under one process all of it.

    Raises:
        InputError: if the batch does not divide into the mesh axis "data", or, under several
            processes, its size is not known.
    """
    size = next(x for x in keras.tree.flatten(batch) if x is not None).shape[0]
    several = distribution.num_processes > 1
    if size is not None:  # in a tf.data pipeline it may not be known
        _check_batch(size, distribution)
    elif several:
        raise InputError(
            "several processes share batches whose size is known: arrays, or a Grain dataset. "
            "Received: a tf.data.Dataset"
        )
    if not several:
        return batch
    layout = distribution.get_data_layout((size,)).backend_layout
    spans = layout.addressable_devices_indices_map((size,)).values()
    # As JAX puts the parts of a process together: in the order of the rows.
    spans = sorted({span.indices(size)[:2] for (span,) in spans})
    rows = np.concatenate([np.arange(*span) for span in spans])
    return keras.tree.map_structure(lambda x: None if x is None else x[rows], batch)


def _check_batch(size, distribution):
    mesh = distribution.device_mesh
    data = mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]
    if size % data:
        raise InputError(
            f"a batch divides into the {data} devices along the mesh axis 'data', the last one of "
            f"an epoch too. Received: a batch of {size} rows"
        )
