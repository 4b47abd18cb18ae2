"""Calls of the C++, and what it takes."""

import jax
import jax.numpy as jnp

from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.ops.kernels.derivatives import varying
from kzoo.ops.kernels.native.library import missing

MULTIPLE = 16  # of columns, whatever vectors the CPU has: `kMultiple` in tile.h
MOST_DIM = 2**14  # as `kMostDim` in checks.h


def unsupported_reason(spec, **sizes) -> str | None:
    """Why the C++ cannot compute an attention, in words for its user, or None if it can.

    Args:
        spec: a `kzoo.ops.dispatch.Spec`.
        sizes: of heads, by name.
    """
    if spec.platform != "cpu":
        return f"the native kernel runs on a CPU, not on a {spec.platform}"
    if not spec.sizes_known:
        return "the native kernel needs to know batch and time when the program is made"
    if spec.bias:
        return "the native kernel adds no bias to the scores; use 'dense'"
    if spec.wide_dtype == "float64":
        return "the native kernel computes in float32, not in float64"
    if any(size % MULTIPLE or size == 0 for size in sizes.values()):
        return f"the native kernel takes heads of multiples of {MULTIPLE}: {sizes}"
    if max(sizes.values()) > MOST_DIM:
        return f"the native kernel takes heads of at most {MOST_DIM}: {sizes}"
    other = no_order(spec.mask.per_head(spec.num_heads))
    if other is not None:
        return f"the native kernel {ORDERS_ONLY}: {other!r}"
    if spec.ahead_of_time:
        return "the native kernel is this machine's; the program is for another"
    if spec.mesh is not None:
        return "the native kernel runs on one device, not on a mesh of several"
    return missing()


def call(name, shapes, *arrays, **static):
    """What a handler of the C++ returns, arrays of `shapes`."""
    results = jax.ffi.ffi_call(name, tuple(shapes), vmap_method="sequential")(*arrays, **static)
    return varying(results, arrays)


def float32(*shape):
    """The kind of an array of float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
