"""What an order declares about its levels, checked against the levels that it gives.

A kernel that relies on a false declaration would show tokens what the mask hides. So `check` tries
an order that is not kzoo's own on positions up to `TIME`, once, wherever masks are taken
(`kzoo.masks.get`): by configs, layers and functions.
"""

import contextlib
import dataclasses
import functools

import numpy as np

from kzoo.errors import InputError
from kzoo.sequence import SequenceInfo

TIME = 4096
SOURCES = (0, 1, 7, TIME // 2, TIME)  # tokens of the source, for orders that need one


def check_class(order):
    """`InputError` unless a class of orders can be hashed, compared and named in JSON."""
    parameters = getattr(order, "__dataclass_params__", None)
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise InputError(
            "an order is a frozen dataclass, whose fields are its arguments: decorate it with "
            f"@dataclasses.dataclass(frozen=True). Received: {order}"
        )


def check_name(order):
    """The name that a class of orders has of its own; `InputError` without one."""
    name = vars(order).get("name")
    if not isinstance(name, str) or not name.isidentifier():
        raise InputError(
            f"an order to register has a `name` of its own, such as {order.__name__.lower()!r}. "
            f"Received: name={name!r}"
        )
    return name


def make(order, arguments):
    """The order of a class whose fields are `arguments` in JSON.

    Raises:
        InputError: for an argument that is missing or unknown.
    """
    empty, fields = dataclasses.MISSING, dataclasses.fields(order)
    needed = {f.name for f in fields if f.default is empty and f.default_factory is empty}
    names = [field.name for field in fields]
    if not needed <= set(arguments) <= set(names):
        raise no_such_arguments(order.name, names, {order.name: arguments})
    return order(**arguments)


def no_such_arguments(name, names, received):
    takes = ", ".join(map(repr, names)) or "no arguments"
    return InputError(f"the mask {name!r} takes {takes}. Received: {received!r}")


def check(order):
    """`InputError` unless an order's levels are integers, and what it declares of them holds.

    Args:
        order: a `kzoo.masks.Order`.

    Example:
        >>> check(kzoo.masks.block(3))
    """
    check_class(type(order))
    _try(order)


@functools.cache
def _try(order):
    position = np.arange(TIME, dtype="int32")
    shuffled = np.random.default_rng(0).permutation(position)
    for source in SOURCES if order.needs_source else (None,):
        level = _level(order, position, source)
        if not np.array_equal(_level(order, shuffled, source), level[shuffled]):
            raise _false(order, "a level depends on its own token's position alone", "it does not")
        _check_flags(order, level, source or 0)


def _check_flags(order, level, source):
    rises = np.diff(level)
    highest = np.maximum.accumulate(level)
    # The last that each sees, where levels ascend; `lookahead` and `resumable` need that.
    last = np.searchsorted(level, level, side="right") - 1 if (rises >= 0).all() else None
    ahead = None if last is None else int((last - np.arange(TIME)).max())
    after = level[max(source, 1) :] > highest[max(source, 1) - 1 : -1]
    declared = {
        "ascending": (not order.ascending or (rises >= 0).all(), "levels that never fall"),
        "descending": (not order.descending or (rises <= 0).all(), "levels that never rise"),
        "grouped = False": (
            order.grouped or len(np.unique(level)) == TIME,
            "no level twice in a document",
        ),
        "lookahead": (
            order.lookahead is None or (ahead is not None and ahead <= order.lookahead),
            f"ascending levels, none shared over more than {order.lookahead} tokens ahead",
        ),
        "resumable": (not order.resumable or last is not None, "levels that never fall"),
        "autoregressive": (
            not order.autoregressive or after.all(),
            "a level above all before it for every token behind the source: a token would be "
            "shown what a next-token loss asks of it",
        ),
    }
    for name, (holds, what) in declared.items():
        if not holds:
            sizes = f" with a source of {source} tokens" if order.needs_source else ""
            begins = f"levels that begin {level[:8].tolist()}{sizes}"
            raise _false(order, f"{name} declares {what}", begins)


def _level(order, position, source):
    """The levels of tokens at `position`, int64 [time]; the first `source` are a source."""
    from kzoo.load_keras import ops

    in_source = None if source is None else position < source
    with _eagerly():
        given = [
            None if x is None else ops.convert_to_tensor(x[None]) for x in (position, in_source)
        ]
        try:
            level = order.level(SequenceInfo(given[0], in_source=given[1]))
        except NotImplementedError:
            raise _false(
                order, "an order defines `level(self, sequence)`", "no such method"
            ) from None
        level = np.asarray(ops.convert_to_numpy(level))
    if level.shape not in ((), (1, 1), (1, len(position))):
        raise _false(order, "levels have the shape of `sequence.position`", f"shape {level.shape}")
    whole = level.astype("int64")
    if not np.array_equal(whole, level) or np.abs(whole).max() >= 2**31:
        raise _false(order, "levels are integers within int32", f"{level.dtype} {level[0, :8]}")
    return np.broadcast_to(whole, (1, len(position)))[0]


def _eagerly():
    """Operations inside are computed now, also where a program is being traced."""
    from kzoo.load_keras import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.ensure_compile_time_eval()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    return contextlib.nullcontext()


def _false(order, holds, received):
    return InputError(f"{holds}. Received: {order!r}, {received}")


def scattered(position, seed):
    """Integers [batch or 1, time] that differ for each position, in an order without a pattern.

    The 32-bit finalizer of MurmurHash3 (A. Appleby): a bijection, so that no two positions tie,
    and the order of two positions is the same whatever stands around.
    """
    from kzoo.load_keras import ops

    def fold(x, shift):
        low_bits = 2 ** (32 - shift) - 1  # makes the shift of a signed integer logical
        return ops.bitwise_xor(x, ops.bitwise_and(ops.right_shift(x, shift), low_bits))

    x = ops.bitwise_xor(position, (seed * 0x9E3779B1 + 0x7F4A7C15) % 2**31)
    x = fold(x, 16) * -0x7A143595  # 0x85EBCA6B as a signed integer
    x = fold(x, 13) * -0x3D4D51CB  # 0xC2B2AE35
    return fold(x, 16)
