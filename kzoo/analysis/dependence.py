"""Which positions the outputs of a Keras model depend on, by perturbation and by gradients.

In all functions `run` or `forward` calls the model with `values`, its inputs as a flat list of
arrays; `changed` maps the names of the inputs that are changed to their indices in it; and
`lookups` maps the names of inputs of ids to the `Lookup` of their embedding.
"""

import collections
import dataclasses

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kzoo.analysis.leaks import DISTANCE
from kzoo.analysis.tpu import watching

DRAWS = 4  # other values tried at each position, so that no unlucky one hides a dependence


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The call of an embedding that turns an input [batch, time] into vectors.

    Attributes:
        layer: the embedding.
        index: how many calls of this embedding come before, in one call of the model.
        shape: of the vectors, [batch, time, dim].
    """

    layer: keras.layers.Layer
    index: int
    shape: tuple

    @property
    def masks_zero(self):
        """Whether id 0 is padding."""
        return bool(self.layer.mask_zero)

    @property
    def ids(self):
        """The first valid id and the one after the last."""
        return int(self.masks_zero), self.layer.input_dim


def lookups_of(run, values, changed):
    """{name of an input: `Lookup`}, for the inputs that an embedding turns into vectors."""
    found, calls = {}, collections.Counter()

    def see(layer, call, first):
        index = calls[id(layer)]
        calls[id(layer)] += 1
        outputs = call()
        if isinstance(layer, keras.layers.Embedding) and hasattr(first, "shape"):
            shape = tuple(outputs.shape)
            here = [name for name, i in changed.items() if values[i].shape == shape[:-1]]
            try:
                array = ops.convert_to_numpy(first)
                here = [name for name in here if np.array_equal(array, values[changed[name]])]
            except Exception:  # `keras.remat` traces, without values: compare shapes alone
                here = here if len(here) == 1 else []
            for name in here:
                found.setdefault(name, Lookup(layer, index, shape))
        return outputs

    with watching(see):
        run(values)
    return found


def _others(rng, x, lookup):
    """Two arrays with another value at each position of an input; padding ids stay."""
    if x.dtype.kind == "f" and not lookup:
        root_mean_square = np.sqrt((x**2).mean()) or 1.0
        step = DISTANCE * root_mean_square * rng.normal(size=x.shape)
        return (x + step).astype(x.dtype), (x - step).astype(x.dtype)
    low, high = lookup.ids if lookup else (x.min(), max(x.max() + 1, x.min() + 2))
    jumps = rng.integers(1, max(high - low, 2), (2, *x.shape))
    others = (low + (x - low + jumps) % (high - low)).astype(x.dtype)
    return np.where((x == 0) & bool(lookup and lookup.masks_zero), x, others)


def perturbed(model, forward, values, changed, lookups):
    """How far outputs change when inputs do, in multiples of the largest output.

    Returns:
        `({input: [floats [batch, query_time, key_time] for each output]}, [float for each
        output])`. The second is the change when the inputs of other examples of the batch
        change.
    """
    forward = _compiled(model, forward)
    before = [_numpy(y) for y in forward(values)]
    batch, time = values[0].shape[:2]
    rng = np.random.default_rng(2)

    def changes(others):
        """[batch, time] for each output, when inputs change as {input: (indices, values)} says."""
        inputs = list(values)
        for name, (where, other) in others.items():
            x = inputs[changed[name]] = values[changed[name]].copy()
            x[where] = other[where]
        for old, new in zip(before, forward(inputs), strict=True):
            new = _numpy(new).reshape(*old.shape)
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            change = np.where(same, 0.0, np.nan_to_num(np.abs(new - old), nan=np.inf))
            finite = np.abs(old[np.isfinite(old)])
            yield change.reshape(batch, time, -1).max(-1) / (finite.max(initial=0) or 1.0)

    found = {name: [np.zeros((batch, time, time)) for _ in before] for name in changed}
    across_examples = [0.0] * len(before)
    for _ in range(DRAWS // 2):
        draws = {name: _others(rng, values[i], lookups.get(name)) for name, i in changed.items()}
        for sign in range(2):
            other = {name: draw[sign] for name, draw in draws.items()}
            for name in changed:
                for j in range(time):
                    for o, change in enumerate(changes({name: (np.s_[:, j], other[name])})):
                        found[name][o][:, :, j] = np.maximum(found[name][o][:, :, j], change)
            for some, rest in ((np.s_[:1], np.s_[1:]), (np.s_[1:], np.s_[:1])):
                everything = {name: (some, other[name]) for name in changed}
                for o, change in enumerate(changes(everything)):
                    across_examples[o] = max(across_examples[o], change[rest].max(initial=0))
    return found, across_examples


def _compiled(model, function):
    """The function, compiled on JAX, as `predict` is; unchanged on other backends."""
    if keras.backend.backend() != "jax" or model.run_eagerly:
        return function
    import jax

    return jax.jit(function)


def _numpy(x):
    return ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")


def differentiated(forward, values, changed, lookups):
    """The gradients of outputs with respect to inputs, or to the embeddings of inputs of ids.

    Returns:
        `({input: [floats [batch, query_time, key_time] for each output]}, notes)`, in multiples
        of the largest; an input without gradients is left out, and a note says why.
    """
    found, notes = {}, []
    for name, i in changed.items():
        lookup = lookups.get(name)
        if lookup is None and values[i].dtype.kind != "f":
            notes.append(f"{name}: without gradients: no embedding turns it into vectors")
            continue
        shape = lookup.shape if lookup else values[i].shape

        def outputs(delta, i=i, lookup=lookup):
            if lookup:
                with _adding(delta, lookup):
                    return forward(values)
            x = ops.convert_to_tensor(values[i]) + delta
            return forward([*values[:i], x, *values[i + 1 :]])

        try:
            found[name] = _slopes(outputs, np.zeros(shape, "float32"))
        except Exception as error:  # the model's own code can raise anything
            reason = str(error).partition("\n")[0][:200]
            notes.append(f"{name}: without gradients: {type(error).__name__}: {reason}")
    return found, notes


def _adding(delta, lookup):
    """A context in which `delta` is added to the vectors that the lookup returns."""
    calls = 0

    def see(layer, call, _):
        nonlocal calls
        outputs = call()
        if layer is lookup.layer:
            calls += 1
            if calls == lookup.index + 1:
                keras_mask = get_keras_mask(outputs)
                outputs = outputs + ops.cast(delta, outputs.dtype)
                if keras_mask is not None:
                    set_keras_mask(outputs, keras_mask)
        return outputs

    return watching(see)


def _slopes(outputs, delta):
    """The largest gradient with respect to `delta` of each output along a random direction.

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
        slopes = []
        for i in range(shape[1]):
            cotangents = [np.zeros(shape, "float32") for shape in shapes]
            cotangents[o][:, i] = direction[:, i]
            slope = np.nan_to_num(np.abs(pull(cotangents)), nan=np.inf)
            slopes.append(slope.reshape(*slope.shape[:2], -1).max(-1))
        slope = np.stack(slopes, axis=1)
        found.append(slope / (slope[np.isfinite(slope)].max(initial=0) or 1.0))
    return found


def _pullback(function, x):
    """The shapes of the list that `function(x)` returns, and its vector-Jacobian product."""
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
