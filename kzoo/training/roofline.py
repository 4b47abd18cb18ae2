"""What a program needs of a chip at least: its matrix products by their time at the peak, the
bytes that it moves by theirs; the larger of both is the least time that it can take."""

import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from kzoo.training import pallas
from kzoo.training.matmul import matmul
from kzoo.training.pallas import Work
from kzoo.training.traffic import traffic


def program_work(jaxpr, text, chips=1):
    """The `Work` of a program on each of some chips.

    Matrix products are those of the jaxpr, and bytes those of its Pallas kernels and of the
    operations that XLA made of all else. What is done element by element is counted by its bytes.

    Args:
        jaxpr: a `jax.extend.core.ClosedJaxpr`, as of `jax.jit(f).trace(...).jaxpr`.
        text: of the optimised module that it was compiled to, one chip's part.
        chips: over which its matrix products are split.
    """
    work = jaxpr_work(jaxpr)
    return Work(*(x // chips for x in work)) + Work(bytes=traffic(text))


def jaxpr_work(jaxpr):
    """The matrix products of a program, loops by their lengths, and the bytes of Pallas calls.

    Of all chips together. A loop whose length the program computes counts once, and of branches
    the dearest.
    """
    return _work(jaxpr.jaxpr, jaxpr.consts, [None] * len(jaxpr.jaxpr.invars))


def _work(jaxpr, consts, values):
    known = {x: np.asarray(c) for x, c in zip(jaxpr.constvars, consts, strict=True)}
    known |= dict(zip(jaxpr.invars, values, strict=True))
    total = Work()
    for equation in jaxpr.eqns:
        operands = [
            np.asarray(x.val) if isinstance(x, Literal) else known.get(x) for x in equation.invars
        ]
        total += _equation(equation, operands)
    return total


def _equation(equation, operands):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Work(0, *matmul(equation))
    if name == "pallas_call":
        return pallas.work(equation, operands)
    if name == "cond":
        return max(_inner(branch, operands[1:]) for branch in params["branches"])
    parts = [_inner(jaxpr, operands) for jaxpr in jaxprs_in_params(params)]
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":  # its body is what each device does
        times = params["mesh"].size
    return sum(parts, Work()) * times


def _inner(jaxpr, operands):
    consts = getattr(jaxpr, "consts", ())
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    count = len(jaxpr.invars)
    values = operands[-count:] if 0 < count <= len(operands) else [None] * count
    same = all(
        x is None or np.shape(x) == var.aval.shape
        for x, var in zip(values, jaxpr.invars, strict=True)
    )
    return _work(jaxpr, consts, values if same else [None] * count)
