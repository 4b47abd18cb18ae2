"""What is held out and what a slice draws from, told from the batches' own bytes."""

import csv
import itertools
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kzoo import data
from kzoo.data import splits, text
from kzoo.data.batches import Batches
from kzoo.errors import InputError
from kzoo.vocabulary import NUM_BYTES, SEP

CORPORA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_corpora = pytest.mark.skipif(
    not CORPORA.exists(), reason="the corpora are not beside the project"
)


def load(source, objective="prefix_lm", mask="prefix", batch_size=4, length=512, **kwargs):
    config = {"max_sequence_length": length, "mask": mask, "objective": objective}
    config["stack"] = kwargs.pop("stack", "single")
    return data.load(source, config, batch_size=batch_size, **kwargs)


def pairs_of(dataset):
    """The (source, target) strings that the rows of a data set of pairs spell."""
    rows = [row for x, _, _ in dataset for row in x["token_ids"] if (row == SEP).any()]
    halves = [np.split(row, [row.tolist().index(SEP)]) for row in rows]
    spelled = [[bytes(h[h < NUM_BYTES].astype(np.uint8)).decode() for h in pair] for pair in halves]
    return [tuple(pair) for pair in spelled]


def look(string):
    """How a text looks to a reader who overlooks case and spaces."""
    return "".join(unicodedata.normalize("NFKC", string).lower().split())


def on_both_sides(split, column):
    sides = [{look(pair[column]) for pair in pairs_of(part)} for part in split]
    assert all(sides)
    return sides[0] & sides[1]


def e2e():
    with open(CORPORA / "seq2seq" / "e2e_cleaned_devel.csv", encoding="utf-8") as file:
        return [(row["mr"], row["ref"]) for row in csv.DictReader(file)][:1500]


def wikisplit():
    lines = (CORPORA / "seq2seq" / "wikisplit_tune.tsv").read_text("utf-8").split("\n")
    return [tuple(line.split("\t")[:2]) for line in lines[:1500] if "\t" in line]


# Groups


@needs_corpora
@pytest.mark.parametrize("corpus", [e2e, wikisplit, lambda: [(b, a) for a, b in e2e()]])
def test_no_source_and_no_target_of_a_real_corpus_is_on_both_sides(corpus):
    rows = corpus()
    split = load(rows, length=1024)
    assert not on_both_sides(split, 0) and not on_both_sides(split, 1)
    facts = split.facts["split"]
    assert facts["linked_by"] == "source and target"
    assert facts["sources_on_both_sides"] == facts["targets_on_both_sides"] == 0
    assert abs(split.facts["valid_rows"] / len(set(rows)) - 0.1) < 0.005
    assert split.facts["train_rows"] + split.facts["valid_rows"] == len(set(rows))


TEXTS = st.sampled_from([f"text number {i} of a few" for i in range(60)])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=12, max_size=60, unique=True))
def test_groups_are_those_of_a_search_through_the_graph(rows):
    group = splits.components([[a for a, _ in rows], [b for _, b in rows]])
    reached = np.full(len(rows), -1)
    for start in range(len(rows)):  # breadth first
        frontier = [start] if reached[start] < 0 else []
        while frontier:
            i = frontier.pop()
            reached[i] = start
            near = (j for j in range(len(rows)) if set(rows[i]) & set(rows[j]))
            frontier += [j for j in near if reached[j] < 0]
    pairs = itertools.combinations(range(len(rows)), 2)
    assert all((group[i] == group[j]) == (reached[i] == reached[j]) for i, j in pairs)
    firsts = [list(group).index(g) for g in range(group.max() + 1)]
    assert firsts == sorted(firsts)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=200), st.floats(0.01, 0.99))
def test_about_the_part_asked_for_is_held_out(sizes, valid):
    sizes = np.array(sizes)
    chosen = splits.choose(sizes, valid, np.zeros(len(sizes)))
    assert 0 < len(set(chosen.tolist())) == len(chosen) < len(sizes)
    assert abs(sizes[chosen].sum() - valid * sizes.sum()) <= sizes.max()


def test_a_text_changed_in_case_space_or_unicode_form_is_the_same_one():
    rows = [(f"sentence {i}", f"Satz {i} mit \u00e9") for i in range(40)]
    rows += [(f"  SENTENCE\t{i} ", f"another {i}") for i in range(40)]
    rows += [(f"third {i}", f"satz {i}  MIT e\u0301 ") for i in range(40)]
    rows += [(f"Satz {i} mit \u00e9", f"back {i}") for i in range(40)]  # the other direction
    split = load(rows)
    assert not on_both_sides(split, 0) and not on_both_sides(split, 1)
    assert split.facts["split"]["groups"] == 40
    texts = load([text for row in rows[:80] for text in row[:1]], "causal_lm", "causal")
    assert texts.facts["split"]["groups"] == 40
    assert texts.facts["split"]["linked_by"] == "text"


def test_labels_may_repeat_and_long_answers_may_not():
    rows = [(f"utterance {i}", f"label {i % 60}") for i in range(600)]
    split = load(rows)
    assert split.facts["split"]["linked_by"] == "source"
    assert not on_both_sides(split, 0) and len(on_both_sides(split, 1)) > 40
    assert split.facts["split"]["targets_on_both_sides"] == len(on_both_sides(split, 1))

    rows = [(source, f"{label}, told in a whole sentence of some length") for source, label in rows]
    split = load(rows)
    assert split.facts["split"]["linked_by"] == "source and target"
    assert not on_both_sides(split, 0) and not on_both_sides(split, 1)
    assert split.facts["split"]["groups"] == 60


def test_a_large_group_is_split_by_source_and_counted(caplog):
    # Two hundred sources with two targets each, one of them the same for all.
    rows = [(f"source {i}", f"a target of its own, {i}") for i in range(200)]
    rows += [(f"source {i}", "all have this one") for i in range(200)]
    rows += [(f"apart {i}", f"from them {i}") for i in range(100)]
    split = load(rows)
    facts = split.facts["split"]
    assert facts["rows_split_by_source"] == 400 and facts["largest_group_rows"] == 2
    assert not on_both_sides(split, 0)
    assert on_both_sides(split, 1) == {look("all have this one")}
    assert facts["targets_on_both_sides"] == 1 and facts["sources_on_both_sides"] == 0
    assert "400 of 500 examples" in caplog.text


def test_sources_that_say_nothing_link_nothing(caplog):
    empty = load([("", f"a story {i}") for i in range(40)])
    assert empty.facts["split"]["groups"] == 40
    one = load([("Tell a story.", f"story {i}") for i in range(40)])
    assert one.facts["split"]["sources_on_both_sides"] == 1
    assert one.facts["split"]["linked_by"] == "target" and "one source" in caplog.text
    with pytest.raises(InputError, match="1 group"):
        load(["the same"] * 9 + ["THE SAME"])


def test_the_split_depends_on_the_rows_and_the_part_alone():
    rows = [(f"s {i % 70}", f"answer {i}") for i in range(300)]
    arms = [
        load(rows, valid=0.2),
        load(rows, batch_size=7, seed=3, valid=0.2),
        load(rows, mask="bidirectional", stack="encoder_decoder", valid=0.2),
        load(rows, objective="masked_lm", mask="bidirectional", valid=0.2),
    ]
    assert len({arm.facts["valid_bytes"] for arm in arms}) == 1
    assert len({str(arm.facts["split"]) for arm in arms}) == 1
    assert sorted(pairs_of(arms[0].valid)) == sorted(pairs_of(arms[1].valid))


def test_rows_that_share_nothing_are_held_out_evenly_as_ever():
    held_out, facts = splits.hold_out([(f"a {i}", f"b {i}") for i in range(1000)], 0.03)
    assert (np.flatnonzero(held_out) == np.arange(1, 31) * 1000 // 30 - 1).all()
    assert facts["groups"] == 1000


# Running text


def shared_by_sets(train, held_out, size):
    runs = {train[i : i + size] for i in range(len(train) - size + 1)}
    found = np.zeros(len(held_out), bool)
    for i in range(len(held_out) - size + 1):
        if held_out[i : i + size] in runs:
            found[i : i + size] = True
    return int(found.sum())


def altered(document, every, rng):
    document = bytearray(document)
    for i in range(rng.integers(every), len(document), every):
        document[i] = rng.integers(65, 91)
    return bytes(document)


@pytest.mark.parametrize("every", [1000, 200, 100])
def test_documents_repeated_with_small_changes_are_cut_out_of_training(every):
    rng = np.random.default_rng(0)
    words = [f"{n:x}" for n in rng.integers(1 << 20, size=20_000)]
    documents = [" ".join(words[i : i + 300]).encode() for i in range(0, len(words), 300)]
    copies = documents + [altered(document, every, rng) for document in documents[:20]]
    whole = b"\n\n".join(copies[i] for i in rng.permutation(len(copies)))
    train, held_out = (part.tobytes() for part in text.split(whole, 0.1))
    assert shared_by_sets(train, held_out, 64) == 0
    assert shared_by_sets(train, held_out, 50) < 0.02 * len(held_out)
    assert len(train) + len(held_out) < len(whole)


def test_what_is_changed_too_often_to_be_cut_out_is_counted(caplog):
    rng = np.random.default_rng(0)
    words = [f"{n:x}" for n in rng.integers(1 << 20, size=6000)]
    documents = [" ".join(words[i : i + 100]) for i in range(0, len(words), 100)]
    near = [altered(document.encode(), 50, rng).decode() for document in documents]
    mixed = [(documents + near)[i] for i in rng.permutation(2 * len(documents))]
    split = load(mixed, "causal_lm", "causal", length=1024, batch_size=1)
    held_out, train = (
        [bytes(row[row < NUM_BYTES].astype(np.uint8)) for _, y, _ in part for row in y]
        for part in (split.valid, split.train)
    )
    expected = sum(shared_by_sets(b"\n\n\n".join(train), row, 32) for row in held_out)
    assert split.facts["split"]["shared_bytes"] == expected > 0.5 * split.facts["valid_bytes"]
    assert "near copies" in caplog.text
    assert load(documents, "causal_lm", "causal").facts["split"]["shared_bytes"] == 0


@needs_corpora
@pytest.mark.parametrize("name", ["se_pride-and-prejudice", "tinyshakespeare"])
def test_a_book_shares_next_to_nothing(name):
    whole = (CORPORA / "lm" / f"{name}.txt").read_bytes()[:700_000]
    train, held_out = text.split(whole, 0.1)
    assert shared_by_sets(train.tobytes(), held_out.tobytes(), 64) == 0
    assert shared_by_sets(train.tobytes(), held_out.tobytes(), 50) < 0.001 * len(held_out)
    expected = shared_by_sets(train.tobytes(), held_out.tobytes(), 32)
    assert text.shared([train], [held_out]) == expected < 0.01 * len(held_out)


# Slices


@pytest.fixture(scope="module")
def train():
    return load([f"row {i:03d}" for i in range(110)], "causal_lm", "causal", batch_size=4).train


def texts_of(batches):
    rows = [row for _, y, _ in batches for row in y]
    return [bytes(row[row < NUM_BYTES].astype(np.uint8)) for row in rows]


@pytest.mark.parametrize("where", [slice(3), slice(5, 9), slice(None, None, 4), slice(-2, None)])
def test_whatever_follows_a_slice_draws_from_it_alone(train, where):
    part = train[where]
    places = range(len(train))[where]
    rows = Counter(texts_of(part))
    assert texts_of(part) == texts_of(train[i] for i in places) and len(part) == len(places)
    epochs = part.repeat(3)
    each = [texts_of(epochs[i * len(part) : (i + 1) * len(part)]) for i in range(3)]
    assert all(Counter(epoch) == rows for epoch in each)
    assert len({tuple(epoch) for epoch in each}) == 3
    forever = part.repeat()
    assert texts_of(forever[: 3 * len(part)]) == sum(each, [])
    for derived in (
        part.shuffle(seed=1).repeat(4),
        part.repeat().shuffle(seed=1)[:9],
        part.seed(7).shuffle().repeat(4),
        part[:2].repeat(5),
        part.map(lambda batch: batch).repeat(4),
        forever[1:11].repeat(3),
        forever[2:4][:1].repeat(5),
    ):
        assert set(texts_of(derived)) <= set(rows)
    for _, y, _ in part.batch(2, drop_remainder=True).repeat(4):
        assert set(texts_of((None, rows, None) for rows in y)) <= set(rows)


def test_a_repeated_data_set_goes_on_at_each_batch(train):
    whole = texts_of(train.repeat()[: 3 * len(train)])
    for start in (0, 1, len(train) - 1, len(train), 2 * len(train) + 5):
        assert texts_of(train.repeat()[start : start + 3]) == whole[4 * start : 4 * start + 12]
    iterator = iter(train.repeat()[5:].to_iter_dataset())
    next(iterator)
    state = iterator.get_state()
    again = iter(train.repeat()[5:].to_iter_dataset())
    again.set_state(state)
    assert (
        texts_of([next(again), next(again)])
        == whole[24:32]
        == texts_of(next(iterator) for _ in "ab")
    )


def test_batches_of_a_slice_are_drawn_anew_and_the_last_one_counts_backwards():
    def encode(rows, rng):
        return sorted(rows), rng.random()

    batches = Batches(range(20), 2, 0, encode)
    assert batches[-1] == batches[9] and batches[:4][-1] == batches[3]
    part = batches[2:4].repeat()
    drawn = [part[i][1] for i in range(40)]
    assert len(set(drawn)) == 40 and drawn[:2] == [batches[2][1], batches[3][1]]
    with pytest.raises(ValueError):
        batches.repeat().repeat()
    assert batches.repeat(2, reseed_each_epoch=False)[10] == batches[0]
    first = {row for i in range(3) for row in batches.repeat()[:3][i][0]}
    assert {row for rows, _ in batches.repeat()[:3].repeat(9) for row in rows} == first
