"""The batch axis on many devices."""

from kzoo.names import DATA
from kzoo.ops.context import current_mesh


def shard_batch(x):
    """The same tensor, its batch axis split over the mesh axis "data" where there is one.

    Where parameters are split over "data" too, XLA might rather split the features of what they
    are multiplied with, and have every device compute the whole batch.

    Args:
        x: a tensor [batch, ...]; one whose batch size does not divide is left alone.
    """
    mesh = current_mesh()
    data = 1 if mesh is None else mesh.shape.get(DATA, 1)
    if data == 1 or x.shape[0] % data:
        return x
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(DATA)))
