"""The programs that `fit` and `generate` run, of a model that is made of shapes alone."""

import contextlib
import math

import keras

from kzoo import presets
from kzoo.errors import InputError
from kzoo.learning_rate import learning_rate
from kzoo.training.distribution import DATA, MODEL, layout


def model_of_shapes(config, target, fsdp, dtype, remat, accumulate):
    """The task of a config, its variables without values but with layouts."""

    def split(variable):
        return layout(variable.path, variable.shape, target.sizes, fsdp)

    with _shapes_alone(lambda variable: _sharding(target, *split(variable))):
        model = presets.build(config, dtype, remat=remat)
        if accumulate:
            rate = learning_rate(model.backbone.hidden_dim)
            optimizer = keras.optimizers.AdamW(rate, gradient_accumulation_steps=accumulate)
            model.compile(optimizer=optimizer)
        model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def _shapes_alone(lay_out):
    """Inside it Keras's variables get a `jax.sharding.Sharding`, and no memory.

    An optimizer's get those of their parameters from Keras. What is no initializer's, such as an
    optimizer's count of steps, has a value as ever.
    """
    initialize = keras.Variable._initialize_with_initializer
    assign = keras.Variable._direct_assign

    def leave_out(variable, initializer):
        variable._value = None
        variable._initializer = keras.initializers.Zeros()  # where Keras traces shapes alone
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
    """What stands for their values in a program."""
    import jax

    whole = _sharding(target)
    return [jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=v._layout or whole) for v in variables]


def train_step(model, config, target, batch):
    """`{"train_step": f}`; f() is what `make_train_function` of Keras compiles, and arguments."""
    import jax

    shape = (batch, config["max_sequence_length"])
    tokens, weight = (_array(target, shape, dtype, DATA) for dtype in ("int32", "float32"))
    data = ({name: tokens for name in model.input}, tokens, weight)

    def make():
        model._symbolic_build(data_batch=data)  # as `fit` does: the variables of metrics
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
    """`{"prefill": f, "token": g}`: the pass over prompts and the step of one token."""
    if not hasattr(model, "generate_step"):
        raise InputError(
            "a masked LM predicts hidden tokens and generates no text; families that do are gpt, "
            f"unilm and t5. Received: objective={config['objective']!r}"
        )
    import jax

    time = config["max_sequence_length"]
    rows, column = _array(target, (batch, time), "int32", DATA), _array(target, (), "int32")
    ends, token = (_array(target, shape, "int32", DATA) for shape in ((batch,), (batch, 1)))
    prompts = {"prompt": rows, "row": rows, "start": ends, "source_end": ends}
    if config["num_segments"]:
        prompts |= {"segment_ids": rows, "segments": _array(target, (batch, 2), "int32", DATA)}
    if config["stack"] != "single":
        # The decoder begins with BOS alone.
        prompts |= {"encoder_token_ids": rows, "encoder_padding_mask": rows, "prompt": token}
    backbone, head, values = model.backbone, model.head, values_of(model.variables, target)

    def stateless(function):
        def pure(values, *tensors):
            with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
                return function(*tensors)

        return pure

    def prefill(inputs):
        hidden, cache = backbone.decode(
            inputs["prompt"], model.begin(inputs), 0, None, inputs.get("segment_ids")
        )
        return head(hidden[:, -1:])[:, 0], cache

    def step(token, cache, index):
        hidden, cache = backbone.decode(token, cache, index)
        return head(hidden)[:, 0], cache

    def kept(cache):
        """The shardings of a cache: rows along "data" and heads along "model"."""
        model_axis = MODEL if MODEL in target.sizes else None
        place = {"key": 2, "value": 2, "kv_state": 1, "k_sum": 1}

        def split(path, x):
            axes = [DATA] + [None] * (len(x.shape) - 1)
            last = getattr(path[-1], "key", None)
            if last in place:
                axes[place[last]] = model_axis
            return _array(target, x.shape, x.dtype, *axes)

        return jax.tree_util.tree_map_with_path(split, cache)

    def make_prefill():
        _, cache = jax.eval_shape(stateless(prefill), values, prompts)
        shardings = jax.tree.map(lambda x: x.sharding, kept(cache))
        program = jax.jit(stateless(prefill), out_shardings=(None, shardings))
        return program, (values, prompts)

    def make_step():
        _, cache = jax.eval_shape(stateless(prefill), values, prompts)
        cache = kept(cache)
        shardings = jax.tree.map(lambda x: x.sharding, cache)
        program = jax.jit(stateless(step), donate_argnums=2, out_shardings=(None, shardings))
        return program, (values, token, cache, column)

    return {"prefill": make_prefill, "token": make_step}


def on_a_chip(arrays):
    """Bytes of a nest of `jax.ShapeDtypeStruct` that one chip holds."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )
