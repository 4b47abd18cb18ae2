"""Rows of a batch: as long as examples need, buckets, first fit; what is cut; unequal stacks."""

import itertools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kzoo
from kzoo import data, presets
from kzoo.data import packing as packings
from kzoo.errors import InputError
from kzoo.studies import Study
from kzoo.studies.folder import as_begun, check_directory, write_study

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "lm"
LENGTH = 48
SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 5,
    "head_dim": 4,
    "intermediate_dim": 16,
    "max_sequence_length": LENGTH,
}
ARMS = {"gpt": {"objective": "prefix_lm"}, "unilm": {}, "t5": {}}


def words(rng, least, most):
    return "".join(rng.choice(list("abcdefghij"), rng.integers(least, most + 1)))


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [(words(rng, 3, 14), f"{i:03}{words(rng, 1, 17)}") for i in range(150)]


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return [words(rng, 2, 120) for _ in range(200)]


def config(family="gpt", **fields):
    return {
        **presets.config(f"{family}_nano", **ARMS[family]),
        "max_sequence_length": LENGTH,
    } | fields


def load(source, arm=None, batch_size=4, **kwargs):
    return data.load(source, arm or config(), batch_size=batch_size, **kwargs)


def examples(batch):
    """The examples of a batch, one by one: dicts of their own columns of each array."""
    x, y, weight = batch
    own = "decoder_" if "decoder_token_ids" in x else ""
    arrays = {**x, "labels": y, "weight": weight}
    for row, mask in enumerate(x[f"{own}padding_mask"]):
        for document in range(1, mask.max() + 1):
            found = {}
            for name, array in arrays.items():
                beside = name.startswith("encoder_")
                of_row = x["encoder_padding_mask"][row] if beside else mask
                found[name] = array[row][of_row == document]
            yield found


def scored(dataset):
    """The scored labels of every example of a data set, in the order of their bytes."""
    each = (one for batch in dataset for one in examples(batch))
    return sorted(one["labels"][one["weight"] > 0].tolist() for one in each)


# Plans ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1), st.integers(1, 9))
def test_first_fit_opens_a_row_only_where_no_other_has_room(items, bins):
    room, left = (9, 5), []
    rows = packings.first_fit(np.array(items), room, max(bins, len(items))).tolist()
    for item, row in zip(items, rows, strict=True):
        fits = [i for i, free in enumerate(left) if item[0] <= free[0] and item[1] <= free[1]]
        left += [] if fits else [room]
        assert row == (fits[0] if fits else len(left) - 1)
        left[row] = (left[row][0] - item[0], left[row][1] - item[1])
    rows = packings.first_fit(np.array(items), room, bins)
    assert set(rows.tolist()) == set(range(rows.max() + 1))
    for row in range(rows.max() + 1):
        assert (np.array(items)[rows == row].sum(0) <= room).all()


@pytest.mark.parametrize("name", packings.names())
@pytest.mark.parametrize("family", ARMS)
def test_an_epoch_holds_every_example_once(pairs, name, family):
    """But for a remainder that fills no batch, which another epoch has."""
    whole = load(pairs, config(family), 1, packing=name)
    assert scored(whole.train) == scored(load(pairs, config(family), 1).train)
    some, every = load(pairs, config(family), 4, packing=name).train, scored(whole.train)
    for epoch in (0, 1):
        read = scored(some.repeat()[epoch * len(some) : (epoch + 1) * len(some)])
        assert len({str(x) for x in read}) == len(read) and all(x in every for x in read)


@pytest.mark.parametrize("name", packings.names())
def test_every_stack_scores_the_same_tokens_of_the_same_pairs(pairs, name):
    """GPT, UniLM and T5: batch by batch, and in the facts; source for source, too."""
    arms = [load(pairs, config(family), packing=name, seed=3) for family in ARMS]
    assert arms[0].facts == arms[1].facts == arms[2].facts
    for of_gpt, of_unilm, of_t5 in itertools.chain(
        zip(*(arm.train for arm in arms), strict=True),
        zip(*(arm.valid for arm in arms), strict=True),
    ):
        for one, two, three in zip(*map(examples, (of_gpt, of_unilm, of_t5)), strict=True):
            labels = [each["labels"][each["weight"] > 0] for each in (one, two, three)]
            assert labels[0].tolist() == labels[1].tolist() == labels[2].tolist()
            source = two["token_ids"][two["source_mask"] > 0]
            assert source.tolist() == three["encoder_token_ids"].tolist()


@pytest.mark.parametrize("name", packings.names())
def test_batches_follow_from_seed_and_position(pairs, name):
    train, again = (load(pairs, packing=name, seed=5).train for _ in range(2))
    middle = len(train) + 2
    for a, b in zip(
        train.repeat()[middle : middle + 3], iter(again.repeat()[middle:]), strict=False
    ):
        for one, other in zip(examples(a), examples(b), strict=True):
            assert all((one[key] == other[key]).all() for key in one)
    other = load(pairs, packing=name, seed=6).train
    assert any(
        (train[i][1] != other[i][1]).any()
        for i in range(3)
        if train[i][1].shape == other[i][1].shape
    )
    kept = {str(x) for x in scored(train[:3])}
    assert {str(x) for x in scored(train[:3].repeat()[:9])} == kept


def test_shapes_are_as_few_and_as_small_as_they_can_be(pairs):
    t5 = config("t5")
    need = [(len(s) + 2, len(t) + 1) for s, t in pairs]
    padded = load(pairs, t5)
    x, y, _ = padded.train[0]
    assert x["encoder_token_ids"].shape == (4, max(e for e, _ in need))
    assert x["decoder_token_ids"].shape == y.shape == (4, max(d for _, d in need))
    assert padded.valid[0][1].shape == y.shape
    before = load(pairs, t5, packing={"padded": {"equal_lengths": True}})
    longest = max(e + d - 1 for e, d in need)
    assert {a.shape for a in before.train[0][0].values()} == {(4, longest)}
    np.testing.assert_array_equal(before.train[0][1][:, : y.shape[1]], y)
    assert not before.train[0][2][:, y.shape[1] :].any()

    shapes = {batch[1].shape for batch in load(pairs, packing={"buckets": {"count": 3}}).train}
    assert 2 <= len(shapes) <= 3 and max(shapes) == (4, longest)
    packed = load(pairs, t5, packing="first_fit")
    shapes = {tuple(a.shape for a in batch[0].values()) for batch in packed.train}
    assert len(shapes) == 1
    facts = packed.facts["packing"]
    area = facts["encoder_length"] + facts["decoder_length"]
    assert area <= 1.2 * facts["row_length"] and facts["fill"] > 0.85


# The same loss -------------------------------------------------------------------------------


def loss_of(model):
    """A compiled function of a batch: Σ w·nll, and its gradients."""
    values = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]

    def nats(values, x, y, weight):
        logits, _ = model.stateless_call(values, others, x)
        nll = -jax.numpy.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1)[..., 0]
        return (weight * nll).sum()

    run = jax.jit(jax.value_and_grad(nats))
    return lambda x, y, weight: run(values, {name: x[name] for name in model.input}, y, weight)


def widened(array, count):
    """An array [rows, columns] with zeros up to `count` rows and `LENGTH` columns."""
    return np.pad(array, [(0, count - len(array)), (0, LENGTH - array.shape[1])])


def one_in_a_row(batch, count):
    """The same examples, one in a row of `LENGTH` columns, and rows of padding up to `count`."""
    found = list(examples(batch))
    arrays = {name: np.zeros((count, LENGTH), array.dtype) for name, array in found[0].items()}
    for row, one in enumerate(found):
        for name, array in one.items():
            filled = array * 0 + 1 if name.endswith("padding_mask") else array
            arrays[name][row, : len(array)] = filled
    return arrays, arrays.pop("labels"), arrays.pop("weight")


ORDERS = ("bidirectional", "causal", "reversed", {"block": {"size": 4}}, {"permuted": {"seed": 1}})
DECAYING = ("bidirectional", "causal", "reversed", "prefix", {"block": {"size": 4}})
SINGLE = {
    "softmax": (*ORDERS[:4], "prefix"),
    "linear": ("prefix", *ORDERS[1:]),
    "retention": DECAYING,
    "gated_linear": DECAYING,
    "delta": ("causal", "reversed"),
    "gated_delta": ("reversed", "causal"),
}
CROSS = [mechanism for mechanism in SINGLE if "delta" not in mechanism]


@pytest.mark.parametrize("mechanism", SINGLE)
def test_packed_rows_have_the_loss_and_the_gradients_of_single_ones(pairs, mechanism):
    """Every order that the mechanism follows, one in each head, as they read in place."""
    mask, objective = {"heads": [*SINGLE[mechanism]]}, "unilm"
    fields = {**SMALL, "mask": mask, "objective": objective, "mechanism": mechanism}
    fields["num_heads"] = len(SINGLE[mechanism])
    if "prefix" not in SINGLE[mechanism]:
        fields["objective"] = "masked_lm"
    assert_same_loss(presets.load("bert_nano", **fields), pairs)


@pytest.mark.parametrize("mechanism", CROSS)
def test_the_target_of_a_packed_pair_reads_its_own_source(pairs, mechanism):
    orders = [order for order in SINGLE[mechanism] if order != "prefix"]
    fields = {**SMALL, "mask": {"heads": orders}, "mechanism": mechanism, "num_heads": len(orders)}
    assert_same_loss(presets.load("t5_nano", **fields), pairs)


def assert_same_loss(model, pairs):
    batch = load(pairs, model, 4, packing="first_fit").train[1]
    assert sum(1 for _ in examples(batch)) > 4
    loss, (x, y, weight) = loss_of(model), batch
    packed = {name: widened(array, 12) for name, array in x.items()}
    nats, gradients = loss(packed, widened(y, 12), widened(weight, 12))  # one compilation for both
    expected, other = loss(*one_in_a_row(batch, 12))
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    for variable, a, b in zip(model.trainable_variables, gradients, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(abs(b).max() + 1), err_msg=variable.path)


# Long examples -------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption"])
def test_long_texts_are_split_and_nothing_is_lost(texts, objective):
    arm = config(objective=objective, mask="causal")
    splits = load(texts, arm, 1, packing="first_fit")
    long = sum(len(text) + 2 - (objective != "masked_lm") > LENGTH for text in texts)
    if objective != "span_corruption":
        assert splits.facts["split_rows"] == long
    assert splits.facts["cut_rows"] == splits.facts["cut_tokens"] == 0
    if objective == "causal_lm":
        read = [one for part in splits for batch in part for one in examples(batch)]
        total = sum(int(one["weight"].sum()) for one in read)
        assert total == sum(len(text) + 1 for text in set(texts))  # all bytes, and an end each
        assert sum(258 in one["labels"] for one in read) == len(set(texts))


def test_what_is_cut_is_counted_and_a_target_is_never_cut_in_silence(caplog):
    pairs = [(f"{i:02}" + "s" * 60, f"{i:02}" + "t" * 10) for i in range(40)]
    splits = load(pairs)
    assert splits.facts["cut_rows"] == splits.facts["cut_to_one_token"] == 40
    assert splits.facts["cut_tokens"] == 40 * (62 + 12 + 2 - LENGTH)
    assert "one token of the target is left" in caplog.text and "truncate_source" in caplog.text
    caplog.clear()
    whole = load(pairs, packing={"first_fit": {"long": "truncate_source"}})
    assert whole.facts["cut_to_one_token"] == 0 and whole.facts["cut_rows"] == 40
    assert "one token" not in caplog.text
    for family in ARMS:
        arm = load(pairs, config(family), packing={"padded": {"long": "truncate_source"}})
        assert {len(labels) for labels in scored(arm.train)} == {13}  # all of it, and the end
    with pytest.raises(InputError, match="Received: 40 of 40"):
        load(pairs, packing={"padded": {"long": "refuse"}})


@pytest.mark.parametrize(
    "packing, words",
    [
        ("firstfit", "did you mean 'first_fit'"),
        ({"first_fit": {"bins": 0}}, "bins"),
        ({"first_fit": {"long": "cut"}}, "truncate_source"),
        ({"padded": {"equal_lengths": 2}}, "equal_lengths"),
        ({"buckets": {"counts": 2}}, "'count'"),
        (None, "packing"),
    ],
    ids=str,
)
def test_bad_packings(pairs, packing, words):
    with pytest.raises(InputError, match=re.escape(words)):
        load(pairs, packing=packing)


def test_too_few_rows_for_a_batch(pairs):
    with pytest.raises(InputError, match="rows and batch_size=100"):
        load(pairs, batch_size=100, packing="first_fit")


@pytest.mark.skipif(not TEXTS.is_dir(), reason="no ../shared/data/lm beside the project")
def test_paragraphs_fill_their_rows():
    """At least 0.95 at lengths of 64 to 1024, with no token dropped; a part of the texts, first."""
    text = "".join((TEXTS / f"{name}.txt").read_text() for name in ("se_pride-and-prejudice",))
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    size = sum(len(part.encode()) + 1 for part in set(paragraphs))
    for length in (64, 256, 1024):
        splits = load(
            paragraphs,
            config(max_sequence_length=length, objective="causal_lm"),
            1,
            packing="first_fit",
        )
        facts = splits.facts["packing"]
        assert facts["fill"] >= 0.95 and splits.facts["cut_tokens"] == 0
        held_out = sum(weight.sum() for _, _, weight in splits.valid)
        assert facts["fill"] * facts["rows"] * length + held_out == pytest.approx(size, rel=1e-3)


# Studies and runs ----------------------------------------------------------------------------

STUDY = {"arms": {"GPT": "gpt_nano"}, "data": "pydoc", "steps": 10, "seeds": 1}


def test_a_study_says_its_packing_and_one_saved_without_keeps_its_lengths(tmp_path):
    new = as_begun(Study.from_dict(STUDY), tmp_path / "new")
    assert new.to_dict()["packing"] == "padded"
    given = Study.from_dict({**STUDY, "packing": {"first_fit": {"bins": 128}}})
    assert as_begun(given, tmp_path / "new").packing == "first_fit"
    assert "packing" not in Study.from_dict(STUDY).to_dict()

    folder = tmp_path / "before"
    write_study(new, folder)
    saved = {k: v for k, v in new.to_dict().items() if k != "packing"}
    (folder / "study.json").write_text(json.dumps(saved))
    again = as_begun(Study.from_dict(STUDY), folder)
    assert again.packing == {"padded": {"equal_lengths": True}}
    check_directory(again, folder)
    with pytest.raises(InputError, match="packing"):
        check_directory(given, folder)


def test_kzoo_train_takes_a_packing(capsys):
    from kzoo.cli import main

    command = ["train", "gpt_nano", "--text", "pydoc", "--steps", "1", "--out", "x"]
    assert main([*command, "--packing", "firstfit"]) == 2
    assert "did you mean 'first_fit'" in capsys.readouterr().err


# Stacks of different depths ------------------------------------------------------------------


def test_an_encoder_and_a_decoder_may_have_different_depths():
    depths = [(1, None), (1, 3), (3, 1)]
    models = [presets.load("t5_nano", num_layers=a, decoder_layers=b, **TINY) for a, b in depths]
    for model, (a, b) in zip(models, depths, strict=True):
        stacks = model.backbone.stacks
        assert [len(stacks[name].blocks) for name in ("encoder", "decoder")] == [a, b or a]
        assert model.count_params() == kzoo.config.count_parameters(model.config)
    one, deep, other = ({v.path: np.asarray(v) for v in m.weights} for m in models)
    assert one.keys() < deep.keys() and one.keys() < other.keys()
    assert all((deep[path] == one[path]).all() and (other[path] == one[path]).all() for path in one)


TINY = {"hidden_dim": 8, "num_heads": 2, "intermediate_dim": 8, "max_sequence_length": 16}


@pytest.mark.parametrize(
    "name, fields, words",
    [
        ("gpt_nano", {"decoder_layers": 2}, "only an encoder and a decoder"),
        ("t5_shared_nano", {"decoder_layers": 3}, "shares the encoder's blocks"),
        ("t5_nano", {"decoder_layers": 0}, "decoder_layers must be a positive integer"),
    ],
)
def test_bad_depths(name, fields, words):
    with pytest.raises(InputError, match=words):
        presets.config(name, **fields)


def test_transformers_t5_of_unequal_stacks_is_converted_both_ways(tmp_path):
    import convert_zoo

    theirs = convert_zoo.t5(num_layers=1, num_decoder_layers=3)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = presets.load(tmp_path / "theirs")
    assert (ours.config["num_layers"], ours.config["decoder_layers"]) == (1, 3)
    convert_zoo.assert_same_logits("t5", theirs, ours)
    kzoo.convert.to_huggingface(ours, tmp_path / "ours")
    copy = type(theirs).from_pretrained(tmp_path / "ours")
    assert copy.config.num_decoder_layers == 3
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(copy.state_dict()[name], value)
