"""What a Pallas kernel does, from its grid, its blocks and its operations.

XLA counts nothing of a kernel, and a kernel's own cost estimate would grade itself.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from kzoo.training.matmul import Matmul, matmul


class Work(NamedTuple):
    """What a program does.

    Attributes:
        bytes: moved between a chip's memory and its cores.
        flops: multiplications and additions of its matrix products.
        unit_flops: the same where they fill the matrix unit (`kzoo.training.matmul`).
    """

    bytes: int = 0
    flops: int = 0
    unit_flops: int = 0

    def __add__(self, other):
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times):
        return Work(*(x * times for x in self))


def work(equation, values):
    """The `Work` of one `pallas_call`.

    A block is moved where its index differs from that of the step before; branches count where
    their condition holds, if it depends on the place in the grid and on prefetched integers alone,
    and else the dearest does.

    Args:
        equation: of a jaxpr.
        values: the values of its operands that are known, NumPy arrays or None.
    """
    grid = equation.params["grid_mapping"]
    steps = np.indices(grid.grid).reshape(len(grid.grid), -1)
    scalars = values[: grid.num_index_operands]
    prefetched = sum(
        math.prod(x.aval.shape) * x.aval.dtype.itemsize
        for x in equation.invars[: grid.num_index_operands]
    )
    moved = sum(_moved(block, steps, scalars) for block in grid.block_mappings)
    axes = [i for i in range(len(grid.grid)) if i not in grid.vmapped_dims]
    jaxpr = equation.params["jaxpr"]
    once = np.ones(steps.shape[1], "int64")
    kernel = _Kernel(steps[axes], [grid.grid[i] for i in axes])
    kernel.run(jaxpr, [*scalars, *[None] * (len(jaxpr.invars) - len(scalars))], once)
    return Work(prefetched + moved, *kernel.total)


def _moved(block, steps, scalars):
    """The bytes of the blocks of one array that are fetched, or written back."""
    array, itemsize = block.array_aval, block.array_aval.dtype.itemsize
    sizes = [getattr(size, "block_size", size) for size in block.block_shape]
    sizes = [size if isinstance(size, int) else 1 for size in sizes]
    if any(x is None for x in scalars):  # every step may want another
        return steps.shape[1] * math.prod(sizes) * itemsize
    starts = jax.vmap(lambda *ids: block.compute_start_indices_interpret(ids, *scalars))
    starts = np.stack([np.broadcast_to(x, steps.shape[1]) for x in starts(*steps.astype("int32"))])
    new = np.append(True, (starts[:, 1:] != starts[:, :-1]).any(0))
    inside = [
        np.clip(size - start[new], 0, length)
        for start, size, length in zip(starts, array.shape, sizes, strict=True)
    ]
    # A tile has 128 lanes, so that a shorter last axis is filled up to them.
    inside[-1] = np.where(inside[-1] < array.shape[-1], inside[-1], inside[-1] + -inside[-1] % 128)
    return int(np.prod(inside, axis=0, dtype="int64").sum()) * itemsize


class _Kernel:
    """A kernel's matrix products over its grid.

    Integers that are known at every step, arrays [steps], are computed along the way.
    """

    def __init__(self, steps, grid):
        self.steps, self.grid, self.total = steps, grid, Matmul(0, 0)

    def run(self, jaxpr, values, runs):
        """Add what `jaxpr` does, at each step as often as `runs` says, integers [steps]."""
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        known = dict(zip(jaxpr.invars, values, strict=True))

        def value(atom):
            return np.asarray(atom.val) if isinstance(atom, Literal) else known.get(atom)

        for equation in jaxpr.eqns:
            operands = [value(atom) for atom in equation.invars]
            result = self._equation(equation, operands, runs)
            if result is not None:
                known[equation.outvars[0]] = result

    def _equation(self, equation, operands, runs):
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            self.total += matmul(equation) * int(runs.sum())
        elif name == "program_id":
            return self.steps[params["axis"]]
        elif name == "num_programs":
            return np.asarray(self.grid[params["axis"]])
        elif name == "get":
            return _entry(equation, operands)
        elif name == "cond":
            self._branches(params["branches"], operands, runs)
        elif name == "scan":
            self.run(params["jaxpr"], [None] * len(operands), params["length"] * runs)
        else:
            for inner in jaxprs_in_params(params):
                count = len(inner.invars)
                self.run(inner, operands[-count:] if count else [], runs)
            return _computed(equation, operands)
        return None

    def _branches(self, branches, operands, runs):
        which, *rest = operands
        if which is not None:
            for i, branch in enumerate(branches):
                self.run(branch, rest, runs * (which == i))
            return
        before, dearest = self.total, Matmul(0, 0)
        for branch in branches:
            self.total = Matmul(0, 0)
            self.run(branch, rest, runs)
            dearest = max(dearest, self.total)
        self.total = before + dearest


def _entry(equation, operands):
    """An entry of prefetched integers at known places: an array [steps], or None."""
    array, *places = operands
    if array is None or equation.outvars[0].aval.shape or any(x is None for x in places):
        return None
    return array[tuple(places)] if len(places) == array.ndim else None


def _computed(equation, operands):
    """What an operation on known numbers gives at each step: an array, or None."""
    scalar = all(not x.aval.shape for x in (*equation.invars, *equation.outvars))
    if not scalar or len(equation.outvars) != 1 or any(x is None for x in operands):
        return None
    types = [x.aval.dtype for x in equation.invars]
    arrays = [np.asarray(x, dtype) for x, dtype in zip(operands, types, strict=True)]
    axes = [0 if x.ndim else None for x in arrays]

    def one(*numbers):
        return equation.primitive.bind(*numbers, **equation.params)

    return np.asarray((jax.vmap(one, axes) if 0 in axes else one)(*arrays))
