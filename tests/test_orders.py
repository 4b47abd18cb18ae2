"""Every order, ours and users', on every kernel, against an oracle that shares nothing with it."""

import dataclasses
import json

import keras
import numpy as np
import oracle
import pytest
from autodiff import computed, value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import once
from orders import OURS, THEIRS

from kzoo import masks
from kzoo.errors import InputError
from kzoo.layers import Attention, LearnedPositions
from kzoo.ops import linear_attention, reference_attention, softmax_attention

pytestmark = pytest.mark.backends

JAX = keras.backend.backend() == "jax"
CHUNK = 8
KERNELS = {
    "jax": [
        ("softmax", "dense"),
        ("softmax", "blockwise"),
        ("softmax", "native"),
        ("linear", "chunk_scan"),
        ("linear", "native"),
        ("linear", "chunked"),
    ],
    "torch": [("softmax", "dense"), ("softmax", "sdpa"), ("linear", "chunked")],
    "tensorflow": [("softmax", "dense"), ("linear", "chunked")],
}[keras.backend.backend()]
SPECS = [*OURS, *THEIRS]


def rows_of(time):
    """Padding masks: packed in any order of ids, padded left, right and inside."""
    t = np.arange(time)
    rows = np.ones((8, time), "int32")
    rows[1] = np.where(t % 4 == 2, 0, 1)  # holes
    rows[2] = np.where(t < time // 3, 0, 1)
    rows[3] = np.where(t >= time - time // 3, 0, 1)
    rows[4] = 2 - (2 * t // max(time, 1))  # 2 2 2 1 1 1
    rows[5] = np.array([7, 3, 5])[3 * t // max(time, 1)] * (t % 5 != 3)
    rows[6] = (1 + t // 4) * (t % 3 != 1)
    rows[7] = 0
    return rows


def attend(mechanism, kernel, specs, **static):
    mask = masks.get({"heads": list(specs)})
    if mechanism == "linear":
        static.setdefault("chunk_size", CHUNK)
        return lambda q, k, v, **rows: linear_attention(
            q, k, v, mask, implementation=kernel, **static, **rows
        )
    if kernel == "splash":
        return lambda q, k, v, **rows: splash(q, k, v, mask, **rows)
    return lambda q, k, v, **rows: softmax_attention(
        q, k, v, mask, implementation=kernel, **static, **rows
    )


def splash(q, k, v, mask, **rows):
    return softmax_attention(q, k, v, mask, implementation="splash", **rows)


def operands(time, heads, kv_heads, padding, seed=0):
    rng = np.random.default_rng(seed)
    batch = len(padding)
    q, k, v = (rng.normal(size=(batch, time, n, 16)) for n in (heads, kv_heads, kv_heads))
    cotangent = rng.normal(size=(batch, time, heads, 16))
    source = (rng.random((batch, time)) < 0.7).astype("int32")
    source[:, : time // 4] = 1
    for x in (q, k, v):
        x[padding == 0] = np.nan
    return q, k, v, cotangent, source


def assert_equals_oracle(run, mechanism, specs, arrays, padding, source, cotangent):
    see = oracle.visible_of(specs, padding, source)
    want = oracle.attention(mechanism, *arrays, see, cotangent)
    assert_equal(run(arrays, padding, source, cotangent), want)


def assert_equal(got, want):
    out, gradients = got
    for got, expected in zip((out, *gradients), want, strict=True):
        worst = np.abs(got - expected).max(axis=(0, 1, 3))
        limit = 3e-5 * max(1, np.abs(expected).max())
        assert (worst < limit).all(), dict(enumerate(worst))
        assert np.isfinite(got).all()


def eager_rows(mechanism, kernel, specs, **static):
    """Masks are known when the program is made."""
    function = attend(mechanism, kernel, specs, **static)

    def run(arrays, padding, source, cotangent):
        rows = {"padding_mask": padding, "source_mask": source}
        return value_and_gradients(lambda *x: function(*x, **rows), arrays, cotangent)

    return run


def check(mechanism, kernel, time, specs=SPECS, kv_heads=None, **static):
    padding = rows_of(time)
    q, k, v, cotangent, source = operands(time, len(specs), kv_heads or len(specs), padding)
    run = eager_rows(mechanism, kernel, specs, **static)
    assert_equals_oracle(run, mechanism, specs, (q, k, v), padding, source, cotangent)


# One token; a chunk, one less and one more; not a multiple.
TIMES = [1, CHUNK - 1, CHUNK, CHUNK + 1, 21]


def orders_of(kernel, time):
    """Of a kernel at a length: at the last length all orders, which is every kernel, mechanism and
    order; at the others every second one, so that of the kernels of a mechanism (but softmax's at
    the lengths of a chunk, which only one has) one or another follows each order at each length.
    The native kernel, which compiles in no time, follows all.
    """
    if time == TIMES[-1] or kernel == "native":
        return SPECS
    return SPECS[(TIMES.index(time) + (kernel in ("chunked", "dense"))) % 2 :: 2]


@pytest.mark.parametrize("time", [1, *map(once, TIMES[1:-1]), 21])
@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_every_order_on_every_kernel(mechanism, kernel, time):
    if kernel in ("dense", "blockwise", "sdpa") and time in (CHUNK - 1, CHUNK):
        pytest.skip("has no chunks")
    check(mechanism, kernel, time, orders_of(kernel, time), kv_heads=4 if time == 21 else None)


@pytest.mark.slow
@pytest.mark.skipif(not JAX, reason="splash is a kernel of JAX")
@pytest.mark.parametrize("time", [21, pytest.param(300, marks=pytest.mark.slow)])
def test_every_order_on_splash(time, monkeypatch):
    from kzoo.ops.kernels import splash

    monkeypatch.setattr(splash, "TILES", (128,))  # so that some tiles are skipped
    # Within one tile tests/test_splash.py has our own orders, by heads and one by one.
    check("softmax", "splash", time, THEIRS if time == 21 else SPECS)


# What is not known when the program is made ------------------------------------------------

TIME, BATCH = 12, 4
rows_of_ids = st.lists(
    st.lists(st.sampled_from([0, 1, 1, 2, 2, 5]), min_size=TIME, max_size=TIME),
    min_size=BATCH,
    max_size=BATCH,
).map(lambda rows: np.array(rows, "int32"))


@pytest.fixture(scope="module")
def traced():
    """By kernel, what takes rows too: one compiled program for all that hypothesis draws."""
    import jax

    def make(mechanism, kernel):
        function = attend(
            mechanism, kernel, SPECS, **({"chunk_size": 5} if mechanism == "linear" else {})
        )

        @jax.jit
        def run(arrays, padding, source, cotangent):
            rows = {"padding_mask": padding, "source_mask": source}
            out, pull = jax.vjp(lambda *x: function(*x, **rows), *arrays)
            return out, pull(cotangent)

        return lambda arrays, padding, source, cotangent: jax.tree.map(
            np.asarray,
            run(
                [x.astype("float32") for x in arrays], padding, source, cotangent.astype("float32")
            ),
        )

    return {names: make(*names) for names in [("softmax", "blockwise"), *KERNELS[2:]]}


@pytest.mark.slow
@pytest.mark.skipif(not JAX, reason="the others know all values")
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(padding=rows_of_ids, seed=st.integers(0, 9))
def test_any_documents_and_padding_of_a_traced_batch(traced, padding, seed):
    *arrays, cotangent, source = operands(TIME, len(SPECS), len(SPECS), padding, seed)
    see = oracle.visible_of(SPECS, padding, source)
    want = {name: oracle.attention(name, *arrays, see, cotangent) for name in ("softmax", "linear")}
    for (mechanism, _), run in traced.items():
        assert_equal(run(arrays, padding, source, cotangent), want[mechanism])


# Windows and two sequences -------------------------------------------------------------------


# On the other backends tests/test_ops.py has windows and two sequences, with gradients.
@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_a_window_of_queries(mechanism, kernel):
    time, window = 21, slice(9, 14)
    padding = rows_of(time)
    q, k, v, cotangent, source = operands(time, len(SPECS), len(SPECS), padding)
    see = oracle.visible_of(SPECS, padding, source)
    want = oracle.attention(mechanism, q[:, window], k, v, see[:, :, window], cotangent[:, window])
    run = attend(mechanism, kernel, SPECS, query_offset=9)
    arrays = [x.astype("float32") for x in (q[:, window], k, v)]
    got = computed(lambda: run(*arrays, padding_mask=padding, source_mask=source))
    np.testing.assert_allclose(got, want[0], atol=3e-5)


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("mechanism, kernel", KERNELS)
def test_two_sequences(mechanism, kernel):
    specs = [spec for spec in SPECS if not masks.get(spec).needs_source]
    queries, keys = rows_of(13), rows_of(21)
    keys[5] = np.where(keys[5] == 3, 9, keys[5])  # a document without a partner
    q, _, _, cotangent, _ = operands(13, len(specs), len(specs), queries)
    _, k, v, _, _ = operands(21, len(specs), len(specs), keys)
    see = np.array(
        [
            [oracle.visible_across(spec, *row) for spec in specs]
            for row in zip(queries, keys, strict=True)
        ]
    )
    want = oracle.attention(mechanism, q, k, v, see, cotangent)
    rows = {"padding_mask": queries, "key_padding_mask": keys}
    arrays = [x.astype("float32") for x in (q, k, v)]
    got = computed(lambda: attend(mechanism, kernel, specs)(*arrays, **rows))
    np.testing.assert_allclose(got, want[0], atol=3e-5)


# Padding and documents -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["softmax", "linear"])
def test_padding_inside_a_document_changes_nothing(mechanism):
    """Under rotary and learned positions, in a layer: as if it had never been there."""
    time, holes = 12, np.array([0, 3, 4, 9])
    real = np.setdiff1d(np.arange(time), holes)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, time, 64)).astype("float32")
    layer = Attention(len(SPECS), 8, mechanism, {"heads": SPECS}, rotary=True)
    positions = LearnedPositions(time)
    source = (np.arange(time)[None] < 5).astype("int32")
    padding = np.ones((1, time), "int32")
    padding[:, holes] = 0
    short = padding[:, real]

    def both():
        whole = layer(positions(x, padding), padding_mask=padding, source_mask=source)
        rest = layer(positions(x[:, real], short), padding_mask=short, source_mask=source[:, real])
        return whole, rest

    whole, want = computed(both)
    np.testing.assert_allclose(whole[:, real], want, atol=1e-5)


def test_an_id_that_comes_again_is_refused_where_it_is_known():
    q = np.ones((1, 4, 1, 16), "float32")
    said = "an id does not come again after another. Received: 1 again in example 0"
    known = np.array([[1, 2, 0, 1]])
    for attend_ in (softmax_attention, linear_attention):
        for rows in (known, keras.ops.convert_to_tensor(known)):
            with pytest.raises(InputError, match=said):
                attend_(q, q, q, "causal", padding_mask=rows)
    for wrong, said in ((-1, "Received: -1"), (0.5, "Received: 0.5")):
        with pytest.raises(InputError, match=said):
            softmax_attention(q, q, q, padding_mask=np.array([[1, 1, wrong, 1]]))
    with pytest.raises(InputError, match="`padding_mask` has the batch size of q, 1"):
        softmax_attention(q, q, q, padding_mask=np.ones((3, 4), "int32"))


# Offsets ------------------------------------------------------------------------------------


def test_an_offset_is_honoured_or_refused():
    q = np.ones((2, 4, 1, 16), "float32")
    rows = np.ones((2, 4), "int32")
    attends = [softmax_attention, linear_attention]
    attends += [lambda *x, **y: reference_attention(*x, mechanism="softmax", **y)]
    attends += [lambda q, k, v, *x, **y: masks.causal().dense(2, 4, **y)]
    for attend_ in attends:
        for offset in (-1, np.int64(-1), 1.0, True, np.array([1, 1])):
            with pytest.raises(InputError, match="`query_offset` is the first query's position"):
                attend_(q[:, :2], q, q, "causal", query_offset=offset)
        with pytest.raises(InputError, match="of two sequences"):
            attend_(q[:, :2], q, q, "causal", query_offset=1, key_padding_mask=rows)
        with pytest.raises(InputError, match="beyond the last key"):
            attend_(q[:, :2], q, q, "causal", query_offset=3, padding_mask=rows)

    @computed
    def results():
        offsets = (1, np.int32(1), np.array(1))
        return [[at(q[:, :2], q, q, "causal", query_offset=x) for x in offsets] for at in attends]

    for want, *others in results:
        for got in others:
            np.testing.assert_array_equal(got, want)
    with pytest.raises(InputError, match="0 of two sequences"):
        linear_attention(q, q, q, query_offset=1, key_padding_mask=rows, return_state=True)
    with pytest.raises(InputError, match="with a state `query_offset` is"):
        linear_attention(q, q, q, "causal", query_offset=np.array([0, -1]), return_state=True)


@pytest.mark.skipif(not JAX, reason="the others know all values")
def test_a_traced_offset_does_not_wrap():
    import jax

    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 9, 12, 16)).astype("float32") for _ in range(3))
    rows = np.ones((2, 9), "int32")

    @jax.jit
    def run(offset):
        kwargs = {"query_offset": offset, "padding_mask": rows, "source_mask": rows}
        return softmax_attention(q[:, :3], k, v, {"heads": SPECS}, **kwargs)

    for offset, nearest in ((-4, 0), (2, 2), (20, 6)):
        np.testing.assert_allclose(run(offset), run(nearest), atol=1e-6)


# Classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", THEIRS, ids=str)
def test_a_registered_order_is_a_mask_like_any_other(spec):
    mask = masks.get(spec)
    assert masks.get(json.loads(json.dumps(mask.get_config()))) == mask
    assert masks.get({"heads": [spec, "causal"]}).masks[0] == mask


def test_a_preset_takes_a_registered_order():
    import kzoo

    config = kzoo.presets.config("bert_nano", mask={"reversed_block": {"size": 4}})
    assert config["mask"] == {"reversed_block": {"size": 4}}
    with pytest.raises(InputError, match="did you mean 'reversed_block'"):
        kzoo.presets.config("bert_nano", mask="reversed_blok")
    with pytest.raises(InputError):  # a next-token loss would be shown its answers
        kzoo.presets.config("gpt_nano", mask={"reversed_block": {"size": 4}})


def order(level=lambda self, sequence: sequence.position, fields=(), frozen=True, **names):
    names = {"level": level, **names}
    return dataclasses.make_dataclass(
        "Made", fields, bases=(masks.Order,), namespace=names, frozen=frozen
    )


def modulo(self, sequence):
    return sequence.position % 5


@pytest.mark.parametrize(
    "made, said",
    [
        ({"autoregressive": True, "level": modulo}, "autoregressive declares"),
        ({"autoregressive": True, "level": lambda self, p: p.position // 2}, "would be shown"),
        ({"ascending": True, "level": modulo}, "ascending declares levels that never fall"),
        ({"descending": True}, "descending declares levels that never rise"),
        ({"grouped": False, "level": modulo}, "no level twice"),
        ({"ascending": True, "lookahead": 1, "level": lambda self, p: p.position // 3}, "tokens"),
        ({"resumable": True, "level": modulo}, "resumable declares"),
        ({"level": lambda self, p: p.position / 2}, "integers within int32"),
        ({"level": lambda self, p: p.position - p.position[:, :1]}, "own token's position alone"),
        ({"level": masks.Order.level}, "defines `level"),
        ({"frozen": False}, "frozen dataclass"),
        (
            {
                "needs_source": True,
                "autoregressive": True,
                "level": lambda self, p: keras.ops.where(p.in_source, p.position, 3 + p.position),
            },
            None,
        ),
        (
            {
                "needs_source": True,
                "autoregressive": True,
                "level": lambda self, p: keras.ops.where(p.in_source, 9, p.position),
            },
            "with a source of 7 tokens|autoregressive declares",
        ),
    ],
)
def test_what_an_order_declares_is_tried(made, said):
    """Also within other masks, and in a program that is being traced."""
    x = np.ones((1, 3, 2, 16), "float32")
    source = np.ones((1, 3), "int32")
    mask = order(**made)()
    if said is None:
        assert masks.get(mask).autoregressive
        return
    for attempt in (
        lambda: masks.get(mask),
        lambda: masks.heads("causal", mask),
        lambda: masks.get(masks.causal() & mask),
        lambda: Attention(2, 8, mask=mask),
        lambda: linear_attention(x, x, x, mask, source_mask=source),
    ):
        with pytest.raises(InputError, match=said):
            attempt()
    if JAX:
        import jax

        with pytest.raises(InputError, match=said):
            jax.jit(lambda x: softmax_attention(x, x, x, mask, source_mask=source))(x)


def test_registration_refuses_what_cannot_be_told_apart():
    for made, said in (
        (order(), "a `name` of its own"),
        (order(name="causal"), "exists already"),
        (order(name="heads"), "exists already"),
        (order(name="half_heads"), "exists already"),
        (order(name="x", frozen=False), "frozen dataclass"),
        (3, "a subclass"),
        (masks.Heads, "a subclass"),
    ):
        with pytest.raises(InputError, match=said):
            masks.register(made)
    with pytest.raises(InputError, match="once `kzoo.masks.register` knows its name"):
        order(name="unregistered")().get_config()


def test_an_unregistered_order_runs_by_its_levels_alone():
    """`level` is all that a class needs."""
    x = np.random.default_rng(0).normal(size=(1, 9, 2, 16)).astype("float32")
    for attend_ in (softmax_attention, linear_attention):
        got, want = (
            keras.ops.convert_to_numpy(attend_(x, x, x, mask)) for mask in (order()(), "causal")
        )
        np.testing.assert_allclose(got, want, atol=1e-5)
