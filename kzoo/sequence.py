"""Where each position of a sequence stands: in which document, how far in, in its source or not.

What masks order by levels. A document is a run of equal ids, and 0 is padding: it belongs
to no document, parts none in two, and counts as no position.
"""

import dataclasses
import numbers

import numpy as np

from kzoo.errors import InputError
from kzoo.typing import Tensor
from kzoo.values import is_integer

BLOCK = 256  # the tokens of which each looks back at each in `_cumulative`


@dataclasses.dataclass(frozen=True)
class SequenceInfo:
    """Where each position of a sequence stands; tensors of [batch or 1, time].

    Attributes:
        position: integers, how many tokens of the document come before, padding left aside.
        segment: integers, the document, 0 for padding; None where there is one document
            and no padding. Of one sequence 1, 2, 3, … in the order of time, whatever the ids;
            of two, the ids, by which the documents of one find those of the other.
        document: 1, 2, 3, …, where padding belongs to the document before it; 0 before the first.
        in_source: booleans, the document's initial run of source tokens; None without
            a `source_mask`.
    """

    position: Tensor
    segment: Tensor = None
    document: Tensor = None
    in_source: Tensor = None


def document_positions(padding_mask):
    """The position of each token within its document, over tokens only: padding does not count.

    Args:
        padding_mask: integers [batch, time], 0 for padding; a document is a run of equal ids.

    Returns:
        Integers [batch, time]: 0 for a document's first token, then 1, 2, 3, …; at padding the
        position that the document's next token would have.

    Raises:
        InputError: for ids whose values are known and wrong, as in `check_documents`.

    Example:
        >>> document_positions([[0, 1, 1, 0, 1, 2, 2, 0]]).tolist()
        [[0, 0, 1, 2, 2, 0, 1, 2]]
    """
    segment = _ids("padding_mask", padding_mask)
    return _documents(segment)[1]


def document_index(segment):
    """`SequenceInfo.document` of ids [batch, time]."""
    return _documents(segment)[0]


def check_documents(name, ids):
    """`InputError` unless ids [batch, time] say which document each token belongs to.

    Of a tensor that is being traced, as inside `fit`, nothing is known and nothing said: there a
    negative id is a document like any other, and an id that comes again begins a new document.

    Args:
        name: of the argument, for the message.
        ids: NumPy arrays, lists or tensors; 0 for padding.

    Raises:
        InputError: for ids that are no whole numbers from 0 on, and for an id that comes again
            after another document.

    Example:
        >>> check_documents("padding_mask", np.array([[1, 1, 0, 1, 2, 2, 0]]))
        >>> check_documents("padding_mask", np.array([[2, 2, 1, 1]]))  # in any order
    """
    ids = concrete(ids)
    if ids is None or ids.ndim != 2 or not ids.size or ids.dtype.kind not in "bifu":
        return  # a wrong shape is told where the right one is known
    if ids.dtype.kind == "b":
        return
    wrong = (ids < 0) | (ids % 1 != 0)
    if wrong.any():
        raise InputError(
            f"`{name}` is 0 for padding and a whole number from 1 on for each document. "
            f"Received: {ids[wrong][0]}"
        )
    real = ids != 0
    if not (real & (ids < np.maximum.accumulate(ids, axis=1))).any():
        return  # ascending, as nearly always
    for example, values in enumerate(ids):
        values = values[values != 0]
        firsts = values[np.r_[True, values[1:] != values[:-1]][: len(values)]].tolist()
        again = [one for i, one in enumerate(firsts) if one in firsts[:i]]
        if again:
            raise InputError(
                f"in `{name}` a document is one run of equal ids, so an id does not come "
                f"again after another. Received: {again[0]} again in example {example}, whose "
                f"documents are {firsts[:8]}"
            )


def check_no_gaps(name, ids):
    """`InputError` if padding stands inside a document, where that is known (`check_documents`).

    For positions that count columns, as relative ones do.

    Example:
        >>> check_no_gaps("padding_mask", np.array([[0, 1, 1, 0, 2, 2, 0]]))
    """
    ids = concrete(ids)
    if ids is None or ids.ndim != 2 or not ids.size:
        return
    clock = np.arange(ids.shape[1])
    last = np.maximum.accumulate(np.where(ids != 0, clock, -1), axis=1)  # token up to each
    before = np.concatenate([np.full_like(last[:, :1], -1), last[:, :-1]], axis=1)
    again = (ids != 0) & (before >= 0) & (before < clock - 1)
    inside = again & (np.take_along_axis(ids, np.maximum(before, 0), 1) == ids)
    if inside.any():
        example, column = (int(x[0]) for x in np.nonzero(inside))
        raise InputError(
            f"relative positions count columns, so `{name}` has no padding inside a document; put "
            f"it at an end. Received: padding before column {column} of example {example}"
        )


def concrete(x):
    """`x` as a NumPy array if its values are known now, None for one of a program being made."""
    if isinstance(x, np.ndarray | np.generic | numbers.Number | list | tuple):
        return np.asarray(x)
    from kzoo.load_keras import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
        return np.asarray(x) if known and x.is_fully_addressable else None
    if backend == "torch":
        import torch

        # On another device it would be waited for, in every layer.
        if type(x) is not torch.Tensor or x.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        try:
            return x.numpy()
        except RuntimeError:  # inside `torch.func.vmap`
            return None
    import tensorflow as tf

    return x.numpy() if tf.is_tensor(x) and hasattr(x, "numpy") else None


def sequence_info(
    mask,
    query_time,
    key_time=None,
    *,
    query_offset=0,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
):
    """The `SequenceInfo` of queries and of keys; arguments and errors as in `Mask.dense`."""
    from kzoo.load_keras import ops

    same = key_time is None or (is_integer(key_time) and key_time == query_time)
    key_time = query_time if key_time is None else key_time
    cross = key_padding_mask is not None
    query_offset = _offset(query_offset)
    if mask.needs_source and source_mask is None:
        raise InputError(
            f"the mask {mask!r} needs a `source_mask` [batch, time], as a prefix does. "
            "Received: None"
        )
    if not mask.needs_source:
        source_mask = None
    if cross and source_mask is not None:
        raise InputError(
            "a mask with a source orders one sequence and has no meaning across two. "
            f"Received: {mask!r} with a key_padding_mask"
        )
    if cross and not _is_zero(query_offset):
        raise InputError(
            "`query_offset` is the first query's position among keys of the same sequence; of two "
            "sequences (with a `key_padding_mask`) both begin at 0. "
            f"Received: query_offset={query_offset}"
        )
    if cross and padding_mask is None:
        padding_mask = ops.ones((1, query_time), dtype="int32")
    expected = {
        "padding_mask": (padding_mask, query_time if cross else key_time),
        "source_mask": (source_mask, key_time),
        "key_padding_mask": (key_padding_mask, key_time),
    }
    for name, (tensor, time) in expected.items():
        shape = None if tensor is None else tuple(np.shape(tensor))
        if shape is not None and (len(shape) != 2 or not _agree(shape[1], time)):
            raise InputError(
                f"`{name}` has the shape [batch, {time}]. Received: shape {list(shape)}"
            )
    padding_mask = _ids("padding_mask", padding_mask)
    if cross:
        keys = _sequence_info(key_time, _ids("key_padding_mask", key_padding_mask), numbered=False)
        return _sequence_info(query_time, padding_mask, numbered=False), keys
    keys = _sequence_info(key_time, padding_mask, source_mask)
    if same and _is_zero(query_offset):
        return keys, keys
    return _window(keys, query_time, key_time, query_offset), keys


def _window(keys, query_time, key_time, offset):
    """The `SequenceInfo` of `query_time` queries, the first of which stands at the key `offset`."""
    from kzoo.load_keras import ops

    if keys.segment is None and keys.in_source is None:
        position = ops.arange(query_time, dtype="int32")[None] + offset
        return SequenceInfo(position)
    if all(map(is_integer, (offset, query_time, key_time))):
        if offset + query_time > key_time:
            raise InputError(
                f"queries beyond the last key: {query_time} queries from {offset} on are not "
                f"among the {key_time} keys that padding_mask or source_mask describes. "
                f"Received: query_offset={offset}"
            )
    else:
        offset = ops.minimum(offset, key_time - query_time)
    window = ops.arange(query_time, dtype="int32") + offset
    parts = (keys.position, keys.segment, keys.document, keys.in_source)
    return SequenceInfo(*(None if x is None else ops.take(x, window, axis=1) for x in parts))


def _offset(offset):
    """`query_offset` checked: an integer of at least 0, of which a tensor being traced is made one.

    Raises:
        InputError: for one that is known to be negative, or is no single integer.
    """
    from kzoo.load_keras import ops

    known = concrete(offset)
    if known is not None:
        if known.ndim or known.dtype.kind not in "iu" or known < 0:
            raise InputError(
                "`query_offset` is the first query's position among the keys, an integer of at "
                f"least 0. Received: {offset!r}"
            )
        return int(known)
    shape = tuple(offset.shape)
    if shape or "int" not in str(offset.dtype):
        raise InputError(
            "`query_offset` is one integer for all examples. "
            f"Received: {offset.dtype} of shape {list(shape)}"
        )
    return ops.maximum(ops.cast(offset, "int32"), 0)


def _is_zero(offset):
    return is_integer(offset) and offset == 0


def _ids(name, mask):
    """A padding mask as a tensor of int32; None for None."""
    from kzoo.load_keras import ops

    if mask is None:
        return None
    check_documents(name, mask)
    return ops.cast(mask, "int32")


def _sequence_info(time, segment=None, source_mask=None, *, numbered=True):
    """The `SequenceInfo` of one sequence; `numbered` as its `segment` is of one sequence alone."""
    from kzoo.load_keras import ops

    clock = ops.arange(time, dtype="int32")[None]
    document, position, start = None, clock, 0
    if segment is not None:
        document, position, start = _documents(segment)
    real = None if segment is None else segment != 0
    if numbered and segment is not None:
        segment = ops.where(real, document, 0)
    if source_mask is None:
        return SequenceInfo(position, segment, document)
    target = ops.cast(source_mask, "int32") == 0
    clock = clock + ops.zeros_like(source_mask, dtype="int32")
    if real is not None:
        target = ops.logical_and(target, real)
    last_target = _cumulative(ops.where(target, clock, -1))
    position = position + ops.zeros_like(source_mask, dtype="int32")
    return SequenceInfo(position, segment, document, in_source=last_target < start)


def _documents(segment):
    """Of each token its document, its position in it, and the time at which the document begins.

    Padding has the document before it, and the position of the token that it stands before.
    """
    from kzoo.load_keras import ops

    real = segment != 0
    before = _before(_filled(segment), 0)  # the id of the last token before each
    begins = ops.logical_and(real, segment != before)
    document = _cumulative(ops.cast(begins, "int32"), ops.sum, 0)
    earlier = _before(_cumulative(ops.cast(real, "int32"), ops.sum, 0), 0)
    first = _cumulative(ops.where(begins, earlier, 0))
    clock = ops.arange(ops.shape(segment)[1], dtype="int32")[None]
    return document, earlier - first, _cumulative(ops.where(begins, clock, 0))


def _cumulative(x, reduce=None, empty=-1):
    """The greatest so far (or another `reduce`, of nothing `empty`) along the last axis, time.

    In two or three steps with a fused loop in each; a scan is a tower of slices to compile.
    """
    from kzoo.load_keras import ops

    reduce = reduce or ops.max
    time = x.shape[-1]
    if not is_integer(time) or time <= BLOCK:  # unknown while a program is exported
        clock = ops.arange(ops.shape(x)[-1])
        return reduce(ops.where(clock[:, None] >= clock, x[..., None, :], empty), axis=-1)
    within = _cumulative(_blocks(x, empty), reduce, empty)
    before = _before(_cumulative(within[..., -1], reduce, empty), empty)[..., None]
    before = before + ops.zeros_like(within)
    return _whole(reduce(ops.stack([within, before], axis=-1), axis=-1), time)


def _filled(x):
    """`x` [.., time], each 0 replaced by the last number before it that is not 0."""
    from kzoo.load_keras import ops

    time = x.shape[-1]
    if not is_integer(time) or time <= BLOCK:  # unknown while a program is exported
        clock = ops.arange(ops.shape(x)[-1], dtype="int32")
        last = _cumulative(ops.where(x != 0, clock, -1))[..., None]
        return ops.sum(ops.where(last == clock, x[..., None, :], 0), axis=-1)
    within = _filled(_blocks(x, 0))
    before = _before(_filled(within[..., -1]), 0)[..., None]
    return _whole(ops.where(within != 0, within, before), time)


def _blocks(x, empty):
    """[.., time] as [.., blocks, BLOCK], the end filled with `empty`."""
    from kzoo.load_keras import ops

    time = x.shape[-1]
    blocks = -(-time // BLOCK)
    widths = [[0, 0]] * (len(x.shape) - 1) + [[0, blocks * BLOCK - time]]
    return ops.reshape(ops.pad(x, widths, constant_values=empty), (-1, blocks, BLOCK))


def _whole(x, time):
    """What `_blocks` cut."""
    from kzoo.load_keras import ops

    return ops.reshape(x, (-1, x.shape[-2] * x.shape[-1]))[:, :time]


def _before(x, empty):
    """`x` [.., time] one step later: `empty` before the first."""
    from kzoo.load_keras import ops

    return ops.concatenate([ops.full_like(x[..., :1], empty), x[..., :-1]], axis=-1)


def _agree(received, expected):
    return received is None or not is_integer(expected) or received == expected
