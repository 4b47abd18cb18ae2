"""What an attention has around its mechanism: norms, a gate, short convolutions."""

from keras import ops

from kzoo import attention_options
from kzoo.errors import InputError
from kzoo.layers.initializers import SeededNormal, by_token, derive_seed
from kzoo.ops.convolution import short_convolution
from kzoo.ops.normalization import rms_norm, unit
from kzoo.ops.sharding import shard_batch

STREAMS = ("query", "key", "value")


class HasOptions:
    """A mixin for `Attention`: from its projections to the mechanism, and to the output.

    It has `options`, the variables `option_variables` by name, and `gate`, a Dense layer or None.
    """

    def _build_options(self, project, width):
        self.gate = (
            project(width, self.num_heads * self.head_dim, "output_gate")
            if (self.options.output_gate)
            else None
        )
        self.option_variables = {
            name: self.add_weight(
                name=name, shape=shape, initializer=self._initial(name, shape), autocast=False
            )
            for name, shape in self.options.shapes(self.sizes, self.mechanism).items()
        }

    def _initial(self, name, shape):
        if not name.endswith("convolution"):
            return "ones"
        # The variance of torch's convolutions, with which fla and state-spaces/mamba begin.
        return SeededNormal((3 * shape[0]) ** -0.5, derive_seed(self.seed, name))

    def _project(self, query, value=None, key=None, mask=None, padding=None, key_padding=None):
        """q, k and v by heads, and what the mechanism has besides.

        Args:
            query, value, key: as in the call.
            mask: stands in for the layer's own.
            padding, key_padding: the documents of queries, and of keys of a second sequence.
        """
        check_shapes(*(None if x is None else x.shape for x in (query, value, key)))
        q = self._stream("query", query, self._ways("query", mask), padding)
        if value is not None:
            padding = key_padding
        return q, *self._project_keys(query if value is None else value, key, mask, padding)

    def _project_keys(self, value, key=None, mask=None, padding=None):
        key = value if key is None else key
        return (
            self._stream("key", key, self._ways("key", mask), padding),
            self._stream("value", value, self._ways("value", mask), padding),
            self._extras(key),
        )

    def _stream(self, name, x, ways, padding):
        """One of q, k and v, by heads, of tokens [batch, time, width]."""
        x = by_token(getattr(self, name), x)
        if ways is not None:
            x = self._convolved(name, x, ways, padding)
        return self._normed(name, self._heads(x, self._heads_of(name)))

    def _heads_of(self, name):
        return self.num_heads if name == "query" else self.kv_heads

    def _ways(self, name, mask=None):
        """Which neighbours the convolution of each head takes; None without one."""
        size = self.options.short_convolution
        if not size:
            return None
        masks = self.query_order if name == "query" else self.key_order, mask, self.mask
        first = next(mask for mask in masks if mask is not None)
        found = attention_options.ways(first.per_head(self.num_heads), size)
        return found if name == "query" else attention_options.shared(found, self.kv_heads)

    def _convolved(self, name, x, ways, padding):
        x = short_convolution(x, self.option_variables[f"{name}_convolution"], ways, padding)
        return ops.silu(x) if self.options.short_convolution_activation == "silu" else x

    def _normed(self, name, x):
        norm = self.options.norm(self.mechanism)
        if name == "value" or norm == "none":
            return x
        return unit(x) if norm == "l2" else rms_norm(x, self.option_variables[f"{name}_norm"])

    def _output(self, x, query):
        """What the heads gathered, [batch, time, heads, head_dim], projected.

        Args:
            query: what the queries were made of, of which the gate is made too.
        """
        if self.options.output_norm:
            x = rms_norm(x, self.option_variables["output_norm"])
        x = ops.reshape(x, (*ops.shape(x)[:2], self.num_heads * self.head_dim))
        x = ops.cast(x, self.compute_dtype)
        if self.gate is not None:
            x = x * ops.silu(by_token(self.gate, query))
        return shard_batch(by_token(self.output_dense, x))

    # While a text is generated -----------------------------------------------------------------

    def _init_tails(self, batch, names=STREAMS):
        """The last columns of q, k and v before their convolutions; {} without any."""
        size = self.options.short_convolution
        if not size:
            return {}
        return {
            name: ops.zeros((batch, size, self._heads_of(name) * self.head_dim), self.compute_dtype)
            for name in names
        }

    def _project_new(self, x, tails, window, names=STREAMS):
        """q, k and v of new columns, by heads, and the tails with them.

        Args:
            x: floats [batch, window.size, width].
            tails: from `_init_tails` or an earlier call.
            window: a `kzoo.ops.decoding.Window`.
        """
        found, tails = [], dict(tails)
        for name in names:
            ways = self._ways(name)
            if ways is None:
                found.append(self._stream(name, x, None, None))
                continue
            if set(ways) != {"before"}:
                raise InputError(
                    "a text is generated with short convolutions over earlier tokens: under "
                    f"causal, prefix and block masks. Received: {self.mask!r}"
                )
            new = by_token(getattr(self, name), x)
            columns, segment, tails[name] = window.after(tails[name], new)
            new = self._convolved(name, columns, ways, segment)[:, -window.size :]
            found.append(self._normed(name, self._heads(new, self._heads_of(name))))
        return found, tails


def check_shapes(*shapes):
    """`InputError` unless the shapes of query, value and key, or None, are of tokens."""
    named = dict(zip(("query", "value", "key"), shapes, strict=False))
    named = {name: tuple(shape) for name, shape in named.items() if shape is not None}
    if any(len(shape) != 3 for shape in named.values()):
        raise InputError(
            "query, value and key have the shape [batch, time, width]; "
            f"keras.layers.TimeDistributed takes one axis more. Received: {named}"
        )
