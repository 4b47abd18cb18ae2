"""What an attention does while rows grow: caches, and the call for new columns."""

from keras import ops

from kzoo.layers.initializers import by_token
from kzoo.ops import linear_attention, softmax_attention
from kzoo.ops.decoding import linear_read, linear_step, softmax_step
from kzoo.ops.features import Features
from kzoo.ops.rotary import rotate


class Decodes:
    """A mixin for `Attention`: its caches, and what they are extended and read by."""

    def empty_cache(self, batch, time):
        """What `extend` adds to: a dict of zeros, batch first.

        Softmax keeps `key` and `value` [batch, time, kv_heads, head_dim]; linear attention
        keeps a state whose size does not depend on the time.
        """
        if self.mechanism == "softmax":
            shape = (batch, time, self.kv_heads, self.head_dim)
            return {name: ops.zeros(shape, self.compute_dtype) for name in ("key", "value")}
        shape = (batch, self.num_heads, self.feature_map.size(self.head_dim))
        return {
            "kv_state": ops.zeros((*shape, self.head_dim), "float32"),
            "k_sum": ops.zeros(shape, "float32"),
        }

    def extend(self, x, cache, window, bias=None):
        """The call for new columns of rows whose earlier columns are in a cache.

        Args:
            x: floats [batch, window.size, width].
            cache: from `empty_cache` or an earlier call; keys are rotated by their place.
            window: the `kzoo.ops.decoding.Window` of the new columns.
            bias: floats [1, heads, window.size, window.key_time(time)], as in the call.

        Returns:
            Floats [batch, window.size, width], and the cache with the new columns.
        """
        q, k, v = self._project(x, None, None)
        queries = window.queries()
        if self.mechanism == "linear":
            out, cache = self._extend_state(q, k, v, cache, window, queries)
        else:
            if self.rotary:
                q, k = (rotate(ops.cast(x, "float32"), queries.position) for x in (q, k))
            written = zip(("key", "value"), (k, v), strict=True)
            cache = {name: window.write(cache[name], x) for name, x in written}
            out = self._look_back(q, cache, window, queries, bias)
        if self.identity_mix:
            out = self._mixed(out, v, queries.segment)
        return self._output(out), cache

    def _look_back(self, q, cache, window, queries, bias):
        """Of rotated queries, over cached keys."""
        time = window.key_time(cache["key"].shape[1])
        key, value = (cache[name][:, :time] for name in ("key", "value"))
        keys = window.keys(time)
        if window.size == 1:
            visible = self.mask.between(queries, keys, self.num_heads)
            return softmax_step(q, key, value, visible, self.scale, bias)
        who = {"query_offset": window.index, **self._who(keys), **self._biased(bias)}
        return softmax_attention(q, key, value, self.mask, scale=self.scale, **who)

    def _extend_state(self, q, k, v, cache, window, queries):
        if window.size == 1:
            features = Features(self.feature_map, self.rotary)
            weights = self._linear()["feature_weights"]
            args = (weights, queries.position, window.writes(), cache)
            return linear_step(features, q, k, v, *args)
        beginning = isinstance(window.index, int) and window.index == 0
        return linear_attention(
            q,
            k,
            v,
            self.mask,
            query_offset=0 if beginning else ops.maximum(window.index - window.start, 0),
            initial_state=None if beginning else cache,
            return_state=True,
            **self._who(queries),
            **self._linear(),
        )

    def remember(self, value, key_padding_mask):
        """What `recall` needs of another sequence, batch first: keys and values, or a state.

        Args:
            value: floats [batch, key_time, width].
            key_padding_mask: integers [batch, key_time], 1 for what counts.
        """
        q, k, v = self._project(value[:, :1], value, None)
        if self.mechanism == "softmax":
            shown = ops.cast(key_padding_mask, "int32")
            # Zeros, not whatever stands in padding: 0 · NaN is NaN.
            counts = shown[:, :, None, None] != 0
            k, v = (ops.where(counts, x, ops.zeros_like(x)) for x in (k, v))
            return {"key": k, "value": v, "shown": shown}
        own = {"key_padding_mask": key_padding_mask, "return_state": True}
        return linear_attention(q, k, v, self.mask, **own, **self._linear())[1]

    def recall(self, x, cache):
        """The call with another sequence that `remember` made a cache of.

        Args:
            x: floats [batch, time, width].

        Returns:
            The same shape.
        """
        q = self._heads(by_token(self.query, x), self.num_heads)
        if self.mechanism == "linear":
            features = self.feature_map.query(
                ops.cast(q, "float32"), self._linear()["feature_weights"]
            )
            return self._output(linear_read(features, features, cache))
        k, v, shown = (cache[name] for name in ("key", "value", "shown"))
        if x.shape[1] == 1:
            visible = shown[:, None, None, :] != 0
            return self._output(softmax_step(q, k, v, visible, self.scale))
        out = softmax_attention(q, k, v, self.mask, key_padding_mask=shown, scale=self.scale)
        return self._output(out)

    def _who(self, sequence):
        source = ops.cast(sequence.in_source, "int32") if self.mask.needs_source else None
        return {"padding_mask": sequence.segment, "source_mask": source}
