"""What is static in a call of the kernels: sizes, sides and how blocks lie over the arrays.

Heads narrower than the 128 lanes of a TPU share a block of lanes, so that arrays stay flat,
[batch, time, heads · dim], as the projections make them: another layout would cost a copy. The
grid goes over examples, then steps of time, then blocks of heads; what all heads share (labels,
rotary tables) is so fetched once a step. The running states of all heads stay in scratch memory.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
CHUNK = 128  # tokens whose products are formed at once: the rows of the matrix unit
MOST_TOKENS = 1024  # of a step of the grid
MOST_BYTES = 2**19  # of a block of an array
SPARE = 2**23  # bytes of vector memory for what kernels hold besides blocks and states
LEAST_MEMORY = 2**24  # of vector memory that a kernel may use, the default
SUBLANES = 8  # rows of a tile of 32-bit numbers
LEFT, RIGHT = "left", "right"


@dataclasses.dataclass(frozen=True)
class Form:
    """An attention, as its kernels see it.

    Attributes:
        heads: number of heads, those that fill the last block of lanes up counted.
        dim, value_dim: sizes of a head of q and k, and of v.
        time: number of tokens.
        dtype: of the arrays, and of what the matrix unit multiplies: "bfloat16" or "float32".
        phi: the feature map, entry by entry, that is applied here; None where none is.
        scale: a factor on the numerator.
        rotary: whether the numerator's features are rotated.
        normalize: whether sums are divided by those of the weights.
        gated: whether weights decay, by a gate of each token and head.
        labelled: whether labels say what each token sees (`labels.py`); otherwise a query sees
            all that lies on its `sides`.
        sides: where a query sees keys beyond its chunk, and whither states are carried: first
            the side that the forward pass comes from.
        interpret: whether the kernels run as ordinary operations, on another machine than a TPU.
    """

    heads: int
    dim: int
    value_dim: int
    time: int
    dtype: str
    phi: object = None
    scale: float = 1.0
    rotary: bool = False
    normalize: bool = True
    gated: bool = False
    labelled: bool = False
    sides: tuple = (LEFT,)
    interpret: bool = False

    @property
    def packed(self):
        """Heads in a block of lanes."""
        return packed(self.dim, self.value_dim)

    @property
    def lanes(self):
        return self.packed * self.dim

    @property
    def value_lanes(self):
        return self.packed * self.value_dim

    @property
    def blocks(self):
        return self.heads // self.packed

    @property
    def tokens(self):
        """Of a step."""
        width = max(self.lanes, self.value_lanes) * jnp.dtype(self.dtype).itemsize
        most = min(MOST_TOKENS, MOST_BYTES // width)
        return min(most, self.time + -self.time % CHUNK)

    @property
    def steps(self):
        return pl.cdiv(self.time, self.tokens)

    @property
    def chunks(self):
        """Of a step."""
        return self.tokens // CHUNK

    @property
    def ragged(self):
        """Whether the last step reaches beyond the last token, where anything may stand."""
        return self.time % self.tokens != 0

    @property
    def other_side(self):
        """The second side that a query sees; None if it sees one."""
        return self.sides[1] if len(self.sides) > 1 else None


def packed(dim, value_dim):
    """Heads that share a block, as many as fill its lanes with queries and with values."""
    return max(1, LANES // min(dim, value_dim))


def opposite(side):
    return RIGHT if side == LEFT else LEFT


class Blocks:
    """The shapes of arrays and of their blocks, for a walk over time that begins at a side.

    Each method returns a pair: of a `jax.ShapeDtypeStruct`, and a `pl.BlockSpec`.
    """

    def __init__(self, form, batch, begins):
        self.form, self.batch, self.begins = form, batch, begins

    @property
    def grid(self):
        return self.batch, self.form.steps, self.form.blocks

    def step(self, t):
        """The step of time that the grid's step `t` computes."""
        return t if self.begins == LEFT else self.form.steps - 1 - t

    def flat(self, lanes, dtype=None):
        """[batch, time, blocks · lanes]."""
        form = self.form
        shape = self.batch, form.time, form.blocks * lanes
        spec = pl.BlockSpec((1, form.tokens, lanes), lambda b, t, h: (b, self.step(t), h))
        return jax.ShapeDtypeStruct(shape, dtype or form.dtype), spec

    def rows(self):
        """[batch, blocks, 8, steps · tokens], float32: a number of each token and head, heads in
        rows and time in lanes."""
        form = self.form
        shape = self.batch, form.blocks, SUBLANES, form.steps * form.tokens
        block = 1, 1, SUBLANES, form.tokens
        spec = pl.BlockSpec(block, lambda b, t, h: (b, h, 0, self.step(t)))
        return jax.ShapeDtypeStruct(shape, "float32"), spec

    def labels(self, examples):
        """[1 or batch, 8, steps · tokens], int32."""
        form = self.form
        shape = examples, SUBLANES, form.steps * form.tokens
        block = 1, SUBLANES, form.tokens
        spec = pl.BlockSpec(block, lambda b, t, h: (b * (examples > 1), 0, self.step(t)))
        return jax.ShapeDtypeStruct(shape, "int32"), spec

    def table(self, examples):
        """[1 or batch, steps · tokens, lanes], float32: for each head a table of its cosines, then
        its sines."""
        form = self.form
        shape = examples, form.steps * form.tokens, form.lanes
        block = 1, form.tokens, form.lanes
        spec = pl.BlockSpec(block, lambda b, t, h: (b * (examples > 1), self.step(t), 0))
        return jax.ShapeDtypeStruct(shape, "float32"), spec

    def states(self):
        """Pairs for the states that enter each step: [batch, steps, blocks, dim, value_lanes] and,
        of the weights alone, [batch, steps, blocks, 8, lanes]."""
        form = self.form

        def pair(*size):
            shape = self.batch, form.steps, form.blocks, *size
            spec = pl.BlockSpec((1, 1, 1, *size), lambda b, t, h: (b, self.step(t), h, 0, 0))
            return jax.ShapeDtypeStruct(shape, "float32"), spec

        sums = [pair(form.dim, form.value_lanes)]
        return sums + [pair(SUBLANES, form.lanes)] * form.normalize

    def carried(self):
        """Scratch memory for the states of all blocks of heads."""
        form = self.form
        sizes = [(form.lanes, form.value_lanes), *[(SUBLANES, form.lanes)] * form.normalize]
        return [pltpu.VMEM((form.blocks, *size), "float32") for size in sizes]

    def by_chunk(self):
        """Scratch memory for the states that enter each chunk of a step."""
        form = self.form
        sizes = [(form.lanes, form.value_lanes), *[(SUBLANES, form.lanes)] * form.normalize]
        return [pltpu.VMEM((form.chunks, *size), "float32") for size in sizes]

    def call(self, kernel, name, inputs, outputs, scratch):
        """The `pallas_call` of a kernel whose arrays and blocks are pairs of this class."""
        split = "parallel", "arbitrary", "arbitrary"
        pairs = [*inputs, *outputs]  # blocks are held twice: one is computed, one on its way
        held = 2 * sum(_bytes(spec.block_shape, shape.dtype) for shape, spec in pairs)
        held += sum(_bytes(x.shape, x.dtype) for x in scratch)
        limit = max(LEAST_MEMORY, held + SPARE)
        return pl.pallas_call(
            kernel,
            grid=self.grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            out_shape=[shape for shape, _ in outputs],
            scratch_shapes=scratch,
            compiler_params=pltpu.CompilerParams(dimension_semantics=split, vmem_limit_bytes=limit),
            interpret=self.form.interpret,
            name=name,
        )


def _bytes(shape, dtype):
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def walk(chunks, begins, step):
    """`step(chunk)` for each chunk, from the side where the walk begins; nothing is returned."""

    def body(i, _):
        step(i if begins == LEFT else chunks - 1 - i)
        return 0

    jax.lax.fori_loop(0, chunks, body, 0)


def rows_of(chunk):
    """The tokens of a chunk, in an array of a step."""
    return pl.ds(pl.multiple_of(chunk * CHUNK, CHUNK), CHUNK)


def sweep(chunks, begins, entering, into, step):
    """The state that enters each chunk of a step, into scratch memory.

    Args:
        entering: that of the first chunk, a list of arrays.
        into: a list of references [chunks, ..].
        step: of a chunk and the state that enters it, the state after it.
    """

    def place(i):
        return i if begins == LEFT else chunks - 1 - i

    def put(i, state):
        for reference, x in zip(into, state, strict=True):
            reference[place(i)] = x

    def body(i, _):
        chunk = place(i)
        put(i + 1, step(chunk, [reference[chunk] for reference in into]))
        return 0

    put(0, entering)
    jax.lax.fori_loop(0, chunks - 1, body, 0)
