"""Which kernel computes an attention: a pure function of what it is and where it runs.

| kernel       | mechanism       | where                        | masks                       |
|--------------|-----------------|------------------------------|-----------------------------|
| `dense`      | softmax         | everywhere                   | all; quadratic memory       |
| `native`     | softmax, linear | JAX on CPU, one device       | orders, no bias             |
|              | gated_linear    | JAX on CPU, one device       | orders along time           |
| `blockwise`  | softmax         | JAX                          | all, no bias                |
| `splash`     | softmax         | JAX on TPU                   | orders, no bias             |
| `cudnn`      | softmax         | JAX on GPU, 16-bit floats    | all, no bias                |
| `sdpa`       | softmax         | torch                        | all                         |
| `pallas`     | linear          | JAX on TPU                   | orders; no states           |
|              | gated_linear    | JAX on TPU                   | orders along time; no states|
| `chunk_scan` | linear          | JAX                          | orders                      |
|              | gated_linear    | JAX                          | orders along time           |
| `chunked`    | linear          | everywhere                   | orders                      |
|              | gated_linear    | everywhere                   | orders along time           |
| `chunk_scan` | delta           | JAX                          | causal, reversed            |
| `chunked`    | delta           | everywhere                   | causal, reversed            |

`chunk_scan` and `chunked` compute the same sums: the first in a rolled loop over the chunks, whose
gradient is written by hand and computes each chunk again; the second all chunks at once, in
`keras.ops`, differentiated by the backend.

A kernel is a module below this one, which knows nothing of it:

    NAME                        in `implementation=`, logs and records
    MECHANISM                   what it computes, a name such as "softmax", or several in a tuple
    preferred(spec)             whether "auto" takes it, where it can and nothing before it is
    unsupported_reason(spec)    why it cannot compute this, in words for its user; None if it can
    run(...)                    computes it; all kernels of a mechanism take the same arguments:
                                `kzoo.ops.kernels.dense` shows those of softmax attention,
                                `kzoo.ops.kernels.chunked` those of linear attention, and of
                                gated linear attention, which the mechanism retention is too

A kernel of linear attention can say more, each False where it does not:

    ANY_DIRECTION               one pass serves heads that go through time in either direction
    ONE_ORDER                   heads of other levels are other calls
    RAW                         it takes q, k and v in the layer's dtype and whatever stands at
                                padding, and is given `scale` and `platform` too

A new one is a module and a line in `_OURS`, or `register(module)` from outside.
"""

import dataclasses
import functools
import importlib
from typing import Any

from kzoo.errors import InputError, unknown
from kzoo.ops.context import here

# Modules of `kzoo.ops.kernels` by backend, in the order in which "auto" tries them.
_OURS = {
    "jax": (
        "native.softmax",
        "native.linear",
        "native.gated_linear",
        "splash",
        "cudnn",
        "blockwise",
        "dense",
        "pallas.linear",
        "chunk_scan",
        "chunked",
        "delta_scan",
        "delta_chunked",
    ),
    "torch": ("sdpa", "dense", "chunked", "delta_chunked"),
    "tensorflow": ("dense", "chunked", "delta_chunked"),
}
_registered: dict[tuple, Any] = {}  # by mechanism and name
_PARTS = ("NAME", "MECHANISM", "preferred", "unsupported_reason", "run")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an attention is, and where it runs: all that the choice of a kernel depends on.

    Two kernels also ask this process: `cudnn` for the compute capability of its GPU, `native` for
    its C++ compiler.

    Attributes:
        query_time, key_time: tokens; None where not known.
        num_heads, dim, value_dim: heads and the sizes of one.
        mask: a `Mask` that does not differ by layer.
        kv_heads: heads of keys and values; None for as many as `num_heads`.
        padded: whether a padding mask says documents and padding.
        same_sequence: whether queries and keys are one sequence.
        bias: whether a bias is added to the scores.
        dtype: of the layer's computation.
        features: of a head, in linear attention.
        normalize: whether there is a denominator, in linear attention.
        state: whether a state is given or asked for, in linear attention.
        batch: examples; None where not known, as in a program that is exported for any number.
        backend: `"jax"`, `"tensorflow"` or `"torch"`.
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        mesh: the `jax.sharding.Mesh` that the program is split over; None for one device.
        ahead_of_time: whether the program is made to be kept, or for another machine.
    """

    query_time: int | None
    key_time: int | None
    num_heads: int
    dim: int
    value_dim: int
    mask: object
    kv_heads: int | None = None
    padded: bool = False
    same_sequence: bool = True
    bias: bool = False
    dtype: str = "float32"
    features: int | None = None
    normalize: bool = True
    state: bool = False
    batch: int | None = 1
    backend: str = "jax"
    platform: str = "cpu"
    mesh: object = None
    ahead_of_time: bool = False

    @property
    def wide_dtype(self) -> str:
        """The dtype of sums: `"float64"` for an attention in it, else `"float32"`."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def sizes_known(self) -> bool:
        """Whether batch and time are known when the program is made."""
        return None not in (self.batch, self.query_time, self.key_time)


def spec_of(q, k, v, mask, **others):
    """The `Spec` of q, k and v [batch, time, heads, dim] in the program that is traced now."""

    def known(size):
        return size if isinstance(size, int) else None

    return Spec(
        batch=known(q.shape[0]),
        query_time=known(q.shape[1]),
        key_time=known(k.shape[1]),
        num_heads=q.shape[2],
        kv_heads=k.shape[2],
        dim=q.shape[3],
        value_dim=v.shape[3],
        mask=mask,
        **{**here(), **others},
    )


def register(kernel: Any) -> Any:
    """Add a kernel, as the module docstring describes it; "auto" tries it before those of kzoo.

    Args:
        kernel: a module, or any object with `NAME`, `MECHANISM`, `preferred`,
            `unsupported_reason` and `run`. It is returned. One of the same name and mechanism
            that was registered before is replaced, as when a cell of a notebook runs again.

    Returns:
        The kernel.

    Raises:
        InputError: if a part is missing, `MECHANISM` names none, or kzoo has a kernel of that name
            for the mechanism.

    Example:
        >>> from types import SimpleNamespace
        >>> kernel = SimpleNamespace(NAME="my_kernel", MECHANISM="my_mechanism",
        ...     preferred=lambda spec: True, unsupported_reason=lambda spec: None, run=print)
        >>> kernel is register(kernel)
        True
        >>> list(kernels("my_mechanism", "jax"))
        ['my_kernel']
    """
    missing = [part for part in _PARTS if not hasattr(kernel, part)]
    if missing:
        raise InputError(
            f"a kernel has {', '.join(_PARTS)}. Received: {kernel!r} without {', '.join(missing)}"
        )
    computed = kernel.MECHANISM
    several = isinstance(computed, tuple) and all(isinstance(name, str) for name in computed)
    if not computed or not (several or isinstance(computed, str)):
        raise InputError(
            "MECHANISM of a kernel is the name of a mechanism, or a tuple of names. "
            f"Received: {computed!r:.120}"
        )
    for mechanism in _computed(kernel):
        if any(kernel.NAME == ours.NAME for ours in _ours(mechanism, here()["backend"])):
            raise InputError(
                f"a kernel has a name of its own; kzoo has one called {kernel.NAME!r} for "
                f"{mechanism} attention. Received: {kernel!r}"
            )
    _registered[kernel.MECHANISM, kernel.NAME] = kernel
    return kernel


def kernels(mechanism: str, backend: str) -> dict[str, Any]:
    """The kernels of a mechanism on a backend, by name, in the order in which "auto" tries them.

    Args:
        mechanism: a name, `"softmax"`, `"linear"` or that of a registered kernel.
        backend: `"jax"`, `"tensorflow"` or `"torch"`.

    Example:
        >>> list(kernels("linear", "jax"))
        ['native', 'pallas', 'chunk_scan', 'chunked']
    """
    theirs = [k for k in reversed(_registered.values()) if mechanism in _computed(k)]
    return {kernel.NAME: kernel for kernel in (*theirs, *_ours(mechanism, backend))}


def names(backend: str) -> tuple[str, ...]:
    """The names of all kernels on a backend, whatever they compute: a tuple.

    Args:
        backend: `"jax"`, `"tensorflow"` or `"torch"`.

    Example:
        >>> "chunked" in names("tensorflow"), "native" in names("tensorflow")
        (True, False)
    """
    every = (*reversed(_registered.values()), *_modules(backend))
    return tuple(dict.fromkeys(kernel.NAME for kernel in every))


def kernel_for(mechanism: str, spec: Spec, implementation: str = "auto") -> str:
    """The name of the kernel that computes an attention, one of `kernels`.

    Args:
        mechanism: a name, as of `kernels`.
        spec: a `Spec`.
        implementation: a name in `kernels`, or `"auto"` for the best that applies.

    Raises:
        InputError: for an unknown name, or a kernel that does not apply, with the reason.

    Example:
        >>> spec = Spec(128, 128, 8, 64, 64, kzoo.masks.causal(), platform="tpu")
        >>> kernel_for("softmax", spec)
        'splash'
    """
    found = kernels(mechanism, spec.backend)
    if not found:
        raise unknown("mechanism with kernels", mechanism, _mechanisms(spec.backend))
    if implementation == "auto":
        reasons = {}
        for name, kernel in found.items():
            if kernel.preferred(spec):
                reasons[name] = kernel.unsupported_reason(spec)
                if reasons[name] is None:
                    return name
        raise InputError(
            f"no kernel computes this {mechanism} attention on {spec.backend}. "
            f"Received: {spec.mask!r}; {reasons}"
        )
    if implementation not in found:
        for backend, modules in _OURS.items():
            here_too = backend == spec.backend
            if not here_too and implementation in {name.partition(".")[0] for name in modules}:
                raise InputError(
                    f"the kernel {implementation!r} runs on the {backend} backend, not on "
                    f"{spec.backend}. Received: implementation={implementation!r}"
                )
        raise unknown("implementation", implementation, ["auto", *found])
    reason = found[implementation].unsupported_reason(spec)
    if reason:
        raise InputError(f"{reason}. Received: implementation={implementation!r}")
    return implementation


def _mechanisms(backend):
    found = [*_modules(backend), *_registered.values()]
    return sorted({mechanism for kernel in found for mechanism in _computed(kernel)})


def _ours(mechanism, backend):
    return [module for module in _modules(backend) if mechanism in _computed(module)]


def _computed(kernel):
    """The names of the mechanisms that a kernel computes, a tuple."""
    one = isinstance(kernel.MECHANISM, str)
    return (kernel.MECHANISM,) if one else tuple(kernel.MECHANISM)


@functools.cache
def _modules(backend):
    return [importlib.import_module(f"kzoo.ops.kernels.{name}") for name in _OURS[backend]]
