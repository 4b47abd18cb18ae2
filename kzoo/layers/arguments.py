"""What the arguments of layers' constructors may be, by their names, which mean the same in all."""

import functools

from kzoo.errors import InputError
from kzoo.values import is_number, shown, take_boolean, take_count, take_number, take_seed

_below_one = functools.partial(take_number, below=1)


def _stddev(name, value):
    if value is not None:
        take_number(name, value)


def _stddevs(name, value):
    pair = isinstance(value, tuple | list) and len(value) == 2
    if value is not None and not (pair and all(is_number(x) and x > 0 for x in value)):
        raise InputError(
            f"{name} must be two positive numbers, of other kernels and of those that write to "
            f"the residual stream, or None. Received: {shown(value)}"
        )


_TAKES = {
    **dict.fromkeys(("vocabulary_size", "hidden_dim", "intermediate_dim"), take_count),
    **dict.fromkeys(("num_segments", "max_length", "num_classes", "num_heads"), take_count),
    **dict.fromkeys(("buckets", "max_distance"), take_count),
    **dict.fromkeys(("rotary", "relative", "use_bias", "tie_weights"), take_boolean),
    **dict.fromkeys(("transform", "bidirectional"), take_boolean),
    **dict.fromkeys(("dropout", "identity_mix"), _below_one),
    **{"epsilon": take_number, "seed": take_seed, "stddev": _stddev, "stddevs": _stddevs},
}


def check(**arguments):
    """`InputError` unless every argument is what its name says.

    Example:
        >>> check(num_heads=4, use_bias=True, seed=0)
    """
    for name, value in arguments.items():
        _TAKES[name]("stddev" if name == "stddevs" else name, value)
