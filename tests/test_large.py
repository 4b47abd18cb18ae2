"""Data that are read where they lie: the same as those that are held in memory."""

import csv
import gzip
import json

import numpy as np
import pandas as pd
import pytest

from kzoo import data
from kzoo.cli import main
from kzoo.data import sources, splits, statistics, text
from kzoo.data.near_duplicates import near_duplicates
from kzoo.data.sources import stored
from kzoo.data.sources.records import Records
from kzoo.data.sources.table import Table
from kzoo.errors import InputError
from kzoo.models.tokenizer_file import read_file

CONFIG = {"max_sequence_length": 64, "mask": "prefix", "objective": "prefix_lm"}
WORDS = ["the", "quick", "é", "\N{GRINNING FACE}", 'said "no"', "a,b", "x\ny", "jumps"]


@pytest.fixture
def in_pieces(monkeypatch, tmp_path):
    """Everything is large, and read in pieces that cut characters and lines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def change():
        monkeypatch.setattr(stored, "LARGE", 0)
        monkeypatch.setattr(stored, "CHUNK", 997)

    return change


def prose(count):
    rng = np.random.default_rng(0)
    words = enumerate(rng.choice(WORDS, count))
    return "".join(f"{word}{' ' if i % 9 else chr(10)}" for i, word in words)


# Text


def test_a_text_on_disk_is_read_by_position(tmp_path, in_pieces):
    (tmp_path / "a").mkdir()
    written = [f"\ufeff{prose(4000)}", prose(3000), prose(3000)]
    for name, one in zip("cba", written, strict=True):
        (tmp_path / "a" / f"{name}.txt").write_text(one, encoding="utf-8")
    whole = sources.read(tmp_path / "a").text
    one_file = sources.read(tmp_path / "a" / "c.txt")
    in_pieces()
    read = sources.read(tmp_path / "a").text
    assert len(read) == len(whole) and read.read(0, len(read)) == whole
    again = sources.read(tmp_path / "a" / "c.txt")
    assert again.sha256 == one_file.sha256 and again.text.read(0, 9) == one_file.text[:9]
    rng = np.random.default_rng(1)
    for start, stop in np.sort(rng.integers(0, len(whole), (50, 2))).tolist():
        assert read.read(start, stop) == whole[start:stop]
        part = read.part([0, start], [start // 2, stop])
        assert part.read(3, len(part) - 3) == (whole[: start // 2] + whole[start:stop])[3:-3]
    assert "".join(text.pieces(read)).encode() == whole
    assert text.unigram_entropy(read) == text.unigram_entropy(whole)
    assert text.bigram_entropy(read) == text.bigram_entropy(whole)


def test_windows_of_a_text_on_disk_are_those_of_its_blocks(tmp_path, in_pieces, caplog):
    rng = np.random.default_rng(0)  # nothing repeats, so that nothing is cut out in memory
    path = tmp_path / "a.txt"
    path.write_bytes(rng.integers(32, 127, 90_000).astype(np.uint8).tobytes())
    config = {**CONFIG, "mask": "causal", "objective": "causal_lm"}
    held = data.load(path, config, batch_size=8)
    in_pieces()
    read = data.load(path, config, batch_size=8)
    for part in ("train", "valid"):
        for i in (0, len(getattr(held, part)) - 1):
            ours, theirs = getattr(read, part)[i], getattr(held, part)[i]
            np.testing.assert_array_equal(ours[0]["token_ids"], theirs[0]["token_ids"])
            np.testing.assert_array_equal(ours[1:], theirs[1:])
    same = ("sha256", "train_rows", "valid_rows", "valid_bytes", "bigram_entropy")
    assert [read.facts[name] for name in same] == [held.facts[name] for name in same]
    assert "the facts count it in a sample" in caplog.text
    assert sum(read.facts["split"]["sampled_bytes"]) == path.stat().st_size


def test_held_out_windows_do_not_depend_on_the_batch_size(tmp_path, in_pieces):
    path = tmp_path / "a.txt"
    path.write_text(prose(60_000), encoding="utf-8")
    in_pieces()
    few, many = (
        [row for _, y, _ in data.load(path, CONFIG, batch_size=size, valid=0.3).valid for row in y]
        for size in (7, 300)
    )
    assert len(few) > 512
    np.testing.assert_array_equal(few[:600], many[:600])


@pytest.mark.parametrize("name, broken", [("bad", b"\xff"), ("nul", b"\0")])
def test_what_is_no_text_is_found_anywhere(tmp_path, in_pieces, name, broken):
    good = prose(3000).encode()
    path = tmp_path / f"{name}.txt"
    path.write_bytes(good + b"\n" + broken + good)
    in_pieces()
    with pytest.raises(InputError, match=rf"{name}.txt.*byte {len(good) + 1}"):
        sources.read(path)


# Tables


def write(path, pairs):
    if path.suffix == ".jsonl":
        lines = [json.dumps({"id": 1, "source": a, "target": b}) + "\n" * 2 for a, b in pairs]
        path.write_text("".join(lines), encoding="utf-8")
        return
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **style).writerows([("source", "target"), *pairs])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_a_table_on_disk_gives_the_batches_of_one_in_memory(tmp_path, in_pieces, name):
    rng = np.random.default_rng(0)
    words = WORDS if name != "a.tsv" else ["a", "b", "é"]
    pairs = [
        (" ".join(rng.choice(words, 2)) + f" {i % 400}", f"{rng.choice(words)} {i}")
        for i in range(1500)
    ]
    path = tmp_path / name
    write(path, [*pairs, *pairs[:10], (pairs[3][0].upper(), "last")])
    held = data.load(path, CONFIG, batch_size=16)
    in_pieces()
    read = data.load(path, CONFIG, batch_size=16)
    assert read.facts["split"] == held.facts["split"]
    for i in (0, 7):
        (x, y, _), (wide, labels, _) = held.train[i], read.train[i]
        width = x["token_ids"].shape[1]
        np.testing.assert_array_equal(x["token_ids"], wide["token_ids"][:, :width])
        np.testing.assert_array_equal(y, labels[:, :width])
    index = list((tmp_path / "cache" / "kzoo").rglob("index.npy"))
    assert len(index) == 1
    changed = index[0].stat().st_mtime_ns
    data.load(path, CONFIG, batch_size=16)
    assert index[0].stat().st_mtime_ns == changed  # found again


PACKINGS = [
    "first_fit",
    {"buckets": {"count": 3}},
    {"padded": {"long": "truncate_source"}},
    {"first_fit": {"long": "truncate"}},
]


@pytest.fixture(scope="module")
def small_bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    texts = [prose(400), prose(500)]
    return read_file(data.train_tokenizer(texts, size=420, directory=folder))


def test_subwords_of_a_text_on_disk_are_made_once(
    tmp_path, in_pieces, monkeypatch, caplog, small_bpe
):
    rng = np.random.default_rng(0)  # nothing repeats, so that nothing is cut out in memory
    path = tmp_path / "a.txt"
    path.write_bytes(rng.choice([10, *range(97, 123)], 50_000).astype(np.uint8).tobytes())
    config = {**CONFIG, "mask": "causal", "objective": "causal_lm", "tokenizer": "file"}
    caplog.set_level("INFO", "kzoo")

    def rows(valid=0.1):
        splits = data.load(path, config, batch_size=8, tokenizer=small_bpe, valid=valid)
        parts = splits.train, splits.valid
        return [part[i][0]["token_ids"] for part in parts for i in (0, len(part) - 1)]

    held = rows()
    in_pieces()
    np.testing.assert_array_equal(rows(), held)
    assert caplog.text.count("its tokens are made once") == 2  # of either part
    np.testing.assert_array_equal(rows(), held)
    assert caplog.text.count("its tokens are made once") == 2
    files = [*(tmp_path / "cache").rglob("tokens.bin")]
    assert len(files) == 2 and sum(file.stat().st_size for file in files) < 8 * 50_000
    files[0].write_bytes(files[0].read_bytes()[:200])  # as after a crash
    np.testing.assert_array_equal(rows(), held)
    assert rows(0.3)[0].shape == held[0].shape and len([*tmp_path.rglob("tokens.bin")]) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    np.testing.assert_array_equal(rows(), held)
    assert "its tokens are held in memory" in caplog.text


@pytest.mark.parametrize("subwords", [False, True], ids=["bytes", "bpe"])
@pytest.mark.parametrize("paired", [True, False], ids=["pairs", "texts"])
def test_examples_on_disk_stand_in_the_rows_of_those_in_memory(
    tmp_path, in_pieces, paired, subwords, small_bpe, caplog
):
    """Each packing: the same plan, the same batches and facts, some examples too long."""
    rng = np.random.default_rng(0)
    pairs = [
        (" ".join(rng.choice(WORDS, rng.integers(1, 9))), f"{i} " + "".join(rng.choice(WORDS, 4)))
        for i in range(400)
    ] + [(f"long {i} " * 9, f"{i} target" * (2 * i + 1)) for i in range(9)]
    columns = ("source", "target") if paired else ("text",)
    rows = [dict(zip(columns, pair if paired else [" ".join(pair)], strict=True)) for pair in pairs]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {**CONFIG, "tokenizer": "file" if subwords else "bytes"}

    def load(packing):
        tokenizer = small_bpe if subwords else None
        return data.load(path, config, batch_size=4, packing=packing, tokenizer=tokenizer)

    held = [load(packing) for packing in PACKINGS]
    in_pieces()
    caplog.set_level("INFO", "kzoo")
    for packing, ours in zip(PACKINGS, held, strict=True):
        read = load(packing)
        for part in ("train", "valid"):
            ones, others = getattr(ours, part), getattr(read, part)
            assert len(ones) == len(others) > 2
            for i in (0, len(ones) - 1) if part == "train" else (0,):
                (x, *rest), (y, *others_rest) = ones[i], others[i]
                assert all((x[name] == y[name]).all() for name in {**x, **y})
                np.testing.assert_array_equal(rest, others_rest)
        of_sample = {"sha256", "split", "unigram_entropy", "bigram_entropy"}
        assert all(ours.facts[name] == read.facts[name] for name in {*ours.facts} - of_sample)
        assert ours.facts["cut_rows"] or ours.facts["split_rows"]
    padded = load(
        "padded"
    )  # the fill is that of a sample, less an end token of each that is no input
    filled = statistics.fill(padded)["row"]
    assert filled < 0.95 and padded.facts["packing"]["fill"] == pytest.approx(filled, abs=0.02)
    assert caplog.text.count("read once, to count") == subwords  # and kept for all of them
    with pytest.raises(InputError, match="Received: .* that are longer"):
        load({"padded": {"long": "refuse"}})


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "source,target\n" + "x,y\n" * 999 + "a,b,c\n", "3 cells .*line 1001"),
        ("a.csv", "source,target\n" + "x,y\n" * 99 + '"a\n\nb",\n', "empty.*line 101"),
        ("a.csv", "source,target\n" + "x,y\n" * 99 + 'a"b,c\nx,y\n', "doubled.*line 101"),
        ("a.jsonl", '{"text": "a"}\n' * 50 + '{"txt": "a"}\n', "None .*line 51"),
        ("a.jsonl", '{"text": "a"}\n\n{"text', "one JSON object.*line 3"),
        ("a.jsonl", '["a"]\n', "Received: list"),
        ("a.tsv", "text\tb\nx\n", "1 cells .*line 2"),
        ("a.csv", "text,b\n", "is empty|no example"),
        ("a.csv", "text\nsesam\xff".encode("latin-1"), "byte 10"),
    ],
)
def test_a_bad_line_of_a_table_on_disk_is_named(tmp_path, in_pieces, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    in_pieces()
    with pytest.raises(InputError, match=words):
        sources.read(path)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_lines_are_those_of_a_table_in_memory(tmp_path, in_pieces, ending):
    """Line ends of one kind or both, empty lines, cells of one letter, no last line end."""
    rng = np.random.default_rng(0)
    files = []
    for number, ends in enumerate([["\n"], ["\r\n"], ["\n", "\r\n", "\n\r\n", "\n\n"]]):
        cells = [str(rng.choice(["a", "é", "b" * 2000])) for _ in range(200)]
        if ending == "jsonl":
            cells = [json.dumps({"text": cell}, ensure_ascii=False) for cell in cells]
            ends = [*ends, "\n \t\n"]
        lines = ["text", *cells] if ending != "jsonl" else cells
        text = "".join(line + str(rng.choice(ends)) for line in lines).rstrip("\r\n")
        files.append(tmp_path / f"{number}.{ending}")
        files[-1].write_bytes(b"\xef\xbb\xbf" * (number > 0) + text.encode())
    held = [[*Table(str(file)).read()] for file in files]
    in_pieces()
    assert [[*Table(str(file)).read()] for file in files] == held
    assert len(held[0]) == len(held[2]) == 200


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_any_table_on_disk_is_refused_or_as_in_memory(tmp_path, in_pieces, ending, monkeypatch):
    """Random ones, of what is hard in CSV and JSON."""
    rng = np.random.default_rng(1)
    separator = "\t" if ending == "tsv" else ","
    pieces = [
        separator,
        "\n",
        "\r\n",
        "\n\n",
        '"',
        '""',
        '"a\n"',
        '"a""b"',
        "a",
        "é",
        " ",
        "\ufeff",
    ]
    shares = np.array([5, 3, 2, 1, 0.4, 0.5, 1, 1, 9, 2, 1, 0.1])
    if ending == "jsonl":
        lines = [
            '{"text": "a"}',
            '{"text": "é\\n"}',
            '{"text": ""}',
            '{"text": null}',
            "[1]",
            " \t",
            "{",
        ]
        pieces, shares = [line + "\n" for line in lines], np.array([9, 9, 0.3, 0.3, 0.2, 2, 0.2])
    path, outcomes = tmp_path / f"a.{ending}", []
    for _ in range(150):
        path.write_text("".join(rng.choice(pieces, rng.integers(1, 9), p=shares / shares.sum())))
        for large in (False, True):
            with monkeypatch.context() as patched:
                if large:
                    patched.setattr(stored, "LARGE", 0)
                    patched.setattr(stored, "CHUNK", 7)
                try:
                    outcomes.append([*Table(str(path), "text" if ending == "jsonl" else 0).read()])
                except InputError:
                    outcomes.append(None)
    held, read = outcomes[::2], outcomes[1::2]
    if ending == "csv":  # on disk a quote in a cell without quotes is refused
        held = [None if two is None else one for one, two in zip(held, read, strict=True)]
    assert held == read and 20 < read.count(None) < 130


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_a_compressed_table_is_unpacked_once(tmp_path, in_pieces, name, caplog):
    pairs = [(f"é {i}", f'"{i}",\n') for i in range(300)]
    path, plain = tmp_path / name, tmp_path / name.removesuffix(".gz")
    if name.endswith(".gz"):
        write(plain, pairs)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    else:
        pd.DataFrame(
            [(1.5, *pair) for pair in pairs], columns=["id", "source", "target"]
        ).to_parquet(path, row_group_size=100)
    caplog.set_level("INFO", "kzoo")
    in_pieces()
    for _ in range(2):
        assert [*sources.read(path).examples] == pairs
    assert caplog.text.count("unpacked into") == 1
    assert len([*(tmp_path / "cache").rglob("index.npy")]) == 1


def test_a_broken_compressed_table_leaves_nothing(tmp_path, in_pieces):
    lines = "".join(f"{i},{i * i}\n" for i in range(3000))
    half = tmp_path / "a.csv.gz"
    half.write_bytes(gzip.compress(lines.encode())[:-900])
    gaps = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["a", None, "b"]}).to_parquet(gaps)
    broken = tmp_path / "b.parquet"
    broken.write_bytes(gaps.read_bytes()[:-200] + b"PAR1")
    in_pieces()
    for path, words in (
        (half, "compressed by gzip"),
        (gaps, "None .*row 1"),
        (broken, "broken"),
    ):
        with pytest.raises(InputError, match=words):
            sources.read(path)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_file_that_changes_under_its_index_is_refused(tmp_path, in_pieces):
    table, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    write(table, [(f"a {i}", f"b {i}") for i in range(99)])
    text.write_text(prose(3000), encoding="utf-8")
    in_pieces()
    rows, running = sources.read(table).examples, sources.read(text).text
    rows[3], running.read(0, 9)
    for path in (table, text):
        path.write_bytes(b" " + path.read_bytes()[1:])
    for read in (lambda: rows[3], lambda: running.read(0, 9)):
        with pytest.raises(InputError, match="does not change while it is used.*which changed"):
            read()


def test_cells_of_any_length(tmp_path, in_pieces):
    path, before = tmp_path / "a.csv", csv.field_size_limit()
    write(path, [("a", "b" * 300_000)])
    assert len(sources.read(path).examples[0][1]) == 300_000
    in_pieces()
    assert len(sources.read(path).examples[0][1]) == 300_000
    assert csv.field_size_limit() == before


def test_an_index_that_cannot_be_kept_is_made_each_time(tmp_path, in_pieces, monkeypatch, caplog):
    path = tmp_path / "a.jsonl"
    write(path, [(f"a {i}", f"b {i}") for i in range(99)])
    in_pieces()
    whole = sources.read(path)
    (index,) = (tmp_path / "cache").rglob("index.npy")
    index.write_bytes(index.read_bytes()[:200])  # as after a crash
    assert sources.read(path).sha256 == whole.sha256
    assert index.stat().st_size > 200
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    again = sources.read(path)
    assert again.sha256 == whole.sha256 and [*again.examples] == [*whole.examples]
    assert "is not kept and is made each time" in caplog.text


# Records


class Numbers(Records):
    """Documents, bytes, that are made when they are read, and counts how many are."""

    size, identity = 1 << 40, ("numbers",)

    def __init__(self, item):
        self.item, self.reads = item, 0

    def __len__(self):
        return 3000

    def __getitems__(self, indices):
        self.reads += 1
        return [self.item(int(i)) for i in indices]


def test_documents_and_official_splits_are_read_when_they_are_drawn(in_pieces, tmp_path):
    in_pieces()
    records = Numbers(lambda i: f"document {i} ".encode() * (i % 5))

    @sources.register
    class Counting(sources.Source):
        name = "counting_documents"

        def read(self):
            return {"train": records, "test": [b"document one hundred thousand " * 9]}

    config = {**CONFIG, "mask": "causal", "objective": "causal_lm"}
    read = data.load("counting_documents", config, batch_size=8)
    distinct = {records.item(i) for i in range(3000)} - {b""}
    whole = b"\n\n".join(x for x in map(records.item, range(3000)) if x in distinct)
    stream = sources.read("counting_documents").text
    assert stream.read(0, len(stream)) == whole
    assert len(read.test) == 1 and read.facts["test_rows"] == 4
    records.reads = 0
    read.train[0]
    assert 0 < records.reads < 50


# What two parts share


def naive(train, held_out):
    """How many bytes of texts stand in others too, in runs of 32 bytes or more."""
    known = {one[i : i + 32] for one in train for i in range(len(one) - 31)}
    covered = [set() for _ in held_out]
    for own, one in zip(covered, held_out, strict=True):
        for i in range(len(one) - 31):
            own.update(range(i, i + 32) if one[i : i + 32] in known else ())
    return sum(map(len, covered))


def test_shared_bytes_are_those_found_one_by_one():
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(32, 127, (4, n)).astype(np.uint8) for n in (3000, 900))
    for row, length in enumerate((32, 40, 90, 300)):
        at, to = rng.integers(0, 900 - length, 2) + [2000, 0]
        held_out[row][to : to + length] = train[row][at : at + length]
    ours = text.shared([*train], [*held_out])
    assert ours == naive([one.tobytes() for one in train], [one.tobytes() for one in held_out])
    for much in ([*train], [text.joined(train)]):
        found = text.shared_with_much(much, [*held_out])
        assert ours - 3 * 14 - 32 <= found <= ours
    assert text.shared_with_much([train[0][:9]], [*held_out]) == 0
    ends = [one.tobytes()[-31:] for one in train]  # no run goes on into the next text
    arrays = [np.frombuffer(one, np.uint8) for one in ends]
    assert text.shared_with_much([text.joined(arrays)], arrays) == 0


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_sample_of_what_is_held_out_is_compared_with_much(
    tmp_path, in_pieces, monkeypatch, name, capsys
):
    """Each paragraph stands in the text eight times: nearly all that is held out is learned."""
    rng = np.random.default_rng(0)
    paragraphs = [bytes(rng.integers(97, 123, 300).tolist()).decode() for _ in range(100)]
    lines = [f"{i} {paragraphs[i]}" for i in rng.permutation(np.repeat(range(100), 8))]
    path = tmp_path / name
    of_table = [json.dumps({"text": f"{number} {line}"}) for number, line in enumerate(lines)]
    path.write_text("\n".join(of_table if name == "a.jsonl" else lines), encoding="utf-8")
    in_pieces()
    monkeypatch.setattr(splits, "SAMPLE", 4096)
    monkeypatch.setattr(splits, "SAMPLED", 16)
    assert main(["data", str(path), "--json"]) == 0
    split = json.loads(capsys.readouterr().out)["facts"]["split"]
    sampled = split["sampled_bytes"][1] if name == "a.txt" else 16 * 300
    assert 0.9 * sampled < split["shared_bytes"] <= 1.05 * sampled
    packed = ["--packing", "first_fit", "--set", "max_sequence_length=1024"]
    assert main(["data", str(path), *packed]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "shared bytes are counted in a sample, of" in out
    assert ("examples to train on in" in out) == (name == "a.jsonl")


# Near duplicates


def test_near_copies_are_counted_in_a_sample():
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(10_000, 40).astype(str)) for _ in range(60)]
    held_out = [*(f"{one} and more" for one in texts[:5]), *texts[30:]]
    facts = near_duplicates(texts[:30], [one.upper() for one in held_out])
    assert (facts["train_texts"], facts["held_out_texts"], facts["near_copies"]) == (30, 35, 5)
    pairs = [(one, f"answer {i} to it") for i, one in enumerate([*texts, *held_out[:5]])]
    read = data.load(pairs, CONFIG, batch_size=4, valid=0.5, near_duplicates=100)
    assert "Jaccard" in read.facts["near_duplicates"]["rule"]
    assert json.dumps(read.facts)
    with pytest.raises(InputError, match="positive number"):
        near_duplicates(texts, texts, sample=0)


def test_components_take_hashes_as_well_as_texts():
    columns = [["a", "b", "", "a", ""], ["x", "y", "z", "q", "b"]]
    hashes = [[hash(one) % 2**63 if one else 0 for one in column] for column in columns]
    expected = [0, 1, 2, 0, 1]
    assert splits.components(columns).tolist() == expected
    assert (
        splits.components([np.array(column, np.uint64) for column in hashes]).tolist() == expected
    )
