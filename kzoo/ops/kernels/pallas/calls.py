"""The kernels: the forward pass, the backward pass, and a walk that makes states alone.

The forward pass walks over time once, from the side where keys are seen first, carries the state
of the keys behind it and saves the one that enters each step. The backward pass walks the other
way, carries the state of the queries behind it, and makes the states of the keys in each step
again from the one that was saved: so that each array is read once. Where queries see both sides, a
walk before each pass makes the states of the other side.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from kzoo.ops.kernels.pallas import chunk as of
from kzoo.ops.kernels.pallas.decay import Decay
from kzoo.ops.kernels.pallas.form import CHUNK, LEFT, Blocks, opposite, rows_of, sweep, walk

SUMS = ("sum", "weight")  # of keys and values, and of keys alone


def forward(form, arrays):
    """The output, what the backward pass needs besides it, and the states that enter each step.

    Args:
        form: a `Form`.
        arrays: by name: "q", "k", "v" flat; and those of "labels", "table" and "gates" that the
            form asks for.

    Returns:
        A dict of arrays: "out", "denominator" and the states by name.
    """
    arrays = dict(arrays)
    other = form.other_side
    if other:
        arrays |= _states(form, "query", other, arrays)
    begins = form.sides[0]
    blocks = Blocks(form, arrays["q"].shape[0], begins)
    outputs = {"out": blocks.flat(form.value_lanes)}
    if form.normalize:
        outputs["denominator"] = blocks.rows()
    outputs |= _named("query", begins, blocks.states())
    scratch = _named("carried", "", blocks.carried())
    if other:
        scratch |= _named("chunk", other, blocks.by_chunk())
    return arrays | _run(form, blocks, _forward_kernel, "forward", arrays, outputs, scratch)


def backward(form, arrays):
    """The slopes of "q", "k", "v" and "gates", by name.

    Args:
        form: a `Form`.
        arrays: as `forward` returns them, and "slope", of the output.
    """
    arrays = dict(arrays)
    begins, other = opposite(form.sides[0]), form.other_side
    if other:
        arrays |= _states(form, "key", form.sides[0], arrays)
    blocks = Blocks(form, arrays["q"].shape[0], begins)
    outputs = {name: blocks.flat(form.lanes) for name in ("dq", "dk")}
    outputs["dv"] = blocks.flat(form.value_lanes)
    if form.gated:
        outputs["dgates"] = blocks.rows()
    scratch = _named("carried", "", blocks.carried())
    for side in form.sides:
        scratch |= _named("chunk", side, blocks.by_chunk())
    if other:
        scratch |= _named("chunk_key", form.sides[0], blocks.by_chunk())
    return _run(form, blocks, _backward_kernel, "backward", arrays, outputs, scratch)


def _states(form, role, side, arrays):
    """The states on a side that enter each step, of a role's tokens (`chunk.Tokens`)."""
    blocks = Blocks(form, arrays["q"].shape[0], side)
    kernel = functools.partial(_states_kernel, role=role, side=side)
    outputs = _named(role, side, blocks.states())
    scratch = _named("carried", "", blocks.carried())
    return _run(form, blocks, kernel, f"{role}_states", arrays, outputs, scratch, role)


def _named(role, side, values):
    return {f"{role} {side} {name}": x for name, x in zip(SUMS, values, strict=False)}


def _run(form, blocks, kernel, name, arrays, outputs, scratch, role=None):
    """Call a kernel, which gets a dict of references by name."""
    pairs = {}
    for key, x in arrays.items():
        pair = _pair(form, blocks, key, x, role)
        if pair is not None:
            pairs[key] = pair
    names = [*pairs, *outputs, *scratch]

    def named(*references):
        # The places in the grid are asked for here, since interpreted loops do not know them.
        places = {"t": pl.program_id(1), "block": pl.program_id(2)}
        kernel(form, dict(zip(names, references, strict=True)) | places)

    name = f"linear_attention_{name}"
    call = blocks.call(named, name, pairs.values(), outputs.values(), list(scratch.values()))
    return dict(zip(outputs, call(*(arrays[key] for key in pairs)), strict=True))


def _pair(form, blocks, name, x, role):
    """The shape and the block of an input; None where the walk of a role does not read it."""
    if name in ("out", "denominator") and not form.normalize:
        return None
    if role == "query" and name in ("q", "out", "slope", "denominator"):
        return None
    if role == "key" and name in ("k", "v"):
        return None
    if name in ("q", "k"):
        return blocks.flat(form.lanes)
    if name in ("v", "out", "slope"):
        return blocks.flat(form.value_lanes)
    if name == "labels":
        return blocks.labels(x.shape[0])
    if name == "table":
        return blocks.table(x.shape[0])
    if name in ("gates", "denominator"):
        return blocks.rows()
    return None if role else blocks.states()[SUMS.index(name.split()[-1])]


class _Chunk:
    """What a chunk of a step holds; arrays are made where they are asked for, once."""

    def __init__(self, form, references, side, chunk):
        self.form, self.references, self.rows = form, references, rows_of(chunk)
        t = references["t"]
        step = t if side == LEFT else form.steps - 1 - t
        labels = references["labels"][0, :, self.rows] if form.labelled else None
        self.tokens = of.Tokens(form, labels, step * form.tokens + chunk * CHUNK)
        self.decay = Decay(form, references["gates"][0, 0, :, self.rows]) if form.gated else None
        table = references["table"][0, self.rows, :] if form.rotary else None
        self.turned = of.turns(table, form.dim) if form.rotary else None

    def load(self, name):
        x = self.references[name][0, self.rows, :].astype("float32")
        return of.masked(x, self.tokens.valid)

    def store(self, name, x):
        reference = self.references[name]
        reference[0, self.rows, :] = x.astype(reference.dtype)

    @functools.cached_property
    def q(self):
        return self.load("q")

    @functools.cached_property
    def k(self):
        return self.load("k")

    @functools.cached_property
    def v(self):
        return self.load("v")

    @functools.cached_property
    def queries(self):
        """Features, of the denominator and of the numerator, the latter scaled."""
        arrays = self.form, self.q, self.tokens.valid, self.turned
        weight, feature = of.features(*arrays, key=False)
        return weight, feature * self.form.scale

    @functools.cached_property
    def keys(self):
        return of.features(self.form, self.k, self.tokens.valid, self.turned, key=True)

    @functools.cached_property
    def slopes(self):
        """Of the numerator, [tokens, value_lanes], and of the denominator, [tokens, lanes]."""
        slope, form = self.load("slope"), self.form
        if not form.normalize:
            return slope, None
        rows = self.references["denominator"][0, 0, :, self.rows]
        denominator = of.spread(form, rows.T, form.value_dim)
        positive = denominator > 0
        slope = of.masked(slope / jnp.where(positive, denominator, 1.0), positive)
        product = slope * self.load("out")
        return slope, -of.head_sums(product, form.value_dim, form.dim, form.lanes)

    def decayed(self, x, role, side):
        """`x` of a role's tokens, as it meets the state on a side (`Decay.to_edge`)."""
        return x if self.decay is None else x * self.decay.to_edge(role, side)

    def to_edge(self, role, side):
        """The features of the numerator of a role, as they meet the state on a side."""
        return self.decayed((self.queries if role == "query" else self.keys)[1], role, side)

    def advanced(self, state, role, side):
        """The state that a role's tokens see on a side, after this chunk."""
        form, seen = self.form, opposite(side)
        if role == "query":
            x, y = [self.to_edge("key", side)], self.v
            if form.normalize:
                x.append(self.decayed(self.keys[0], "key", side))
        else:
            y, weight = self.slopes
            x = [self.to_edge("query", seen)]
            if form.normalize:
                x.append(self.decayed(weight * self.queries[0], "query", seen))
        totals = None
        if self.decay is not None:
            totals = [self.decay.total(dim) for dim in (form.value_dim, form.dim)]
        return of.advanced(form, state, x, y, self.tokens, role, side, totals)

    def reached(self, x, role, side):
        return of.masked(x, self.tokens.reaching(role, side))


def _forward_kernel(form, references):
    begins, other = form.sides[0], form.other_side
    carried = _Carried(references)
    carried.begin()
    for name, x in zip(SUMS, carried.get(), strict=False):
        x = of.folded(form, x) if name == "sum" else x
        references[f"query {begins} {name}"][0, 0, 0] = x
    if other:
        _sweep(form, references, "query", other, begins, "chunk")

    def step(chunk):
        own = _Chunk(form, references, begins, chunk)
        states = {begins: carried.get()}
        if other:
            states[other] = _at(references, "chunk", other, chunk)
        out = _numerator(form, own, states)
        if form.normalize:
            denominator = _denominator(form, own, states)
            rows = of.gathered(form, denominator, form.value_dim)
            references["denominator"][0, 0, :, own.rows] = rows
            positive = denominator > 0
            out = of.masked(out / jnp.where(positive, denominator, 1.0), positive)
        own.store("out", of.masked(out, own.tokens.valid))
        carried.put(own.advanced(states[begins], "query", begins))

    walk(form.chunks, begins, step)


def _numerator(form, own, states):
    visible, total = own.tokens.visible(), 0.0
    q, k = own.queries[1], own.keys[1]
    for head in range(form.packed):
        weights = of.dot(form, of.of_head(q, head, form.dim), k, of.RIGHT_TURNED)
        if form.gated:
            weights = weights * own.decay.within(head)
        weights = of.masked(weights, visible)
        total += of.dot(form, weights, of.of_head(own.v, head, form.value_dim))
    for side, state in states.items():
        total += of.dot(form, own.reached(own.to_edge("query", side), "query", side), state[0])
    return total


def _denominator(form, own, states):
    """Σ of the weights of each query and head, in all of the head's lanes of values."""
    weight = own.queries[0] * _weight(form, own, {side: state[1] for side, state in states.items()})
    return of.head_sums(weight, form.dim, form.value_dim, form.value_lanes)


def _weight(form, own, states):
    """Σ of the keys' features that each query sees, decayed: [tokens, lanes]."""
    total = _visible_sums(form, own, own.keys[0], of.PLAIN)
    for side, state in states.items():
        before = jnp.broadcast_to(state[:1], total.shape)
        total += own.reached(own.decayed(before, "query", side), "query", side)
    return total


def _visible_sums(form, own, x, axes):
    """Σ over the keys of the chunk that a query sees, or over the queries that see a key."""
    visible = own.tokens.visible()
    if form.gated:
        total = 0.0
        for head in range(form.packed):
            decay = of.masked(own.decay.within(head), visible)
            total += of.dot(form, decay, of.of_head(x, head, form.dim), axes)
        return total
    if visible is None:
        return jnp.broadcast_to(jnp.sum(x, axis=0, keepdims=True), x.shape)
    return of.dot(form, jnp.where(visible, 1.0, 0.0), x, axes)


def _backward_kernel(form, references):
    first, other = form.sides[0], form.other_side
    begins = opposite(first)
    carried = _Carried(references)
    carried.begin()
    for side in form.sides:
        _sweep(form, references, "query", side, begins, "chunk")
    if other:
        _sweep(form, references, "key", first, begins, "chunk_key")

    def step(chunk):
        own = _Chunk(form, references, begins, chunk)
        keys = {side: _at(references, "chunk", side, chunk) for side in form.sides}
        queries = {begins: carried.get()}
        if other:
            queries[first] = _at(references, "chunk_key", first, chunk)
        _slopes(form, own, keys, queries)
        carried.put(own.advanced(queries[begins], "key", begins))

    walk(form.chunks, begins, step)


def _slopes(form, own, keys, queries):
    """Write the slopes of a chunk.

    Args:
        keys: by side, the states of keys that its queries see.
        queries: by side, the states of queries that see its keys.
    """
    tokens, (slope, weight_slope) = own.tokens, own.slopes
    dq, dk, dv, dgates = _slopes_within(form, own, slope)
    for side, state in keys.items():
        part = own.reached(of.dot(form, slope, state[0], of.RIGHT_TURNED), "query", side)
        dq += own.decayed(part, "query", side)
        if form.gated:
            dgates += _to_edge_slopes(form, own, "query", side, part, state)
    for side, state in queries.items():
        seen = opposite(side)  # by the queries there a key is seen as one on the other side
        part = own.reached(of.dot(form, own.v, state[0], of.RIGHT_TURNED), "key", side)
        dk += own.decayed(part, "key", seen)
        dv += own.reached(of.dot(form, own.to_edge("key", seen), state[0]), "key", side)
        if form.gated:
            dgates += _to_edge_slopes(form, own, "key", seen, part, state)
            dgates += _passing(form, own, keys[seen], state, side)
    dq *= form.scale
    if form.rotary:
        cosine, sine = own.turned
        dq, dk = (of.rotated(x, (cosine, -sine), form.dim) for x in (dq, dk))
    if form.normalize:
        dq += weight_slope * _weight(form, own, {side: state[1] for side, state in keys.items()})
        dk += _weight_seen(form, own, queries)
    own.store("dq", of.features_slope(form, own.q, tokens.valid, dq, key=False))
    own.store("dk", of.features_slope(form, own.k, tokens.valid, dk, key=True))
    own.store("dv", of.masked(dv, tokens.valid))
    if form.gated:
        own.references["dgates"][0, 0, :, own.rows] = dgates


def _slopes_within(form, own, slope):
    visible = own.tokens.visible()
    q, k, v = own.queries[1], own.keys[1], own.v
    dq = dk = dv = 0.0
    columns = []
    for head in range(form.packed):
        q_own, slope_own = of.of_head(q, head, form.dim), of.of_head(slope, head, form.value_dim)
        weights = of.dot(form, q_own, k, of.RIGHT_TURNED)
        back = of.masked(of.dot(form, slope_own, v, of.RIGHT_TURNED), visible)
        if form.gated:
            decay = own.decay.within(head)
            weights = weights * decay
            pairs = of.masked(weights * back + _weight_pairs(form, own, head), visible)
            columns.append(own.decay.slope_within(pairs))
            back = back * decay
        dv += of.dot(form, of.masked(weights, visible), slope_own, of.LEFT_TURNED)
        dq += of.dot(form, back, of.of_head(k, head, form.dim))
        dk += of.dot(form, back, q_own, of.LEFT_TURNED)
    if not form.gated:
        return dq, dk, dv, None
    rest = [jnp.zeros((CHUNK, CHUNK - len(columns)), "float32")]
    return dq, dk, dv, jnp.concatenate([*columns, *rest], axis=1).T[: of.SUBLANES]


def _weight_pairs(form, own, head):
    """Of each pair, its weight in a denominator times the slope of that: [queries, keys]."""
    if not form.normalize:
        return 0.0
    product = of.of_head(own.slopes[1] * own.queries[0], head, form.dim)
    return of.dot(form, product, own.keys[0], of.RIGHT_TURNED) * own.decay.within(head)


def _to_edge_slopes(form, own, role, side, part, state):
    """The slopes of gates between a role's tokens and the state on a side that they meet."""
    slopes = own.decay.slope_to_edge(role, side, own.to_edge(role, side) * part)
    if not form.normalize:
        return slopes
    reaching = side if role == "query" else opposite(side)
    x = own.slopes[1] * own.queries[0] if role == "query" else own.keys[0]
    x = own.reached(own.decayed(x, role, side), role, reaching)
    return slopes + own.decay.slope_to_edge(role, side, x * state[1][:1])


def _passing(form, own, keys, queries, side):
    """The slope of a chunk's gates from pairs of a query on a side of it and a key on the other."""
    total = 0.0
    for one, other, dim in zip(keys, queries, (form.value_dim, form.dim), strict=False):
        product = one[:1] * other[:1] if one.shape[0] == of.SUBLANES else one * other
        product = of.masked(product, own.tokens.kept("query", opposite(side)))
        product = of.masked(product, own.tokens.kept("key", side)) * own.decay.total(dim)
        sums = jnp.sum(product, axis=0, keepdims=True)  # each head's in its lanes
        sums = jnp.broadcast_to(sums, (CHUNK, form.packed * dim))
        sums = of.head_sums(sums, dim, dim, form.packed * dim)
        total += of.gathered(form, sums, dim)
    return total


def _weight_seen(form, own, queries):
    """The slope of the keys' features from the denominators of the queries that see them."""
    total = _visible_sums(form, own, own.slopes[1] * own.queries[0], of.LEFT_TURNED)
    for side, state in queries.items():
        before = jnp.broadcast_to(state[1][:1], total.shape)
        total += own.reached(own.decayed(before, "key", opposite(side)), "key", side)
    return total


def _states_kernel(form, references, *, role, side):
    carried = _Carried(references)
    carried.begin()
    for name, x in zip(SUMS, carried.get(), strict=False):
        x = of.folded(form, x) if name == "sum" else x
        references[f"{role} {side} {name}"][0, 0, 0] = x

    def step(chunk):
        own = _Chunk(form, references, side, chunk)
        carried.put(own.advanced(carried.get(), role, side))

    walk(form.chunks, side, step)


class _Carried:
    """The state that a walk carries, of one block of heads."""

    def __init__(self, references):
        names = (f"carried  {name}" for name in SUMS)
        self.references = [references[name] for name in names if name in references]
        self.t, self.block = references["t"], references["block"]

    def begin(self):
        @pl.when(self.t == 0)
        def _():
            self.put([jnp.zeros_like(x) for x in self.get()])

    def get(self):
        return [reference[self.block] for reference in self.references]

    def put(self, state):
        for reference, x in zip(self.references, state, strict=True):
            reference[self.block] = x


def _sweep(form, references, role, side, begins, into):
    """Make the states that enter each chunk of a step, from the one that enters the step."""
    names = [name for name in SUMS if f"{into} {side} {name}" in references]
    entering = [references[f"{role} {side} {name}"][0, 0, 0] for name in names]
    entering[0] = of.unfolded(form, entering[0])

    def step(chunk, state):
        return _Chunk(form, references, begins, chunk).advanced(state, role, side)

    sweep(form.chunks, side, entering, [references[f"{into} {side} {n}"] for n in names], step)


def _at(references, into, side, chunk):
    names = (f"{into} {side} {name}" for name in SUMS)
    return [references[name][chunk] for name in names if name in references]
