import io

import keras
import numpy as np
import pytest
from autodiff import precision
from keras import ops
from marks import once

from kzoo import masks, presets
from kzoo.analysis import (
    attention_spectrum,
    collapse,
    draw_masks,
    leaks,
    spectrum,
    terminal_masks,
)
from kzoo.analysis.activations import activations
from kzoo.analysis.collapse import NORMS, _residual
from kzoo.analysis.float64 import float64
from kzoo.errors import InputError
from kzoo.ops import reference_attention

TIME, SOURCE = 14, 5


def batch():
    """A whole row, a padded one, and one with two documents and padding between.

    One shape for all tests, so that what one compiles, the others reuse.
    """
    ids = np.random.default_rng(1).integers(0, 256, (3, TIME)).astype("int32")
    padding_mask, source_mask = np.ones_like(ids), np.zeros_like(ids)
    source_mask[:, :SOURCE] = 1
    padding_mask[1, -4:] = 0
    padding_mask[2, TIME // 2 :] = 2
    padding_mask[2, TIME // 2 - 1] = 0
    source_mask[2, TIME // 2 : TIME // 2 + 3] = 1
    return {"token_ids": ids, "padding_mask": padding_mask, "source_mask": source_mask}


def attention_matrices(model, x, dtype=None):
    block = model.backbone.transformer_layers[0]
    (stack,) = activations(model, x)
    inputs = block.attention_inputs(stack.states[0])
    with float64():
        weights = block.attention.attention_weights(inputs, dtype=dtype, **stack.masks)
    return ops.convert_to_numpy(weights)


# The spectrum of a matrix -----------------------------------------------------------------


def test_spectrum_of_matrices_that_can_be_worked_out():
    n = 8
    identity, uniform = np.eye(n), np.full((n, n), 1 / n)
    two = np.zeros((n, n))
    two[0, 0], two[1, 1] = 3, 4
    figures = spectrum(np.stack([identity, uniform, two]))
    assert figures["numerical_rank"].tolist() == [n, 1, 2]
    np.testing.assert_allclose(figures["entropy_rank"][:2], [n, 1], rtol=1e-6)
    p = np.array([3, 4]) / 7
    np.testing.assert_allclose(figures["entropy_rank"][2], np.exp(-(p * np.log(p)).sum()))
    np.testing.assert_allclose(figures["stable_rank"], [n, 1, 25 / 16])
    assert figures["k99"].tolist() == [n, 1, 2]
    np.testing.assert_allclose(figures["concentration"], [n**-0.5, 1, 7 / n / 5])
    assert figures["condition"][0] == 1
    assert figures["condition"][1] > 1e7 and np.isfinite(figures["condition"]).all()


def test_spectrum_of_zeros_and_nan():
    stack = np.stack([np.zeros((3, 3)), np.full((3, 3), np.nan), np.eye(3)])
    for name, figure in spectrum(stack).items():
        assert figure[0] == (name == "condition")
        assert np.isnan(figure[1])
        assert np.isfinite(figure[2])


@pytest.mark.parametrize("features", [4, 40])
@pytest.mark.parametrize(
    "mask, rank",
    [
        ("bidirectional", lambda n, p, d: min(n, d)),
        ("causal", lambda n, p, d: n),
        ("reversed", lambda n, p, d: n),
        ("permuted", lambda n, p, d: n),
        ("prefix", lambda n, p, d: n - p + min(p, d)),
    ],
)
def test_rank_of_linear_attention_is_what_theory_says(mask, rank, features):
    n, source = 24, 10
    rng = np.random.default_rng(0)
    source_mask = (np.arange(n) < source).astype("int32")[None]
    with precision("float64"):
        q, k, v = (rng.normal(size=(1, n, 2, features)) for _ in range(3))
        _, weights = reference_attention(
            q,
            k,
            v,
            mask,
            mechanism="linear",
            source_mask=source_mask,
            dtype="float64",
            return_weights=True,
        )
        weights = ops.convert_to_numpy(weights)
    assert weights.dtype == "float64"
    assert spectrum(weights)["numerical_rank"].tolist() == [[rank(n, source, features)] * 2]


# The spectrum of a model ------------------------------------------------------------------


def test_attention_spectrum_of_each_head():
    model = presets.load("bert_mixed_heads_nano", mechanism="linear", num_layers=1)
    x = batch()
    result = attention_spectrum(model, (x, x["token_ids"], None))
    assert [(head["layer"], head["head"]) for head in result] == [(0, head) for head in range(4)]
    assert [head["mask"] for head in result] == ["causal", "reversed"] * 2
    assert {head["numerical_rank"] for head in result} == {TIME}
    assert attention_spectrum(model.backbone, x) == result
    # One row is whole, so the padded ones are left aside.
    assert {head["tokens"] for head in result} == {TIME}
    expected = spectrum(attention_matrices(model, x)[0])["entropy_rank"]
    np.testing.assert_allclose([head["entropy_rank"] for head in result], expected)


def test_attention_spectrum_leaves_padding_out():
    model = presets.load("bert_mixed_heads_nano", mechanism="linear", num_layers=1)
    x = batch()
    x["padding_mask"][0] = 0
    result = attention_spectrum(model, x)
    weights, real = attention_matrices(model, x, "float64"), x["padding_mask"] != 0
    cut = [spectrum(weights[row][:, real[row]][:, :, real[row]]) for row in (1, 2)]
    for head, figures in enumerate(result):
        assert figures["tokens"] == (TIME - 4 + TIME - 1) / 2
        for name in cut[0]:
            mean = np.exp(np.log([row[name][head] for row in cut]).mean())
            if name != "condition":
                mean = np.mean([row[name][head] for row in cut])
            np.testing.assert_allclose(figures[name], mean)


@pytest.mark.torch
def test_activations_follow_the_model():
    model = presets.load("unilm_nano")
    x = batch()
    (stack,) = activations(model, x)
    assert len(stack.states) == 3
    assert stack.masks["source_mask"] is not None
    last = model.backbone.get_layer("final_norm")(stack.states[-1])
    np.testing.assert_allclose(
        ops.convert_to_numpy(last), ops.convert_to_numpy(model.backbone(x)), atol=1e-5
    )


@pytest.mark.parametrize("analysis", [attention_spectrum, collapse, leaks])
def test_analyses_say_what_they_take(analysis):
    model = presets.load("unilm_nano", num_layers=1)
    x = batch()
    del x["source_mask"]
    with pytest.raises(InputError, match="source_mask.*Received: token_ids, padding_mask$"):
        analysis(model, x)
    with pytest.raises(InputError, match="Received: Sequential$"):
        analysis(keras.Sequential(), x)


# Collapse ---------------------------------------------------------------------------------


def test_collapse():
    model = presets.load("bert_nano", positions="none")
    x = batch()
    x["padding_mask"][1:] = 1
    x["padding_mask"][1, -4:] = 0
    x["token_ids"][1:, :-4] = 65
    x["padding_mask"][2] = 0
    result = collapse(model, x)
    assert [depth["layer"] for depth in result] == [0, 1, 2]
    # Equal tokens without positions stay equal, so the second row adds 0; the third is empty.
    (stack,) = activations(model, x)
    for depth, state in zip(result, stack.states, strict=True):
        state = ops.convert_to_numpy(state)[0].astype("float64")
        for tokens, name in ((state, "residual"), (state[TIME // 2 :], "residual_last_half")):
            distance = np.linalg.norm(tokens - tokens.mean(0)) / np.linalg.norm(tokens)
            np.testing.assert_allclose(depth[name], distance / 2, rtol=1e-3)
    assert 0.4 < result[0]["residual"] < 0.5


# Leaks ------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_no_layer_leaks(mechanism):
    mask = masks.layers(masks.half_heads(), masks.heads("bidirectional", {"block": {"size": 3}}))
    model = presets.load("bert_nano", mechanism=mechanism, mask=mask.get_config())
    result = leaks(model, batch())
    assert [layer.layer for layer in result] == [0, 1]
    for layer in result:
        assert layer.hidden == []
        assert layer.unused == []


@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_leaks_are_found(mechanism):
    model = presets.load("bert_nano", mechanism=mechanism, mask="causal", num_layers=2)
    first, second = (block.attention for block in model.backbone.transformer_layers)
    other = presets.load("bert_nano", mechanism=mechanism, mask="reversed", num_layers=1)
    first.attend = other.backbone.transformer_layers[0].attention.attend
    x = batch()
    x["padding_mask"][1:] = 0
    broken, sound = leaks(model, x)
    pairs = {(i, j) for i in range(TIME) for j in range(TIME)}
    assert {place[2:] for place in broken.hidden} == {(i, j) for i, j in pairs if j > i}
    assert {place[2:] for place in broken.unused} == {(i, j) for i, j in pairs if j < i}
    assert {place[:2] for place in broken.hidden} == {(0, head) for head in range(4)}
    assert sound.hidden == sound.unused == []


def test_a_faint_leak_is_found():
    model = presets.load("bert_nano", mask="causal", num_layers=1)
    attention = model.backbone.transformer_layers[0].attention
    attend = attention.attend

    def leaking(inputs, *args, **kwargs):
        future = ops.mean(inputs[:, -1, : attention.head_dim], axis=-1)
        return attend(inputs, *args, **kwargs) + 1e-4 * future[:, None, None, None]

    attention.attend = leaking
    x = batch()
    x["padding_mask"][1:] = 1
    (layer,) = leaks(model, x)
    assert {place[2:] for place in layer.hidden} == {(i, TIME - 1) for i in range(TIME - 1)}


# Pictures ---------------------------------------------------------------------------------


def squares(figure):
    return [axes.collections[0].get_array().reshape(8, 8) for axes in figure.axes]


def test_draw_masks_draws_each_mask_once():
    figure = draw_masks("half_heads", 4, 6, time=8)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["causal\nheads 0, 2, 4", "reversed\nheads 1, 3, 5"]
    np.testing.assert_array_equal(squares(figure)[0], np.tril(np.ones((8, 8))))
    np.testing.assert_array_equal(squares(figure)[1], np.triu(np.ones((8, 8))))
    assert len(draw_masks("alternating", 12, 4).axes) == 2
    assert "layers 0, 2, …, 10" in draw_masks("alternating", 12, 4).axes[0].get_ylabel()
    with pytest.raises(InputError, match="does not tile"):
        draw_masks("alternating", 3, 4)


def test_draw_masks_shows_the_source_and_needs_no_screen():
    figure = draw_masks("prefix", 2, 4, time=8, source=3)
    (square,) = squares(figure)
    assert (square[:, :3] == 2).all()
    np.testing.assert_array_equal(square[3:, 3:], np.tril(np.ones((5, 5))))
    assert "sees (in the source)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert figure.canvas.manager is None  # pyplot would have given it one
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_masks_in_a_terminal():
    lines = terminal_masks("half_heads", 2, 4, time=5).split("\n")
    assert lines == [
        "all layers",
        "causal       reversed",
        "heads 0, 2   heads 1, 3",
        "┌─────┐      ┌─────┐",
        "│█▄   │      │▀████│",
        "│███▄ │      │  ▀██│",
        "│▀▀▀▀▀│      │    ▀│",
        "└─────┘      └─────┘",
    ]
    assert terminal_masks(masks.custom(lambda q, k: q == k), 1, 1, time=2).split("\n") == [
        "one layer",
        "custom",
        "one head",
        "┌──┐",
        "│▀▄│",
        "└──┘",
    ]


def test_states_that_vanish_have_no_residual():
    """Without skips and norms small states become 0, and large ones infinite: neither is alike."""
    for norm in NORMS.values():
        for none in (np.zeros((4, 3)), np.full((4, 3), np.inf), np.full((4, 3), np.nan)):
            assert np.isnan(_residual(none, norm))
        assert _residual(np.ones((4, 3)) * 1e-300, norm) == 0
        assert _residual(np.eye(4) * 1e-300, norm) == _residual(np.eye(4), norm) > 0.5
