"""Linear attention of heads whose masks are orders: time in the order of level, and back.

Queries sorted by level see everything before their group of equal levels, plus the group, inside
their document. So time is brought into the order of level (where levels fall with time, gone
through from its end; where they do neither, sorted), and a kernel attends in it.
"""

from typing import NamedTuple

from keras import ops

from kzoo.ops.sorting import Tokens, backwards, in_time, stable_sort, take_time, ways
from kzoo.ops.tensors import join, ratio, take_heads


class Core(NamedTuple):
    """What attends in sorted time.

    Attributes:
        features: a `kzoo.ops.features.Features`.
        chunk_size: tokens in a chunk.
        kernel: a kernel of linear attention, or of gated linear attention (`kzoo.ops.dispatch`).
        gated: whether it is one of gated linear attention.
        normalize: whether there is a denominator; only a gated one can do without.
        scale: a factor on the output that is applied later, unless the kernel is `raw`.
        platform: where the program will run.
    """

    features: object
    chunk_size: int
    kernel: object
    gated: bool = False
    normalize: bool = True
    scale: float | None = None
    platform: str = "cpu"

    @property
    def raw(self):
        """Whether the kernel takes q, k and v as they come, in the dtype of the layer, and does all
        else: zeros at padding, the scale, the dtype of the output."""
        return getattr(self.kernel, "RAW", False)

    @property
    def any_direction(self):
        """Whether one pass serves all orders that go through time, forwards or backwards."""
        return getattr(self.kernel, "ANY_DIRECTION", False)

    def __call__(self, q, k, v, weights, tokens, state, reverse=False, log_decay=None):
        arrays = q, k, v, self.features, weights, tokens, state
        own = {"log_decay": log_decay, "normalize": self.normalize} if self.gated else {}
        own |= {"scale": self.scale, "platform": self.platform} if self.raw else {}
        return self.kernel.run(*arrays, chunk_size=self.chunk_size, reverse=reverse, **own)


def one_sequence(core, q, k, v, weights, heads, sequence, sin_cos, state, log_decay=None):
    """Bring the time of every head into the order of its level, attend, and bring it back.

    Args:
        core: the `Core`.
        q, k, v: floats [batch, time, heads, dim].
        weights: of a learned feature map, by name, heads first; or None.
        heads: the order of each head.
        sequence: the `SequenceInfo` of the tokens.
        sin_cos: of rotary positions, from `Features.sin_cos`.
        state: the initial state, a pair of tensors [batch, heads, ..], or None.
        log_decay: floats [batch or 1, time, heads], or None.

    Returns:
        [batch, time, heads, value_dim] and the state after the last key.
    """

    def kind(order):  # what one pass can do
        if not in_time(order) or (order.grouped and getattr(core.kernel, "ONE_ORDER", False)):
            return order
        return None if core.any_direction else (order.grouped, backwards(order))

    groups = {}
    for i, head in enumerate(heads):
        groups.setdefault(kind(head), []).append(i)
    outs, states, taken = [], [], []
    for index in groups.values():
        own = [take_heads(x, index, 2) for x in (q, k, v)]
        own_weights = {name: take_heads(x, index, 0) for name, x in (weights or {}).items()}
        own_state = None if state is None else _of_heads(state, index)
        gates = None if log_decay is None else take_heads(log_decay, index, 2)
        others = [heads[i] for i in index], sequence, sin_cos, own_state, gates
        out, last = _same_kind(core, own, own_weights, *others)
        outs.append(out)
        states.append(last)
        taken += index
    back = sorted(range(len(heads)), key=taken.__getitem__)
    whole = [None if parts[0] is None else join(parts, 1) for parts in zip(*states, strict=True)]
    return take_heads(join(outs, 2), back, 2), _of_heads(whole, back)


def _of_heads(state, index):
    """The heads `index` of a state, whose normaliser may be None."""
    return tuple(None if x is None else take_heads(x, index, 1) for x in state)


def _same_kind(core, qkv, weights, heads, sequence, sin_cos, state, log_decay=None):
    """Heads whose orders go through time in the same way, in one pass."""
    order = heads[0]
    forth, back, reverse = ways(order, sequence, flip=not core.any_direction)
    reverse = [backwards(head) for head in heads] if core.any_direction else reverse
    document, shown = sequence.document, None
    if sequence.segment is not None:
        shown = sequence.segment != 0
        if state is not None:  # leading padding does not part a state from its document
            document = ops.maximum(document, 1)
        document = forth(document)[:, None]
    level = None
    if any(head.grouped for head in heads):
        levels = {head: forth(head.levels(sequence))[:, None] for head in dict.fromkeys(heads)}
        level = join([levels[head] for head in heads] if len(levels) > 1 else [levels[order]], 1)
    sin_cos = None if sin_cos is None else tuple(forth(x) for x in sin_cos)
    tokens = Tokens(document, level, sin_cos, forth(shown))
    qkv = [forth(x) for x in qkv]
    every = document is None and log_decay is None and all(head.is_full for head in heads)
    if every and not core.any_direction and not core.raw:
        q, k, v = qkv
        return every_key(core, *core.features(q, k, weights, tokens.sin_cos, shown), v, state)
    out, state = core(*qkv, weights, tokens, state, reverse, forth(log_decay))
    return back(out), state


def from_all_keys(core, q, k, v, weights, queries, keys):
    """Queries of one document over all of a second sequence: one state, made of its keys.

    Arguments as in `two_sequences`.

    Returns:
        [batch, query_time, heads, value_dim] and the state.
    """
    sin_cos, key_sin_cos = (
        core.features.sin_cos(x.position, q.shape[3], q.dtype) for x in (queries, keys)
    )
    shown = keys.segment == queries.segment[:, :1]
    return every_key(core, *core.features(q, k, weights, sin_cos, shown, key_sin_cos), v, None)


def every_key(core, q, k, q_norm, k_norm, v, state):
    """Every query sees every key: one sum over time."""
    q_norm, k_norm = (q, k) if q_norm is None else (q_norm, k_norm)
    kv_state = ops.einsum("bkhd,bkhe->bhde", k, v)
    if state is not None:
        kv_state = kv_state + state[0]
    if not core.normalize:
        return ops.einsum("bqhd,bhde->bqhe", q, kv_state), (kv_state, None)
    k_sum = ops.sum(k_norm, axis=1)
    if state is not None:
        k_sum = k_sum + state[1]
    denominator = ops.einsum("bqhd,bhd->bqh", q_norm, k_sum)[..., None]
    return ratio(ops.einsum("bqhd,bhde->bqhe", q, kv_state), denominator), (kv_state, k_sum)


def two_sequences(core, q, k, v, weights, heads, queries, keys):
    """Queries and keys as one sequence in order of (document, level, keys first).

    Then whatever a query sees stands before it, and one causal pass does for every order.
    Arrays are [batch, time, heads, dim].
    """
    key_time, query_time = ops.shape(k)[1], ops.shape(q)[1]

    def beside(x, time, keys_first):
        zeros = ops.zeros((ops.shape(x)[0], time, *x.shape[2:]), dtype=x.dtype)
        return ops.concatenate([x, zeros] if keys_first else [zeros, x], axis=1)

    q = beside(q, key_time, False)
    k, v = beside(k, query_time, True), beside(v, query_time, True)
    document, shown = None, ops.arange(key_time + query_time)[None] < key_time
    if queries.segment is not None:
        document = _concatenate_time(keys.segment, queries.segment)
        shown = ops.logical_and(shown, document != 0)
    position = _concatenate_time(keys.position, queries.position)
    outs = []
    for i, order in enumerate(heads):
        level = _concatenate_time(order.levels(keys), order.levels(queries))
        permutation = stable_sort(level, document)
        tokens = (None if x is None else take_time(x, permutation) for x in (document, shown))
        sorted_document, sorted_shown = tokens
        if document is not None:
            sorted_document = sorted_document[:, None]
        sin_cos = core.features.sin_cos(take_time(position, permutation), q.shape[3], q.dtype)
        tokens = Tokens(sorted_document, None, sin_cos, sorted_shown)
        head = [take_time(x[:, :, i : i + 1], permutation) for x in (q, k, v)]
        own = {name: x[i : i + 1] for name, x in (weights or {}).items()}
        out, _ = core(*head, own, tokens, None)
        outs.append(take_time(out, ops.argsort(permutation, axis=1))[:, key_time:])
    return ops.concatenate(outs, axis=2)


def _concatenate_time(a, b):
    a, b = a + ops.zeros_like(b[:, :1]), b + ops.zeros_like(a[:, :1])  # equal batch sizes
    return ops.concatenate([a, b], axis=1)
