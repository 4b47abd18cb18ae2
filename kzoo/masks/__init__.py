"""Who sees whom.

A mask is an order of positions: the query i sees the key j exactly when

    level[j] <= level[i]  and  document[i] == document[j] != 0

where the level of a token depends on its position t within its document:

    bidirectional    0
    causal           t
    reversed         -t
    prefix           0 in the document's initial run of source tokens, then t + 1
    block(b)         t // b
    permuted(seed)   hash(seed, t)

A mask's structure is static: hashable, comparable and JSON (`get`, `get_config`).
What differs from example to example comes as two integer tensors [batch, time]: `source_mask`
(1 is source) and `padding_mask` (0 is padding; each run of another number is a document, so that
an ordinary 0/1 mask is one). Padding, also inside a document, changes nothing for the rest.

Where a token stands is found by `kzoo.sequence`. Neither needs more than `keras.ops`, and that
only where tensors are made.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import TypeVar

from kzoo import levels
from kzoo.errors import InputError, unknown
from kzoo.masks.base import And, Custom, Heads, Layers, Mask
from kzoo.masks.orders import (
    ORDERS,
    Bidirectional,
    Block,
    Causal,
    Order,
    Permuted,
    Prefix,
    Reversed,
)
from kzoo.typing import MaskSpec, Tensor

__all__ = [
    "And",
    "Bidirectional",
    "Block",
    "Causal",
    "Custom",
    "Heads",
    "Layers",
    "Mask",
    "Order",
    "Permuted",
    "Prefix",
    "Reversed",
    "alternating",
    "bidirectional",
    "block",
    "causal",
    "custom",
    "get",
    "half_heads",
    "heads",
    "layers",
    "per_layer",
    "permuted",
    "prefix",
    "register",
    "reversed",
]


_Order = TypeVar("_Order", bound=Order)


def bidirectional() -> Mask:
    """Every position sees every position of its document.

    Example:
        >>> bidirectional().dense(2)[0, 0].tolist()
        [[True, True], [True, True]]
    """
    return Bidirectional()


def causal() -> Mask:
    """A position sees itself and what comes before it.

    Example:
        >>> causal().dense(2)[0, 0].tolist()
        [[True, False], [True, True]]
    """
    return Causal()


def reversed() -> Mask:
    """A position sees itself and what comes after it.

    Example:
        >>> reversed().dense(2)[0, 0].tolist()
        [[True, True], [False, True]]
    """
    return Reversed()


def prefix() -> Mask:
    """Source tokens see each other, later tokens see what comes before them (UniLM).

    The source is the initial run of 1s of the `source_mask` in each document; a source
    token after a target counts as target. Source: Dong et al. 2019, arXiv:1905.03197.

    Example:
        >>> prefix().dense(3, source_mask=np.array([[1, 1, 0]]))[0, 0].tolist()
        [[True, True, False], [True, True, False], [True, True, True]]
    """
    return Prefix()


def block(size: int) -> Mask:
    """Causal between blocks of `size` positions, bidirectional inside each.

    Raises:
        InputError: if `size` is no integer of at least 1.

    Example:
        >>> block(2).dense(3)[0, 0].tolist()
        [[True, True, False], [True, True, False], [True, True, True]]
    """
    return Block(size)


def permuted(seed: int = 0) -> Mask:
    """Causal in a random order of the positions: triangular, full rank, undirected.

    The same two positions stand in the same order whatever the length, padding or packing.

    Args:
        seed: an integer, that of the order.

    Returns:
        A `Mask`.

    Raises:
        InputError: if it is no integer.

    Example:
        >>> permuted(seed=3).get_config()
        {'permuted': {'seed': 3}}
    """
    return Permuted(seed)


def custom(visible: Callable[[Tensor, Tensor], Tensor]) -> Mask:
    """Any mask, for softmax attention only.

    Args:
        visible: function of two integer tensors that broadcast, the query's and the key's
            position within their document, to booleans: whether the query sees the key.

    Returns:
        A `Mask` without JSON.

    Raises:
        InputError: if `visible` cannot be called.

    Example:
        >>> window = causal() & custom(lambda query, key: query - key < 128)
    """
    if not callable(visible):
        raise InputError(f"`visible` is a function of (query, key). Received: {visible!r}")
    return Custom(visible)


def heads(*specs: MaskSpec) -> Mask:
    """A mask for each head, repeated over the heads of a layer.

    Args:
        specs: names, JSON or masks, as `get` takes them.

    Returns:
        A `Mask`.

    Raises:
        InputError: for none, and for a mask that differs by head or layer itself.

    Example:
        >>> heads("causal", "reversed") == half_heads()
        True
    """
    return Heads(tuple(get(spec) for spec in specs))


def layers(*specs: MaskSpec) -> Mask:
    """A mask for each layer, repeated over the layers of a stack.

    Args:
        specs: names, JSON or masks, as `get` takes them. They may differ by head.

    Returns:
        A `Mask`.

    Raises:
        InputError: for none, and for a mask that differs by layer itself.

    Example:
        >>> layers("causal", "reversed") == alternating()
        True
    """
    return Layers(tuple(get(spec) for spec in specs))


def half_heads() -> Mask:
    """Half of the heads forward, half backward (kexue.fm 9529).

    Example:
        >>> half_heads().per_head(4)
        (Causal(), Reversed(), Causal(), Reversed())
    """
    return heads(causal(), reversed())


def alternating() -> Mask:
    """Forward and backward layers in turn (kexue.fm 9529).

    Example:
        >>> per_layer(alternating(), 2)
        [Causal(), Reversed()]
    """
    return layers(causal(), reversed())


def register(order: type[_Order]) -> type[_Order]:
    """Give a class of orders its name, so that `get`, configs, presets and studies take it.

    Args:
        order: a subclass of `Order`, a frozen dataclass whose fields are its arguments in JSON,
            with a `name`. It is returned, so that this is a decorator. What is no such class, or
            has another's name, is refused (`InputError`).

    Returns:
        The class.

    Example:
        >>> @register
        ... @dataclasses.dataclass(frozen=True)
        ... class OddLast(Order):
        ...     name = "odd_last"
        ...     def level(self, sequence):
        ...         return sequence.position % 2
        >>> get("odd_last")
        OddLast()
    """
    if not isinstance(order, type) or not issubclass(order, Order):
        raise InputError(f"a subclass of `kzoo.masks.Order` is registered. Received: {order!r}")
    levels.check_class(order)
    name = levels.check_name(order)
    known = ORDERS.get(name, order)
    again = (known.__module__, known.__qualname__) == (order.__module__, order.__qualname__)
    if not again or name in _NAMED or name in _LISTS:  # a cell of a notebook may run again
        raise InputError(
            f"a mask called {name!r} exists already; give this one another name. Received: {order}"
        )
    ORDERS[name] = order
    return order


_NAMED = {"half_heads": half_heads, "alternating": alternating}
_LISTS = {"heads": heads, "layers": layers, "and": lambda *specs: _all(specs)}
_BUILT_IN = {
    register(order) for order in (Bidirectional, Causal, Reversed, Prefix, Block, Permuted)
}


def get(spec: MaskSpec) -> Mask:
    """The mask that a spec names.

    Args:
        spec: a name (`"causal"`), JSON (`{"heads": ["causal", "reversed"]}`,
            `{"layers": [...]}`, `{"and": [...]}`, `{"block": {"size": 16}}`,
            `{"permuted": {"seed": 3}}`) or a `Mask`, which comes back as it is.

    Returns:
        A `Mask`.

    Raises:
        InputError: for an unknown name, a wrong argument or nesting, or a false declaration.

    Example:
        >>> get({"heads": ["causal", "reversed"]}) == half_heads()
        True
    """
    if isinstance(spec, Mask):
        _check_orders(spec)
        return spec
    if isinstance(spec, str):
        name, arguments = spec, {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        ((name, arguments),) = spec.items()
    else:
        raise InputError(f"a mask is a name or a JSON object with one key. Received: {spec!r}")
    if name in _LISTS:
        if not isinstance(arguments, list | tuple) or not arguments:
            raise InputError(f"{name!r} takes a list of masks. Received: {spec!r}")
        return _LISTS[name](*arguments)
    if name not in ORDERS and name not in _NAMED:
        raise unknown("mask", name, [*ORDERS, *_NAMED, *_LISTS])
    if not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of {name!r} are a JSON object. Received: {spec!r}")
    if name in ORDERS:
        return get(levels.make(ORDERS[name], arguments))
    if arguments:
        raise levels.no_such_arguments(name, [], spec)
    return _NAMED[name]()


def _check_orders(mask):
    """`InputError` unless all orders in it are what they declare; ours are, by tests."""
    for part in getattr(mask, "masks", ()):
        _check_orders(part)
    if isinstance(mask, Order) and type(mask) not in _BUILT_IN:
        levels.check(mask)


def per_layer(spec: MaskSpec, num_layers: int) -> list[Mask]:
    """The mask of each layer: a list of `num_layers` masks, none of which differs by layer.

    Args:
        spec: as `get` takes it.
        num_layers: number of layers of a stack.

    Returns:
        A list of `Mask`.

    Raises:
        InputError: if the pattern of layers does not tile `num_layers`.

    Example:
        >>> per_layer("alternating", 4) == [causal(), reversed(), causal(), reversed()]
        True
    """
    mask = get(spec)
    return list(mask._tiled(num_layers)) if isinstance(mask, Layers) else [mask] * num_layers


def _all(specs):
    return functools.reduce(operator.and_, map(get, specs))
