import itertools
import json

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kzoo import masks, sequence
from kzoo.errors import InputError
from kzoo.sequence import document_positions

pytestmark = pytest.mark.backends

ORDERS = {
    "bidirectional": masks.bidirectional(),
    "causal": masks.causal(),
    "reversed": masks.reversed(),
    "prefix": masks.prefix(),
    "block": masks.block(3),
    "permuted": masks.permuted(5),
}
WINDOW = masks.custom(lambda query, key: abs(query - key) < 2)
SPECS = [
    *ORDERS.values(),
    masks.block(1),
    masks.permuted(-1),
    masks.half_heads(),
    masks.alternating(),
    masks.heads("prefix", {"block": {"size": 4}}, "permuted"),
    masks.layers("causal", {"heads": ["causal", "reversed"]}),
    masks.causal() & masks.block(3),
    masks.heads("causal", masks.reversed() & masks.permuted(2)),
]


def row(name, segments, sources):
    """Booleans [time, time]: the definition, one (query, key) at a time."""
    return oracle.visible(ORDERS[name].get_config(), segments, sources)


def dense(mask, *args, **kwargs):
    result = mask.dense(*args, **kwargs)
    assert keras.backend.standardize_dtype(result.dtype) == "bool"
    return keras.ops.convert_to_numpy(result)


TIME, BATCH = 11, 3  # one shape, so that every example reuses the compiled operations


@st.composite
def packed_rows(draw):
    """padding_mask [batch, time]: documents with ids in any order, and padding anywhere."""
    rows = []
    for _ in range(BATCH):
        steps = draw(st.lists(st.sampled_from([0, 0, 0, 1]), min_size=TIME, max_size=TIME))
        holes = draw(st.lists(st.sampled_from([1, 1, 1, 0]), min_size=TIME, max_size=TIME))
        ids = draw(st.permutations(range(1, TIME + 2)))
        rows.append(np.array(ids)[np.cumsum(steps)] * holes)
    return np.array(rows, "int32")


source_rows = st.lists(
    st.lists(st.integers(0, 1), min_size=TIME, max_size=TIME), min_size=BATCH, max_size=BATCH
).map(lambda rows: np.array(rows, "int32"))
# The algebra is the same on every backend, and the operations are few.
EXAMPLES = 25 if keras.backend.backend() == "jax" else 4
quick = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)


@quick
@given(padding=packed_rows(), sources=source_rows)
def test_every_order_follows_its_definition(padding, sources):
    got = dense(masks.heads(*ORDERS.values()), TIME, padding_mask=padding, source_mask=sources)
    for i, j in itertools.product(range(BATCH), range(len(ORDERS))):
        name = [*ORDERS][j]
        want = row(name, padding[i], sources[i])
        np.testing.assert_array_equal(got[i, j], want, err_msg=name)


@quick
@given(sources=source_rows)
def test_without_a_padding_mask_an_example_is_one_document(sources):
    ones = np.ones_like(sources)
    for name, order in ORDERS.items():
        got = dense(order, TIME, source_mask=sources)
        want = [row(name, *pair) for pair in zip(ones, sources, strict=True)]
        np.testing.assert_array_equal(np.broadcast_to(got[:, 0], (BATCH, TIME, TIME)), want)


@quick
@given(padding=packed_rows(), sources=source_rows, offset=st.integers(0, TIME - 4))
def test_a_window_of_queries_is_rows_of_the_whole(padding, sources, offset):
    size = 4
    mask = masks.heads(*ORDERS.values())
    whole = dense(mask, TIME, padding_mask=padding, source_mask=sources)
    window = {"query_offset": offset, "padding_mask": padding, "source_mask": sources}
    np.testing.assert_array_equal(
        dense(mask, size, TIME, **window), whole[:, :, offset : offset + size]
    )
    bare = dense(masks.permuted(5), TIME)
    np.testing.assert_array_equal(
        dense(masks.permuted(5), size, TIME, query_offset=offset),
        bare[:, :, offset : offset + size],
    )


@quick
@given(padding=packed_rows())
def test_an_order_is_total_and_transitive(padding):
    for name in ("causal", "reversed", "permuted"):
        (see,) = dense(ORDERS[name], TIME, padding_mask=padding[:1])[0]
        together = (padding[0][:, None] == padding[0]) & (padding[0] != 0)
        np.testing.assert_array_equal(see | see.T, together)
        np.testing.assert_array_equal(see & see.T, together & np.eye(TIME, dtype=bool))
        assert not (see.astype(int) @ see > 0)[~see].any()


def test_cross_attention_compares_positions_within_the_same_document():
    queries, keys = np.array([[4, 4, 2, 0, 2]], "int32"), np.array([[1, 2, 2, 0, 2, 4]], "int32")
    for order in ("bidirectional", "causal", "reversed", {"permuted": {"seed": 1}}):
        got = dense(masks.get(order), 5, 6, padding_mask=queries, key_padding_mask=keys)[0, 0]
        np.testing.assert_array_equal(got, oracle.visible_across(order, queries[0], keys[0]))
    got = dense(masks.bidirectional(), 2, 5, key_padding_mask=np.array([[1, 1, 0, 1, 2]]))
    np.testing.assert_array_equal(got[0, 0], [[True, True, False, True, False]] * 2)


# The permutation ----------------------------------------------------------------------------


def test_permuted_is_the_same_whatever_stands_around():
    see = dense(masks.permuted(7), 40)[0, 0]
    np.testing.assert_array_equal(dense(masks.permuted(7), 9)[0, 0], see[:9, :9])
    padding = np.array([[0] * 3 + [1] * 9 + [2] * 12 + [0] * 2 + [4] * 10], "int32")
    packed = dense(masks.permuted(7), padding.shape[1], padding_mask=padding)[0, 0]
    for first, size in ((3, 9), (12, 12), (26, 10)):
        own = slice(first, first + size)
        np.testing.assert_array_equal(packed[own, own], see[:size, :size])


def test_permuted_is_full_rank_undirected_and_differs_by_seed():
    pictures = [dense(masks.permuted(seed), 64)[0, 0] for seed in (0, 1, 2, -1, 2**30)]
    for see in pictures:
        assert np.linalg.matrix_rank(see) == 64
        future = see[np.triu_indices(64, 1)].mean()
        assert 0.35 < future < 0.65  # a random order shows about half of it
    for a, b in itertools.combinations(pictures, 2):
        assert (a != b).any()


# Patterns -----------------------------------------------------------------------------------


def test_heads_tile():
    mask = masks.heads("causal", "reversed")
    assert mask.per_head(6) == (masks.causal(), masks.reversed()) * 3
    assert dense(mask, 4).shape == (1, 2, 4, 4)
    tiled = dense(mask, 4, num_heads=4)
    np.testing.assert_array_equal(tiled[0, 2:], tiled[0, :2])
    np.testing.assert_array_equal(tiled[0, 0], np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(tiled[0, 1], np.triu(np.ones((4, 4), bool)))
    assert dense(masks.heads("causal", "causal"), 4).shape == (1, 1, 4, 4)


def test_layers_tile():
    causal, reversed_ = masks.causal(), masks.reversed()
    assert masks.per_layer("alternating", 4) == [causal, reversed_, causal, reversed_]
    assert masks.per_layer("causal", 3) == [causal] * 3
    nested = masks.layers("causal", masks.half_heads())
    assert masks.per_layer(nested, 2) == [causal, masks.half_heads()]


def test_masks_combine_by_and():
    both = dense(masks.causal() & WINDOW, 5)[0, 0]
    np.testing.assert_array_equal(both, dense(masks.causal(), 5)[0, 0] & dense(WINDOW, 5)[0, 0])
    padding = np.array([[1, 1, 2, 2, 0]], "int32")
    both = dense(masks.half_heads() & masks.block(2) & WINDOW, 5, padding_mask=padding)
    for head, order in enumerate((masks.causal(), masks.reversed())):
        want = [dense(m, 5, padding_mask=padding)[0, 0] for m in (order, masks.block(2), WINDOW)]
        np.testing.assert_array_equal(both[0, head], np.all(want, axis=0))
    assert masks.causal() & (masks.block(2) & masks.prefix()) == masks.get(
        {"and": ["causal", {"block": {"size": 2}}, "prefix"]}
    )
    for layered in (
        masks.alternating() & masks.half_heads(),
        masks.half_heads() & masks.alternating(),
    ):
        forward, backward = (dense(m, 5)[0] for m in masks.per_layer(layered, 2))
        diagonal = np.eye(5, dtype=bool)
        np.testing.assert_array_equal(forward, [np.tril(np.ones((5, 5), bool)), diagonal])
        np.testing.assert_array_equal(backward, [diagonal, np.triu(np.ones((5, 5), bool))])


@pytest.mark.parametrize(
    "visible", [lambda q, k: k < 2, lambda q, k: q > 1, lambda q, k: q * k == 0], ids="kqb"
)
def test_a_custom_mask_may_use_one_position_only(visible):
    padding = np.array([[1, 1, 1, 2], [1, 1, 0, 0]], "int32")
    mask = masks.heads(masks.custom(visible), "causal")
    got = dense(mask, 4, padding_mask=padding)
    assert got.shape == (2, 2, 4, 4)
    for i, (segments, where) in enumerate(
        (segments, keras.ops.convert_to_numpy(document_positions(segments[None]))[0])
        for segments in padding
    ):
        for q, k in itertools.product(range(4), range(4)):
            want = visible(where[q], where[k]) and segments[q] == segments[k] != 0
            assert got[i, 0, q, k] == want
    assert dense(masks.custom(visible), 4).shape == (1, 1, 4, 4)


def test_what_a_mask_needs_and_allows():
    needs = {mask for mask in SPECS if mask.needs_source}
    assert needs == {
        masks.prefix(),
        masks.get({"heads": ["prefix", {"block": {"size": 4}}, "permuted"]}),
    }
    allowed = {mask for mask in SPECS if mask.autoregressive}
    assert allowed == {masks.causal(), masks.prefix(), masks.causal() & masks.block(3)}
    assert masks.layers("causal", "prefix").autoregressive
    assert not masks.layers("causal", masks.half_heads()).autoregressive
    assert (masks.prefix() & WINDOW).autoregressive and (masks.prefix() & WINDOW).needs_source


# JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", SPECS, ids=lambda mask: str(mask.get_config()))
def test_json_both_ways(mask):
    copy = masks.get(json.loads(json.dumps(mask.get_config())))
    assert copy == mask and hash(copy) == hash(mask) and masks.get(mask) is mask
    assert len({mask, copy}) == 1


def test_specs_are_copied():
    spec = {"heads": ["causal", "reversed"]}
    mask = masks.get(spec)
    spec["heads"][0] = "bidirectional"
    assert mask == masks.half_heads()
    mask.get_config()["heads"][0] = "bidirectional"
    assert mask == masks.half_heads()


def test_names_of_patterns():
    assert masks.get("half_heads") == masks.half_heads()
    assert masks.get("alternating").get_config() == {"layers": ["causal", "reversed"]}
    assert masks.get("permuted") == masks.permuted(0)


# Use by Keras -------------------------------------------------------------------------------


def test_keras_takes_a_dense_mask():
    layer = keras.layers.MultiHeadAttention(2, 4, flash_attention=False)
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    padding = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 1]], "int32")
    mask = masks.half_heads().dense(5, padding_mask=padding)
    _, weights = layer(x, x, attention_mask=mask, return_attention_scores=True)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(weights) > 1e-9, keras.ops.convert_to_numpy(mask)
    )


def test_document_positions_restart():
    rows = [[0, 1, 1, 0, 1, 2, 2, 0], [1] * 8, [3, 3, 3, 0, 0, 1, 0, 1]]
    got = document_positions(rows)
    assert keras.ops.convert_to_numpy(got).tolist() == [
        [0, 0, 1, 2, 2, 0, 1, 2],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 3, 0, 1, 1],
    ]


@pytest.mark.slow
def test_positions_of_long_sequences_equal_a_count(monkeypatch):
    """In blocks, and blocks of blocks."""
    monkeypatch.setattr(sequence, "BLOCK", 8)
    rng = np.random.default_rng(0)
    for time in (7, 8, 9, 70, 300):
        ids = np.repeat(rng.permutation(time) + 1, rng.integers(1, time // 2, time))[:time]
        ids = ids * (rng.random(time) < 0.9)
        want = np.zeros(time, int)
        for times in oracle.documents(ids.tolist()):
            want[times] = np.arange(len(times))
        got = keras.ops.convert_to_numpy(document_positions(ids[None].astype("int32")))[0]
        np.testing.assert_array_equal(got[ids != 0], want[ids != 0])


# Wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attempt, said",
    [
        (lambda: bool(masks.causal()), "write `a & b` for `a and b`"),
        (lambda: masks.causal() or masks.prefix(), "write `a & b`"),
        (lambda: masks.causal() | masks.prefix(), "combine by & only"),
        (lambda: ~masks.causal(), "use `reversed()`?"),
        (lambda: masks.get("casual"), "did you mean 'causal'?"),
        (lambda: masks.get("bidirectionnal"), "did you mean 'bidirectional'?"),
        (lambda: masks.get({"head": ["causal"]}), "did you mean 'heads'?"),
        (lambda: masks.get({"heads": ["causal", "revers"]}), "did you mean 'reversed'?"),
        (lambda: masks.get(3), "a name or a JSON object"),
        (lambda: masks.get({}), "a name or a JSON object"),
        (lambda: masks.get(["causal"]), "a name or a JSON object"),
        (lambda: masks.get({"heads": "causal"}), "takes a list"),
        (lambda: masks.get({"heads": []}), "takes a list"),
        (lambda: masks.get({"block": 3}), "are a JSON object"),
        (lambda: masks.get("block"), "takes 'size'"),
        (lambda: masks.get({"permuted": {"sed": 1}}), "takes 'seed'"),
        (lambda: masks.get({"causal": {"seed": 1}}), "takes no arguments"),
        (lambda: masks.block(0), "at least 1"),
        (lambda: masks.block(2.5), "at least 1"),
        (lambda: masks.permuted("x"), "is an integer"),
        (lambda: masks.custom("causal"), "a function of (query, key)"),
        (lambda: WINDOW.get_config(), "has no JSON"),
        (lambda: masks.heads(), "at least one"),
        (lambda: masks.heads(masks.half_heads()), "neither inside itself"),
        (lambda: masks.heads(masks.alternating()), "heads stand inside layers"),
        (lambda: masks.layers("alternating"), "neither inside itself"),
        (lambda: masks.half_heads() & masks.half_heads(), "combine their parts"),
        (lambda: masks.half_heads().per_head(3), "use a multiple of 2"),
        (lambda: masks.half_heads().dense(4, num_heads=5), "use a multiple of 2"),
        (lambda: masks.per_layer("alternating", 3), "use a multiple of 2"),
        (lambda: masks.alternating().dense(4), "per_layer"),
        (lambda: masks.prefix().dense(4), "needs a `source_mask`"),
        (lambda: masks.causal().dense(4, padding_mask=np.ones((1, 5))), "[batch, 4]"),
        (lambda: masks.causal().dense(4, padding_mask=np.ones(4)), "[batch, 4]"),
        (lambda: masks.prefix().dense(4, source_mask=np.ones((1, 3))), "[batch, 4]"),
        (
            lambda: masks.causal().dense(3, 4, query_offset=2, padding_mask=np.ones((1, 4))),
            "beyond the last key",
        ),
        (
            lambda: masks.prefix().dense(
                4, source_mask=np.ones((1, 4)), key_padding_mask=np.ones((1, 4))
            ),
            "no meaning across two",
        ),
    ],
)
def test_wrong_input_says_what_would_be_right(attempt, said):
    with pytest.raises(InputError) as caught:
        attempt()
    message = str(caught.value)
    assert said in message and "Received: " in message and "\n" not in message
