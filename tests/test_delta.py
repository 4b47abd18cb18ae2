"""The delta rule as a function: against its definition token by token."""

import keras
import numpy as np
import pytest
from autodiff import computed, value_and_gradients
from keras import ops
from marks import once

from kzoo import masks
from kzoo.ops import delta_attention, oracle
from kzoo.ops.delta import delta_step
from kzoo.ops.dispatch import kernels

pytestmark = pytest.mark.backends

HEADS, DIM, VALUE_DIM, TIME = 4, 6, 5, 45
NAMES = ("q", "k", "v", "beta", "log_decay", "state")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def padding_rows(time):
    """Rows: packed with gaps, padded left with a hole, whole, all padding."""
    rows = np.ones((4, time), "int32")
    rows[0] = (1 + np.arange(time) * 3 // time) * (np.arange(time) % 7 != 3)
    rows[1, : time // 3] = rows[1, -2:-1] = 0
    rows[3] = 0
    return rows


def operands(time, kv_heads=2, batch=4, seed=0):
    draw = np.random.default_rng(seed)
    shapes = {"q": (batch, time, HEADS, DIM), "k": (batch, time, kv_heads, DIM)}
    shapes |= {"v": (batch, time, kv_heads, VALUE_DIM), "state": (batch, HEADS, DIM, VALUE_DIM)}
    arrays = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    arrays["k"] = unit(arrays["k"])
    arrays["beta"] = draw.uniform(0, 1, (batch, time, HEADS))
    arrays["log_decay"] = -draw.exponential(0.3, (batch, time, HEADS))
    return arrays


def expected(arrays, mask, padding_mask, scale=None):
    given = [arrays.get(name) for name in NAMES[:5]]
    where = {"padding_mask": padding_mask, "scale": scale, "initial_state": arrays.get("state")}
    return oracle.delta(*given, mask, **where)


def ours(names, mask, padding_mask, **options):
    """A function of the arrays of these names."""

    def run(*given):
        arrays = dict(zip(names, given, strict=True))
        state = arrays.pop("state", None)
        initial = None if state is None else {"kv_state": state}
        own = {"padding_mask": padding_mask, "initial_state": initial, **options}
        return delta_attention(**arrays, mask=mask, **own)

    return run


# The heads of one call carry both directions, its rows packing and padding.
CASES = [
    ("half_heads", TIME, NAMES[:5], 2, True, "auto"),
    ("causal", 37, NAMES, 1, True, "auto"),
    once("reversed", 5, NAMES[:4], 4, True, "auto, l2_norm"),
    once("causal", 1, NAMES, 2, False, "auto"),
    once("half_heads", TIME, NAMES[:5], 2, True, "chunked"),
    once("causal", 32, NAMES[:4], 4, False, "chunked, l2_norm"),
    once("causal", 1, NAMES, 2, False, "chunked"),
]


@pytest.mark.parametrize("mask, time, names, kv_heads, padded, options", CASES)
def test_values_and_gradients_are_those_of_the_definition(
    mask, time, names, kv_heads, padded, options
):
    implementation, *l2_norm = options.split(", ")
    padding_mask = padding_rows(time) if padded else None
    arrays = operands(time, kv_heads)
    arrays = {name: arrays[name] for name in names}
    if l2_norm:
        arrays["k"] = 3 * arrays["k"]
    cotangent = np.random.default_rng(1).normal(size=(4, time, HEADS, VALUE_DIM))

    def value(arrays):
        if l2_norm:
            arrays = arrays | {name: unit(arrays[name]) for name in "qk"}
        return expected(arrays, mask, padding_mask)[0]

    want = value(arrays)
    poisoned = {name: np.array(x) for name, x in arrays.items()}
    if padded:  # where nothing may be read
        for name in set(names) - {"state"}:
            poisoned[name][padding_mask == 0] = np.nan
    own = {"implementation": implementation, "l2_norm": bool(l2_norm)}
    function = ours(names, mask, padding_mask, **own)
    got, gradients = value_and_gradients(function, poisoned.values(), cotangent)
    np.testing.assert_allclose(got, want, atol=2e-6)
    if padded:
        assert not got[padding_mask == 0].any()
    draw = np.random.default_rng(2)
    for name, gradient in zip(names, gradients, strict=True):
        assert np.isfinite(gradient).all()
        along = draw.normal(size=arrays[name].shape)
        step = 1e-5
        ends = [value(arrays | {name: arrays[name] + s * along}) for s in (step, -step)]
        slope = ((ends[0] - ends[1]) * cotangent).sum() / (2 * step)
        np.testing.assert_allclose((gradient * along).sum(), slope, rtol=1e-4, atol=1e-4)


def test_a_long_sum_of_gates_costs_a_short_one_nothing():
    """100 gates of -50 and then -0.01: differences of their sums would lose 1e-4 and more."""
    arrays = {name: x for name, x in operands(130, batch=1).items() if name != "state"}
    gates = np.where(np.arange(130) < 100, -50.0, -0.01)
    gates[115] = -np.inf  # all is forgotten
    arrays["log_decay"] = np.broadcast_to(gates[None, :, None], arrays["beta"].shape)
    want, _ = expected(arrays, "causal", None)
    run = ours([*arrays], "causal", None)
    got = computed(lambda: run(*(np.asarray(x, "float32") for x in arrays.values())))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "spread, implementation", [(0.0, "auto"), once(0.01, "auto"), once(0.0, "chunked")]
)
def test_keys_that_are_alike(spread, implementation):
    """Powers of the matrix of a chunk grow to 1e9 here, and its inverse does not."""
    arrays = operands(64, batch=1)
    del arrays["state"], arrays["log_decay"]
    arrays["k"] = unit(arrays["k"][:, :1] + spread * arrays["k"])
    arrays["beta"] = np.ones_like(arrays["beta"])
    want, _ = expected(arrays, "causal", None)
    run = ours([*arrays], "causal", None, implementation=implementation)
    cotangent = np.random.default_rng(1).normal(size=want.shape)
    got, gradients = value_and_gradients(run, arrays.values(), cotangent)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for name, gradient in zip(arrays, gradients, strict=True):
        along, step = np.random.default_rng(2).normal(size=arrays[name].shape), 1e-6
        ends = [
            expected(arrays | {name: arrays[name] + s * along}, "causal", None)[0]
            for s in (step, -step)
        ]
        slope = ((ends[0] - ends[1]) * cotangent).sum() / (2 * step)
        np.testing.assert_allclose((gradient * along).sum(), slope, rtol=1e-3, atol=1e-3)


def test_a_sequence_cut_anywhere_goes_on_from_its_state():
    """An example for each cut: padding stands for what belongs to the other part."""
    time = 40
    whole = {name: x for name, x in operands(time, batch=1).items() if name != "state"}
    want, last = expected(whole, "causal", None)
    cuts = np.arange(time + 1)
    arrays = [np.repeat(np.asarray(x, "float32"), len(cuts), axis=0) for x in whole.values()]
    first = (np.arange(time) < cuts[:, None]).astype("int32")

    @computed
    def parts():
        run = ours([*whole], "causal", first, return_state=True)
        one, state = run(*arrays)
        goes_on = {"initial_state": state, "return_state": True}
        return one, *ours([*whole], "causal", 1 - first, **goes_on)(*arrays)

    one, two, state = parts
    assert state["kv_state"].dtype == "float32"
    np.testing.assert_allclose(one + two, np.broadcast_to(want, one.shape), atol=2e-6)
    everywhere = np.broadcast_to(last, state["kv_state"].shape)
    np.testing.assert_allclose(state["kv_state"], everywhere, atol=2e-6)


def test_a_token_at_a_time():
    arrays = {name: x for name, x in operands(9, batch=2).items() if name != "state"}
    want, last = expected(arrays, "causal", None, scale=0.7)

    @computed
    def steps():
        state = {"kv_state": ops.zeros((2, HEADS, DIM, VALUE_DIM))}
        outs = []
        for t in range(9):
            now = [np.asarray(x[:, t : t + 1], "float32") for x in arrays.values()]
            q, k, v, beta, gate = map(ops.convert_to_tensor, now)
            out, state = delta_step(q, k, v, beta, gate, state, 0.7)
            outs.append(out)
        return ops.concatenate(outs, axis=1), state

    np.testing.assert_allclose(steps[0], want, atol=2e-6)
    np.testing.assert_allclose(steps[1]["kv_state"], last, atol=2e-6)


def test_half_precision_loses_no_more_than_its_inputs():
    arrays = {name: x for name, x in operands(TIME).items() if name != "state"}
    padding_mask = padding_rows(TIME)
    rounded = {
        name: ops.convert_to_numpy(ops.cast(ops.cast(x, "bfloat16"), "float32"))
        for name, x in arrays.items()
    }
    want, _ = expected(rounded, "half_heads", padding_mask)
    cotangent = np.ones_like(want)
    run = ours([*arrays], "half_heads", padding_mask)
    got, gradients = value_and_gradients(run, arrays.values(), cotangent, dtype="bfloat16")
    assert np.abs(got - want).max() < 2e-2 * np.abs(want).max()
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.once
def test_it_is_the_rule_of_keras_hub():
    path = "keras_hub.src.models.qwen3_5.qwen3_5_gated_delta_net"
    peer = pytest.importorskip(path)._chunk_gated_delta_rule
    arrays = {name: x for name, x in operands(10, kv_heads=HEADS).items() if name != "state"}
    arrays["q"] = unit(arrays["q"])

    @computed
    def both():
        q, k, v, beta, gate = (ops.convert_to_tensor(x, "float32") for x in arrays.values())
        return delta_attention(q, k, v, beta, gate), peer(q, k, v, gate, beta, chunk_size=4)[0]

    np.testing.assert_allclose(*both, atol=1e-5)


Q = np.ones((2, 3, HEADS, DIM), "float32")
BETA = np.full((2, 3, HEADS), 0.5, "float32")
STATE = {"kv_state": np.zeros((2, HEADS, DIM, DIM), "float32")}


@pytest.mark.once
@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: delta_attention(Q, Q, Q, BETA[:, :2]), "beta has the shape"),
        (lambda: delta_attention(Q, Q, Q, BETA[..., None]), "beta has the shape"),
        (lambda: delta_attention(Q, Q, Q, BETA, -BETA[:, :, :1]), "log_decay has the shape"),
        (lambda: delta_attention(Q, Q, Q, BETA, BETA), "log_decay is at most 0"),
        (lambda: delta_attention(Q, Q, Q, BETA, mask="bidirectional"), "mask='half_heads'"),
        (
            lambda: delta_attention(
                Q, Q, Q, BETA, mask=masks.heads("causal", {"block": {"size": 2}})
            ),
            "Received: Block(size=2)",
        ),
        (
            lambda: delta_attention(Q, Q, Q, BETA, mask=masks.custom(lambda q, k: q >= k)),
            "each head is causal or reversed",
        ),
        (lambda: delta_attention(Q, Q[:, :2], Q[:, :2], BETA), "one sequence"),
        (lambda: delta_attention(Q, Q[:, :, :3], Q[:, :, :3], BETA), "multiple of those of k"),
        (lambda: delta_attention(Q, Q, Q, BETA, mask="reversed", return_state=True), "a state is"),
        (lambda: delta_attention(Q, Q, Q, BETA, initial_state=STATE["kv_state"]), "'kv_state'"),
        (
            lambda: delta_attention(Q, Q, Q[..., :2], BETA, initial_state=STATE),
            "the kv_state of an initial_state has the shape",
        ),
        (
            lambda: delta_attention(Q, Q, Q, BETA, implementation="native2"),
            "unknown implementation",
        ),
    ],
)
def test_wrong_input_raises_one_line(attempt, said):
    with pytest.raises(ValueError) as caught:
        attempt()
    message = str(caught.value)
    assert said in message and "Received: " in message and "\n" not in message


def test_what_computes_it():
    here = keras.backend.backend()
    assert [*kernels("delta", here)] == (["chunk_scan"] if here == "jax" else []) + ["chunked"]


@pytest.mark.once
def test_of_no_tokens_the_state_is_zeros():
    out, state = delta_attention(Q[:, :0], Q[:, :0], Q[:, :0], BETA[:, :0], return_state=True)
    assert out.shape == (2, 0, HEADS, DIM) and not np.any(state["kv_state"])


@pytest.mark.once
def test_derivatives_past_the_first_are_those_of_the_plain_form():
    import jax

    arrays = {name: x for name, x in operands(6, batch=1).items() if name != "state"}
    given = tuple(np.asarray(x, "float32") for x in arrays.values())

    @jax.jit
    def second(given):
        def slopes(implementation):
            run = ours([*arrays], "half_heads", None, implementation=implementation)
            total = jax.grad(lambda given: (run(*given) ** 3).sum())
            return jax.jvp(total, (given,), (given,))

        return slopes("chunk_scan"), slopes("chunked")

    for got, want in zip(*map(jax.tree.leaves, second(given)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
