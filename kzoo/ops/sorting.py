"""Time in the order of level, and back."""

from typing import NamedTuple

from keras import ops


class Tokens(NamedTuple):
    """What is known of each token, integers, sorted by (document, level).

    Attributes:
        document: [batch or 1, 1, time], padding belongs to a neighbour; None for one document.
        level: [batch or 1, heads or 1, time]; None where no two of a document share one.
        sin_cos: floats [batch or 1, time, ..], sines and cosines of rotary positions, or None.
        shown: booleans [batch or 1, time], the keys that count; None for all.
    """

    document: object
    level: object
    sin_cos: object
    shown: object


def in_time(order):
    """Whether an order goes through time, forwards or backwards, so that nothing is sorted."""
    return order.ascending or order.descending


def backwards(order):
    return order.descending and not order.ascending


def ways(order, sequence, flip=True):
    """How time is brought into the order of level and back, and whether it then goes backwards.

    Returns:
        Two functions of [batch or 1, time, ..], which let None be None, and a boolean. Without
        `flip` time is never reversed, and may go backwards whatever levels are shared.
    """

    def way(move, *args, **kwargs):
        return lambda x: x if x is None else move(x, *args, **kwargs)

    if not in_time(order):
        permutation = stable_sort(order.levels(sequence), sequence.document)
        inverse = ops.argsort(permutation, axis=1)
        return way(take_time, permutation), way(take_time, inverse), False
    if flip and backwards(order) and order.grouped:
        return way(ops.flip, axis=1), way(ops.flip, axis=1), False
    return way(lambda x: x), way(lambda x: x), backwards(order)


def stable_sort(level, document):
    """The permutation [batch or 1, time] that sorts by document, then level, then time."""
    permutation = ops.argsort(level, axis=1)
    if document is None:
        return permutation
    second = ops.argsort(take_time(document, permutation), axis=1)
    return take_time(permutation, second)


def take_time(x, permutation):
    """`x` [batch or 1, time, ..] with its time reordered, example by example."""
    if permutation.shape[0] == 1:
        return ops.take(x, permutation[0], axis=1)
    permutation = ops.reshape(permutation, (*ops.shape(permutation), *[1] * (len(x.shape) - 2)))
    return ops.take_along_axis(x, permutation, axis=1)
