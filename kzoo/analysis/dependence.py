"""On which positions the outputs of a Keras model depend: by perturbation and by gradients."""

import collections
import dataclasses

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kzoo.analysis.leaks import DISTANCE
from kzoo.analysis.tpu import watching

DRAWS = 4  # of other values for a position, so that no unlucky one hides a dependence


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The call of an embedding that turns an input [batch, time] into vectors.

    Attributes:
        layer, turn: which call of which embedding.
        shape: of the vectors.
    """

    layer: keras.layers.Layer
    turn: int
    shape: tuple

    @property
    def masks_zero(self):
        """Whether id 0 stands for padding."""
        return bool(self.layer.mask_zero)

    @property
    def ids(self):
        """The first valid id and the one after the last."""
        return int(self.masks_zero), self.layer.input_dim


def lookups_of(run, values, moved):
    """{name of an input: `Lookup`}, for those that an embedding turns into vectors."""
    found, turns = {}, collections.Counter()

    def see(layer, call, first):
        turn = turns[id(layer)]
        turns[id(layer)] += 1
        outputs = call()
        if isinstance(layer, keras.layers.Embedding) and hasattr(first, "shape"):
            shape = tuple(outputs.shape)
            here = [name for name, i in moved.items() if values[i].shape == shape[:-1]]
            try:
                array = ops.convert_to_numpy(first)
                here = [name for name in here if np.array_equal(array, values[moved[name]])]
            except Exception:  # inside `keras.remat` a value is not known: the shape must do
                here = here if len(here) == 1 else []
            for name in here:
                found.setdefault(name, Lookup(layer, turn, shape))
        return outputs

    with watching(see):
        run(values)
    return found


def _others(rng, x, lookup):
    """Other values for each place of an input; ids that stand for padding stay."""
    if x.dtype.kind == "f" and not lookup:
        root_mean_square = np.sqrt((x**2).mean()) or 1.0
        step = DISTANCE * root_mean_square * rng.normal(size=x.shape)
        return (x + step).astype(x.dtype), (x - step).astype(x.dtype)
    low, high = lookup.ids if lookup else (x.min(), max(x.max() + 1, x.min() + 2))
    jumps = rng.integers(1, max(high - low, 2), (2, *x.shape))
    moved = (low + (x - low + jumps) % (high - low)).astype(x.dtype)
    return np.where((x == 0) & bool(lookup and lookup.masks_zero), x, moved)


def perturbed(model, forward, values, moved, lookups):
    """How far outputs move when inputs do, in multiples of the largest output.

    Returns:
        `({input: [floats [batch, query_time, key_time] for each output]}, [float for each
        output])`, the latter for the inputs of other examples.
    """
    forward = _compiled(model, forward)
    before = [_numpy(y) for y in forward(values)]
    batch, time = values[0].shape[:2]
    rng = np.random.default_rng(2)

    def changes(places):
        """[batch, time] for each output, when inputs change at {input: (where, values)}."""
        changed = list(values)
        for name, (where, other) in places.items():
            x = changed[moved[name]] = values[moved[name]].copy()
            x[where] = other[where]
        for old, new in zip(before, forward(changed), strict=True):
            new = _numpy(new).reshape(*old.shape)
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            change = np.where(same, 0.0, np.nan_to_num(np.abs(new - old), nan=np.inf))
            finite = np.abs(old[np.isfinite(old)])
            yield change.reshape(batch, time, -1).max(-1) / (finite.max(initial=0) or 1.0)

    found = {name: [np.zeros((batch, time, time)) for _ in before] for name in moved}
    strangers = [0.0] * len(before)
    for _ in range(DRAWS // 2):
        draws = {name: _others(rng, values[i], lookups.get(name)) for name, i in moved.items()}
        for sign in range(2):
            other = {name: draw[sign] for name, draw in draws.items()}
            for name in moved:
                for j in range(time):
                    for o, change in enumerate(changes({name: (np.s_[:, j], other[name])})):
                        found[name][o][:, :, j] = np.maximum(found[name][o][:, :, j], change)
            for rows, rest in ((np.s_[:1], np.s_[1:]), (np.s_[1:], np.s_[:1])):
                everything = {name: (rows, other[name]) for name in moved}
                for o, change in enumerate(changes(everything)):
                    strangers[o] = max(strangers[o], change[rest].max(initial=0))
    return found, strangers


def _compiled(model, function):
    """On JAX compiled, as `predict` is; elsewhere as it is."""
    if keras.backend.backend() != "jax" or model.run_eagerly:
        return function
    import jax

    return jax.jit(function)


def _numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")


def differentiated(forward, values, moved, lookups):
    """How steeply outputs depend on inputs or on the vectors looked up for them.

    Returns:
        `({input: [floats [batch, query_time, key_time] for each output]}, notes)`, in multiples
        of the steepest; an input without gradients is missing, and a note says why.
    """
    found, notes = {}, []
    for name, i in moved.items():
        lookup = lookups.get(name)
        if lookup is None and values[i].dtype.kind != "f":
            notes.append(f"{name}: gradients are missing: no embedding turns it into vectors")
            continue
        shape = lookup.shape if lookup else values[i].shape

        def outputs(delta, i=i, lookup=lookup):
            if lookup:
                with _adding(delta, lookup):
                    return forward(values)
            moved = ops.convert_to_tensor(values[i]) + delta
            return forward([*values[:i], moved, *values[i + 1 :]])

        try:
            found[name] = _slopes(outputs, np.zeros(shape, "float32"))
        except Exception as error:  # the model's own code may refuse in any way
            reason = str(error).partition("\n")[0][:200]
            notes.append(f"{name}: gradients are missing: {type(error).__name__}: {reason}")
    return found, notes


def _adding(delta, lookup):
    """Inside, `delta` is added to what the lookup returns."""
    turns = collections.Counter()

    def see(layer, call, _):
        outputs = call()
        if layer is lookup.layer:
            turns[layer.name] += 1
            if turns[layer.name] == lookup.turn + 1:
                keras_mask = get_keras_mask(outputs)
                outputs = outputs + ops.cast(delta, outputs.dtype)
                if keras_mask is not None:
                    set_keras_mask(outputs, keras_mask)
        return outputs

    return watching(see)


def _slopes(outputs, delta):
    """The largest gradient of a random direction of each output, with respect to `delta`.

    Args:
        outputs: function of `delta`, which returns a list of tensors [batch, time, ...].
        delta: floats [batch, key_time, ...].

    Returns:
        For each output floats [batch, query_time, key_time].
    """
    rng = np.random.default_rng(3)
    shapes, pull = _pullback(lambda x: [ops.cast(y, "float32") for y in outputs(x)], delta)
    found = []
    for o, shape in enumerate(shapes):
        direction = rng.normal(size=shape).astype("float32")
        rows = []
        for i in range(shape[1]):
            cotangents = [np.zeros(shape, "float32") for shape in shapes]
            cotangents[o][:, i] = direction[:, i]
            slope = np.nan_to_num(np.abs(pull(cotangents)), nan=np.inf)
            rows.append(slope.reshape(*slope.shape[:2], -1).max(-1))
        slope = np.stack(rows, axis=1)
        found.append(slope / (slope[np.isfinite(slope)].max(initial=0) or 1.0))
    return found


def _pullback(function, x):
    """The shapes of what `function(x)` lists, and its vector-Jacobian product, as NumPy."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        shapes = [y.shape for y in jax.eval_shape(function, x)]
        pull = jax.jit(lambda cotangents: jax.vjp(function, x)[1](cotangents)[0])
        return shapes, lambda cotangents: np.asarray(pull(cotangents))
    x = ops.convert_to_tensor(x)
    if backend == "torch":
        import torch

        x.requires_grad_()
        with torch.enable_grad():
            values = function(x)

        def differentiate(cotangents):
            options = {"retain_graph": True, "allow_unused": True}
            return torch.autograd.grad(values, x, cotangents, **options)[0]

    else:
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            values = function(x)

        def differentiate(cotangents):
            return tape.gradient(values, x, cotangents)

    def pull(cotangents):
        slope = differentiate([ops.convert_to_tensor(c) for c in cotangents])
        return np.zeros(x.shape) if slope is None else ops.convert_to_numpy(slope)

    return [tuple(value.shape) for value in values], pull


# Telling ----------------------------------------------------------------------------------
