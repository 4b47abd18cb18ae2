"""Tokenizers in studies and on the command line: trained apart from what is held out, and kept."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tokenizers as library

import kzoo
from kzoo.cli import main
from kzoo.data import tokenizer_spec
from kzoo.errors import InputError
from kzoo.studies import Study, amounts, tokenizers
from kzoo.studies.records import read
from kzoo.studies.study import measure

WORDS = ["the", "owl", "naïve", "sat", "down", "mice", "and", "twelve", "Straße"]
LINES = [" ".join(np.random.default_rng(i).choice(WORDS, 9)) for i in range(120)]
SIZE = 390
ARM = {"preset": "gpt_nano", "overrides": {"num_layers": 1, "max_sequence_length": 64}}
FIELDS = {"data": "lines", "given": {"lines": LINES}, "steps": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the tests' own, which they share; that of the C++ stays the user's."""
    own = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr("kzoo.data.tokenizer_training.folder", lambda name: own.absolute() / name)


@pytest.fixture
def lossy(tmp_path):
    """A tokenizer that folds case, with all the special tokens that it needs."""
    tokenizer = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "owl": 1}, "[UNK]"))
    tokenizer.normalizer = library.normalizers.Lowercase()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[BOS]", "[EOS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(tmp_path / "lossy.json"))
    return tmp_path / "lossy.json"


@pytest.fixture
def folding(tmp_path):
    """A tokenizer of bytes that loses a letter where no probe looks: what it makes of its ids is
    another text."""
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = library.Tokenizer(library.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.normalizer = library.normalizers.Replace("zq", "z")
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.add_special_tokens(["[PAD]", "[BOS]", "[EOS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(tmp_path / "folding.json"))
    return tmp_path / "folding.json"


def study(arms=None, **fields):
    return Study.from_dict({"arms": arms or {"GPT": ARM}, **FIELDS, **fields})


def test_a_study_says_its_tokenizer_once():
    own = {"tokenizer": "bytes"}
    asked = study({"GPT": ARM, "bytes": {**ARM, **own}}, tokenizer="bpe:390")
    assert asked.arms["GPT"].tokenizer == {"bpe": 390}
    assert asked.arms["GPT"].config(0)["vocabulary_size"] == 390
    assert asked.arms["bytes"].config(0)["tokenizer"] == "bytes"
    fields = asked.to_dict()
    assert fields["tokenizer"] == {"bpe": 390} and fields["arms"]["bytes"]["tokenizer"] == "bytes"
    assert "tokenizer" not in fields["arms"]["GPT"] and Study.from_dict(fields) == asked
    assert "tokenizer" not in study().to_dict()  # studies of before stay equal


def test_a_difference_in_tokenizers_is_declared():
    arms = {kind: {**ARM, "tokenizer": {kind: SIZE}} for kind in ("bpe", "unigram")}
    question = {"name": "q", "kind": "equivalence", "arms": ["bpe", "unigram"], "margin": 0.1}
    with pytest.raises(InputError, match=r"differ in \['tokenizer'\]"):
        study(arms, hypotheses=[question], seeds=5)
    study(arms, hypotheses=[{**question, "differ_in": ["tokenizer"]}], seeds=5)


def test_what_is_hidden_compares_within_a_tokenizer():
    bpe = {"bpe": SIZE}
    for objective in ("causal_lm", "prefix_lm"):
        assert measure(objective, "x", bpe) == measure(objective, "x")
    assert measure("masked_lm", "x", bpe)[1] == "masked bytes (bpe:390) on x"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A study of bytes and BPE, its results and its folder."""
    patch = pytest.MonkeyPatch()
    own = tmp_path_factory.mktemp("cache")
    patch.setattr("kzoo.data.tokenizer_training.folder", lambda name: own / name)
    patch.setattr("kzoo.studies.runner.attention_spectrum", lambda model, batch: [])
    folder = tmp_path_factory.mktemp("study") / "run"
    arms = {"bytes": {**ARM, "tokenizer": "bytes"}, "bpe": ARM}
    settings = {"steps": 2, "batch_size": 4, "evaluations": 1, "seeds": 1, "progress": False}
    results = kzoo.compare(arms, LINES, tokenizer={"bpe": SIZE}, directory=folder, **settings)
    patch.undo()
    return results, folder


def test_records_say_which_tokenizer(run):
    results, folder = run
    found = {record["arm"]: record for record in results.records}
    assert "tokenizer" not in found["bytes"] and found["bpe"]["tokenizer"] == {"bpe": SIZE}
    (file,) = folder.glob("tokenizers/bpe-390-*/tokenizer.json")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["bpe"]["facts"]["tokenizer_sha256"] == digest
    assert found["bpe"]["config"]["vocabulary_size"] == SIZE
    assert "tokenizer_sha256" not in found["bytes"]["facts"]
    # Both measure the same bytes, and so compare.
    assert len({record["group"] for record in found.values()}) == 1
    assert len({record["facts"]["valid_bytes"] for record in found.values()}) == 1
    assert found["bpe"]["facts"]["row_length"] < found["bytes"]["facts"]["row_length"] / 1.5


def test_a_study_goes_on_with_the_tokenizer_of_its_folder(run, tmp_path, monkeypatch):
    none = tmp_path / "no cache"
    monkeypatch.setattr("kzoo.data.tokenizer_training.folder", lambda name: none / name)
    folder = tmp_path / "copy"
    shutil.copytree(run[1], folder)
    fields, records = read(folder)
    asked = Study.from_dict(fields)
    tokenizers.check(tokenizers.settled(asked, folder), records)
    (file,) = folder.glob("tokenizers/*/tokenizer.json")
    other = json.loads(file.read_text())
    other["added_tokens"].append({**other["added_tokens"][-1], "id": 999, "content": "[NEW]"})
    file.write_text(json.dumps(other))
    with pytest.raises(InputError, match="goes on with the tokenizers of its folder"):
        tokenizers.check(tokenizers.settled(asked, folder), records)


def test_arms_train_their_tokenizers_on_the_same_part():
    asked = study({"a": ARM, "b": {**ARM, "tokenizer": {"bpe": 400}}}, tokenizer={"bpe": SIZE})
    one, other = (amounts.load_splits(asked, "lines", asked.arms[label]) for label in "ab")
    assert one.facts["tokenizer_sha256"] != other.facts["tokenizer_sha256"]
    assert one.facts["split"] == other.facts["split"]
    assert tokenizers.packed(asked, "lines", asked.arms["a"]) == tokenizers.packed(
        asked, "lines", asked.arms["a"]
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"bpee": 4096}, "unknown kind of tokenizer; did you mean 'bpe'"),
        ({"bpe": 300}, "364 ids or more"),
        ("bpe:many", "364 ids or more"),
        ("wordpiece", "unknown tokenizer"),
        ({"bpe": 400, "unigram": 400}, "a kind and its number of ids"),
        (400, "a kind and its number of ids"),
        ("no/such/tokenizer.json", "the path of a tokenizer.json"),
        ("lossy", "gives every text back exactly"),
    ],
)
def test_what_is_no_tokenizer(spec, words, lossy):
    spec = str(lossy) if spec == "lossy" else spec
    with pytest.raises(InputError, match=words):
        study(tokenizer=spec)
    with pytest.raises(InputError, match=words):
        study({"GPT": {**ARM, "tokenizer": spec}})


def test_a_model_with_a_lossy_tokenizer_says_so(lossy, caplog):
    kzoo.presets.load("bert_nano", num_layers=1, tokenizer=str(lossy))
    assert "makes" in caplog.text and "bits per byte leave out what it loses" in caplog.text


ZOO = [f"owl {i} sat {'down' if i % 3 else 'zquietly'} here" for i in range(60)]


@pytest.fixture
def folding_model(folding, caplog):
    model = kzoo.presets.load("gpt_nano", num_layers=1, tokenizer=str(folding))
    assert "bits per byte" not in caplog.text  # it gives the probe back
    return model


def test_what_a_tokenizer_loses_of_the_data_is_counted_and_said(folding, folding_model, caplog):
    ours = library.Tokenizer.from_file(str(folding))
    back = [ours.decode(ours.encode(t).ids, skip_special_tokens=False) for t in ZOO]
    lost = sum(one != other for one, other in zip(ZOO, back, strict=True))
    for source in (ZOO, [(f"{i}?", text) for i, text in enumerate(ZOO)]):
        caplog.clear()
        found = kzoo.data.load(source, folding_model, batch_size=1).facts["tokenizer_loss"]
        assert found["lost_texts"] == lost == 20
        assert found["sampled_texts"] == len(ZOO) * (1 + (source is not ZOO))
        assert found["example"] == "makes 'uietly here' of 'quietly here'"
        assert f"20 of {found['sampled_texts']} sampled texts" in caplog.text
        assert found["example"] in caplog.text
    clean = [text.replace("zq", "q") for text in ZOO]
    caplog.clear()
    found = kzoo.data.load(clean, folding_model, batch_size=1).facts["tokenizer_loss"]
    assert found == {"sampled_texts": 60, "lost_texts": 0}
    assert "bits per byte" not in caplog.text


def test_running_text_is_tried_throughout(tmp_path, folding_model, caplog):
    book = tmp_path / "book.txt"
    book.write_text("owls sit\n" * 2000 + "a zq here\n" + "owls fly\n" * 1000)
    found = kzoo.data.load(str(book), folding_model, batch_size=1).facts["tokenizer_loss"]
    assert found["lost_texts"] == 1 and found["sampled_texts"] == -(-27010 // 4096)


def test_scores_of_texts_that_do_not_come_back_say_so_once(folding_model, caplog):
    folding_model.score(["a zq here", "an owl"])
    assert "1 of 2 texts do not come back" in caplog.text
    caplog.clear()
    folding_model.score(["a zq here"])
    assert "come back" not in caplog.text


def test_a_study_refuses_a_tokenizer_that_loses_its_text(folding):
    asked = study(tokenizer=str(folding), given={"lines": ZOO})
    with pytest.raises(InputError, match="gives every text back exactly.*'uietly here'"):
        amounts.load_splits(asked, "lines", asked.arms["GPT"])


def test_the_command_line_says_what_python_says_of_a_lossy_tokenizer(tmp_path, lossy, capsys):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(LINES))
    command = f"data {book} --tokenizer {lossy} --set max_sequence_length=16 --json"
    assert main(command.split()) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["facts"]["tokenizer_loss"]
    assert found["lost_texts"] == found["sampled_texts"] > 0
    assert err.count("bits per byte leave out what it loses") == 1 and found["example"] in err


def test_a_vocabulary_holds_the_tokenizer():
    arm = {**ARM, "overrides": {**ARM["overrides"], "vocabulary_size": 380}}
    with pytest.raises(InputError, match="has 390 ids"):
        study({"GPT": arm}, tokenizer={"bpe": SIZE})


def test_a_word_says_what_json_says():
    assert tokenizer_spec.text(tokenizer_spec.get("unigram:500")) == "unigram:500"


def test_the_command_line_refuses_before_it_writes(tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(LINES))
    for tokenizer in ("bpe:12", "bpa:4096", str(tmp_path / "none.json")):
        out = tmp_path / "run"
        command = f"train gpt_nano --text {book} --steps 1 --out {out} --tokenizer {tokenizer}"
        assert main(command.split()) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_a_run_is_saved_with_its_tokenizer(tmp_path, capsys):
    book, out = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("\n".join(LINES))
    command = f"train gpt_nano --text {book} --steps 2 --out {out} --tokenizer unigram:400 --json"
    command += " --batch-size 2 --evaluations 1 --set num_layers=1 --set max_sequence_length=16"
    assert main(command.split()) == 0
    result = json.loads(capsys.readouterr().out)
    model = kzoo.presets.load(out)
    tokenizer = model.preprocessor.tokenizer
    assert model.config["vocabulary_size"] == 400 >= tokenizer.vocabulary.size
    assert tokenizer.detokenize(tokenizer("Straße ")) == "Straße "
    settings = json.loads((out / "training.json").read_text())["settings"]
    digest = hashlib.sha256(tokenizer.content.encode()).hexdigest()
    assert settings["data"]["tokenizer_sha256"] == digest
    splits = kzoo.data.load(str(book), model, batch_size=2)
    bits = model.evaluate(splits.valid, verbose=0, return_dict=True)["bits_per_byte"]
    assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    # By hand, from logits.
    nats = size = 0.0
    for x, y, weight in splits.valid:
        logits = np.asarray(model.predict_on_batch(x), "float64")
        logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        nats -= (weight * np.take_along_axis(logp, y[..., None], -1)[..., 0]).sum()
        size += (weight * x["label_bytes"]).sum()
    assert result["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-4)
