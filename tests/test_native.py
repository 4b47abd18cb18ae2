"""The kernels in C++ against the oracle, and what is said where they cannot be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from autodiff import computed
from test_ops import ONE_BY_ONE, ORDERS, assert_equals_oracle, operands

from kzoo import masks
from kzoo.errors import InputError
from kzoo.layers import Attention, kernels
from kzoo.ops import linear_attention, softmax_attention
from kzoo.ops.context import compiling_for, here
from kzoo.ops.dispatch import Spec, kernel_for
from kzoo.ops.kernels.native import library

NATIVE = {"implementation": "native"}
# Blocks of softmax are 64 x 64: parts of one block, whole blocks, whole ones and a part.
TIMES = [1, 21, 128, 150]


@pytest.fixture(autouse=True)
def made():
    if reason := library.missing():
        pytest.skip(reason)


def large(time, **sizes):
    return operands(time, **{"dim": 16, "value_dim": 32, **sizes})


@pytest.mark.slow
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_every_order_packed_and_padded_equals_the_oracle(mechanism, time):
    q, k, v, padding_mask, source_mask, cotangent = large(time)
    kwargs = {"mask": ORDERS, "padding_mask": padding_mask, "source_mask": source_mask}
    value, gradients = assert_equals_oracle((q, k, v), cotangent, mechanism, ours=NATIVE, **kwargs)
    for x in (value, *gradients):
        assert (x[padding_mask == 0] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("mask", ONE_BY_ONE, ids=str)
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_one_order_in_all_heads_equals_the_oracle(mechanism, mask):
    q, k, v, padding_mask, source_mask, cotangent = large(70, heads=2, kv_heads=1, value_dim=16)
    source = {"source_mask": source_mask} if mask == "prefix" else {}
    for rows, padding in ((slice(1), {}), (slice(None), {"padding_mask": padding_mask})):
        kwargs = {"mask": mask, "rotary": True, **padding}
        kwargs |= {name: x[rows] for name, x in source.items()}
        arrays = [x[rows] for x in (q, k, v)]
        assert_equals_oracle(arrays, cotangent[rows], mechanism, ours=NATIVE, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size, rotary", [(1, True), (7, False), (16, True), (64, False)])
def test_groups_shorter_and_longer_than_a_chunk(chunk_size, rotary):
    q, k, v, padding_mask, source_mask, cotangent = large(45)
    kwargs = {"mask": ORDERS, "padding_mask": padding_mask, "source_mask": source_mask}
    ours = {**NATIVE, "chunk_size": chunk_size}
    if rotary:
        kwargs["rotary"] = True
    assert_equals_oracle((q, k, v), cotangent, "linear", ours=ours, **kwargs)


@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_two_sequences_and_a_window_of_queries(mechanism):
    q, k, v, padding_mask, source_mask, cotangent = large(75)
    short, short_slope = q[:, 65:69], cotangent[:, 65:69]
    window = {"query_offset": 65, "source_mask": source_mask, "padding_mask": padding_mask}
    assert_equals_oracle((short, k, v), short_slope, mechanism, ours=NATIVE, mask=ORDERS, **window)
    _, k, v, key_padding_mask, _, _ = large(130)
    mask = masks.heads("bidirectional", "causal", "reversed")
    both = {"padding_mask": padding_mask, "key_padding_mask": key_padding_mask}
    assert_equals_oracle((q, k, v), cotangent, mechanism, ours=NATIVE, mask=mask, **both)


@pytest.mark.slow
def test_a_state_goes_on_with_its_gradient():
    q, k, v, *_, cotangent = large(50, poison=False, batch=2)
    kwargs = {"mask": "causal", "chunk_size": 16}

    def whole(q, k, v, implementation):
        return linear_attention(q, k, v, implementation=implementation, **kwargs)

    def resumed(q, k, v):
        own = {**kwargs, **NATIVE, "return_state": True}
        first, state = linear_attention(q[:, :21], k[:, :21], v[:, :21], **own)
        rest, last = linear_attention(q[:, 21:], k[:, 21:], v[:, 21:], initial_state=state, **own)
        return jnp.concatenate([first, rest], axis=1), last

    arrays = [jnp.asarray(x, "float32") for x in (q, k, v)]
    slope = jnp.asarray(cotangent, "float32")

    def slopes():
        want, pull = jax.vjp(lambda *x: whole(*x, "chunk_scan"), *arrays)
        (got, last), pull_resumed = jax.vjp(resumed, *arrays)
        zeros = jax.tree.map(jnp.zeros_like, last)
        return (got, *pull_resumed((slope, zeros))), (want, *pull(slope))

    for a, b in zip(*computed(slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    # The state's own gradient: of its sum by values, by keys.
    names = ("native", "chunk_scan")
    for a, b in zip(*computed(lambda: [_state_slopes(arrays, n) for n in names]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-3)


def _state_slopes(arrays, implementation):
    def total(q, k, v):
        own = {"return_state": True, "implementation": implementation, "chunk_size": 16}
        _, state = linear_attention(q, k, v, "causal", **own)
        return (state["kv_state"] ** 2).sum() + (state["k_sum"] ** 2).sum()

    return jax.grad(total, argnums=(0, 1, 2))(*arrays)


@pytest.mark.slow
def test_vmap_and_jit_and_remat():
    q, k, v, *_ = large(70, poison=False, batch=3, heads=2, kv_heads=2)
    arrays = [jnp.asarray(x, "float32") for x in (q, k, v)]
    for attend in (softmax_attention, linear_attention):

        def total(q, k, v, attend=attend):
            return (attend(q, k, v, "causal", **NATIVE) ** 2).sum()

        want = jax.grad(total)(*arrays)
        got = jax.jit(jax.grad(jax.checkpoint(total)))(*arrays)
        np.testing.assert_array_equal(got, want)
        rows = [x[:, None] for x in arrays]
        got = jax.vmap(jax.grad(total))(*rows)[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_equal_calls_give_equal_bits():
    q, k, v, padding_mask, source_mask, _ = large(150, poison=False)
    kwargs = {"padding_mask": padding_mask, "source_mask": source_mask, **NATIVE}
    for attend in (softmax_attention, linear_attention):

        def total(q, k, v, attend=attend):
            return attend(q, k, v, ORDERS, **kwargs).sum()

        step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        first = step(q, k, v)
        for _ in range(20):
            jax.tree.map(np.testing.assert_array_equal, step(q, k, v), first)


def test_nothing_that_is_not_finite_is_made_zero():
    q, k, v, *_ = large(70, poison=False, batch=1)
    q[0, 3, 0, 0] = np.nan
    for attend in (softmax_attention, linear_attention):
        out = np.asarray(attend(q, k, v, "causal", **NATIVE))
        assert np.isnan(out[0, 3, 0]).all()
        assert np.isfinite(np.delete(out, 3, axis=1)).all()


@pytest.mark.slow
def test_every_wrong_shape_is_refused_and_none_touches_memory_beyond_a_buffer(tmp_path):
    """Under the address and undefined-behaviour sanitizers, where the compiler has them."""
    names = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in ("libasan.so", "libubsan.so")
        if shutil.which("g++")
    ]
    path, environment = library._library()._name, {}
    if names and all(Path(name.strip()).is_absolute() for name in names):
        path = tmp_path / "sanitized.so"
        flags = ["-std=c++17", "-O0", library.TUNED, "-fPIC", "-shared"]
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        include = ["-isystem", jax.ffi.include_dir()]
        source = str(library.HERE / library.SOURCES[0])
        subprocess.run(["g++", *flags, *include, source, "-o", str(path)], check=True)
        preloaded = " ".join(name.strip() for name in names)
        # The stacks of all of JAX's allocations would take longer than the calls.
        options = "detect_leaks=0:malloc_context_size=1"
        environment = {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": options}
    command = [sys.executable, str(Path(__file__).with_name("bad_shapes.py")), str(path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout + child.stderr
    assert " right, " in child.stdout


@pytest.mark.parametrize("implementation", ["native", "chunk_scan"])
def test_a_state_of_another_shape_is_refused_and_one_serves_all(implementation):
    own = {"implementation": implementation}
    one = [x[:1] for x in large(20, poison=False, heads=2, kv_heads=2)[:3]]
    many = large(20, poison=False, batch=4, heads=2, kv_heads=2)[:3]
    _, state = linear_attention(*one, "causal", return_state=True, **own)
    repeated = {name: jnp.repeat(x, 4, axis=0) for name, x in state.items()}
    got, want = (
        linear_attention(*many, "causal", initial_state=x, **own) for x in (state, repeated)
    )
    np.testing.assert_array_equal(got, want)
    kv_state, k_sum = state["kv_state"], state["k_sum"]
    for wrong, words in (
        ({"kv_state": jnp.repeat(kv_state, 3, axis=0), "k_sum": k_sum}, "batch size of q, 4"),
        ({"kv_state": kv_state, "k_sum": jnp.repeat(k_sum, 2, axis=0)}, "batch size of q, 4"),
        ({"kv_state": kv_state[:, :1], "k_sum": k_sum}, r"\[batch or 1, 2, 16, 32\]"),
        ({"kv_state": kv_state[..., :16], "k_sum": k_sum}, r"\[batch or 1, 2, 16, 32\]"),
        ({"kv_state": kv_state, "k_sum": k_sum[..., :8]}, r"\[batch or 1, 2, 16\]"),
        ({"kv_state": kv_state}, "a dict of 'kv_state' and 'k_sum'"),
        (kv_state, "a dict of 'kv_state' and 'k_sum'"),
    ):
        with pytest.raises(InputError, match=words):
            linear_attention(*many, "causal", initial_state=wrong, **own)
    offset = {"query_offset": np.ones(3, "int32"), "initial_state": state}
    with pytest.raises(InputError, match="`query_offset` has the batch size of q, 4, or 1"):
        linear_attention(*many, "causal", **offset, **own)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attend, implementation",
    [(softmax_attention, name) for name in ("native", "blockwise", "dense")]
    + [(linear_attention, name) for name in ("native", "chunk_scan")],
)
def test_a_mask_of_another_batch_is_refused_and_one_serves_all(attend, implementation):
    q, k, v, padding_mask, source_mask, _ = large(20)
    own = {"implementation": implementation}
    some = masks.heads("prefix", "reversed")  # what is asked of a batch knows no orders

    def both():
        return [
            attend(q, k, v, some, padding_mask=x, source_mask=source_mask, **own)
            for x in (padding_mask[:1], np.repeat(padding_mask[:1], len(q), axis=0))
        ]

    got, want = computed(both)
    np.testing.assert_array_equal(got, want)
    for name in ("padding_mask", "source_mask"):
        masks_of = {"padding_mask": padding_mask, "source_mask": source_mask}
        masks_of[name] = np.ones((len(q) + 3, 20), "int32")
        with pytest.raises(InputError, match=f"`{name}` has the batch size of q"):
            attend(q, k, v, some, **masks_of, **own)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"bias": True}, "adds no bias"),
        ({"dtype": "float64"}, "not in float64"),
        ({"dim": 24}, "multiples of 16: {'dim': 24, 'value_dim': 32}"),
        ({"mask": masks.get("causal") & masks.get("reversed")}, "not custom masks or &"),
    ],
)
def test_what_does_not_apply_is_refused_and_passed_over(change, words):
    spec = Spec(**{**_SPEC, **change})
    with pytest.raises(ValueError, match=words):
        kernel_for("softmax", spec, "native")
    assert kernel_for("softmax", spec) in ("blockwise", "dense")


_SPEC = {
    "query_time": 512,
    "key_time": 512,
    "num_heads": 4,
    "dim": 32,
    "value_dim": 32,
    "mask": masks.get("causal"),
}


def test_many_features_are_left_to_chunks():
    for features, kernel in ((64, "native"), (33, "chunk_scan"), (272, "chunk_scan")):
        assert kernel_for("linear", Spec(**_SPEC, features=features)) == kernel
    with pytest.raises(ValueError, match="at most 256 features: 272"):
        kernel_for("linear", Spec(**_SPEC, features=272), "native")


def test_a_wrong_name_is_refused_with_the_nearest():
    q, k, v, *_ = large(5, poison=False)
    for mask, rows in (("causal", {}), ("bidirectional", {"key_padding_mask": np.ones((7, 5))})):
        with pytest.raises(ValueError, match="did you mean 'native'"):
            linear_attention(q, k, v, mask, implementation="natve", **rows)


def test_programs_for_others_have_none_of_it():
    """Exported for any number of rows, or made for another machine."""
    (rows,) = jax.export.symbolic_shape("rows")
    x = jax.ShapeDtypeStruct((rows, 256, 4, 16), "float32")
    for attend in (softmax_attention, linear_attention):
        exported = jax.export.export(jax.jit(lambda x, attend=attend: attend(x, x, x, "causal")))
        again = jax.export.deserialize(exported(x).serialize())
        q = jnp.asarray(large(256, batch=2)[0][:, :, :4], "float32")
        q = jnp.where(jnp.isnan(q), 0, q)
        want = attend(q, q, q, "causal", **NATIVE)
        np.testing.assert_allclose(again.call(q), want, rtol=2e-5, atol=2e-5)
    with compiling_for("cpu"):
        assert kernel_for("softmax", Spec(**_SPEC, **here())) == "blockwise"


def test_layers_name_it():
    for mechanism, other in (("softmax", "blockwise"), ("linear", "chunk_scan")):
        for head_dim, kernel in ((16, "native"), (12, other)):
            layer = Attention(4, head_dim, mechanism=mechanism, mask="half_heads")
            model = keras.Sequential([layer])
            model.build((2, 512, 64))
            assert list(kernels(model, (2, 512), "cpu").values()) == [kernel]


# Without a compiler -------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A user's empty cache, and a library that was not asked for yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.missing.cache_clear()
    yield monkeypatch
    library.missing.cache_clear()


def test_without_a_compiler_attention_runs_in_xla_and_says_so(fresh, caplog):
    fresh.setattr(library, "COMPILERS", ("no-such-compiler",))
    for _ in range(2):
        assert kernel_for("softmax", Spec(**_SPEC)) == "blockwise"
    (message,) = caplog.messages
    assert "no C++ compiler is found, none of no-such-compiler; attention runs in XLA's" in message
    with pytest.raises(ValueError, match="no C\\+\\+ compiler is found.*'native'"):
        kernel_for("softmax", Spec(**_SPEC), "native")


def test_what_the_compiler_complains_of_is_said_and_nothing_is_left(fresh, caplog, tmp_path):
    fresh.setattr(library, "FLAGS", (*library.FLAGS, "--no-such-flag"))
    assert kernel_for("softmax", Spec(**_SPEC)) == "blockwise"
    assert "--no-such-flag" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
