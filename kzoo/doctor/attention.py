"""Every kernel that can compute here, values and gradients, against the definition in NumPy.

A case is one call that carries much: heads of two orders, packed documents, padding with NaN in
it, heads that share keys and values. So few programs are compiled.

Gradients are compared along random directions. For F = Σ out · cotangent, by example and head, the
definition gives (F(x + εd) − F(x − εd)) / 2ε, and the device ⟨∂F/∂x, d⟩: a gradient that is off
anywhere is off along a random direction.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from kzoo import masks, mechanisms
from kzoo.doctor.check import Check, Finding, Refused, once
from kzoo.doctor.gradients import value_and_gradients
from kzoo.errors import InputError
from kzoo.masks.orders import ORDERS
from kzoo.mechanisms import Extras, HeadSizes, Mechanism
from kzoo.ops import dispatch
from kzoo.ops.context import here

DTYPES = ("float32", "bfloat16")
# Of the largest value, and of the usual size of a derivative. A product in TF32 or bfloat16 where
# float32 is promised is off by 5e-4 or more.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
DIM = 64
STEP = 1e-4
LONG = 2**16  # tokens, at which "auto" may take another kernel
SIZE_OF_ORDER = 24  # of a block, and of whatever else an order must be given


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an attention.

    Attributes:
        name: in words.
        heads: the mask of each head.
        kv_heads: heads of keys and values.
        time: tokens of the queries.
        key_time: tokens of another sequence of keys; None for one sequence.
        packed: whether there are three examples, with documents and padding; else there is one.
        rotary: whether q and k are rotated.
    """

    name: str
    heads: tuple[masks.Mask, ...]
    kv_heads: int
    time: int
    key_time: int | None = None
    packed: bool = False
    rotary: bool = False

    @property
    def mask(self):
        return masks.heads(*self.heads)

    @property
    def sizes(self):
        return HeadSizes(len(self.heads), self.kv_heads, DIM)


def checks() -> Iterator[Check]:
    """A check for each mechanism, kernel, case and dtype."""
    for name in mechanisms.names():
        mechanism = mechanisms.get(name)
        for number, case in enumerate(cases(mechanism)):
            for dtype in DTYPES:
                auto, others = kernels(mechanism, case, dtype)
                yield _check(mechanism, case, dtype, auto)
                for kernel in others if (number, dtype) == (0, DTYPES[0]) else ():
                    yield _check(mechanism, case, dtype, kernel, ", not chosen")


def _check(mechanism, case, dtype, kernel, more=""):
    run = functools.partial(compare, mechanism, case, dtype, kernel)
    return Check("attention", f"{mechanism.name} by {kernel}{more}", case.name, dtype, run)


def cases(mechanism: Mechanism) -> list[Case]:
    """The cases that a mechanism's masks allow; the first one carries most.

    Two orders a case: the time that XLA takes grows faster than the number of orders.
    """
    orders = [order for order in _orders() if _follows(mechanism, order)]
    found = []
    for i in range(0, len(orders), 2):
        heads = (*orders[i : i + 2], orders[i])[:2]
        names = ", ".join(dict.fromkeys(order.name for order in heads))
        found.append(Case(f"{names}; packed, padded", heads, 1, 160, packed=True))
    if masks.causal() in orders:
        found.append(Case("causal, 577 tokens", (masks.causal(),) * 2, 1, 577, rotary=True))
    if masks.bidirectional() in orders:
        full = (masks.bidirectional(),) * 2
        found.append(Case("bidirectional, 96 tokens", full, 2, 96))
        found.append(Case("two sequences", full, 2, 40, key_time=96, packed=True))
    return found


def _orders():
    """Every order that is registered."""
    unset = dataclasses.MISSING
    for name, cls in ORDERS.items():
        needed = [field.name for field in dataclasses.fields(cls) if field.default is unset]
        yield masks.get({name: dict.fromkeys(needed, SIZE_OF_ORDER)} if needed else name)


def _follows(mechanism, order):
    try:
        mechanism.check([order])
    except InputError:
        return False
    return True


def kernels(mechanism: Mechanism, case: Case, dtype: str) -> tuple[str, list[str]]:
    """The kernel that "auto" takes for a case here, and the others that compute it too and that
    "auto" takes here at other sizes, or where the first cannot."""
    spec = dispatch.Spec(
        case.time,
        case.key_time or case.time,
        len(case.heads),
        DIM,
        DIM,
        case.mask,
        kv_heads=case.kv_heads,
        padded=case.packed,
        same_sequence=case.key_time is None,
        dtype=dtype,
        batch=3 if case.packed else 1,
        **here(),
    )
    auto, others = mechanism.kernel(spec), []
    for name in dispatch.names(spec.backend):
        try:
            found = mechanism.kernel(spec, name)
        except InputError:
            continue
        if found == name != auto and _preferred(mechanism, spec, name):
            others.append(name)
    return auto, others


def _preferred(mechanism, spec, name):
    long = dataclasses.replace(spec, query_time=LONG, key_time=LONG)
    found = dispatch.kernels(mechanism.name, spec.backend).get(name)
    return found is None or any(found.preferred(one) for one in (spec, long))


# Inputs -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an attention is called with, NumPy arrays.

    Attributes:
        floats: what gradients are taken by, by name; numbers that bfloat16 holds exactly.
        sequence: `padding_mask` and its like.
        cotangent: of the output.
    """

    floats: dict
    sequence: dict
    cotangent: np.ndarray


def inputs(mechanism: Mechanism, case: Case) -> Inputs:
    """The same in every call."""
    random = np.random.default_rng(0)
    batch, sizes = 3 if case.packed else 1, case.sizes
    keys = case.key_time or case.time

    def draw(*shape):
        return rounded(random.normal(size=shape))

    floats = {"q": draw(batch, case.time, sizes.num_heads, DIM)}
    floats |= {name: draw(batch, keys, sizes.kv_heads, DIM) for name in "kv"}
    extra = mechanism.projections(sizes)
    floats |= {name: draw(batch, keys, size) for name, size in extra.items()}
    floats |= {name: rounded(x) for name, x in mechanism.variables(sizes).items()}
    sequence = {}
    if case.packed:
        ids = _documents(keys)
        if case.key_time is None:
            sequence["padding_mask"] = ids
        else:
            sequence["key_padding_mask"] = np.minimum(ids, 1)
        for name in ("k", "v", *extra):  # what stands in padding must not matter
            floats[name][ids == 0] = np.nan
    if any(head.needs_source for head in case.mask.per_head(sizes.num_heads)):
        sequence["source_mask"] = np.tile(np.arange(case.time) % 80 < 30, (batch, 1)).astype(int)
    return Inputs(floats, sequence, draw(batch, case.time, sizes.num_heads, DIM))


def _documents(time):
    """Ids [3, time]: padding before and behind, three documents with a hole, one document."""
    ids = np.ones((3, time), int)
    ids[0, : time // 5] = ids[0, -time // 10 :] = 0
    ids[1, time // 3 :], ids[1, time // 2 :] = 2, 3
    ids[1, -time // 4 : -time // 5] = 0
    return ids


def rounded(x: Any) -> np.ndarray:
    """Numbers that bfloat16 holds exactly, float64."""
    import ml_dtypes

    return np.asarray(x).astype(ml_dtypes.bfloat16).astype("float64")


# What should come out -----------------------------------------------------------------------------


@once
def expected(mechanism: Mechanism, case: Case) -> tuple[np.ndarray, dict]:
    """The output by the definition, and by input a direction d and the derivative dF along it:
    `{name: (d, dF)}` with dF as of `_by_group`."""
    given = inputs(mechanism, case)

    def define(floats):
        extras = _extras(mechanism, case.sizes, floats)
        own = {"rotary": case.rotary, **given.sequence}
        with np.errstate(invalid="ignore"):  # of what stands in padding
            q, k, v = (floats[name] for name in "qkv")
            return mechanism.definition(q, k, v, extras, case.mask, **own)

    try:
        out = define(given.floats)
    except InputError as error:
        raise Refused(str(error)) from None
    random = np.random.default_rng(1)
    slopes = {}
    for name, x in given.floats.items():
        d = random.normal(size=x.shape)
        ends = [define({**given.floats, name: x + sign * STEP * d}) for sign in (1, -1)]
        total = ((ends[0] - ends[1]) / (2 * STEP) * given.cotangent).sum((1, 3))
        slopes[name] = d, _by_group(mechanism, case, name, total)
    return out, slopes


def _by_group(mechanism, case, name, total=None, product=None):
    """Derivatives along a direction, by what an input of that name changes: of q, k and v the
    heads of an example, of projections an example, of variables everything.

    Args:
        mechanism, case, name: which input.
        total: [batch, heads] of the output, or None for
        product: gradient times direction, of the input's shape.
    """
    if name in ("q", "k", "v"):
        heads = case.sizes.num_heads if name == "q" else case.kv_heads
        return product.sum((1, 3)) if total is None else total.reshape(len(total), heads, -1).sum(2)
    if name in mechanism.projections(case.sizes):
        return product.sum((1, 2)) if total is None else total.sum(1)
    return product.sum() if total is None else total.sum()


def _extras(mechanism, sizes, floats):
    names = mechanism.projections(sizes), mechanism.variables(sizes)
    return Extras(*({name: floats[name] for name in kind} for kind in names))


# What does ----------------------------------------------------------------------------------------


def compare(mechanism: Mechanism, case: Case, dtype: str, kernel: str) -> Finding:
    """The largest error of the output and of the gradients, and which it is."""
    want, slopes = expected(mechanism, case)
    given = inputs(mechanism, case)

    def attend(floats):
        extras = _extras(mechanism, case.sizes, floats)
        own: dict[str, Any] = {"rotary": case.rotary, **given.sequence}
        if kernel != "ops":
            own["implementation"] = kernel
        return mechanism.attend(floats["q"], floats["k"], floats["v"], extras, case.mask, **own)

    out, gradients = value_and_gradients(attend, given.floats, given.cotangent, dtype)
    errors = {"values": np.abs(out - want).max() / np.abs(want).max()}
    for name, (d, wanted) in slopes.items():
        got = _by_group(mechanism, case, name, product=gradients[name] * d)
        # Along a random direction a derivative has the size of the gradient, on average.
        size = _by_group(mechanism, case, name, product=gradients[name] ** 2)
        usual = max(np.sqrt(np.mean(wanted**2)), np.sqrt(np.mean(size)))
        errors[f"gradient of {name}"] = np.abs(got - wanted).max() / (usual or 1.0)
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    return Finding(float(errors[worst]), TOLERANCES[dtype], worst)
