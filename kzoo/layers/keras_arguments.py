"""What Keras's own layers and `MultiHeadAttention` say, in the words of `kzoo.layers`."""

from keras import ops

from kzoo import masks
from kzoo.errors import InputError

_ONE_KERNEL = "kzoo chooses the kernel, see kzoo.layers.kernels"
_NO_DROPOUT = "linear attention and fused kernels have no weights to drop; Block drops what it adds"
_DRAWN = "initial values follow from seed and stddev"
_COMPILED = "a regularizer or constraint of your own goes on layer.query.kernel and the like"
# Arguments of Keras's attention layers that `Attention` does not take, and what it takes instead.
INSTEAD = {
    "key_dim": "head_dim is the size of a head of queries, keys and values",
    "value_dim": "head_dim is the size of a head of queries, keys and values",
    "num_query_heads": "num_heads is the number of heads of queries",
    "num_key_value_heads": "kv_heads is the number of heads of keys and values",
    "dropout": _NO_DROPOUT,
    "output_shape": "the output is as wide as the query; a keras.layers.Dense after it changes it",
    "attention_axes": "attention goes over axis 1; keras.layers.TimeDistributed adds an axis",
    "sliding_window": "mask=kzoo.masks.custom(lambda query, key: abs(query - key) < size)",
    "flash_attention": _ONE_KERNEL,
    "use_gate": "output_gate=True multiplies what the heads gather by silu of a projection",
    "kernel_initializer": _DRAWN,
    "bias_initializer": "biases begin at zero",
    "kernel_regularizer": _COMPILED,
    "bias_regularizer": _COMPILED,
    "kernel_constraint": _COMPILED,
    "bias_constraint": _COMPILED,
}


def refuse(arguments):
    """Refuse arguments of Keras's attention layers that `Attention` does not have, by name.

    Raises:
        InputError: that says of each what is taken instead.
    """
    named = [name for name in arguments if name in INSTEAD]
    if named:
        instead = "; ".join(f"{name}: {INSTEAD[name]}" for name in named)
        received = ", ".join(f"{name}={arguments[name]!r:.40}" for name in named)
        raise InputError(
            f"some arguments of keras.layers.MultiHeadAttention are not taken. {instead}. "
            f"Received: {received}"
        )


def counted(padding_mask, *keras_masks):
    """A padding mask in which tokens that one of Keras's masks hides are padding too.

    Args:
        padding_mask: integers [batch, time], or None.
        *keras_masks: booleans [batch, time], True for tokens that count, or None.

    Returns:
        Integers [batch, time]; None where nothing was given.

    Raises:
        InputError: for a mask of another shape.
    """
    for mask in keras_masks:
        if mask is None:
            continue
        if isinstance(mask, list | tuple) or len(mask.shape) != 2:
            shape = [m.shape for m in mask] if isinstance(mask, list | tuple) else mask.shape
            raise InputError(
                "a mask of Keras's has the shape [batch, time]; a mask of pairs is an "
                f"attention_mask. Received: shape {list(shape)}"
            )
        mask = ops.cast(mask, "bool")
        if padding_mask is None:
            padding_mask = ops.cast(mask, "int32")
        else:
            padding_mask = ops.where(mask, ops.cast(padding_mask, "int32"), 0)
    return padding_mask


def narrowed(mask, num_heads, mechanism, sizes, use_causal_mask=False, attention_mask=None):
    """What `mask` shows, less what two arguments of `MultiHeadAttention`'s call hide.

    Args:
        mask: a `Mask` that does not differ by layer.
        num_heads: number of heads.
        mechanism: a `Mechanism`; some follow orders alone.
        sizes: batch, query_time and key_time; None where not known.
        use_causal_mask: whether later positions are hidden.
        attention_mask: booleans or integers [query_time, key_time], [batch, query_time,
            key_time] or [batch, 1 or heads, query_time, key_time], True where a query may see
            a key; or None.

    Returns:
        A `Mask`; with an `attention_mask` it speaks of these tensors alone.

    Raises:
        InputError: for what the mechanism cannot follow, or an `attention_mask` of another
            shape.
    """
    heads = mask.per_head(num_heads)
    if use_causal_mask:
        within = (masks.bidirectional(), masks.causal())
        heads = [masks.causal() if head in within else head & masks.causal() for head in heads]
    if mechanism.orders_only and attention_mask is not None:
        raise InputError(
            f"{mechanism.name} attention follows orders, and an attention_mask shows any pairs; "
            "give mask, padding_mask (documents too) and source_mask, or mechanism='softmax'. "
            f"Received: mechanism={mechanism.get_config()!r} with an attention_mask"
        )
    if mechanism.orders_only and not all(isinstance(head, masks.Order) for head in heads):
        raise InputError(
            f"{mechanism.name} attention follows one order: use_causal_mask=True is for the masks "
            f"bidirectional and causal. Received: the mask {mask.get_config()!r}"
        )
    if attention_mask is not None:
        shown = _of_heads(attention_mask, num_heads, sizes)
        heads = [head & one for head, one in zip(heads, shown, strict=True)]
    return heads[0] if len(set(heads)) == 1 else masks.heads(*heads)


def _of_heads(attention_mask, num_heads, sizes):
    """A mask for each head that shows what a tensor shows, whatever the positions."""
    shape = tuple(attention_mask.shape)
    rank = len(shape)
    batch, *times = sizes
    allowed = [(1, batch), *[(1, num_heads)] * (rank == 4), *((1, time) for time in times)]
    fits = zip(shape[::-1], allowed[::-1], strict=False)
    if rank not in (2, 3, 4) or not all(a in b or None in (a, *b) for a, b in fits):
        raise InputError(
            f"an attention_mask has the shape [query_time, key_time] = {times}, or batch="
            f"{batch}, or batch and heads={num_heads}, before them; any of these may be 1. "
            f"Received: shape {list(shape)}"
        )
    shown = ops.cast(attention_mask, "bool")
    if rank < 4:
        shown = shown[:, None] if rank == 3 else shown[None, None]

    def head(i):  # a position is never below 0: the comparison gives every pair
        return masks.custom(lambda query, key: ops.logical_and(shown[:, i], key >= 0))

    if shown.shape[1] == 1:
        return [head(0)] * num_heads
    return [head(i) for i in range(num_heads)]
