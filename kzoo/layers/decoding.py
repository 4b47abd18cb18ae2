"""Attention while a text is generated: caches of earlier tokens, and the call for new ones."""

from collections.abc import Mapping

from keras import ops

from kzoo.ops.decoding import Window
from kzoo.typing import Tensor

TAILS = "convolution"  # in a cache, beside what the mechanism has there


class Decodes:
    """A mixin for `Attention`: its caches, and what reads and extends them."""

    def init_cache(self, batch: int, time: int) -> dict[str, Tensor]:
        """The cache of no tokens, a dict of tensors, batch first: `Mechanism.init_cache`.

        Args:
            batch: number of examples.
            time: the most tokens of one.
        """
        cache = self.mechanism.init_cache(self.sizes, batch, time, self.compute_dtype)
        return _with(cache, self._init_tails(batch))

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
        cache = dict(cache)
        (q, k, v), tails = self._project_new(x, cache.pop(TAILS, {}), window)
        own = {"rotary": self.rotary, **self._biased(bias)}
        found, new = self.mechanism.decode(
            q, k, v, self._extras(x), self.mask, cache, window, **own
        )
        if self.identity_mix:
            found = self._mixed(found, v, window.queries().segment)
        return self._output(found, x), _with(new, tails)

    def cached_time(self, cache: Mapping[str, Tensor]) -> int:
        """How many keys a cache has room for, where calls come with a `bias`."""
        return self.mechanism.cached_time(cache)

    def init_cross_cache(self, value: Tensor, key_padding_mask: Tensor) -> dict[str, Tensor]:
        """What `cross_attend` needs of another sequence, a dict of tensors, batch first.

        Args:
            value: floats [batch, key_time, width].
            key_padding_mask: integers [batch, key_time], 0 for padding.
        """
        k, v, extras = self._project_keys(value, padding=key_padding_mask)
        cache = self.mechanism.init_cross_cache(
            self.sizes, k, v, extras, self.mask, key_padding_mask
        )
        return _with(cache, self._init_tails(ops.shape(value)[0], ("query",)))

    def cross_attend(
        self, x: Tensor, cache: Mapping[str, Tensor], window: Window
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The call for new columns with another sequence, of which `init_cross_cache` made a cache.

        Args:
            x: floats [batch, window.size, width].
            cache: from `init_cross_cache` or an earlier call.
            window: the `kzoo.ops.decoding.Window` of the new columns.

        Returns:
            The shape of x, and the cache with the new columns.
        """
        cache = dict(cache)
        (q,), tails = self._project_new(x, cache.pop(TAILS, {}), window, ("query",))
        found = self.mechanism.cross_attend(q, self._extras(), self.mask, cache)
        return self._output(found, x), _with(cache, tails)


def _with(cache, tails):
    """The cache of a mechanism, and the last columns before convolutions if there are any."""
    return {**cache, TAILS: tails} if tails else cache
