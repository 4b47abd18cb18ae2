"""Classifiers: a head over any single stack, its data, and what becomes of the old head."""

import logging
import types

import numpy as np
import pytest
import small_models

import kzoo
from kzoo import data, masks, objectives, presets
from kzoo.encoder import Encoder
from kzoo.errors import InputError
from kzoo.layers import ClassHead
from kzoo.models.classifier import summary_token
from kzoo.objectives.layouts import Single
from kzoo.vocabulary import BOS, PAD, SEP

SPAM = {"classification": {"labels": ["ham", "spam"]}}
WORDS = {"win": "spam", "see": "ham"}
PAIRS = [(f"{word} {i}", label) for i in range(24) for word, label in WORDS.items()]
ONE_LAYER = {"num_layers": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked LM with a head of its own."""
    path = tmp_path_factory.mktemp("models") / "bert"
    presets.save(small_models.load("bert", output_transform=True, **ONE_LAYER), path)
    return path


@pytest.fixture(scope="module")
def classifier(folder):
    return presets.load(folder, objective=SPAM)


def weights(model):
    return {v.path: small_models.numpy(v) for v in model.weights}


@pytest.mark.parametrize(
    "mask, token",
    [
        ("bidirectional", "first"),
        ("causal", "last"),
        ("reversed", "first"),
        ("prefix", "first"),
        ({"block": {"size": 4}}, "last"),
        ({"heads": ["causal", "reversed"]}, "first"),
        ({"layers": ["causal", "reversed"]}, "first"),
        ({"layers": ["causal", {"block": {"size": 2}}]}, "last"),
    ],
    ids=str,
)
def test_the_token_that_sees_the_whole_text_tells_of_it(mask, token):
    backbone = types.SimpleNamespace(
        mask=masks.get(mask), num_layers=2, max_sequence_length=small_models.TIME
    )
    assert summary_token(backbone) == token


@pytest.mark.backends
def test_the_head_reads_one_token_that_is_no_padding():
    hidden = np.random.default_rng(0).standard_normal((3, 5, 4)).astype("float32")
    padding_mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], "int32")
    for token, positions in (("first", [0, 0, 2]), ("last", [4, 1, 3])):
        head = ClassHead(2, token)
        logits = small_models.numpy(head(hidden, padding_mask))
        kernel = small_models.numpy(head.kernel)
        expected = hidden[np.arange(3), positions] @ kernel
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        assert str(logits.dtype) == "float32"
    with pytest.raises(InputError, match="did you mean 'first'"):
        ClassHead(2, "frist")


def test_a_text_is_read_as_a_prompt_and_its_label_is_a_class():
    encoder = Encoder(objectives.get(SPAM), Single(source_mask=True, segments=(0, 1)))
    texts, labels = encoder.tokens(["ab", "abcdef"]), encoder.targets(["spam", "ham"])
    assert [encoder.example_length(*pair) for pair in zip(texts, labels, strict=True)] == [4, 8]
    x, y, weight = encoder.batch(texts, labels, 6)
    assert x["token_ids"].tolist() == [
        [BOS, 97, 98, SEP, PAD, PAD],
        [BOS, 97, 98, 99, 100, SEP],  # the end is cut, and the separator stays
    ]
    assert x["source_mask"].tolist() == x["padding_mask"].tolist()
    assert x["padding_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert y.tolist() == [1, 0] and weight.tolist() == [1, 1] and y.dtype == np.int32


def test_a_new_head_over_the_same_backbone(folder, caplog):
    old = presets.load(folder)
    with caplog.at_level(logging.INFO, logger="kzoo"):
        new = presets.load(folder, objective=SPAM)
    before, after = weights(old), weights(new)
    assert isinstance(new, kzoo.models.TextClassifier) and not new.config["output_transform"]
    for path in before.keys() - after.keys():
        assert path.startswith("head/")
    assert after.keys() - before.keys() == {"classes/kernel", "classes/bias"}
    for path in before.keys() & after.keys():
        np.testing.assert_array_equal(before[path], after[path])
    assert kzoo.config.count_parameters(new.config) == new.count_params()
    said = " ".join(caplog.messages)
    assert "new parameters, with initial values: 2 weights, 34 parameters (classes/kernel" in said
    assert "left out, as this model has no place for them: 5 weights, 688 parameters" in said
    with pytest.raises(InputError, match="unknown head/bias"):
        presets.load(folder, output_transform=False)  # the same task loses nothing


def test_saved_and_loaded_as_any_task(classifier, tmp_path, caplog):
    texts = [text for text, _ in PAIRS[:5]]
    expected = classifier.predict(texts, verbose=0)
    assert expected.shape == (5, 2)
    presets.save(classifier, tmp_path / "spam")
    with caplog.at_level(logging.INFO, logger="kzoo"):
        again = presets.load(tmp_path / "spam")
        assert not any("new parameters" in line for line in caplog.messages)
        np.testing.assert_array_equal(again.predict(texts, verbose=0), expected)
        assert again.classify(texts) == [["ham", "spam"][i] for i in expected.argmax(-1)]
        other = {"classification": {"labels": ["spam", "ham"]}}  # of as many, and not the same
        renamed = presets.load(tmp_path / "spam", objective=other)
        assert any("new parameters" in line and "classes" in line for line in caplog.messages)
    kernel = weights(renamed)["classes/kernel"]
    np.testing.assert_array_equal(
        kernel,
        weights(
            presets.load(
                "bert_nano",
                **{
                    **small_models.SMALL,
                    **ONE_LAYER,
                    "objective": other,
                },
            )
        )["classes/kernel"],
    )
    back = presets.load(tmp_path / "spam", objective="masked_lm")
    assert isinstance(back, kzoo.models.MaskedLM)


def test_padding_changes_nothing_and_every_byte_something(classifier):
    texts = ["win a prize", "see you"]
    together = classifier.predict(texts, verbose=0)
    alone = [classifier.predict([text], verbose=0)[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    for changed in ("xin a prize", "win a prizx"):
        assert np.abs(classifier.predict([changed], verbose=0) - together[:1]).max() > 1e-6


def test_it_learns_and_is_measured(folder):
    model = presets.load(folder, objective=SPAM)
    model.compile(optimizer=kzoo.training.adamw(0.01, 60))
    splits = data.load(PAIRS, model, batch_size=8, valid=0.2)
    assert splits.facts["label_entropy"] == pytest.approx(1, abs=0.2)
    model.fit(splits.train.repeat()[:60], verbose=0)
    measured = model.evaluate(splits.valid, verbose=0, return_dict=True)
    assert measured["accuracy"] == 1 and measured["bits_per_label"] < 0.5
    texts, labels = map(list, zip(*PAIRS[:10], strict=True))
    assert model.classify(texts) == labels
    logits = model.predict(texts, verbose=0).astype("float64")
    classes = np.array([["ham", "spam"].index(label) for label in labels])
    bits = small_models.nll(logits, classes).mean() / np.log(2)
    for y in (labels, classes):
        again = model.evaluate(texts, y, verbose=0, return_dict=True)
        assert again["bits_per_label"] == pytest.approx(bits, rel=1e-4)


def test_labels_are_those_of_the_data(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("body,stars\n" + "".join(f"text {i},{i % 3 + 9}\n" for i in range(30)))
    assert data.labels(f"table:{table}:body:stars") == ("9", "10", "11")
    assert data.labels(PAIRS) == ("ham", "spam")
    with pytest.raises(InputError, match="30 different ones in 30 examples"):
        data.labels([(str(i), f"free text {i}") for i in range(30)])
    with pytest.raises(InputError, match="learns from .text, label. pairs"):
        data.labels(["a text"] * 2)


@pytest.mark.parametrize(
    "labels, words",
    [
        ([], "two or more"),
        (["a"], "two or more"),
        (["a", "a"], "each once"),
        (["a", ""], "none of them empty"),
        ("ab", "a list of strings"),
        ([0, 1], "a list of strings"),
    ],
)
def test_labels_that_are_none(labels, words):
    with pytest.raises(InputError, match=words):
        objectives.get({"classification": {"labels": labels}})


def test_bad_input(classifier):
    with pytest.raises(InputError, match="a classifier is a single stack"):
        presets.config("t5_nano", objective=SPAM)
    with pytest.raises(InputError, match="loss_tokens is of a language model's head"):
        presets.config("bert_nano", objective=SPAM, loss_tokens=8)
    with pytest.raises(InputError, match="unknown label; did you mean 'spam'"):
        classifier.fit([("win", "spm")])
    with pytest.raises(InputError, match=r"classes are in \[0, 2\)"):
        classifier.fit(["win"], [2])
    with pytest.raises(InputError, match="as many labels as texts"):
        classifier.fit(["win"], [1, 0])
    with pytest.raises(InputError, match="y, the class of each text"):
        classifier.fit(classifier.preprocessor(["win"])[0])
    with pytest.raises(InputError, match="learns from .text, label. pairs"):
        data.load(["a text"] * 4, classifier, batch_size=2)
    with pytest.raises(InputError, match="unknown label"):
        data.load([("a", "ham"), ("b", "eggs")] * 3, classifier, batch_size=1)
    with pytest.raises(InputError, match="generates no text"):
        classifier.generate("win")
    packed = classifier.preprocessor(["win", "see"])[0]
    packed["padding_mask"][:, 2:] *= 2
    with pytest.raises(InputError, match="one text per sequence"):
        classifier.predict(packed)
