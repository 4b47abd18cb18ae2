"""What a matrix product takes of a TPU's matrix unit."""

import math
from typing import NamedTuple

LANES = 128  # the unit's rows and columns
PASSES = {"DEFAULT": 1, "HIGH": 3, "HIGHEST": 6}  # of bfloat16, over operands in float32


class Matmul(NamedTuple):
    """Multiplications and additions.

    Attributes:
        flops: of the product.
        unit_flops: those in whose time the unit could do as many at its peak: axes shorter than
            its 128 rows or columns leave the rest of it idle, and float32 takes several passes.
    """

    flops: int
    unit_flops: int

    def __add__(self, other):
        return Matmul(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, times):
        return Matmul(*(x * times for x in self))


def matmul(equation):
    """The `Matmul` of one `dot_general`, an equation of a jaxpr."""
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, right = (x.aval for x in equation.invars)
    batches = math.prod(left.shape[axis] for axis in batch)
    k = math.prod(left.shape[axis] for axis in contracted)
    m, n = (math.prod(x.shape) // max(k * batches, 1) for x in (left, right))
    flops = 2 * batches * m * n * k
    # One operand stays in the unit, rows by columns; the other streams through it.
    filled = 2 * batches * _filled(k) * min(_filled(m) * n, m * _filled(n))
    return Matmul(flops, filled * _passes(equation, left, right))


def _filled(size):
    return size + -size % LANES


def _passes(equation, left, right):
    if {left.dtype.name, right.dtype.name} != {"float32"}:
        return 1
    precision = equation.params["precision"]
    precision = precision if isinstance(precision, tuple) else (precision,)
    names = [getattr(one, "name", "DEFAULT") for one in precision]
    return max(PASSES.get(name, 1) for name in names)
