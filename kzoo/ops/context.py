"""Where the program that is traced now will run: on which platform, over which devices."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras

from kzoo.names import DATA

_compiling_for: contextvars.ContextVar[tuple[str | None, Any]] = contextvars.ContextVar(
    "compiling_for", default=(None, None)
)


@contextlib.contextmanager
def compiling_for(platform: str, mesh: Any = None) -> Iterator[None]:
    """Inside it, programs are traced for another platform than this machine's.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        mesh: the `jax.sharding.Mesh` that they are split over, with the axes "data", "model" or
            both; None for one device.

    Example:
        >>> with compiling_for("tpu"):
        ...     lowered = jax.jit(jnp.sin).trace(1.0).lower(lowering_platforms=("tpu",))
    """
    token = _compiling_for.set((platform, mesh))
    try:
        yield
    finally:
        _compiling_for.reset(token)


def compiled_for():
    """The platform and the mesh of `compiling_for`; None and None outside of it."""
    return _compiling_for.get()


def platform():
    """Where programs that are traced now will run: `"cpu"`, `"gpu"` or `"tpu"`."""
    if compiled_for()[0] is not None:
        return compiled_for()[0]
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend()
    if backend == "torch":
        import torch

        return "gpu" if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


def current_mesh():
    """The `jax.sharding.Mesh` that the program traced now is split over; None for one device.

    That of `compiling_for`, else that of Keras's distribution, whose axis that splits the batch
    ("batch" in Keras's own `DataParallel`) is called "data" here.
    """
    platform, mesh = compiled_for()
    distribution = keras.distribution.distribution()
    if platform is None and distribution is not None and distribution.device_mesh is not None:
        mesh = distribution.device_mesh.backend_mesh
        if keras.backend.backend() != "jax":
            return None
        from jax.sharding import Mesh

        batch = distribution.batch_dim_name
        names = [DATA if name == batch else name for name in mesh.axis_names]
        mesh = Mesh(mesh.devices, names, axis_types=mesh.axis_types)
    return mesh if mesh is not None and mesh.size > 1 else None


def here():
    """What `kzoo.ops.dispatch.Spec` says of where a program runs, by name."""
    return {
        "backend": keras.backend.backend(),
        "platform": platform(),
        "mesh": current_mesh(),
        "ahead_of_time": compiled_for()[0] is not None,
    }
