"""Attention on many devices: each computes its examples and its heads, and asks nobody.

XLA would partition what is no kernel by itself, but it would also ask all devices before each
branch that depends on the padding masks.
"""

import jax
from jax.sharding import PartitionSpec

from kzoo.names import DATA, MODEL


def unsplittable_reason(mask, *, batch, num_heads, mesh) -> str | None:
    """Why an attention cannot be split over a `jax.sharding.Mesh`, or None if it can."""
    others = [axis for axis in mesh.axis_names if axis not in (DATA, MODEL)]
    if others:
        return f"attention is split over the mesh axes {DATA!r} and {MODEL!r}, not over {others}"
    data, model = (mesh.shape.get(axis, 1) for axis in (DATA, MODEL))
    if batch % data:
        return f"a batch of {batch} does not divide into {data} along the mesh axis {DATA!r}"
    pattern = mask.pattern_size
    if num_heads % (model * pattern):
        return (
            f"{num_heads} heads do not divide into {model} along the mesh axis {MODEL!r} with "
            f"whole repetitions of the {pattern} masks of the heads in each"
        )
    return None


def each_device(attend, mesh, q, k, v, sequence, weights=None, gates=None):
    """attend(q, k, v, sequence, weights, gates) of each device's examples and heads.

    Args:
        attend: takes parts of the arguments and returns [batch, time, heads, dim].
        mesh: a `jax.sharding.Mesh` of which `unsplittable_reason` is None.
        q, k, v: [batch, time, heads, dim].
        sequence: a nest of arrays [batch or 1, time] and None.
        weights: a nest of arrays with the heads first, or None.
        gates: [batch or 1, time, heads], or None, with which `attend` has one argument less.
    """
    data, model = (axis if axis in mesh.axis_names else None for axis in (DATA, MODEL))
    whole = PartitionSpec(data, None, model, None)

    def by_example(x):
        return PartitionSpec(None if x.shape[0] == 1 else data, None)

    heads_first = jax.tree.map(lambda _: PartitionSpec(model), weights)
    specs = [jax.tree.map(by_example, sequence), heads_first]
    others = [sequence, weights]
    if gates is not None:
        specs.append(PartitionSpec(None if gates.shape[0] == 1 else data, None, model))
        others.append(gates)
    # XLA cannot infer over which axes the results of a Mosaic kernel vary.
    split = jax.shard_map(
        attend, mesh=mesh, in_specs=(whole, whole, whole, *specs), out_specs=whole, check_vma=False
    )
    return split(q, k, v, *others)
