"""Where float32 is promised, a program for a TPU multiplies in float32: looked up in it."""

import importlib.util
import re

import keras
import pytest
from orders import OURS, THEIRS

if keras.backend.backend() != "jax":
    pytest.skip("JAX compiles for TPUs", allow_module_level=True)

import jax
import jax.numpy as jnp

from kzoo.feature_maps import names
from kzoo.ops import linear_attention, softmax_attention
from kzoo.ops.context import compiling_for
from kzoo.ops.cross_entropy import cross_entropy
from kzoo.training.compile_only import target

MASK = {"heads": [*OURS, *THEIRS]}
ROWS = jax.ShapeDtypeStruct((2, 256), "int32")


def floats(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def attention(function, dtype, **kwargs):
    """A program: the gradients of an attention, traced as `fit` does, and again in a remat."""
    operands = [floats(2, 256, 12, 16, dtype=dtype)] * 3

    def loss(operands, rows):
        kwargs_ = {"padding_mask": rows, "source_mask": rows, **kwargs}
        attend = jax.checkpoint(lambda *x: function(*x, **{"mask": MASK, **kwargs_}))
        return attend(*operands).astype("float32").sum()

    return jax.value_and_grad(loss), (operands, ROWS)


def loss(dtype):
    def total(hidden, kernel, labels):
        return jax.checkpoint(lambda *x: cross_entropy(*x, labels, tokens_at_once=128)[0])(
            hidden, kernel
        )

    shapes = floats(2, 256, 64, dtype=dtype), floats(384, 64, dtype=dtype), ROWS
    return jax.value_and_grad(total, argnums=(0, 1)), shapes


def products(jaxpr):
    """Of every product of two float32 matrices, its precision; kernels of splash included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            dtypes = {x.aval.dtype for x in equation.invars}
            if dtypes == {jnp.dtype("float32")}:
                yield equation.params["precision"]
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr),
        ):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, jax.extend.core.Jaxpr):
                yield from products(inner)


PROGRAMS = {
    "linear": lambda: attention(linear_attention, "float32"),
    "linear of bfloat16": lambda: attention(
        linear_attention,
        "bfloat16",
        mask={"heads": ["causal", {"block": {"size": 3}}]},
        implementation="chunk_scan",
    ),
    "splash": lambda: attention(softmax_attention, "float32", implementation="splash"),
    "dense": lambda: attention(softmax_attention, "float32", implementation="dense"),
    "blockwise": lambda: attention(softmax_attention, "float32", implementation="blockwise"),
    "loss": lambda: loss("float32"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_float32_is_multiplied_in_float32(name):
    step, shapes = PROGRAMS[name]()
    with compiling_for("tpu"):
        found = list(products(jax.make_jaxpr(step)(*shapes).jaxpr))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert found and set(found) == {highest}


@pytest.mark.parametrize("feature_map", names())
def test_feature_maps_multiply_in_float32(feature_map):
    from kzoo.feature_maps import get

    phi = get(feature_map)
    weights = {k: jnp.asarray(v) for k, v in phi.initial_weights(2, 16).items()} or None

    def total(x):
        return phi.query(x, weights).sum() + phi.key(x, weights).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total))(floats(2, 8, 2, 16)).jaxpr
    assert set(products(jaxpr)) <= {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize("function", [softmax_attention, loss])
def test_products_of_16_bits_take_one_pass(function):
    """They are exact as they are."""
    if function is loss:
        step, shapes = loss("bfloat16")
    else:
        step, shapes = attention(function, "bfloat16", implementation="dense")
    with compiling_for("tpu"):
        assert set(products(jax.make_jaxpr(step)(*shapes).jaxpr)) == {None}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["linear of bfloat16", "loss"])
def test_the_compiled_program_says_so(name):
    step, shapes = PROGRAMS[name]()
    mesh = target.mesh_of("v5e:1x1", {"data": 1})
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = jax.tree.map(lambda x: x.update(sharding=everywhere), shapes)
    with compiling_for("tpu"):
        text = jax.jit(step).lower(*shapes).compile().as_text()
    made = [line for line in text.splitlines() if re.search(r" = f32\S* (convolution|dot)\(", line)]
    assert made
    for line in made:
        assert "operand_precision={highest,highest}" in line, line
