"""Attention while a text is generated: caches of earlier tokens, and the call for new ones."""

from collections.abc import Mapping

from kzoo.layers.initializers import by_token
from kzoo.ops.decoding import Window
from kzoo.typing import Tensor


class Decodes:
    """A mixin for `Attention`: its caches, and what reads and extends them."""

    def init_cache(self, batch: int, time: int) -> dict[str, Tensor]:
        """The cache of no tokens, a dict of tensors, batch first: `Mechanism.init_cache`.

        Args:
            batch: number of examples.
            time: the most tokens of one.
        """
        return self.mechanism.init_cache(self.sizes, batch, time, self.compute_dtype)

    def decode(
        self, x: Tensor, cache: Mapping[str, Tensor], window: Window, bias: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The call for new columns of examples whose earlier columns are in a cache.

        Args:
            x: floats [batch, window.size, width].
            cache: from `init_cache` or an earlier call.
            window: the `kzoo.ops.decoding.Window` of the new columns.
            bias: floats [1, heads, window.size, window.key_time(time)], as in the call.

        Returns:
            Floats [batch, window.size, width], and the cache with the new columns.
        """
        q, k, v, extras = self._project(x)
        own = {"rotary": self.rotary, **self._biased(bias)}
        x, new = self.mechanism.decode(q, k, v, extras, self.mask, cache, window, **own)
        if self.identity_mix:
            x = self._mixed(x, v, window.queries().segment)
        return self._output(x), new

    def cached_time(self, cache: Mapping[str, Tensor]) -> int:
        """How many keys a cache has room for, where calls come with a `bias`."""
        return self.mechanism.cached_time(cache)

    def init_cross_cache(self, value: Tensor, key_padding_mask: Tensor) -> dict[str, Tensor]:
        """What `cross_attend` needs of another sequence, a dict of tensors, batch first.

        Args:
            value: floats [batch, key_time, width].
            key_padding_mask: integers [batch, key_time], 0 for padding.
        """
        k, v, extras = self._project_keys(value)
        return self.mechanism.init_cross_cache(
            self.sizes, k, v, extras, self.mask, key_padding_mask
        )

    def cross_attend(self, x: Tensor, cache: Mapping[str, Tensor]) -> Tensor:
        """The call with another sequence, of which `init_cross_cache` made a cache.

        Args:
            x: floats [batch, time, width].

        Returns:
            The same shape.
        """
        q = self._heads(by_token(self.query, x), self.num_heads)
        return self._output(self.mechanism.cross_attend(q, self._extras(), self.mask, cache))
