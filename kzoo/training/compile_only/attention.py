"""Each attention of a model alone on a chip: what it must move, what it moves, its least time."""

import dataclasses

from kzoo.mechanisms import Extras
from kzoo.ops.context import compiling_for
from kzoo.training.distribution import DATA, MODEL
from kzoo.training.roofline import program_work


def attention_costs(model, target, batch, time):
    """What each attention costs on one chip, its projections aside, forward and backward.

    A chip has its examples and heads. Attentions that are alike are compiled once.

    Returns:
        For each layer's path a dict:

        - `least_bytes`: each input and output once, forward and backward;
        - `bytes`: what the compiled program moves (`kzoo.training.roofline`);
        - `flops`: of its matrix products;
        - `roofline_seconds`: the time of its products at the chip's peak, axes that do not fill
          the matrix unit counted as filled, or that of its bytes, whichever is longer;
        - `temporaries`: bytes;
        - `fits`: whether it fits into the chip's memory; if not, the others are None but for
          the first.
    """
    from kzoo.layers import Attention

    known, costs = {}, {}
    for layer in model._flatten_layers():
        if isinstance(layer, Attention):
            key = (
                *(layer.mechanism, layer.mask, layer.sizes, layer.rotary, layer.relative),
                *(layer.cross, layer.compute_dtype),
            )
            if key not in known:
                known[key] = _costs(layer, target, batch // target.sizes[DATA], time)
            costs[layer.path] = known[key]
    return costs


def _costs(layer, target, batch, time):
    import jax

    sizes, parts = layer.sizes, target.sizes.get(MODEL, 1)
    sizes = dataclasses.replace(
        sizes, num_heads=sizes.num_heads // parts, kv_heads=max(1, sizes.kv_heads // parts)
    )
    sharding = jax.sharding.SingleDeviceSharding(target.mesh.devices.flat[0])
    floats, masks = _inputs(layer, sizes, batch, time, sharding)
    slope = floats["q"]

    def program(floats, masks, slope):
        out, pull = jax.vjp(lambda floats: _attend(layer, sizes, floats, masks), floats)
        return out, pull(slope)

    with compiling_for("tpu"):
        traced = jax.jit(program).trace(floats, masks, slope)
        lowered = traced.lower()
    least = 2 * _bytes((floats, masks)) + 2 * _bytes(slope) + _bytes(floats)
    nothing = dict.fromkeys(("bytes", "flops", "roofline_seconds", "temporaries"))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError:
        return {"fits": False, "least_bytes": least, **nothing}
    work = program_work(traced.jaxpr, compiled.as_text())
    return {
        "fits": True,
        "least_bytes": least,
        "bytes": work.bytes,
        "flops": work.flops,
        "roofline_seconds": target.chip.seconds(work),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def _inputs(layer, sizes, batch, time, sharding):
    """The shapes of what gets gradients, by name and heads in one axis, and of the masks."""
    import jax

    dtype, width = layer.compute_dtype, sizes.head_dim

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    keys = array(dtype, batch, time, sizes.kv_heads * width)
    floats = {"q": array(dtype, batch, time, sizes.num_heads * width), "k": keys, "v": keys}
    extras = layer.mechanism.projections(sizes).items()
    floats["projected"] = {name: array(dtype, batch, time, size) for name, size in extras}
    variables = layer.mechanism.variable_shapes(sizes).items()
    floats["variables"] = {name: array("float32", *shape) for name, shape in variables}
    if layer.relative:
        floats["bias"] = array(dtype, 1, sizes.num_heads, time, time)
    names = ["padding_mask"] + ["source_mask"] * layer.mask.needs_source
    names += ["key_padding_mask"] * layer.cross
    return floats, {name: array("int32", batch, time) for name in names}


def _attend(layer, sizes, floats, masks):
    """As `Attention.attend` does it, of arrays that its projections have made."""
    batch, time, _ = floats["q"].shape
    q, k, v = (floats[name].reshape(batch, time, -1, sizes.head_dim) for name in "qkv")
    extras = Extras(floats["projected"], floats["variables"])
    options = {"rotary": layer.rotary, **masks}
    if "bias" in floats:
        options["bias"] = floats["bias"]
    out = layer.mechanism.attend(q, k, v, extras, layer.mask, **options)
    return out.reshape(batch, time, -1)


def _bytes(arrays):
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
