"""What `fit`, `evaluate` and `predict` are given, in every form that other libraries give it."""

import functools
import logging

import grain
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from marks import once

import kzoo
from kzoo import presets
from kzoo.errors import InputError
from kzoo.models import ByteTokenizer
from kzoo.models.tokenizer_file import FileTokenizer, spread_bytes
from kzoo.vocabulary import BOS, PAD

SMALL = {
    "num_layers": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": 16,
}
TEXTS = ["To be", "or NOT to be", "that is", "the Question"]
PAIRS = {"prompts": ["To", "or NOT", "", "é"], "responses": ["be", "to be", "that is", "Straße"]}
IDS = np.array([[*b"to be or"], [*b"not to b"], [*b"e that i"], [*b"s the qu"]], "int32")


@pytest.fixture(scope="module")
def model():
    model = presets.load("gpt_nano", **SMALL)
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    return model


class Dataset(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    @property
    def num_batches(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def halves(x):
    """Two batches of half of the examples each."""
    if isinstance(x, dict):
        a, b = ({k: v[i : i + 2] for k, v in x.items()} for i in (0, 2))
        return [a, b]
    return [x[:2], x[2:]]


def generator(batches):
    yield from batches


def tf_data(x):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(x).batch(2)


def torch_loader(examples):
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(examples, batch_size=2)


LISTED = list(zip(*PAIRS.values(), strict=True))
FORMS = {
    "texts-array": lambda: np.array(TEXTS),
    "texts-tuple": lambda: tuple(TEXTS),
    "texts-grain": lambda: grain.MapDataset.source(TEXTS).batch(2),
    "texts-generator": lambda: generator(halves(TEXTS)),
    "texts-generator_of_tuples": lambda: generator([(half,) for half in halves(TEXTS)]),
    "texts-py_dataset": lambda: Dataset(halves(TEXTS)),
    "texts-tf_data": lambda: tf_data(TEXTS),
    "texts-torch": lambda: torch_loader(TEXTS),
    "pairs-list": lambda: LISTED,
    "pairs-grain": lambda: grain.MapDataset.source(
        [{"prompts": a, "responses": b} for a, b in LISTED]
    ).batch(2),
    "pairs-generator": lambda: generator(halves(PAIRS)),
    "pairs-generator_of_lists": lambda: generator(halves(LISTED)),
    "pairs-py_dataset": lambda: Dataset(halves(PAIRS)),
    "pairs-tf_data": lambda: tf_data(PAIRS),
    "pairs-tf_data_of_x_and_y": lambda: tf_data(tuple(PAIRS.values())),
    "pairs-torch": lambda: torch_loader(LISTED),
    "pairs-torch_of_dicts": lambda: torch_loader(
        [{"prompts": a, "responses": b} for a, b in LISTED]
    ),
    "ids-generator": lambda: generator(halves(IDS)),
    "ids-tf_data": lambda: tf_data(IDS),
    "ids-torch": lambda: torch_loader(list(IDS)),
}
WHOLE = {"texts": TEXTS, "pairs": PAIRS, "ids": IDS}


@pytest.fixture(scope="module")
def expected(model):
    """loss and bits of each whole, and its logits."""
    measured = {}
    for name, whole in WHOLE.items():
        logs = model.evaluate(whole, batch_size=2, verbose=0, return_dict=True)
        measured[name] = logs, ops.convert_to_numpy(model.predict(whole, batch_size=2, verbose=0))
    return measured


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_data(model, expected, form):
    logs, logits = expected[form.partition("-")[0]]
    got = model.evaluate(FORMS[form](), verbose=0, return_dict=True)
    assert got["bits_per_byte"] == pytest.approx(logs["bits_per_byte"], rel=1e-5)
    got = model.predict(FORMS[form](), verbose=0)
    np.testing.assert_allclose(ops.convert_to_numpy(got), logits, atol=1e-5)


@pytest.fixture(scope="module")
def trained(model):
    """The history of a fit of each whole, and the weights after it; the model stays as it was."""
    start, found = model.get_weights(), {}
    for name, whole in WHOLE.items():
        history = model.fit(whole, validation_data=whole, batch_size=2, verbose=0).history
        found[name] = history, model.get_weights()
        model.set_weights(start)
    return found


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_and_is_held_out(model, trained, form):
    start, (want, wanted) = model.get_weights(), trained[form.partition("-")[0]]
    size = {} if form.endswith(("array", "tuple", "list")) else {"steps_per_epoch": 2}
    size = size or {"batch_size": 2}
    got = model.fit(FORMS[form](), validation_data=FORMS[form](), verbose=0, **size).history
    for a, b in zip(model.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model.set_weights(start)
    for key in ("loss", "bits_per_byte", "val_loss", "val_bits_per_byte"):
        np.testing.assert_allclose(got[key], want[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("family", ["bert", "unilm"])
def test_what_is_drawn_depends_on_the_text_alone(family):
    read = presets.load(f"{family}_nano", **SMALL).preprocessor
    for whole in (TEXTS, PAIRS, IDS):
        one_by_one = [read(part) for part in halves(whole)]
        parts = keras.tree.map_structure(lambda *a: np.concatenate(a), *one_by_one)
        keras.tree.map_structure(np.testing.assert_array_equal, read(whole), parts)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_kinds_of_data_mix_and_epochs_begin_anew(model):
    start = model.get_weights()
    loader = Dataset(halves(TEXTS))
    history = model.fit(loader, validation_data=PAIRS, batch_size=2, epochs=2, verbose=0).history
    assert len(history["val_loss"]) == len(history["loss"]) == 2
    for form in ("texts-generator", "pairs-list", "texts-grain", "texts-tf_data"):
        for data in (TEXTS, Dataset(halves(PAIRS))):
            size = {"batch_size": 2} if data is TEXTS else {}
            held_out = {"validation_data": FORMS[form](), "verbose": 0}
            assert "val_loss" in model.fit(data, **size, **held_out).history
    model.set_weights(start)


def test_running_text_in_ids_is_laid_out_as_windows_are(model):
    x, y, weight = model.preprocessor(IDS)
    assert x["token_ids"].shape == y.shape == (4, 8)
    assert x["token_ids"][0].tolist() == [BOS, *b"to be o"] and y[0].tolist() == [*b"to be or"]
    assert weight.min() == 1
    shorter = IDS.copy()
    shorter[1, 5:] = PAD
    _, y, weight = model.preprocessor(shorter)
    assert weight.sum(1).tolist() == [8, 5, 8, 8]
    # With labels they are the model's inputs.
    logs = model.evaluate(x["token_ids"], y=IDS, verbose=0, return_dict=True)
    want = model.evaluate(IDS, verbose=0, return_dict=True)
    assert logs["bits_per_byte"] == pytest.approx(want["bits_per_byte"], rel=1e-5)


def test_compare_takes_data_in_memory(no_spectra):
    from kzoo.studies.notebook import _sources

    pairs = [(f"{i}", f"{i} {i + 1}") for i in range(40)]
    texts = [response for _, response in pairs]
    small = {**SMALL, "max_sequence_length": 8}
    results = kzoo.compare(
        {"gpt": ("gpt_nano", small)}, data=[pairs], seeds=1, steps=2, batch_size=8, progress=False
    )
    (record,) = results.records
    assert record["data"].startswith("list:") and 0 < record["bits"] < 20
    again = kzoo.studies.Study.from_json(results.directory / "study.json")
    assert again.given == {record["data"]: [list(pair) for pair in pairs]}

    columns = dict(zip(("prompts", "responses"), zip(*pairs, strict=True), strict=True))
    assert _sources(columns) == _sources(pairs) == _sources([pairs])
    (name,), given = _sources(texts)
    assert given == {name: texts}
    names, given = _sources(["pydoc", texts, pairs])
    assert names[0] == "pydoc" and [*given] == names[1:]
    for names in ("book.txt", ["book.txt"], ["pydoc", "no such file"]):
        assert _sources(names) == ([names] if isinstance(names, str) else names, {})


# sample_weight ------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("data", ["texts", once("pairs"), once("ids")])
def test_sample_weight_of_examples_counts(model, data):
    whole, weights = WHOLE[data], np.array([1.0, 0.0, 0.5, 3.0])
    x, y, token = model.preprocessor(whole)
    logits = np.asarray(ops.convert_to_numpy(model.predict_on_batch(x)), "float64")
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
    token = token * weights[:, None]
    nats = (token * nll).sum()
    want = {
        "loss": nats / token.sum(),
        "bits_per_byte": nats / np.log(2) / (token * (y < 256)).sum(),
    }
    for weight in (weights, list(weights)):
        got = model.evaluate(whole, sample_weight=weight, verbose=0, return_dict=True)
        assert got == pytest.approx(want, rel=1e-4)
    start = model.get_weights()
    held_out = (whole, None, weights)
    got = model.fit(whole, sample_weight=weights, validation_data=held_out, verbose=0).history
    assert got["loss"] == pytest.approx([want["loss"]], rel=1e-4)
    changed = model.get_weights()
    logs = model.evaluate(whole, sample_weight=weights, verbose=0, return_dict=True)
    assert got["val_loss"] == pytest.approx([logs["loss"]], rel=1e-4)
    model.set_weights(start)
    model.train_on_batch(whole, sample_weight=weights)
    for a, b in zip(model.get_weights(), changed, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    model.set_weights(start)
    got = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert np.isfinite(got["loss"])


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((4, 2)), [1, 1, 1, -1], [1, 1, 1, np.nan]])
def test_sample_weight_of_another_shape_is_refused(model, weights):
    for attempt in (model.fit, model.evaluate):
        with pytest.raises(InputError, match="sample_weight"):
            attempt(TEXTS, sample_weight=weights, verbose=0)
    with pytest.raises(InputError, match="sample_weight"):
        model.fit(TEXTS, validation_data=(TEXTS, None, weights), verbose=0)


@pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
def test_a_batch_has_an_example(model, size):
    fit = functools.partial(model.fit, verbose=0)
    for attempt in (fit, model.evaluate, model.predict, model.score):
        with pytest.raises(InputError, match="batch_size is a positive integer"):
            attempt(TEXTS, batch_size=size)


# Errors ---------------------------------------------------------------------------------------


SECRET = "a secret that no message repeats " * 50
WRONG = {
    "numbers among texts": lambda model: model.fit([SECRET, 1], verbose=0),
    "a key too many": lambda model: model.fit({"prompts": [SECRET], "texts": [SECRET]}),
    "fewer responses": lambda model: model.score({"prompts": [SECRET], "responses": []}),
    "no prompt": lambda model: model.generate([]),
    "a prompt of another kind": lambda model: model.generate({"prompts": {"a": SECRET}}),
    "a list as a stream": lambda model: model.stream([SECRET, SECRET]),
    "a list said": lambda model: model.conversation(sampler="greedy").say([SECRET]),
    "texts in lists": lambda model: model.fit([[SECRET]], verbose=0),
    "a surrogate": lambda model: model.fit([SECRET + "\ud800"], verbose=0),
    "a source": lambda model: kzoo.data.load([SECRET, 1], model, batch_size=1),
    "a path": lambda model: kzoo.data.load(SECRET, model, batch_size=1),
    "data to compare": lambda model: kzoo.compare(["gpt_nano"], data={"prompts": SECRET}),
}


@pytest.mark.parametrize("attempt", WRONG)
def test_no_error_prints_the_data(model, attempt):
    with pytest.raises(InputError, match="Received") as caught:
        WRONG[attempt](model)
    assert len(str(caught.value)) < 400


# Text as written ------------------------------------------------------------------------------


ODD = [
    "Call ME Straße",
    "e\u0301 \u1e9b\u0323 ﬁ Ⅷ İ ı",
    "\ufeffBOM",
    "a\r\nb\rc\n",
    "\0nul\0",
    " \t two  spaces ",
    "\u2028 \u2029 \x85 \u200d 👩\u200d🚀",
]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_give_any_text_back(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer(text)
    assert ids.dtype == np.int32 and bytes(ids.tolist()) == text.encode()
    assert tokenizer.detokenize(ids) == text
    assert kzoo.encoder.Bytes.encode([text])[0].tolist() == ids.tolist()


def test_half_a_surrogate_pair_is_refused(model):
    for attempt in (model.preprocessor.tokenizer, model.score, model.generate):
        with pytest.raises(InputError, match="surrogate"):
            attempt(["ab\ud800"])


@pytest.mark.parametrize("text", ODD)
def test_text_reaches_the_model_as_written_in_every_entry_point(model, monkeypatch, text):
    wanted = list(text.encode())
    read = model.preprocessor

    def real(x):
        return x["token_ids"][0][x["padding_mask"][0] > 0].tolist()

    longer = kzoo.models.CausalLMPreprocessor(ByteTokenizer(), 64, "causal_lm")
    for x, *_ in (
        longer([text]),
        longer(np.array([text], object)),
        model._read([text]) if len(wanted) < 16 else longer([text]),
        longer({"prompts": [""], "responses": [text]}),
    ):
        ids = [i for i in real(x) if i < 256]
        assert ids == wanted[: len(ids)] and len(ids) >= min(len(wanted), 15)
    assert real(longer.generate_preprocess(text)) == [BOS, *wanted]
    assert longer.generate_postprocess([np.array(wanted)]) == [text]
    assert read.tokens([text])[0].tolist() == wanted
    fields = {"max_sequence_length": 64, "mask": "causal", "objective": "causal_lm"}
    train, valid = kzoo.data.load([text, text + "."], fields, batch_size=1)
    (x, *_), (held, *_) = train[0], valid[0]
    rows = [[i for i in real(batch) if i < 256] for batch in (x, held)]
    assert wanted in rows and [*wanted, ord(".")] in rows
    scored = model.score([text], end_token=False)
    assert scored["bytes"].tolist() == scored["tokens"].tolist() == [len(wanted)]


def test_case_changes_the_score(model):
    a, b = model.score(["CALL ME", "call me"])["nats"]
    assert abs(a - b) > 1e-3


def test_a_model_saved_with_a_folding_tokenizer_reads_text_as_written(caplog):
    config = ByteTokenizer().get_config()
    old = {**config, "lowercase": True, "sequence_length": None, "normalization_form": None}
    old |= {"errors": "replace", "replacement_char": 65533}
    kzoo.models.tokenizer_bytes._told.clear()
    with caplog.at_level(logging.WARNING, "kzoo"):
        for _ in range(2):
            tokenizer = ByteTokenizer.from_config(dict(old))
            assert tokenizer.detokenize(tokenizer("Call ME")) == "Call ME"
    assert sum("as written" in record.message for record in caplog.records) == 1
    assert tokenizer.get_config().keys() == config.keys()


# Bits per byte of the original text -----------------------------------------------------------


def word_pieces(tokenizers):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "cafe", "a", "b", "##b"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.add_tokens(["naïve"])
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    return tokenizer, roles | {"sep_token": "[SEP]", "mask_token": "[MASK]"}


def byte_level(tokenizers, normalizer=None):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<|end|>", "th", "the"])}
    bpe = tokenizers.models.BPE(vocabulary, [("t", "h"), ("th", "e")])
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["naïve"])
    return tokenizer, {"bos_token": "<|end|>", "eos_token": "<|end|>"}


def normalised(tokenizers):
    return byte_level(tokenizers, tokenizers.normalizers.NFKC())


def unigram(tokenizers):
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "the", "a", "b", "▁caf", "s", "é"]
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    fallback = [(f"<0x{i:02X}>", -30.0) for i in range(256)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram([*scores, *fallback], unk_id=2, byte_fallback=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tokenizer, roles


TOKENIZERS = {f.__name__: f for f in (word_pieces, byte_level, normalised, unigram)}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    tokenizer, roles = TOKENIZERS[request.param](pytest.importorskip("tokenizers"))
    return FileTokenizer(roles, content=tokenizer.to_str())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bytes_of_tokens_add_up_to_the_texts(tokenizer, data):
    parts = [
        "the",
        " the",
        "naïve",
        "<|end|>",
        "[MASK]",
        "Cafés",
        "  ",
        "\r\n",
        "é",
        "e\u0301",
        "東",
    ]
    character = st.characters(exclude_categories=["Cs"])
    text = "".join(data.draw(st.lists(st.sampled_from(parts) | character, max_size=12)))
    (tokens,) = tokenizer.encode([text])
    assert tokens.shape == (len(tokens), 2) and (tokens[:, 1] >= 0).all()
    assert tokens[:, 1].sum() == (len(text.encode()) if len(tokens) else 0)
    np.testing.assert_array_equal(tokens[:, 0], tokenizer(text))


def test_bytes_between_and_inside_characters():
    # "  é東" in three tokens, of which the last two share a character; and a space at the end.
    assert spread_bytes("  é東 ", [(2, 3), (3, 4), (3, 4)]).tolist() == [4, 2, 2]
    assert spread_bytes("ab", [(0, 0), (0, 2)]).tolist() == [0, 2]
    assert spread_bytes("ab", []).tolist() == []


LONG = "The Cafés are naïve,  东京 and  the end.\n\n"


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal_lm", "prefix_lm", "masked_lm"])
def test_bits_are_per_byte_of_the_original_text_in_every_entry_point(tokenizer, objective):
    if objective == "masked_lm" and tokenizer.vocabulary.mask is None:
        pytest.skip("no mask token")
    family = {"causal_lm": "gpt", "prefix_lm": "unilm", "masked_lm": "bert"}[objective]
    fields = {**SMALL, "max_sequence_length": 128, "vocabulary_size": 384}
    model = presets.load(f"{family}_nano", **fields)
    task = type(model)
    reader = task.preprocessor_cls(tokenizer, 128, objective, source_mask=objective != "causal_lm")
    if objective == "masked_lm":
        reader = task.preprocessor_cls(tokenizer, 128, {"masked_lm": {"rate": 1.0}})
    model = task(model.backbone, reader, reader.objective)
    texts = [LONG, " the the ", "a"]
    pairs = {"prompts": texts, "responses": [" b é", "the", "  naïve ab "]}

    x, y, weight = reader(pairs)
    inputs = {name: x[name] for name in model.input}
    logits = np.asarray(ops.convert_to_numpy(model.predict_on_batch(inputs)), "float64")
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
    scored = pairs["responses"] if objective == "prefix_lm" else sum(pairs.values(), [])
    size = sum(len(text.encode()) for text in scored)
    unscored = np.zeros(3, int)  # first tokens, where no BOS tells them
    if tokenizer.vocabulary.bos is None and objective == "causal_lm":
        unscored = np.array([tokens[0, 1] for tokens in tokenizer.encode(texts)])
    size -= unscored.sum()
    want = (weight * nll).sum() / np.log(2) / size
    got = model.evaluate(pairs, verbose=0, return_dict=True)["bits_per_byte"]
    assert got == pytest.approx(want, rel=1e-4)

    if objective == "masked_lm":
        return
    nats, sizes = (model.score(pairs)[name] for name in ("nats", "bytes"))
    ids = [np.asarray(tokenizer(text)) for text in pairs["responses"]]
    for i, response in enumerate(ids):
        row = int((x["padding_mask"][i] > 0).sum())
        by_hand = nll[i, row - len(response) - 2 : row - 1].sum()
        assert nats[i] == pytest.approx(by_hand, rel=1e-4)
    assert sizes.tolist() == [len(text.encode()) for text in pairs["responses"]]
    if objective == "causal_lm":
        got = model.evaluate(texts, verbose=0, return_dict=True)["bits_per_byte"]
        scored = model.score(texts)
        sizes = np.array([len(text.encode()) for text in texts]) - unscored
        want = scored["nats"].sum() / np.log(2) / sizes.sum()
        assert scored["bytes"].tolist() == sizes.tolist()
        assert got == pytest.approx(want, rel=1e-4)


def test_windows_of_running_text_count_the_bytes_of_the_text(tokenizer, tmp_path):
    model = presets.load("gpt_nano", **SMALL)
    reader = kzoo.models.CausalLMPreprocessor(tokenizer, 16, "causal_lm")
    model = kzoo.models.CausalLM(model.backbone, reader)
    (tmp_path / "book.txt").write_text(LONG * 200)
    train, valid = kzoo.data.load(tmp_path / "book.txt", model, batch_size=2)
    counted = {
        name: [x["label_bytes"] for x, *_ in part]
        for name, part in (("train", train), ("valid", valid))
    }
    total = sum(int(a.sum()) for arrays in counted.values() for a in arrays)
    assert 0.9 * len((LONG * 200).encode()) < total <= len((LONG * 200).encode())
    assert model.evaluate(valid, verbose=0) is not None


def test_token_batches_that_do_not_say_their_bytes_are_told_of(caplog):
    tokenizers = pytest.importorskip("tokenizers")
    backbone = presets.load("gpt_nano", **SMALL).backbone
    told = {}
    for make in (word_pieces, byte_level):
        tokenizer, roles = make(tokenizers)
        tokenizer = FileTokenizer(roles, content=tokenizer.to_str())
        reader = kzoo.models.CausalLMPreprocessor(tokenizer, 16, "causal_lm")
        model = kzoo.models.CausalLM(backbone, reader)
        x, y, weight = reader(["the cafe", "a b"])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "kzoo"):
            whole = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
            assert not [r for r in caplog.records if r.name == "kzoo"]
            x.pop("label_bytes")
            bare = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
        warned = sum(record.name == "kzoo" for record in caplog.records)
        told[make.__name__] = warned, bare["bits_per_byte"] == whole["bits_per_byte"]
    assert told == {"word_pieces": (1, False), "byte_level": (0, True)}


def test_a_saved_model_still_counts_bytes_of_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer, roles = word_pieces(tokenizers)
    tokenizer = FileTokenizer(roles, content=tokenizer.to_str())
    backbone = presets.load("gpt_nano", **SMALL).backbone
    model = kzoo.models.CausalLM(
        backbone, kzoo.models.CausalLMPreprocessor(tokenizer, 16, "causal_lm")
    )
    texts = ["the  cafe ", "a"]
    want = model.evaluate(texts, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(texts, verbose=0, return_dict=True) == pytest.approx(want, rel=1e-5)
