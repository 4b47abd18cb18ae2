"""The programs that `fit` and `generate` run, for a model whose variables are only shapes."""

import contextlib
import math

import keras

from kzoo import presets
from kzoo.errors import InputError
from kzoo.learning_rate import learning_rate
from kzoo.training.distribution import DATA, MODEL, layout


def model_of_shapes(config, target, fsdp, dtype, remat, accumulate):
    """The task of a config, whose variables have shardings but no values."""

    def split(variable):
        return layout(variable.path, variable.shape, target.sizes, fsdp)

    with _variables_without_values(lambda variable: _sharding(target, *split(variable))):
        model = presets.build(config, dtype, remat=remat)
        if accumulate:
            rate = learning_rate(model.backbone.hidden_dim)
            optimizer = keras.optimizers.AdamW(rate, gradient_accumulation_steps=accumulate)
            model.compile(optimizer=optimizer)
        model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def _variables_without_values(lay_out):
    """A context in which new Keras variables get a `jax.sharding.Sharding` and no memory.

    Keras gives an optimizer's variables the sharding of their parameters. Variables that are not
    made by an initializer, such as an optimizer's count of steps, have values as usual.
    """
    initialize = keras.Variable._initialize_with_initializer
    assign = keras.Variable._direct_assign

    def leave_out(variable, initializer):
        variable._value = None
        variable._initializer = keras.initializers.Zeros()  # for `jax.eval_shape` in Keras
        if variable._layout is None:
            variable._layout = lay_out(variable)

    def pass_by(variable, value):
        if variable._layout is None:
            assign(variable, value)

    keras.Variable._initialize_with_initializer = leave_out
    keras.Variable._direct_assign = pass_by
    try:
        yield
    finally:
        keras.Variable._initialize_with_initializer = initialize
        keras.Variable._direct_assign = assign


def _sharding(target, *axes):
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(target.mesh, PartitionSpec(*axes))


def _array(target, shape, dtype, *axes):
    import jax

    return jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(target, *axes))


def values_of(variables, target):
    """A `jax.ShapeDtypeStruct` with a sharding for the value of each variable."""
    import jax

    whole = _sharding(target)
    return [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v._layout or whole) for v in variables]


def train_step(model, config, target, batch):
    """`{"train_step": f}`; f() returns what `make_train_function` compiles, and arguments."""
    import jax

    shape = (batch, config["max_sequence_length"])
    tokens, weight = (_array(target, shape, dtype, DATA) for dtype in ("int32", "float32"))
    data = ({name: tokens for name in model.input}, tokens, weight)

    def make():
        model._symbolic_build(data_batch=data)  # as `fit` does; it makes the variables of metrics
        state = tuple(
            values_of(variables, target)
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        )
        kept = jax.tree.map(lambda value: value.sharding, state)
        step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, kept))
        return step, (state, data)

    return {"train_step": make}


def decoding(model, config, target, batch):
    """`{"prefill": f, "token": g}`: the pass over the prompts, and the step of one token.

    Each is a function without arguments that returns a `jax.jit` function and its arguments.

    Raises:
        InputError: for a masked LM, which generates no text.
    """
    if not hasattr(model, "generate_step"):
        raise InputError(
            "a masked LM predicts hidden tokens and generates no text; families that do are gpt, "
            f"unilm and t5. Received: objective={config['objective']!r}"
        )
    import jax

    values, prompts = values_of(model.variables, target), _prompts(config, target, batch)
    token, index = _array(target, (batch, 1), "int32", DATA), _array(target, (), "int32")
    prefill, step = _prefill(model), _step(model)

    def cache_of_shapes():
        _, cache = jax.eval_shape(prefill, values, prompts)
        return _sharded_cache(cache, target)

    def shardings(cache):
        return None, jax.tree.map(lambda x: x.sharding, cache)  # the logits as XLA chooses

    def make_prefill():
        return jax.jit(prefill, out_shardings=shardings(cache_of_shapes())), (values, prompts)

    def make_step():
        cache = cache_of_shapes()
        program = jax.jit(step, donate_argnums=2, out_shardings=shardings(cache))
        return program, (values, token, cache, index)

    return {"prefill": make_prefill, "token": make_step}


def _prompts(config, target, batch):
    """The inputs of `Generates.generate_step`: prompts that fill the sequence but for a token."""
    tokens = _array(target, (batch, config["max_sequence_length"]), "int32", DATA)
    column = _array(target, (batch,), "int32", DATA)
    prompts = {"prompt": tokens, "tokens": tokens, "start": column, "source_end": column}
    if config["num_segments"]:
        prompts |= {"segment_ids": tokens, "segments": _array(target, (batch, 2), "int32", DATA)}
    if config["stack"] != "single":
        prompts |= {"encoder_token_ids": tokens, "encoder_padding_mask": tokens}
        prompts["prompt"] = _array(target, (batch, 1), "int32", DATA)  # the decoder's: BOS alone
    return prompts


def _prefill(model):
    """`f(values, prompts)`: the pass over the prompts, to the next token's logits and a cache."""

    def prefill(inputs):
        segment_ids = inputs.get("segment_ids")
        cache = model.empty_cache(inputs)
        hidden, cache = model.backbone.decode(inputs["prompt"], cache, 0, None, segment_ids)
        return model.head(hidden[:, -1:])[:, 0], cache

    return _stateless(model, prefill)


def _step(model):
    """`f(values, token, cache, index)`: one token to the next one's logits and the cache."""

    def step(token, cache, index):
        hidden, cache = model.backbone.decode(token, cache, index)
        return model.head(hidden)[:, 0], cache

    return _stateless(model, step)


def _stateless(model, function):
    """`function`, with the values of the model's variables as a first argument."""

    def pure(values, *tensors):
        with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
            return function(*tensors)

    return pure


def _sharded_cache(cache, target):
    """The shapes of a cache with their shardings: examples along "data", heads along "model"."""
    import jax

    model_axis = MODEL if MODEL in target.sizes else None
    heads_axis = {"key": 2, "value": 2, "kv_state": 1, "k_sum": 1}

    def split(path, x):
        axes = [DATA] + [None] * (len(x.shape) - 1)
        name = getattr(path[-1], "key", None)
        if name in heads_axis:
            axes[heads_axis[name]] = model_axis
        return _array(target, x.shape, x.dtype, *axes)

    return jax.tree_util.tree_map_with_path(split, cache)


def on_a_chip(arrays):
    """Bytes of a nest of `jax.ShapeDtypeStruct` that one chip holds."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )
