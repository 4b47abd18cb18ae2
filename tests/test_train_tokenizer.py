"""Tokenizers of one's own: exact round trips, nothing of held-out text, the same bits per byte."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import kzoo
from kzoo.data import tokenizer_training
from kzoo.data.splits import hold_out
from kzoo.errors import InputError

# Of 300 lines 30 are held out; the held-out blocks alone hold "zyx".
WORDS = ["the", "owl", "naïve", "sat", "down", "mice", "and", "twelve", "Straße"]
LINES = [" ".join(np.random.default_rng(i).choice(WORDS, 9)) for i in range(300)]
SIZE = 390


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: kzoo.data.train_tokenizer(LINES, kind=kind, size=SIZE, directory=folder / kind)
        for kind in ("bpe", "unigram")
    }


@pytest.fixture(scope="module")
def models(trained):
    return {
        kind: kzoo.presets.load("unilm_nano", num_layers=1, tokenizer=path)
        for kind, path in trained.items()
    }


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_text_comes_back_as_it_was_written(models, kind):
    tokenizer = models[kind].preprocessor.tokenizer
    special = st.sampled_from(
        [" ", "\n", "\r\n", "\0", "\ufeff", "é", "e\u0301", "ﬁ", "🎉", "\u2028"]
        + ["[BOS]", "[MASK]", "[R]", "<extra_id_0>"]
    )

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.text() | special | st.sampled_from(WORDS)).map("".join))
    def comes_back(text):
        if any(0xD800 <= ord(c) < 0xE000 for c in text):
            return
        (tokens,) = tokenizer.encode([text])
        assert tokenizer.detokenize(tokens[:, 0]) == text
        assert tokens[:, 1].sum() == len(text.encode())

    comes_back()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ids_of_all_objectives_are_reserved(models, kind):
    model = models[kind]
    vocabulary = model.preprocessor.tokenizer.vocabulary
    assert model.config["vocabulary_size"] == vocabulary.size
    assert vocabulary.size == SIZE if kind == "bpe" else 364 <= vocabulary.size <= SIZE
    assert len(vocabulary.sentinels) == 100 and len(vocabulary.modes) == 3
    ids = {vocabulary.pad, vocabulary.bos, vocabulary.sep, vocabulary.eos, vocabulary.mask}
    reserved = {*ids, *vocabulary.modes, *vocabulary.sentinels}
    assert len(reserved) == 108 and reserved == {*vocabulary.special}
    assert vocabulary.joined(np.array([[0]])) is not None  # tells where words begin


def test_the_library_reads_the_file_alike(trained, models):
    theirs = tokenizers.Tokenizer.from_file(str(trained["bpe"]))
    (ours,) = models["bpe"].preprocessor.tokenizer.encode([LINES[0]])
    assert theirs.encode(LINES[0], add_special_tokens=False).ids == ours[:, 0].tolist()
    assert len(ours) < len(LINES[0]) / 2


def test_nothing_is_learned_from_what_is_held_out(tmp_path):
    corpus = kzoo.data.sources.read(LINES)
    held_out, _ = hold_out(corpus.examples, 0.1)
    marked = [line + " qqqqzz" * 9 * bool(out) for line, out in zip(LINES, held_out, strict=True)]
    again, _ = hold_out(kzoo.data.sources.read(marked).examples, 0.1)
    path = kzoo.data.train_tokenizer(marked, size=SIZE, directory=tmp_path / "a")
    pieces = tokenizers.Tokenizer.from_file(str(path)).encode(" qqqqzz").tokens
    assert (again == held_out).all() and len(pieces) >= 6  # letter by letter


def test_the_same_source_is_trained_once(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = kzoo.data.train_tokenizer(LINES, size=SIZE)
    assert first.is_relative_to(tmp_path) and first.read_bytes() == trained["bpe"].read_bytes()
    monkeypatch.setattr(tokenizer_training, "TRAINERS", {"bpe": None})
    assert kzoo.data.train_tokenizer(LINES, size=SIZE) == first
    with pytest.raises(TypeError):  # another part is trained on
        kzoo.data.train_tokenizer(LINES, size=SIZE, valid=0.2)
    first.write_text(first.read_text() + " ")  # what was changed is made anew
    with pytest.raises(TypeError):
        kzoo.data.train_tokenizer(LINES, size=SIZE)


def test_a_short_text_gives_fewer_ids_and_says_so(tmp_path, caplog):
    for _ in ("trained", "found again"):
        caplog.clear()
        path = kzoo.data.train_tokenizer(
            ["ab ab ab", "ab ba"], size=999, valid=0.5, directory=tmp_path
        )
        found = tokenizers.Tokenizer.from_file(str(path)).get_vocab_size()
        assert f"the text gives {found} ids of the 999" in caplog.text


def _begin(source, target):
    return len(source) + 2


def _end(source, target):
    return _begin(source, target) + len(target)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_bits_per_byte_are_of_the_text(models, kind):
    model, texts = models[kind], LINES[:4]
    pairs = {"prompts": [t[:20] for t in texts], "responses": [t[20:] for t in texts]}
    tokenizer = model.preprocessor.tokenizer
    vocabulary = tokenizer.vocabulary
    encoded = [
        [tokenizer.encode([t])[0][:, 0] for t in pair] for pair in zip(*pairs.values(), strict=True)
    ]
    width = 64
    ids = np.zeros((len(texts), width), int)
    begin, end = (np.array([f(*pair) for pair in encoded])[:, None] for f in (_begin, _end))
    for row, (source, target) in zip(ids, encoded, strict=True):
        row[: _end(source, target)] = [vocabulary.bos, *source, vocabulary.sep, *target]
    at = np.arange(width)
    x = {"token_ids": ids, "padding_mask": (at < end) * 1, "source_mask": (at < begin) * 1}
    logits = model.predict(x, verbose=0).astype("float64")
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_next = np.take_along_axis(logp[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
    nats = -of_next[((at >= begin) & (at < end))[:, 1:]].sum()
    size = sum(len(response.encode()) for response in pairs["responses"])
    found = model.score(pairs, end_token=False)
    np.testing.assert_allclose(np.sum(found["nats"]), nats, rtol=1e-4)
    np.testing.assert_allclose(
        np.sum(found["nats"]) / np.log(2) / size, nats / np.log(2) / size, rtol=1e-4
    )


def test_it_trains_saves_and_comes_back(models, tmp_path):
    model = models["bpe"]
    splits = kzoo.data.load(LINES, model, batch_size=4)
    history = model.fit(splits.train[:4], epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    kzoo.presets.save(model, tmp_path / "mine")
    again = kzoo.presets.load(tmp_path / "mine")
    assert again.config == model.config and again.config["tokenizer"] == "file"
    assert again.score(LINES[:2])["nats"] == pytest.approx(model.score(LINES[:2])["nats"], rel=1e-5)


def test_a_file_of_others_is_read_by_its_path(trained, tmp_path):
    bare = tmp_path / "tokenizer.json"  # without a tokenizer_config.json
    bare.write_bytes(trained["bpe"].read_bytes())
    model = kzoo.presets.load(
        "gpt_nano", num_layers=1, tokenizer=str(tmp_path), vocabulary_size=512
    )
    assert model.preprocessor.tokenizer.vocabulary.sep is not None
    assert model.backbone.vocabulary_size == 512


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: kzoo.data.train_tokenizer(LINES, kind="bpee"), "did you mean 'bpe'"),
        (lambda f: kzoo.data.train_tokenizer(LINES, size=300), "364 ids or more"),
        (lambda f: kzoo.data.train_tokenizer(LINES, size="big"), "size='big'"),
        (lambda f: kzoo.data.train_tokenizer(LINES, valid=1), "between 0 and 1"),
        (lambda f: kzoo.data.train_tokenizer("nowhere.txt"), "no such file"),
        (lambda f: kzoo.presets.load("gpt_nano", tokenizer="nowhere.json"), "tokenizer.json"),
        (lambda f: kzoo.presets.load("gpt_nano", tokenizer=f, vocabulary_size=99), "has 390 ids"),
        (lambda f: kzoo.presets.config("gpt_nano", tokenizer="bites"), "did you mean 'bytes'"),
        (
            lambda f: kzoo.presets.config("gpt_nano", tokenizer=str(f)),
            "presets.load takes the path",
        ),
        (lambda f: kzoo.presets.load("gpt_nano", tokenizer={"bpe": 512}), "data.train_tokenizer"),
    ],
)
def test_wrong_arguments(trained, call, words):
    with pytest.raises(InputError, match=words):
        call(trained["bpe"])
    assert json.loads(trained["bpe"].read_text())["model"]["type"] == "BPE"
