"""Masked LM by runs and words, UL2 and UniLM's mixture against their papers' rules."""

import collections
import dataclasses
import re

import numpy as np
import pytest

from kzoo import objectives, presets
from kzoo.encoder import Encoder
from kzoo.errors import InputError
from kzoo.objectives import layouts
from kzoo.vocabulary import BOS, BYTES, EOS, MASK, MODES, NUM_BYTES, PAD, SENTINELS, SEP

DRAWS = 10_000


def encoder(spec, layout=None):
    return Encoder(objectives.get(spec), layout or layouts.Single(source_mask=True))


def close(found, share, draws):
    """Whether a share of some draws is within five standard deviations of what it should be."""
    assert abs(found / draws - share) < 5 * (share * (1 - share) / draws) ** 0.5, found / draws


# Runs and words of masked LM -------------------------------------------------------------------


def hidden(spec, ids, seed=0):
    return objectives.get(spec).hide(np.asarray(ids), np.random.default_rng(seed))


def test_runs_of_one_to_three():
    # So long a text and so small a rate that runs hardly ever touch.
    ids = np.full((40, 5000), ord("a"))
    _, chosen = hidden({"masked_lm": {"longest": 3, "rate": 0.01}}, ids)
    assert (chosen.sum(1) == 50).all()
    found = [
        len(run) for row in chosen for run in re.findall("x+", "".join(" x"[int(c)] for c in row))
    ]
    sizes = collections.Counter(min(size, 4) for size in found)
    draws = sum(sizes.values())
    assert sizes[4] < 0.05 * draws
    assert [round(sizes[size] / draws, 1) for size in (1, 2, 3)] == [0.8, 0.1, 0.1]


def test_runs_keep_to_the_text_and_to_the_number():
    ids = np.tile([BOS, 97, 98, SEP, 99, 100, 101, EOS, PAD], (500, 1))
    for longest in (1, 2, 5):
        _, chosen = hidden({"masked_lm": {"longest": longest, "rate": 0.5}}, ids)
        assert (chosen.sum(1) == 2).all() and not chosen[:, [0, 3, 7, 8]].any()
    # Runs of many: two neighbours are chosen together, across the separator only by chance.
    both = [(chosen[:, a] & chosen[:, b]).mean() for a, b in ((1, 2), (4, 5), (2, 4))]
    assert min(both[:2]) > 0.1 > both[2]


def test_whole_words():
    text = "The owl, 12 mice and a naïve Straße sat down. " * 4
    ids = np.frombuffer(text.encode(), np.uint8)[None]
    words = [
        match.span() for match in re.finditer(rb"[A-Za-z0-9\x80-\xff]+|.", text.encode(), re.S)
    ]
    counts = []
    for seed in range(200):
        _, chosen = hidden({"masked_lm": {"whole_words": True}}, ids, seed)
        for start, end in words:
            assert chosen[0, start:end].all() or not chosen[0, start:end].any()
        counts.append(chosen.sum())
    assert max(counts) <= round(0.15 * ids.size) <= np.mean(counts) + 2
    _, chosen = hidden({"masked_lm": {"whole_words": True}}, [[BOS, *b"abcdefghij", EOS]])
    assert chosen.tolist() == [[False, True, True, *[False] * 9]]  # the one word is too long


def test_bad_fields_of_masked_lm():
    for fields, words in [
        ({"longest": 0}, "longest of masked_lm is a number of tokens"),
        ({"whole_words": 1}, "true or false"),
        ({"whole_words": True, "longest": 2}, "only with a longest of 1"),
    ]:
        with pytest.raises(InputError, match=words):
            objectives.get({"masked_lm": fields})


# UL2 -------------------------------------------------------------------------------------------


def denoised(n, spec="ul2", seed=0, draws=DRAWS):
    text = np.arange(n) % NUM_BYTES
    rng = np.random.default_rng(seed)
    found = objectives.get(spec).examples(None, [text] * draws, n, rng)
    return zip(found.sources, found.targets, strict=True)


def test_ul2_uses_its_seven_denoisers_equally_and_says_which():
    n, seen, ends = 200, collections.Counter(), []
    for source, target in denoised(n):
        mode, spans = source[0], (target >= NUM_BYTES).sum()
        gone = len(target) - spans
        assert target[0] == SENTINELS[0] and len(source) - 1 == n - gone + spans
        if mode == MODES[1]:
            assert spans == 1 and source[-1] == SENTINELS[0]
            assert (target[1:] == np.arange(n - gone, n)).all()
            ends.append(gone)
            seen["end"] += 1
        else:
            seen[mode - MODES[0], gone, spans] += 1
    # (rate, mean span) by the paper's table, for 200 tokens: how many go, in how many spans.
    spans = [(0, 0.15, 3), (0, 0.15, 8), (2, 0.5, 3), (2, 0.5, 8), (2, 0.15, 64), (2, 0.5, 64)]
    law = {(mode, round(n * rate), max(1, round(n * rate / span))) for mode, rate, span in spans}
    assert {*seen} == {"end", *law}
    for count in seen.values():
        close(count, 1 / 7, DRAWS)
    assert min(ends) == 1 and max(ends) == n // 2 and abs(np.mean(ends) / n - 0.25) < 0.02


@pytest.mark.parametrize("n", [2, 3, 5, 40, 63])
def test_ul2_fits_the_length_that_it_states(n):
    for spec in ("ul2", {"ul2": {"mode_tokens": False}}):
        longest = max(len(s) + len(t) for s, t in denoised(n, spec, draws=500))
        assert sum(objectives.get(spec).lengths(None, n)) == longest


def test_ul2_scores_the_same_tokens_in_every_stack():
    texts = np.random.default_rng(0).integers(256, size=(16, 30))
    one, two = (
        encoder("ul2", layout).batch(None, texts, 60, np.random.default_rng(0))
        for layout in (None, layouts.EncoderDecoder())
    )
    np.testing.assert_array_equal(one[1][one[2] > 0], two[1][two[2] > 0])
    for preset in ("gpt_nano", "unilm_nano", "t5_nano", "t5_causal_encoder_nano"):
        assert presets.config(preset, objective="ul2")["objective"] == "ul2"


def test_ul2_refuses_what_it_cannot_denoise():
    with pytest.raises(InputError, match="of pairs use the objective 'prefix_lm'"):
        encoder("ul2").batch([[1]], [[2]], 8, np.random.default_rng(0))
    with pytest.raises(InputError, match="a text of 1"):
        encoder("ul2").batch(None, [[1]], 8, np.random.default_rng(0))
    with pytest.raises(InputError, match="true or false"):
        objectives.get({"ul2": {"mode_tokens": "yes"}})

    bare = dataclasses.replace(BYTES, modes=())
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="'mode_tokens': False"):
        objectives.get("ul2").examples(None, [np.arange(9)], 9, rng, bare)


# UniLM's mixture ---------------------------------------------------------------------------------


def test_unilm_shows_a_third_a_third_a_sixth_a_sixth():
    text = np.arange(1, 21)
    x, y, weight = encoder("unilm").batch(
        None, [text] * DRAWS, 23, np.random.default_rng(0), complete=False
    )
    seen, cuts = collections.Counter(), collections.Counter()
    real = x["padding_mask"].sum(1)
    assert (np.isin(y[weight > 0], text)).all() and (weight.sum(1) == 3).all()
    for row, labels, shown in zip(real, y, x["source_mask"], strict=True):
        words = labels[1:row][labels[1:row] != SEP].tolist()
        if SEP in labels:
            separator = labels.tolist().index(SEP)
            assert shown.tolist() == [1] * (separator + 1) + [0] * (22 - separator)
            assert words == text.tolist()
            seen["source"] += 1
            cuts[separator] += 1
        elif words == text[::-1].tolist():
            assert not shown.any()
            seen["right to left"] += 1
        elif shown.any():
            assert shown[:row].all() and not shown[row:].any()
            seen["both"] += 1
        else:
            seen["left to right"] += 1
    for name, share in {"both": 1 / 3, "source": 1 / 3, "left to right": 1 / 6}.items():
        close(seen[name], share, DRAWS)
    assert min(cuts) == 2 and max(cuts) == 20
    for count in cuts.values():
        close(count, 1 / 19, seen["source"])
    masked = (x["token_ids"] == MASK).sum()
    close(masked, 0.8, weight.sum())


def test_unilm_of_pairs():
    x, y, _ = encoder("unilm").batch([[1, 2]] * 200, [[3, 4, 5]] * 200, 9, np.random.default_rng(1))
    forwards, backwards = [BOS, 1, 2, SEP, 3, 4, 5, EOS, PAD], [BOS, 5, 4, 3, SEP, 2, 1, EOS, PAD]
    shown = collections.defaultdict(set)
    for labels, row in zip(y.tolist(), x["source_mask"].tolist(), strict=True):
        shown[tuple(labels)].add(sum(row))
    assert shown == {tuple(forwards): {8, 4, 0}, tuple(backwards): {0}}


def test_unilm_is_the_same_under_every_mask():
    draws = [
        encoder("unilm", layouts.Single(source_mask=needs)).batch(
            None, [np.arange(9)] * 20, 11, np.random.default_rng(0)
        )
        for needs in (True, False)
    ]
    for a, b in zip(draws[0][1:], draws[1][1:], strict=True):
        np.testing.assert_array_equal(a, b)
    for preset in ("unilm_nano", "bert_nano", "gpt_nano"):
        presets.config(preset, objective="unilm")
    with pytest.raises(InputError, match="the objective has a source and scores targets alone"):
        presets.config("t5_nano", objective="unilm")
