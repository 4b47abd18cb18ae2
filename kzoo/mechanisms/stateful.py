"""What mechanisms with a state of fixed size have in common: they decode with it alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kzoo.masks import Mask
from kzoo.mechanisms.base import Extras, HeadSizes, Mechanism, masks_of
from kzoo.typing import Tensor


@dataclasses.dataclass(frozen=True)
class Stateful(Mechanism):
    """Base of mechanisms that go on from a state; a subclass gives `state_shape`, an `attend` that
    takes and returns it, and `decode_token`."""

    def init_cache(self, sizes: HeadSizes, batch: int, time: int, dtype: str) -> dict[str, Tensor]:
        """The state of no tokens, whose size does not depend on the time."""
        from kzoo.load_keras import ops

        shapes = self.state_shape(sizes) or {}
        return {name: ops.zeros((batch, *shape), "float32") for name, shape in shapes.items()}

    def decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        cache: Mapping[str, Tensor],
        window: Any,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from kzoo.load_keras import ops

        if window.size == 1:
            return self.decode_token(q, k, v, extras, cache, window, rotary)
        beginning = isinstance(window.index, int) and window.index == 0
        return self.attend(
            q,
            k,
            v,
            extras,
            mask,
            rotary=rotary,
            query_offset=0 if beginning else ops.maximum(window.index - window.start, 0),
            initial_state=None if beginning else cache,
            return_state=True,
            **masks_of(window.queries(), mask),
        )

    def decode_token(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        cache: Mapping[str, Tensor],
        window: Any,
        rotary: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`decode` of one new column, which reads and does not write where the state holds it."""
        raise NotImplementedError
