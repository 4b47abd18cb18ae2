"""Derivatives of every order on JAX, for functions whose gradient is written by hand.

`jax.custom_vjp` knows one gradient and nothing else: forward mode, and gradients of gradients, end
in an error. Here reverse mode has that gradient too, and every other derivative is what JAX
derives from a form of the function in its own operations.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def by_hand(function, forward, backward, plain=None):
    """`function`, with a gradient of its own.

    Args:
        function: of (static, floats, others): something hashable, a nest of arrays of floats, and
            a nest of arrays that get no gradient. It returns a nest of arrays of floats.
        forward: of the same, what the function returns, and a nest of arrays to save.
        backward: of (static, floats, others, saved, slope), the gradient of `floats`.
        plain: the function in operations that JAX differentiates, for all other derivatives; by
            default the function itself.

    Returns:
        A function of (static, floats, others).

    Example:
        >>> square = by_hand(lambda _, x, __: x * x, lambda _, x, __: (x * x, None),
        ...                  lambda _, x, __, ___, slope: 2 * x * slope)
        >>> jax.hessian(lambda x: square(None, x, None))(3.0)
        Array(2., dtype=float32, weak_type=True)
    """

    def apply(static, floats, others):
        # Under `jax.shard_map`, so that the gradient of what all devices have is summed over them.
        return compiled(static, varying(floats, floats, others), others)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def call(static, floats, others):
        return function(static, floats, others)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def saving(static, floats, others):
        return forward(static, floats, others)

    def derivative(static, primals, tangents):
        floats, others = primals
        out, saved = saving(static, floats, others)
        leaves, outs = jax.tree.leaves(floats), jax.tree.leaves(out)
        rest, tree = jax.tree.flatten((others, saved))
        trees = jax.tree.structure(floats), tree, jax.tree.structure(out)
        form = backward, plain or function, static
        rule = _Rule(*form, *trees, tuple(map(jax.typeof, outs)))
        pushed = _push.bind(*leaves, *rest, *jax.tree.leaves(tangents[0]), rule=rule)
        return out, saved, jax.tree.unflatten(trees[-1], pushed)

    @call.defjvp
    def _(static, primals, tangents):
        out, _, pushed = derivative(static, primals, tangents)
        return out, pushed

    @saving.defjvp  # of what is saved nothing is derived: it belongs to the gradient by hand
    def _(static, primals, tangents):
        out, saved, pushed = derivative(static, primals, tangents)
        return (out, saved), (pushed, jax.tree.map(_no_tangent, saved))

    # Outside a program of the caller's, a loop would be traced and compiled anew at each call.
    compiled = jax.jit(call, static_argnums=0, inline=True)
    return apply


def _no_tangent(x):
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How tangents go through a function, and slopes back: functions of flat lists of arrays.

    Both begin with the residuals, the arrays of floats and then what else is known.
    """

    backward: Callable
    plain: Callable
    static: Any
    floats: Any  # their tree; likewise those of others and saved, and of what is returned
    rest: Any
    returned: Any
    kinds: tuple  # of the arrays that are returned

    @property
    def tangents(self):
        """How many there are, the last arguments of `push`."""
        return self.floats.num_leaves

    def _split(self, residuals):
        count = self.floats.num_leaves
        others, saved = jax.tree.unflatten(self.rest, residuals[count:])
        return jax.tree.unflatten(self.floats, residuals[:count]), others, saved

    def push(self, *arrays):
        count = len(arrays) - self.tangents
        floats, others, _ = self._split(arrays[:count])
        tangents = jax.tree.unflatten(self.floats, arrays[count:])
        plain = functools.partial(self.plain, self.static)
        _, out = jax.jvp(lambda floats: plain(floats, others), (floats,), (tangents,))
        return jax.tree.leaves(out)

    def pull(self, *arrays):
        return _pull(self, arrays)

    def _pull(self, arrays):
        residuals, slopes = arrays[: -len(self.kinds)], arrays[-len(self.kinds) :]
        slopes = jax.tree.unflatten(self.returned, slopes)
        return jax.tree.leaves(self.backward(self.static, *self._split(residuals), slopes))

    def _plain_pull(self, arrays, tangents):
        """The derivative of `pull`: of the floats and of the slopes."""
        count, returned = self.floats.num_leaves, len(self.kinds)
        _, others, _ = self._split(arrays[:-returned])

        def pull(leaves, slopes):
            floats = jax.tree.unflatten(self.floats, leaves)
            plain = functools.partial(self.plain, self.static)
            _, back = jax.vjp(lambda floats: plain(floats, others), floats)
            return jax.tree.leaves(back(jax.tree.unflatten(self.returned, slopes)))

        primals, tangents = ((list(x[:count]), list(x[-returned:])) for x in (arrays, tangents))
        return jax.jvp(pull, primals, tangents)[1]


@dataclasses.dataclass(frozen=True)
class _Batched:
    """A `_Rule` under `jax.vmap`: tangents and slopes are batched, residuals where `axes` says."""

    rule: Any
    axes: tuple  # 0 or None for each of the residuals
    size: int

    @property
    def tangents(self):
        return self.rule.tangents

    @property
    def kinds(self):
        return tuple(
            jax.core.ShapedArray((self.size, *kind.shape), kind.dtype) for kind in self.rule.kinds
        )

    def push(self, *arrays):
        axes = (*self.axes, *[0] * self.tangents)
        return jax.vmap(self.rule.push, axes)(*arrays)

    def pull(self, *arrays):
        axes = (*self.axes, *[0] * len(self.rule.kinds))
        return jax.vmap(self.rule.pull, axes)(*arrays)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pull(rule, arrays):
    return rule._pull(arrays)


@_pull.defjvp
def _(rule, primals, tangents):
    return _pull(rule, *primals), rule._plain_pull(*primals, *tangents)


# Tangents through a function: linear in them, and transposed by the gradient by hand.
_push = Primitive("kzoo_push")
_push.multiple_results = True


@_push.def_impl
def _run(*arrays, rule):
    return rule.push(*arrays)


@_push.def_abstract_eval
def _kinds(*_, rule):
    return rule.kinds


def _transpose(slopes, *arrays, rule):
    count = len(arrays) - rule.tangents
    slopes = map(ad.instantiate_zeros, slopes)
    gradients = rule.pull(*arrays[:count], *slopes)
    wanted = map(ad.is_undefined_primal, arrays[count:])
    return [None] * count + [x if want else None for x, want in zip(gradients, wanted, strict=True)]


def _differentiate(arrays, tangents, *, rule):
    return jax.jvp(rule.push, tuple(arrays), tuple(map(ad.instantiate_zeros, tangents)))


def _batch(arrays, axes, *, rule):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    count = len(arrays) - rule.tangents

    def first(x, axis, needed):
        if axis is None:
            return jnp.broadcast_to(x, (size, *x.shape)) if needed else x
        return jnp.moveaxis(x, axis, 0)

    arrays = [first(x, axes[i], i >= count) for i, x in enumerate(arrays)]
    own = tuple(None if axis is None else 0 for axis in axes[:count])
    out = _push.bind(*arrays, rule=_Batched(rule, own, size))
    return out, [0] * len(out)


ad.primitive_transposes[_push] = _transpose
ad.primitive_jvps[_push] = _differentiate
batching.primitive_batchers[_push] = _batch
mlir.register_lowering(_push, mlir.lower_fun(_run, multiple_results=True))


def varying(arrays, *others):
    """The same arrays, said to differ between the devices of a `jax.shard_map` where others do.

    The carry of a loop and the results of a call in C++ would not be known to.
    """
    axes = frozenset().union(*map(_axes, jax.tree.leaves(others)))

    def vary(x):
        return jax.lax.pcast(x, tuple(axes - _axes(x)), to="varying")

    return jax.tree.map(vary, arrays) if axes else arrays


def _axes(x):
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma


@jax.custom_jvp
def quotient(a, b):
    """a / b, whose derivatives hold no square of b, which leaves float32 soon."""
    return a / b


@quotient.defjvp
def _(primals, tangents):
    (_, b), (a_slope, b_slope) = primals, tangents
    out = quotient(*primals)
    return out, quotient(a_slope - out * b_slope, b)
