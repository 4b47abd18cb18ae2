"""Which kernel computes an attention: one function, for the dispatch and for the logs.

It looks at shapes alone; for `cudnn` also at the compute capability of this process's GPU, and for
`native` at its C++ compiler.

| kernel      | mechanism | where                        | masks                            |
|-------------|-----------|------------------------------|----------------------------------|
| `dense`     | softmax   | everywhere                   | all; quadratic memory            |
| `native`    | both      | JAX on CPU, one device       | orders, no bias                  |
| `blockwise` | softmax   | JAX                          | all, no bias                     |
| `splash`    | softmax   | JAX on TPU                   | orders, no bias                  |
| `cudnn`     | softmax   | JAX on GPU, 16-bit floats    | all, no bias                     |
| `sdpa`      | softmax   | torch                        | all                              |
| `chunked`   | linear    | everywhere                   | orders                           |
"""

import contextlib
import contextvars
import dataclasses

import keras

from kzoo.errors import InputError, unknown

KERNELS = {
    "softmax": ("dense", "native", "blockwise", "splash", "cudnn", "sdpa"),
    "linear": ("chunked", "native"),
}
# Up to it one block holds all scores, and XLA's dense softmax compiles sooner than its blocks.
DENSE_TIME = 128


_compiling_for = contextvars.ContextVar("compiling_for", default=(None, None))


@contextlib.contextmanager
def compiling_for(platform, mesh=None):
    """Inside it, programs are traced for another platform than this machine's.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        mesh: the `jax.sharding.Mesh` that they are split over, with the axes "data", "model" or
            both; None for one device.

    Example:
        >>> with compiling_for("tpu"):
        ...     lowered = jax.jit(step).trace(x).lower(lowering_platforms=("tpu",))
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


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the choice of a kernel depends on, apart from the platform.

    Attributes:
        query_time, key_time: tokens; None where not known.
        num_heads, dim, value_dim: heads and the sizes of one.
        mask: a `Mask` that does not differ by layer.
        padded: whether a padding mask says documents and padding.
        same_sequence: whether queries and keys are one sequence.
        bias: whether a bias is added to the scores.
        dtype: of the layer's computation.
        features: of a head, in linear attention.
        batch: rows; None where not known, as in a program that is exported for any number.
    """

    query_time: int | None
    key_time: int | None
    num_heads: int
    dim: int
    value_dim: int
    mask: object
    padded: bool = False
    same_sequence: bool = True
    bias: bool = False
    dtype: str = "float32"
    features: int | None = None
    batch: int | None = 1


def shape_of(q, k, v, mask, **others):
    """The `Shape` of q, k and v [batch, time, heads, dim]; `others` are its other attributes."""

    def known(size):
        return size if isinstance(size, int) else None

    return Shape(
        batch=known(q.shape[0]),
        query_time=known(q.shape[1]),
        key_time=known(k.shape[1]),
        num_heads=q.shape[2],
        dim=q.shape[3],
        value_dim=v.shape[3],
        mask=mask,
        **others,
    )


def kernel_for(mechanism, shape, backend, platform, implementation="auto"):
    """The name of the kernel that computes an attention.

    Args:
        mechanism: `"softmax"` or `"linear"`.
        shape: a `Shape`.
        backend: `"jax"`, `"tensorflow"` or `"torch"`.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        implementation: a name in `KERNELS[mechanism]`, or `"auto"` for the best that applies.

    Raises:
        InputError: for an unknown name, or a kernel that does not apply, with the reason.

    Example:
        >>> shape = Shape(128, 128, 8, 64, 64, kzoo.masks.causal())
        >>> kernel_for("softmax", shape, "jax", "tpu")
        'splash'
    """
    names = KERNELS[mechanism]
    if implementation == "auto":
        if mechanism == "linear":
            native = (backend, platform) == ("jax", "cpu") and not refusal("native", shape, backend)
            return "native" if native else "chunked"
        for name in _best(backend, platform):
            short = name == "blockwise" and _short(shape)
            if not short and not refusal(name, shape, backend):
                return name
        return "dense"
    if implementation not in names:
        raise unknown("implementation", implementation, ["auto", *names])
    reason = refusal(implementation, shape, backend)
    if reason:
        raise InputError(f"{reason}. Received: implementation={implementation!r}")
    return implementation


def refusal(name, shape, backend):
    """Why a kernel cannot compute this, in words; None if it can."""
    home = {"dense": backend, "chunked": backend, "sdpa": "torch"}.get(name, "jax")
    if backend != home:
        return f"the kernel {name!r} runs on the {home} backend, not on {backend}"
    unknown_sizes = None in (shape.batch, shape.query_time, shape.key_time)
    if name in ("native", "blockwise") and unknown_sizes:
        return f"the {name} kernel needs to know batch and time when the program is made"
    if name == "blockwise" and shape.bias:
        return "the blockwise kernel takes no bias (its gradient is quadratic); use 'dense'"
    if name == "native":
        from kzoo.ops.kernels.native import refuses

        return refuses(shape)
    if name == "splash":
        from kzoo.ops.kernels.splash import refuses

        return refuses(
            shape.mask,
            query_time=shape.query_time,
            key_time=shape.key_time,
            num_heads=shape.num_heads,
            dim=shape.dim,
            value_dim=shape.value_dim,
            bias=shape.bias,
            same_sequence=shape.same_sequence,
            padded=shape.padded,
        )
    if name == "cudnn":
        from kzoo.ops.kernels.cudnn import refuses

        return refuses(shape)
    return None


def _best(backend, platform):
    """The kernels that `"auto"` prefers to the dense form, best first."""
    if backend == "torch":
        return ("sdpa",)
    if backend == "jax":
        best = {"tpu": ("splash",), "gpu": ("cudnn",), "cpu": ("native", "blockwise")}
        return best.get(platform, ())  # JAX may run on others
    return ()


def _short(shape):
    known = shape.query_time is not None and shape.key_time is not None
    return known and shape.query_time * shape.key_time <= DENSE_TIME**2
