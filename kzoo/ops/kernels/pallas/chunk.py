"""The mathematics of one chunk of tokens, for the heads of one block of lanes.

Arrays are float32 [tokens, lanes]; a product of two heads' lanes at once keeps them apart by masks
of lanes, which costs nothing: the matrix unit is as wide as the block.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from kzoo.ops.kernels.pallas.form import CHUNK, LEFT, SUBLANES

PLAIN, LEFT_TURNED, RIGHT_TURNED = ((1,), (0,)), ((0,), (0,)), ((1,), (1,))


def dot(form, a, b, axes=PLAIN):
    """A product on the matrix unit, in the dtype of `form`, summed in float32."""
    precision = "highest" if form.dtype == "float32" else "default"
    a, b = a.astype(form.dtype), b.astype(form.dtype)
    return jax.lax.dot_general(
        a, b, (axes, ((), ())), precision=precision, preferred_element_type="float32"
    )


def exact_dot(a, zeros_and_ones, axes=PLAIN):
    """A product with a matrix of zeros and ones, in float32: in three passes, as the parts of `a`
    that bfloat16 holds."""
    if zeros_and_ones.dtype == bool:
        zeros_and_ones = jnp.where(zeros_and_ones, 1.0, 0.0)
    total, chosen = 0.0, zeros_and_ones.astype("bfloat16")
    for _ in range(3):
        part = a.astype("bfloat16")
        total += jax.lax.dot_general(part, chosen, (axes, ((), ())), "default", "float32")
        a = a - part.astype("float32")
    return total


# Which lanes belong to which head -----------------------------------------------------------


def head_of(shape, axis, dim):
    """The head of each lane (or row, along axis 0) in its block: integers."""
    place = jax.lax.broadcasted_iota("int32", shape, axis)
    return place >> (dim.bit_length() - 1)


def of_head(x, head, dim):
    """`x` [tokens, lanes] in the lanes of one head, zeros elsewhere."""
    if x.shape[1] <= dim:
        return x
    return jnp.where(head_of(x.shape, 1, dim) == head, x, 0.0)


def same_head(rows, columns, dim, value_dim):
    """Booleans [rows, columns]: whether both lanes belong to one head; None where there is one."""
    if rows <= dim:
        return None
    shape = rows, columns
    return head_of(shape, 0, dim) == head_of(shape, 1, value_dim)


def masked(x, mask):
    return x if mask is None else jnp.where(mask, x, 0.0)


def head_sums(x, dim, result_dim, result_lanes):
    """Σ over each head's lanes, in all the lanes of the head: [tokens, result_lanes]."""
    lanes = x.shape[1]
    ones = jnp.ones((lanes, result_lanes), "float32")
    return exact_dot(x, masked(ones, same_head(lanes, result_lanes, dim, result_dim)))


def spread(form, columns, dim):
    """Numbers of each token and head, [tokens, 8], in all the lanes of the head."""
    lanes = form.packed * dim
    out = jnp.broadcast_to(columns[:, :1], (CHUNK, lanes))
    for head in range(1, form.packed):
        here = head_of(out.shape, 1, dim) == head
        out = jnp.where(here, columns[:, head : head + 1], out)
    return out


def gathered(form, x, dim):
    """What `spread` spreads, as rows: [8, tokens]."""
    turned = x.T
    parts = [turned[head * dim : head * dim + 1] for head in range(form.packed)]
    missing = SUBLANES - len(parts)
    return jnp.concatenate(parts + [jnp.zeros((missing, CHUNK), "float32")] * bool(missing))


# Features ------------------------------------------------------------------------------------


def features(form, x, valid, turned, key):
    """φ(x), exactly 0 where keys do not count; and φ(x) rotated.

    Args:
        x: float32 [tokens, lanes], zeros where `valid`, booleans [tokens, 1], is False.
        turned: cosines and sines, [tokens, lanes] each; or None.
        key: whether x are keys.
    """
    if form.phi is not None:
        x = form.phi.of_key(x) if key else form.phi.of_query(x)
        x = masked(x, valid) if key else x
    return x, x if turned is None else rotated(x, turned, form.dim)


def features_slope(form, x, valid, slope, key):
    """The slope of x from that of φ(x)."""
    if form.phi is None:
        return masked(slope, valid)
    phi = form.phi.of_key if key else form.phi.of_query
    (slope,) = jax.vjp(phi, x)[1](slope)
    return masked(slope, valid)


def turns(table, dim):
    """Cosines, and signed sines, of each lane, from a table of a head's [cosines, sines]."""
    half = dim // 2
    first = _first_half(table.shape, dim)
    cosine = jnp.where(first, table, _roll(table, half))
    return cosine, jnp.where(first, -_roll(table, -half), table)


def rotated(x, turned, dim):
    """`x` with entries i and i + dim/2 of each head rotated."""
    cosine, sine = turned
    half = dim // 2
    other = jnp.where(_first_half(x.shape, dim), _roll(x, -half), _roll(x, half))
    return x * cosine + other * sine


def _first_half(shape, dim):
    lane = jax.lax.broadcasted_iota("int32", shape, 1)
    return (lane & (dim - 1)) < dim // 2


def _roll(x, shift):
    return pltpu.roll(x, shift % x.shape[1], 1)


# Who sees whom -------------------------------------------------------------------------------


class Tokens:
    """The tokens of a chunk, and whom each sees.

    A query sees the keys from `low` to `high`, and a key is seen by the queries from its own `low`
    to its own `high`: integers along time, both with the token itself between them. `role` is
    "query" or "key" below; a state of a role is what its tokens see beyond the chunk.
    """

    def __init__(self, form, labels, start):
        self.form, self.start, self.last = form, start, start + CHUNK - 1
        self.row = start + jax.lax.broadcasted_iota("int32", (CHUNK, 1), 0)
        self.valid = self.row < form.time if form.ragged else None
        self.labels = None
        if form.labelled:
            columns = labels.T
            self.labels = {
                "query": (labels[0:1], labels[1:2]),
                "key": (labels[2:3], labels[3:4]),
            }
            self.columns = {
                "query": (columns[:, 0:1], columns[:, 1:2]),
                "key": (columns[:, 2:3], columns[:, 3:4]),
            }
            shown = columns[:, 4:5] > 0
            self.valid = shown if self.valid is None else shown & self.valid

    def visible(self):
        """Booleans [queries, keys] of the chunk; None where all see all."""
        if self.labels is not None:
            low, high = self.labels["key"]
            return (low <= self.row) & (self.row <= high)
        if self.form.other_side:
            return None
        column = self.start + jax.lax.broadcasted_iota("int32", (1, CHUNK), 1)
        return column <= self.row if self.form.sides[0] == LEFT else column >= self.row

    def reaching(self, role, side):
        """Booleans [tokens, 1], those that see the state on a side; None for all."""
        if self.labels is None:
            return None
        low, high = self.columns[role]
        return low < self.start if side == LEFT else high > self.last

    def staying(self, role, side):
        """Booleans [tokens, 1], those that the state on a side of the next chunk is made of."""
        if self.labels is None:
            return None
        low, high = self.labels[role]
        if side == LEFT:
            return self.row >= low[:, CHUNK - 1 :]
        return self.row <= high[:, :1]

    def kept(self, role, side):
        """A boolean [1, 1]: whether the state before belongs to the one after; None if so."""
        if self.labels is None:
            return None
        low, high = self.labels[role]
        return low[:, CHUNK - 1 :] < self.start if side == LEFT else high[:, :1] > self.last


# Sums ----------------------------------------------------------------------------------------


def advanced(form, state, x, y, tokens, role, side, totals=None):
    """The state after a chunk: kept · state + xᵀ y, of tokens that stay.

    Args:
        state: a list of [lanes, value_lanes] and, of the weights alone, [8, lanes].
        x: a list of [tokens, lanes]: for each of the sums.
        y: [tokens, value_lanes].
        totals: the decays over the chunk, [1, value_lanes] and [1, lanes]; None for none.
    """
    stays, kept = tokens.staying(role, side), tokens.kept(role, side)
    own = dot(form, masked(x[0], stays), y, LEFT_TURNED)
    own = masked(own, same_head(*own.shape, form.dim, form.value_dim))
    before = [masked(one, kept) for one in state]
    if totals is not None:
        before = [one * total for one, total in zip(before, totals, strict=False)]
    sums = [before[0] + own]
    if form.normalize:
        sums.append(before[1] + jnp.sum(masked(x[1], stays), axis=0, keepdims=True))
    return sums


def folded(form, state):
    """A state [lanes, value_lanes], which is 0 between heads, as [dim, value_lanes]."""
    parts = [state[head * form.dim : (head + 1) * form.dim] for head in range(form.packed)]
    return sum(parts[1:], parts[0])


def unfolded(form, state):
    if form.packed == 1:
        return state
    whole = jnp.tile(state, (form.packed, 1))
    return masked(whole, same_head(*whole.shape, form.dim, form.value_dim))
