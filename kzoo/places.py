"""Where each position of a sequence stands: in which document, how far in, in its source or not.

What masks rank. Documents are runs of equal, ascending ids in a row; 0 is padding.
"""

import dataclasses

from kzoo.errors import InputError
from kzoo.values import is_integer

BLOCK = 256  # the tokens of which each looks back at each in `_cumulative_max`


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each position of a sequence stands; tensors of [batch or 1, time].

    Attributes:
        position: integers, the place within the document, from 0.
        segment: integers, the document, 0 for padding; None where there is one document
            and no padding.
        document: like `segment`, but padding belongs to the document before it.
        in_source: booleans, the document's initial run of source tokens; None without
            a `source_mask`.
    """

    position: object
    segment: object = None
    document: object = None
    in_source: object = None


def document_positions(padding_mask):
    """The place of each token within its document.

    Args:
        padding_mask: integers [batch, time], 0 for padding, k for the k-th document;
            documents stand in ascending order.

    Returns:
        Integers [batch, time]: 0 for a document's first token, then 1, 2, 3, …

    Example:
        >>> document_positions([[0, 1, 1, 1, 2, 2, 0]])
        [[0, 0, 1, 2, 0, 1, 2]]
    """
    from keras import ops

    segment = ops.cast(padding_mask, "int32")
    return _places(ops.shape(segment)[1], segment).position


def places(
    mask,
    query_time,
    key_time=None,
    *,
    query_offset=0,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
):
    """The `Places` of queries and of keys; arguments and errors as in `Mask.dense`."""
    from keras import ops

    same = key_time is None or (is_integer(key_time) and key_time == query_time)
    key_time = query_time if key_time is None else key_time
    cross = key_padding_mask is not None
    if mask.needs_source and source_mask is None:
        raise InputError("a prefix mask needs a `source_mask` [batch, time]. Received: None")
    if not mask.needs_source:
        source_mask = None
    if cross and source_mask is not None:
        raise InputError(
            "a prefix mask orders one sequence and has no meaning across two. "
            f"Received: {mask.get_config()!r} with a key_padding_mask"
        )
    if cross and padding_mask is None:
        padding_mask = ops.ones((1, query_time), dtype="int32")
    expected = {
        "padding_mask": (padding_mask, query_time if cross else key_time),
        "source_mask": (source_mask, key_time),
        "key_padding_mask": (key_padding_mask, key_time),
    }
    for name, (tensor, time) in expected.items():
        shape = None if tensor is None else tuple(tensor.shape)
        if shape is not None and (len(shape) != 2 or not _agree(shape[1], time)):
            raise InputError(
                f"`{name}` has the shape [batch, {time}]. Received: shape {list(shape)}"
            )

    if cross:
        return _places(query_time, padding_mask), _places(key_time, key_padding_mask)
    keys = _places(key_time, padding_mask, source_mask)
    if same and is_integer(query_offset) and query_offset == 0:
        return keys, keys
    if padding_mask is None and source_mask is None:
        position = ops.arange(query_time, dtype="int32")[None] + query_offset
        return Places(position), keys
    static = all(map(is_integer, (query_offset, query_time, key_time)))
    if static and query_offset + query_time > key_time:
        raise InputError(
            f"queries beyond the last key: {query_time} queries from {query_offset} on are not "
            f"among the {key_time} keys that padding_mask or source_mask describes. "
            f"Received: query_offset={query_offset}"
        )
    window = ops.arange(query_time, dtype="int32") + query_offset
    parts = (keys.position, keys.segment, keys.document, keys.in_source)
    return Places(*(None if x is None else ops.take(x, window, axis=1) for x in parts)), keys


def _places(time, padding_mask=None, source_mask=None):
    from keras import ops

    clock = ops.arange(time, dtype="int32")[None]
    if padding_mask is None:
        start, segment, document = 0, None, None
    else:
        segment = ops.cast(padding_mask, "int32")
        document, start = _documents(segment)
    if source_mask is None:
        return Places(clock - start, segment, document)
    target = ops.cast(source_mask, "int32") == 0
    clock = clock + ops.zeros_like(source_mask, dtype="int32")
    if segment is not None:
        target = ops.logical_and(target, segment != 0)
    last_target = _cumulative_max(ops.where(target, clock, -1))
    return Places(clock - start, segment, document, in_source=last_target < start)


def _documents(segment):
    """The document of each token, padding included, and the time at which it begins."""
    from keras import ops

    document = _cumulative_max(segment)
    before = ops.concatenate([ops.zeros_like(document[:, :1]), document[:, :-1]], axis=1)
    clock = ops.arange(ops.shape(segment)[1], dtype="int32")[None]
    return document, _cumulative_max(ops.where(document != before, clock, 0))


def _cumulative_max(x):
    """Along the last axis, time, of integers of at least -1.

    In two or three steps with a fused loop in each; a scan is a tower of slices to compile.
    """
    from keras import ops

    time = x.shape[-1]
    if time is None or time <= BLOCK:
        clock = ops.arange(ops.shape(x)[-1])
        return ops.max(ops.where(clock[:, None] >= clock, x[..., None, :], -1), axis=-1)
    blocks = -(-time // BLOCK)
    widths = [[0, 0]] * (len(x.shape) - 1) + [[0, blocks * BLOCK - time]]
    x = ops.pad(x, widths, constant_values=-1)
    within = _cumulative_max(ops.reshape(x, (-1, blocks, BLOCK)))
    before = _cumulative_max(within[..., -1])
    before = ops.concatenate([ops.full_like(before[:, :1], -1), before[:, :-1]], axis=1)
    whole = ops.maximum(within, before[..., None])
    return ops.reshape(whole, (-1, blocks * BLOCK))[:, :time]


def _agree(received, expected):
    return received is None or not is_integer(expected) or received == expected
