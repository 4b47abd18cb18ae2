"""Attention while sequences grow: which columns are new, and one token's step over a cache."""

import dataclasses

from keras import ops

from kzoo.ops.tensors import masked_softmax, ratio, softmax_scale
from kzoo.precision import float32_products
from kzoo.sequence import SequenceInfo


@dataclasses.dataclass(frozen=True)
class Window:
    """The new columns of a batch of sequences that grow: `size` of them, from `index` on.

    A sequence is one document: columns before its first token are padding, and so are those that
    nothing was written to yet.

    Attributes:
        index: the first new column, an integer or an int32 scalar.
        size: number of new columns, an integer.
        start: int32 [batch], the column of each example's first token.
        source_end: int32 [batch], the column after its source; `start` without one.
        end: int32 [batch], the column after its last token; new columns from there on are
            padding.
        length: int32 [batch], the columns that a cache holds already.
    """

    index: object
    size: int
    start: object
    source_end: object
    end: object
    length: object

    def columns(self):
        """The new columns: int32 [size]."""
        return ops.arange(self.size, dtype="int32") + self.index

    def queries(self):
        """The `SequenceInfo` of the new columns, tensors [batch, size]."""
        return self._sequence_info(self.columns())

    def keys(self, time):
        """The `SequenceInfo` of the columns below `time`, tensors [batch, time]."""
        return self._sequence_info(ops.arange(time, dtype="int32"))

    def key_time(self, time):
        """How many of `time` cached columns there are to look at, an integer."""
        return self.index + self.size if isinstance(self.index, int) else time

    def after(self, tail, new):
        """The last columns and the new ones after them, as a convolution over time needs them.

        Args:
            tail: floats [batch, columns, ..], the last columns that were written.
            new: floats [batch, size, ..].

        Returns:
            [batch, time, ..] whose last `size` columns are the new ones, their documents, integers
            [batch, time], and the tail with the new columns. A single column below `length` is the
            last of the tail already.
        """
        count, new = tail.shape[1], ops.cast(new, tail.dtype)
        if self.size == 1:
            moved = ops.concatenate([tail[:, 1:], new], axis=1)
            columns = ops.where(ops.reshape(self.writes(), (-1, 1, 1)), moved, tail)
            column = ops.arange(1 - count, 1, dtype="int32") + self.index
            return columns, self._sequence_info(column).segment, columns
        columns = ops.concatenate([tail, new], axis=1)
        column = ops.arange(-count, self.size, dtype="int32") + self.index
        written = ops.clip(self.end - self.index, 0, self.size)  # the rest is padding
        last = written[:, None] + ops.arange(count, dtype="int32")
        tail = ops.take_along_axis(columns, last[:, :, None], axis=1)
        return columns, self._sequence_info(column).segment, tail

    def write(self, cached, new):
        """`cached` [batch, time, ..] with the new columns [batch, size, ..].

        A single column below `length` stays as it is: such a step reads and does not write.
        """
        start = [0, self.index, *[0] * (len(cached.shape) - 2)]
        new = ops.cast(new, cached.dtype)
        if self.size == 1:
            old = ops.slice(cached, start, (ops.shape(cached)[0], 1, *cached.shape[2:]))
            beyond = ops.reshape(self.writes(), (-1, *[1] * (len(cached.shape) - 1)))
            new = ops.where(beyond, new, old)
        return ops.slice_update(cached, start, new)

    def writes(self):
        """Booleans [batch]: whether the first new column is not in the cache yet."""
        return self.length <= self.index

    def _sequence_info(self, column):
        column = column[None]
        start, source_end, end = (x[:, None] for x in (self.start, self.source_end, self.end))
        real = ops.logical_and(column >= start, column < end)
        segment = ops.cast(real, "int32")
        in_source = ops.logical_and(real, column < source_end)
        return SequenceInfo(ops.maximum(column - start, 0), segment, segment, in_source)


@float32_products()
def softmax_step(q, k, v, visible, scale=None, bias=None):
    """Softmax attention of few queries over cached keys, which no head repeats.

    Args:
        q: floats [batch, queries, heads, dim].
        k: floats [batch, time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, time, kv_heads, value_dim].
        visible: booleans [batch or 1, heads or 1, queries, time].
        scale, bias: as in `kzoo.ops.softmax_attention`.

    Returns:
        [batch, queries, heads, value_dim] in the dtype of v, computed in float32.
    """
    dtype = v.dtype
    q, k, v = (ops.cast(x, "float32") for x in (q, k, v))
    heads, kv_heads = q.shape[2], k.shape[2]
    q = _grouped(q * softmax_scale(q, scale), kv_heads)
    scores = ops.einsum("bqhgd,bkhd->bhgqk", q, k)
    scores = ops.reshape(scores, (-1, heads, *scores.shape[3:]))
    weights = masked_softmax(scores, visible, bias)
    weights = ops.reshape(weights, (-1, kv_heads, heads // kv_heads, *weights.shape[2:]))
    out = ops.einsum("bhgqk,bkhd->bqhgd", weights, v)
    return ops.cast(ops.reshape(out, (-1, out.shape[1], heads, out.shape[-1])), dtype)


@float32_products()
def linear_step(features, q, k, v, weights, position, writes, state, log_decay=None, scale=None):
    """Linear attention of one token: its key joins the state, which its query reads.

    Args:
        features: a `kzoo.ops.features.Features`.
        q: floats [batch, 1, heads, dim].
        k, v: floats [batch, 1, kv_heads, dim], heads a multiple of kv_heads.
        weights: of a learned feature map, by name, or None.
        position: integers [batch, 1], within the document.
        writes: booleans [batch]; where False, the state holds the token already.
        state: `{"kv_state", "k_sum"}`, as `kzoo.ops.linear_attention` returns it; without a
            `"k_sum"` nothing is normalised.
        log_decay: floats [batch or 1, 1, heads], by which the state decays first; None for none.
        scale: factor on what is read, where nothing is normalised.

    Returns:
        [batch, 1, heads, dim] in the dtype of v, computed in float32, and the state.
    """
    dtype = v.dtype
    q, k, v = (ops.cast(x, "float32") for x in (q, k, v))
    repeats = q.shape[2] // k.shape[2]
    if repeats > 1:
        k, v = (ops.repeat(x, repeats, axis=2) for x in (k, v))
    sin_cos = features.sin_cos(position, q.shape[3])
    q, k, q_norm, k_norm = features(q, k, weights, sin_cos, writes[:, None])
    q_norm, k_norm = (q, k) if q_norm is None else (q_norm, k_norm)
    if log_decay is not None:
        decay = ops.exp(ops.where(writes[:, None], log_decay[:, 0], 0.0))  # [batch, heads]
        state = {
            name: x * ops.reshape(decay, (*ops.shape(decay), *[1] * (len(x.shape) - 2)))
            for name, x in state.items()
        }
    new = {"kv_state": k[:, 0, :, :, None] * v[:, 0, :, None, :], "k_sum": k_norm[:, 0]}
    state = {name: x + new[name] for name, x in state.items()}
    return ops.cast(linear_read(q, q_norm, state, scale), dtype), state


@float32_products()
def linear_read(q, q_norm, state, scale=None):
    """What queries find in a state: [batch, queries, heads, value_dim].

    Args:
        q, q_norm: features of queries for numerator and denominator, [batch, queries, heads,
            features].
        state, scale: as in `linear_step`.
    """
    read = ops.einsum("bqhd,bhde->bqhe", q, state["kv_state"])
    if "k_sum" not in state:
        return read if scale is None else read * scale
    return ratio(read, ops.einsum("bqhd,bhd->bqh", q_norm, state["k_sum"])[..., None])


def _grouped(x, groups):
    """[batch, time, heads, dim] as [batch, time, groups, heads / groups, dim]."""
    time, heads, dim = x.shape[1:]
    return ops.reshape(x, (-1, time, groups, heads // groups, dim))
