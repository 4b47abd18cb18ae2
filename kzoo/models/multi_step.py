"""Several steps of training or evaluation in one program: `steps_per_execution` on JAX."""

import contextlib
import itertools
import logging
from typing import Any

import keras

from kzoo.ops.context import platform


class MultiStep:
    """A mixin of models: on JAX, `compile(steps_per_execution=k)` makes one program of k steps.

    Within it the device goes from step to step without Python, for which small models wait
    otherwise; Keras 3.15 calls a program for each step. So does this on a CPU, k of them without
    waiting for any: there XLA runs the body of a loop more slowly. Losses, metrics and the
    optimizer's iterations are those of k=1; the callbacks of a batch are called once for each
    execution, with what has been measured up to its last step. Fewer than k batches, the last
    ones of an epoch say, run in the same program, and batches of other shapes in one more for
    each shape. On other backends, with `run_eagerly` and with `jit_compile=False` Keras's own
    loop runs.

    The function in `train_function` has an attribute `logs`: what its last call measured, a list
    of pairs (a dict of tensors, of whose entries the first n are the logs after each step; n).
    """

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is None or force:
            super().make_train_function(force=True)
            self.train_function = self._with_logs(self.train_step, self.train_function)

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is None or force:
            super().make_test_function(force=True)
            self.test_function = self._with_logs(self.test_step, self.test_function)

    def _with_logs(self, step, function):
        compiled = self.jit_compile and not self.run_eagerly
        if keras.backend.backend() == "jax" and compiled and self.steps_per_execution > 1:
            return _MultiStepFunction(step, self.steps_per_execution)
        return _SingleStepFunction(function)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        with _reading_quietly():
            return super().fit(*args, callbacks=_counting(callbacks), **kwargs)

    def evaluate(
        self, *args: Any, steps: int | None = None, callbacks: Any = None, **kwargs: Any
    ) -> Any:
        self._evaluation_steps = steps
        callbacks = _counting(callbacks)
        with _reading_quietly():
            return super().evaluate(*args, steps=steps, callbacks=callbacks, **kwargs)


@contextlib.contextmanager
def _reading_quietly():
    """A context without Grain's warning that keras-hub reads ahead fewer batches than its threads
    are: nothing that a user could change."""
    absl = logging.getLogger("absl")

    def others(record):
        return not record.getMessage().startswith("prefetch_buffer_size=")

    absl.addFilter(others)
    try:
        yield
    finally:
        absl.removeFilter(others)


class _Lengths(keras.callbacks.Callback):
    """Says how many steps an epoch or an evaluation has: its iterator may go on after them."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.train_function.left = (self.params or {}).get("steps")

    def on_test_begin(self, logs=None):
        self.model.test_function.left = self.model._evaluation_steps


def _counting(callbacks):
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*keras.tree.flatten(callbacks or []), _Lengths()]
    if not any(isinstance(callback, _Lengths) for callback in callbacks.callbacks):
        callbacks.append(_Lengths())  # `fit` hands its own list to `evaluate`
    return callbacks


class _SingleStepFunction:
    """Keras's own function, which keeps the logs of its last call."""

    left = None

    def __init__(self, function):
        self.function = function
        self.logs = []

    def __call__(self, *args):
        result = self.function(*args)
        self.logs = [(result[0] if isinstance(result, tuple) else result, 1)]
        return result


class _MultiStepFunction:
    """(state, iterator of batches) -> (logs, state), up to `most` steps of `step`.

    Attributes:
        left: steps of the epoch, where that is known, that are still to be taken.
        logs: as `MultiStep` says.
    """

    def __init__(self, step, most):
        self.step, self.most, self.left = step, most, None
        self.one_program = platform() != "cpu"
        self.logs = []
        self.program = None

    def __call__(self, state, iterator):
        count = min(self.most, self.left or self.most)
        batches = list(itertools.islice(iterator, count))
        if not batches:
            raise StopIteration
        if self.left:
            self.left -= len(batches)
        if self.program is None:
            self.program = self._compiled(state)
        run = self._in_one_program if self.one_program else self._one_by_one
        last, state, self.logs = run(state, batches)
        return last, state

    def _one_by_one(self, state, batches):
        measured = []
        for batch in batches:
            logs, state = self.program(state, batch)
            measured.append((logs, 1))
        return logs, state, measured

    def _in_one_program(self, state, batches):
        measured = []
        for _, same in itertools.groupby(batches, _shapes):
            same = list(same)
            filled = [*same, *[same[-1]] * (self.most - len(same))]
            (last, logs), state = self.program(state, len(same), filled)
            measured.append((logs, len(same)))
        return last, state, measured

    def _compiled(self, state):
        import jax

        shardings = None  # they follow from the arguments, but where there is a distribution
        if keras.distribution.distribution() is not None:
            shardings = (None, jax.tree.map(lambda x: x.sharding, state))
        function = self._steps if self.one_program else self.step
        return jax.jit(function, donate_argnums=0, out_shardings=shardings)

    def _steps(self, state, count, batches):
        import jax

        step = jax.jit(self.step)  # traced once, though it is asked for its logs first
        batches = jax.tree.map(lambda *x: jax.numpy.stack(x), *batches)

        def batch(i):
            return jax.tree.map(lambda x: x[i], batches)

        def body(i, carry):
            logs, state = carry
            new, state = step(state, batch(i))
            return jax.tree.map(lambda all, x: all.at[i].set(x), logs, new), state

        shapes, _ = jax.eval_shape(step, state, batch(0))
        logs = jax.tree.map(lambda x: jax.numpy.zeros((self.most, *x.shape), x.dtype), shapes)
        # `count` is no constant, so that one program runs any number of steps, the same way.
        logs, state = jax.lax.fori_loop(0, count, body, (logs, state))
        return (jax.tree.map(lambda x: x[count - 1], logs), logs), state


def _shapes(batch):
    return [getattr(x, "shape", None) for x in keras.tree.flatten(batch)]
