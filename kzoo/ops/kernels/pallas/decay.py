"""What gates do within a chunk: weights decay by exp of the gates between two tokens.

For a key at or before its query those after the key up to the query, for a later key those from
the query up to before the key. All are sums of gates, never differences of sums, which would lose
precision.
"""

import operator

import jax
import jax.numpy as jnp

from kzoo.ops.kernels.pallas.chunk import (
    LEFT_TURNED,
    RIGHT_TURNED,
    dot,
    exact_dot,
    gathered,
    head_sums,
    spread,
)
from kzoo.ops.kernels.pallas.form import CHUNK, LEFT, RIGHT


class Decay:
    """Of the gates of one chunk, float32 [8, tokens], heads in rows."""

    def __init__(self, form, gates):
        self.form, self.gates, self._within = form, gates, {}

    def within(self, head):
        """exp of the gates between a query and a key: [queries, keys]."""
        if head not in self._within:
            self._within[head] = self._between(head)
        return self._within[head]

    def _between(self, head):
        form, gate = self.form, self.gates[head : head + 1]
        sums = {}
        if LEFT in form.sides:
            sums[LEFT] = exact_dot(jnp.where(_grid(_at_most), gate, 0.0), _grid(_below))
        if RIGHT in form.sides:
            sums[RIGHT] = exact_dot(jnp.where(_grid(_at_least), gate, 0.0), _grid(_above))
        if form.other_side is None:
            return jnp.exp(sums[form.sides[0]])
        return jnp.exp(jnp.where(_grid(_at_most), sums[LEFT], sums[RIGHT]))

    def to_edge(self, role, side):
        """exp of the gates between each token and the chunk's edge on a side: [tokens, lanes].

        Of a query, those to the state on that side; of a key, those to the queries on the side
        opposite to it, whose state it joins.
        """
        sums = exact_dot(self.gates, _reaches(role, side)).T
        return spread(self.form, jnp.exp(sums), self.form.dim)

    def total(self, dim):
        """exp of all gates, in the lanes of heads of a size: [1, lanes]."""
        sums = exact_dot(self.gates, jnp.ones((CHUNK, CHUNK), "float32")).T
        return spread(self.form, jnp.exp(sums), dim)[:1]

    # Slopes of the gates, [8, tokens] -----------------------------------------------------

    def slope_within(self, pairs):
        """From the slopes of the pairs' logarithms, [queries, keys]: [tokens, 1]."""
        slope, before = 0.0, jnp.where(_grid(_at_most), 1.0, 0.0)
        if LEFT in self.form.sides:
            lower = jnp.where(_grid(_below), pairs, 0.0)
            sums = dot(self.form, before, lower, LEFT_TURNED)
            slope += jnp.sum(jnp.where(_grid(_below), sums, 0.0), axis=1, keepdims=True)
        if RIGHT in self.form.sides:
            upper = jnp.where(_grid(_above), pairs, 0.0)
            sums = dot(self.form, before, upper)
            slope += jnp.sum(jnp.where(_grid(_above), sums, 0.0), axis=1, keepdims=True)
        return slope

    def slope_to_edge(self, role, side, slopes):
        """From what `to_edge` scaled times its slope, [tokens, lanes]."""
        form = self.form
        sums = head_sums(slopes, form.dim, form.dim, form.lanes)
        return exact_dot(gathered(form, sums, form.dim), _reaches(role, side), RIGHT_TURNED)


def _grid(compare):
    """Booleans [i, j] of a comparison of the column j with the row i."""
    shape = CHUNK, CHUNK
    rows, columns = (jax.lax.broadcasted_iota("int32", shape, axis) for axis in (0, 1))
    return compare(columns, rows)


_at_most, _below, _at_least, _above = operator.le, operator.lt, operator.ge, operator.gt


def _reaches(role, side):
    """Booleans [gate, token]: the gates between a token and an edge."""
    compare = {
        ("query", LEFT): _at_least,  # the token is the gate's, or later
        ("key", LEFT): _below,
        ("query", RIGHT): _at_most,
        ("key", RIGHT): _above,
    }
    return _grid(compare[role, side])
