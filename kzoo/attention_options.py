"""Options of attention that every mechanism can have, each of which changes nothing else.

What stands around the mechanism, between the projections and it: known without Keras, so that
mistakes are told, and costs counted, before a weight is made.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Self

from kzoo.errors import InputError, unknown
from kzoo.masks import Mask
from kzoo.values import is_boolean, is_count

QK_NORMS = ("default", "none", "l2", "rms")
CONVOLUTION_ACTIVATIONS = ("silu", "none")
MOST_TAPS = 64


def taps(name: str, value: Any) -> int:
    """A size of a short convolution checked; 0 stands for none."""
    if not is_count(value, 0) or value > MOST_TAPS:
        raise InputError(
            f"{name} must be a number of tokens, at most {MOST_TAPS}, or 0 for none. "
            f"Received: {value!r}"
        )
    return value


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """What an attention has around its mechanism.

    Attributes:
        qk_norm: how each head of q and k is normalised before the mechanism: `"default"`, as the
            mechanism needs it; `"none"`; `"l2"`, to length 1; `"rms"`, to a mean square of 1 times
            a learned scale of each entry (Dehghani et al. 2023, arXiv:2302.05442, section 2.1, with
            the norm of arXiv:1910.07467).
        output_norm: whether each head of the output is divided by its root mean square, times a
            learned scale for each entry (Sun et al. 2023, arXiv:2307.08621, equation 8, with the
            norm of arXiv:1910.07467).
        output_gate: whether the output is multiplied by silu of a projection of the query's token
            (arXiv:2307.08621, equation 8).
        short_convolution: how many tokens a convolution over time of each entry of q, k and v
            takes; 0 for none (Dao and Gu 2024, arXiv:2405.21060, section 7.1; Yang et al. 2024,
            arXiv:2406.06484, section 3.4). It follows the mask.
        short_convolution_activation: `"silu"` or `"none"`, after the convolution.
    """

    qk_norm: str = "default"
    output_norm: bool = False
    output_gate: bool = False
    short_convolution: int = 0
    short_convolution_activation: str = "silu"

    def __post_init__(self):
        if self.qk_norm not in QK_NORMS:
            raise unknown("value of qk_norm", self.qk_norm, QK_NORMS)
        for name in ("output_norm", "output_gate"):
            if not is_boolean(getattr(self, name)):
                raise InputError(f"{name} is true or false. Received: {getattr(self, name)!r}")
        taps("short_convolution", self.short_convolution)
        if self.short_convolution_activation not in CONVOLUTION_ACTIVATIONS:
            name = "value of short_convolution_activation"
            raise unknown(name, self.short_convolution_activation, CONVOLUTION_ACTIVATIONS)

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of an object that has them as attributes, as a config has."""
        return cls(**{name: getattr(config, name) for name in cls.names()})

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the options."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def check(
        self, mechanism: Any, queries: Sequence[Mask], keys: Sequence[Mask], kv_heads: int
    ) -> None:
        """Refuse an option that a mechanism, or a mask, cannot have.

        Args:
            mechanism: a `Mechanism`.
            queries, keys: the mask of each head, which the convolutions of queries, and of keys
                and values, follow.
            kv_heads: number of heads of keys and values.

        Raises:
            InputError: where they do not fit together.
        """
        own = mechanism.own_qk_norm
        if own is not None and self.qk_norm not in ("default", own):
            raise InputError(
                f"{mechanism.name} attention has a qk_norm of its own, {own!r}, which its "
                f"recurrence needs. Received: qk_norm={self.qk_norm!r}"
            )
        if self.short_convolution:
            ways(queries, self.short_convolution)
            shared(ways(keys, self.short_convolution), kv_heads)

    def norm(self, mechanism: Any) -> str:
        """The norm of q and k that stands before the mechanism: none, l2 or rms."""
        own = mechanism.own_qk_norm is not None or self.qk_norm == "default"
        return "none" if own else self.qk_norm

    def shapes(self, sizes: Any, mechanism: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of the variables, those of the gate's projection aside, by name."""
        query, key = (n * sizes.head_dim for n in (sizes.num_heads, sizes.kv_heads))
        shapes: dict[str, tuple[int, ...]] = {}
        if self.norm(mechanism) == "rms":
            shapes |= {"query_norm": (sizes.head_dim,), "key_norm": (sizes.head_dim,)}
        if self.output_norm:
            shapes["output_norm"] = (sizes.head_dim,)
        if self.short_convolution:
            for name, width in (("query", query), ("key", key), ("value", key)):
                shapes[f"{name}_convolution"] = (self.short_convolution, width)
        return shapes


def ways(heads: Iterable[Mask], size: int) -> tuple[str, ...]:
    """Which neighbours a short convolution of each head takes.

    Returns:
        For each head `"before"` (causal, prefix and block masks, which no token's neighbour of an
        earlier time escapes), `"behind"` (reversed), or `"centred"` (bidirectional).

    Raises:
        InputError: for a mask that does not go through time, and for an even size that is centred.
    """
    found = []
    for head in heads:
        ascending, descending = (getattr(head, n, False) for n in ("ascending", "descending"))
        if not (ascending or descending):
            raise InputError(
                "a short convolution takes a token's neighbours in time, so it needs a mask that "
                "goes through time (bidirectional, causal, reversed, prefix, block). "
                f"Received: short_convolution={size} with {head!r}"
            )
        if ascending and descending and size % 2 == 0:
            raise InputError(
                "short_convolution must be odd under a bidirectional mask, whose tokens have "
                f"neighbours on both sides; the nearest is {size + 1}. "
                f"Received: short_convolution={size}"
            )
        found.append("centred" if ascending and descending else "before" if ascending else "behind")
    return tuple(found)


def shared(ways: Sequence[str], kv_heads: int) -> tuple[str, ...]:
    """The `ways` of the heads of keys and values, of those of all heads.

    Raises:
        InputError: where heads that share keys go different ways.
    """
    repeats = len(ways) // kv_heads
    groups = [set(ways[i : i + repeats]) for i in range(0, len(ways), repeats)]
    if any(len(group) > 1 for group in groups):
        raise InputError(
            "with a short convolution, heads that share their keys must have masks that go the "
            f"same way; kv_heads={len(ways)} gives each its own. Received: kv_heads={kv_heads} "
            f"with heads that take neighbours {', '.join(ways)}"
        )
    return tuple(group.pop() for group in groups)
