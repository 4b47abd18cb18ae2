"""Attention on many devices: each computes its rows of the batch and its heads, and asks nobody.

XLA would partition what is no kernel by itself, but it would also ask all devices before each
branch that depends on the rows.
"""

import jax
import keras
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kzoo.masks import Heads
from kzoo.ops.choice import compiled_for

DATA, MODEL = "data", "model"  # axes of the mesh


def current_mesh():
    """The `jax.sharding.Mesh` that the program traced now is split over; None for one device.

    That of `kzoo.ops.choice.compiling_for`, else that of Keras's distribution, whose axis that
    splits the batch ("batch" in Keras's own `DataParallel`) is called "data" here.
    """
    platform, mesh = compiled_for()
    distribution = keras.distribution.distribution()
    if platform is None and distribution is not None and distribution.device_mesh is not None:
        mesh = distribution.device_mesh.backend_mesh
        batch = distribution.batch_dim_name
        names = [DATA if name == batch else name for name in mesh.axis_names]
        mesh = Mesh(mesh.devices, names, axis_types=mesh.axis_types)
    return mesh if mesh is not None and mesh.size > 1 else None


def refuses_mesh(mask, *, batch, num_heads, mesh) -> str | None:
    """Why an attention cannot be split over a `jax.sharding.Mesh`, or None if it can."""
    others = [axis for axis in mesh.axis_names if axis not in (DATA, MODEL)]
    if others:
        return f"attention is split over the mesh axes {DATA!r} and {MODEL!r}, not over {others}"
    data, model = (mesh.shape.get(axis, 1) for axis in (DATA, MODEL))
    if batch % data:
        return f"a batch of {batch} does not divide into {data} along the mesh axis {DATA!r}"
    pattern = len(mask.masks) if isinstance(mask, Heads) else 1
    if num_heads % (model * pattern):
        return (
            f"{num_heads} heads do not divide into {model} along the mesh axis {MODEL!r} with "
            f"whole repetitions of the {pattern} masks of the heads in each"
        )
    return None


def rows_on_devices(x):
    """`x` [batch, ...] split over the axis "data" of `current_mesh`, where it divides."""
    mesh = current_mesh()
    data = 1 if mesh is None else mesh.shape.get(DATA, 1)
    if data == 1 or x.shape[0] % data:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(DATA)))


def each_device(attend, mesh, q, k, v, rows, weights=None):
    """attend(q, k, v, rows, weights) of each device's rows and heads.

    Args:
        attend: takes parts of the arguments and returns [batch, time, heads, dim].
        mesh: a `jax.sharding.Mesh` that `refuses_mesh` does not refuse.
        q, k, v: [batch, time, heads, dim].
        rows: a nest of arrays [batch or 1, time] and None.
        weights: a nest of arrays with the heads first, or None.
    """
    data, model = (axis if axis in mesh.axis_names else None for axis in (DATA, MODEL))
    whole = PartitionSpec(data, None, model, None)

    def of_rows(x):
        return PartitionSpec(None if x.shape[0] == 1 else data, None)

    specs = jax.tree.map(of_rows, rows), jax.tree.map(lambda _: PartitionSpec(model), weights)
    # XLA cannot infer over which axes the results of a Mosaic kernel vary.
    split = jax.shard_map(
        attend, mesh=mesh, in_specs=(whole, whole, whole, *specs), out_specs=whole, check_vma=False
    )
    return split(q, k, v, rows, weights)
