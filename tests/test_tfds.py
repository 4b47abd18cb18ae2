"""TensorFlow Datasets as sources: what is source and target, splits, and what is missing."""

import logging
import time
from pathlib import Path

import pytest
from new_process import ROOT, python

from kzoo import data
from kzoo.data import sources
from kzoo.data.sources import official, tfds
from kzoo.errors import InputError

MANUAL = ROOT.parent / "shared" / "data" / "tfds_manual"
needs_corpora = pytest.mark.skipif(
    not MANUAL.exists(), reason="the corpora are not beside the project"
)
USUAL = {"train": 30, "validation": 20, "test": 10}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def refused(source):
    with pytest.raises(InputError) as error:
        sources.read(source)
    message = str(error.value)
    assert "\n" not in message and "Received: " in message
    return message


def pretend(folder, name, splits):
    """Writes down that a data set is prepared, with empty files for its examples."""
    from tensorflow_datasets import builder as find
    from tensorflow_datasets import core

    builder = find(name, data_dir=folder, file_format="array_record")
    path = Path(builder.data_dir)
    path.mkdir(parents=True)
    template = core.ShardedFileTemplate(
        dataset_name=builder.name, data_dir=path, filetype_suffix="array_record"
    )
    infos = [
        core.SplitInfo(
            name=split,
            shard_lengths=[count],
            num_bytes=100 * count,
            filename_template=template.replace(split=split),
        )
        for split, count in splits.items()
    ]
    builder.info.set_splits(core.SplitDict(infos))
    builder.info.write_to_directory(path)
    for info in infos:
        for file in info.filepaths:
            file.touch()
    return path


@pytest.fixture
def mocked(folder, monkeypatch):
    """`tfds.testing.mock_data`, which serves random examples of any data set."""
    from tensorflow_datasets import testing
    from tensorflow_datasets.testing import mocking

    # Its `__getitems__` is handed no self in 4.9.10.
    monkeypatch.setattr(
        mocking,
        "_getitems",
        lambda keys, generator, serialized=False: [generator[key] for key in keys],
    )
    with testing.mock_data(num_examples=12, data_dir=str(folder)):
        yield


@pytest.mark.parametrize(
    "name, splits, paired",
    [
        ("wiki40b/en", USUAL, False),
        ("lm1b", {"train": 30, "test": 10}, False),
        ("c4/en", {"train": 30, "validation": 10}, False),
        ("imdb_reviews", {"train": 30, "test": 20, "unsupervised": 10}, False),
        ("cnn_dailymail", USUAL, True),
        ("wmt14_translate/de-en", USUAL, True),
        ("glue/sst2", USUAL, True),
        ("clinc_oos", {**USUAL, "train_oos": 5}, True),
        ("tiny_shakespeare", USUAL, False),
        ("math_dataset/algebra__linear_1d", {"train": 3}, True),  # by its supervised keys
    ],
)
def test_every_kind_of_data_set_is_read(folder, mocked, name, splits, paired):
    pretend(folder, name, splits)
    corpus = sources.read(f"tfds:{name}")
    assert set(corpus.official) == {
        part for part, split in (("valid", "validation"), ("test", "test")) if split in splits
    }
    for part in (corpus, *corpus.official.values()):
        assert (part.text is None) == paired
        if paired:
            assert all(isinstance(text, str) for pair in part.examples for text in pair)
    if name == "glue/sst2":
        assert {target for _, target in corpus.examples} <= {"negative", "positive"}


def test_features_and_splits_by_argument(folder, mocked):
    pretend(folder, "wmt14_translate/de-en", USUAL)
    forward, backward = (
        sources.read(f"tfds:wmt14_translate/de-en:{pair}") for pair in ("de:en", "en:de")
    )
    assert [pair[::-1] for pair in forward.examples] == backward.examples
    german = sources.read("tfds:wmt14_translate/de-en:de")
    assert german.text == b"\n\n".join(pair[0].encode() for pair in forward.examples)
    spec = {"dataset": "wmt14_translate/de-en", "train": "train[:50%]", "valid": "train[50%:]"}
    assert set(sources.read({"tfds": spec}).official) == {"valid", "test"}
    assert "did you mean 'train'?" in refused({"tfds": {**spec, "test": "trian[:3]"}})
    assert "did you mean 'en'?" in refused("tfds:wmt14_translate/de-en:de:eng")
    assert "NAME:SOURCE:TARGET" in refused("tfds:wmt14_translate/de-en:a:b:c")
    assert "source='de' alone" in refused({"tfds": {**spec, "source": "de"}})
    assert tfds.Tfds.of("lm1b:1.1.0:text") == tfds.Tfds("lm1b:1.1.0", "text")


def test_official_splits_stay_apart_and_what_they_share_is_counted():
    names = ["train", "valid", "test"]
    examples = {name: [(f"{name} {i}", f"to {name} {i}") for i in range(40)] for name in names}
    examples["valid"][:3] = examples["train"][:3]
    examples["test"][:2] = [(f"TRAIN  {i}", f"else {i}") for i in range(2)]

    @sources.register
    class Splitting(sources.Source):
        name = "splitting_in_three"

        def read(self):
            return examples

    config = {"max_sequence_length": 64, "mask": "prefix", "objective": "prefix_lm"}
    splits = data.load("splitting_in_three", config, batch_size=8)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [5, 5, 5]
    facts = splits.facts
    assert facts["train_rows"] == facts["valid_rows"] == facts["test_rows"] == 40
    assert facts["split"]["official"] and facts["split"]["examples_on_both_sides"] == 3
    assert facts["test_split"]["sources_on_both_sides"] == 2
    assert facts["test_split"]["examples_on_both_sides"] == 0
    train, valid = splits
    x, _, weight = splits.test[0]
    assert bytes(x["token_ids"][0][1:8].astype("uint8")) == b"TRAIN  " and weight[0].sum() > 5


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["train", "dev"], {"train": "train", "valid": "dev"}),
        (["all"], {"train": "all"}),
        (["validation", "test", "train"], dict(train="train", valid="validation", test="test")),
    ],
)
def test_which_split_is_which(names, chosen):
    assert official.choose(names, "set") == chosen


def test_a_set_without_a_training_split_asks_for_one():
    with pytest.raises(InputError, match="train='SPLIT'.*a, b"):
        official.choose(["a", "b"], "set")


# What is missing


def test_without_network_it_says_at_once_what_to_put_where(folder, monkeypatch):
    monkeypatch.setattr(tfds, "_reachable", lambda url: False)
    monkeypatch.setattr(tfds, "_installed", lambda package: False)
    began = time.process_time()
    manual = f"{folder}/downloads/manual"
    assert f"put input.txt in {manual}" in refused("tfds:tiny_shakespeare")
    message = refused("tfds:wiki40b/en")
    assert "no network" in message and "pip install apache-beam" in message
    assert f"at {folder}/wiki40b/en/" in message
    assert f"tar.gz in {manual}" in refused("tfds:lm1b")
    assert time.process_time() - began < 10 and not list(folder.iterdir())


def test_nobody_answers_at_a_closed_port():
    began = time.monotonic()
    assert not tfds._reachable("http://127.0.0.1:9/nothing")
    assert time.monotonic() - began < 30


def test_names_and_features(folder):
    assert "'tfds:tiny_shakespeare'?" in refused("tfds:tiny_shakespear")
    assert "did you mean 'sst2'?" in refused("tfds:glue/sst3")
    assert "image, label" in refused("tfds:mnist")
    assert "is a feature of text" in refused("tfds:clinc_oos:text:intent")
    assert "is a string" in refused({"tfds": {"dataset": 3}})


def test_an_interrupted_preparation_is_noticed(folder, mocked, monkeypatch, caplog):
    path = pretend(folder, "lm1b", {"train": 30, "test": 10})
    (path / "lm1b-test.array_record-00000-of-00001").unlink()
    message = refused("tfds:lm1b")
    assert "prepared in part: 1 of 2 files" in message and str(path) in message
    path.rename(path.with_name("incomplete.AB12_1.1.0"))
    monkeypatch.setattr(tfds, "_reachable", lambda url: False)
    assert "no network" in refused("tfds:lm1b")
    assert "was interrupted" in caplog.text and "incomplete.AB12" in caplog.text


def test_empty_texts_are_left_out_and_counted(caplog):
    @sources.register
    class Gaps(sources.Source):
        name = "with_gaps"

        def read(self):
            return {"train": [("a", "b"), ("c", ""), ("", "d")]}

    assert sources.read("with_gaps").examples == [("a", "b"), ("", "d")]
    assert "1 of 3 texts or targets are empty" in caplog.text


def test_a_label_that_is_not_given_is_no_class(caplog):
    split = object.__new__(tfds._Split)  # as of snli, where -1 stands for no label
    split._names, split._labels = ["text", "label"], [None, ["yes", "no"]]
    rows = [{"text": b"a", "label": 1}, {"text": b"b", "label": -1}]

    @sources.register
    class Unlabelled(sources.Source):
        name = "partly_labelled"

        def read(self):
            return {"train": [split._record(i, row) for i, row in enumerate(rows)], "valid": []}

    corpus = sources.read("partly_labelled")
    assert corpus.examples == [("a", "no")] and not corpus.official
    assert "1 of 2 texts or targets are empty" in caplog.text
    assert "its split valid is empty and is not read" in caplog.text


# For real


READ = """
from hashlib import sha256
from kzoo.data import sources
parts = sources.read("tfds:tiny_shakespeare")
texts = [parts.text, parts.official["valid"].text, parts.official["test"].text]
print("read", sha256(b"".join(texts)).hexdigest(), *map(len, texts))
"""
SHAKESPEARE = [
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    *("1003854", "55770", "55770"),
]


def lines_of(printed):
    return [line.split()[1:] for line in printed.splitlines() if line.startswith("read")]


@pytest.fixture
def from_hand(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "manual").symlink_to(MANUAL)
    return {"TFDS_DATA_DIR": str(tmp_path)}


@needs_corpora
def test_shakespeare_needs_neither_tensorflow_nor_preparation(from_hand):
    assert lines_of(python(READ, without=("tensorflow",), **from_hand)) == [SHAKESPEARE]


def test_a_file_of_another_text_is_refused(folder):
    manual = folder / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "input.txt").write_text("not Shakespeare")
    assert "not the file that TFDS knows" in refused("tfds:tiny_shakespeare")


@needs_corpora
@pytest.mark.slow
def test_what_tfds_prepares_is_read(from_hand, tmp_path):
    pytest.importorskip("tensorflow")
    code = f"""
import tensorflow_datasets as tfds
from kzoo.data import sources
parts = sources.read("tfds:clinc_oos")
print("read", len(parts.examples), *(len(part.examples) for part in parts.official.values()))
print("read", parts.examples[0][1] in {{target for _, target in parts.official["test"].examples}})
config = tfds.download.DownloadConfig(manual_dir={str(MANUAL)!r})
for file_format in "tfrecord", "array_record":
    folder = {str(tmp_path)!r} + "/" + file_format
    builder = tfds.builder("tiny_shakespeare", data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=config)
    import os; os.environ["TFDS_DATA_DIR"] = folder
{"".join("    " + line + chr(10) for line in READ.splitlines())}
"""
    assert lines_of(python(code, **from_hand)) == [
        ["14998", "3000", "4500"],
        ["True"],
        SHAKESPEARE,
        SHAKESPEARE,
    ]


def test_a_builder_of_ones_own(tmp_path):
    """Prepared and read where TensorFlow cannot be imported."""
    code = """
import tensorflow_datasets as tfds
class Kzoo_Notes(tfds.core.GeneratorBasedBuilder):
    name = "kzoo_notes"
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(4)}
    def _generate_examples(self, count):
        yield from ((i, {"text": f"note {i}"}) for i in range(count))
from kzoo.data import sources
for _ in range(2):  # prepares, then reads
    corpus = sources.read("tfds:kzoo_notes")
    print([sorted(one.text.split(b"\\n\\n")) for one in (corpus, corpus.official["test"])])
"""
    notes = [b"note 0", b"note 1", b"note 2", b"note 3"]
    printed = python(code, without=("tensorflow",), TFDS_DATA_DIR=str(tmp_path))
    assert printed.strip().splitlines() == [str([notes[:3], notes])] * 2


def test_the_log_names_what_is_not_read(caplog):
    caplog.set_level(logging.INFO, "kzoo")
    official.choose(["train", "unsupervised"], "reviews")
    assert "unsupervised" in caplog.text
