"""Whatever is handed to `load` is read right or refused in one line that never shows the data."""

import collections.abc
import csv
import gzip
import io
import logging
import os

import numpy as np
import pandas as pd
import pytest

from kzoo import data
from kzoo.data import sources
from kzoo.data.sources import files, stored
from kzoo.errors import InputError

SECRET = "sesame"
ROWS = [f"{SECRET} {i}" for i in range(20)]
LINES = "".join(f"{i * 7919:x} {SECRET} \u00e9t\u00e9 {i * 104729:x}\n" for i in range(300))


def refused(source):
    """The message, which is one line and shows nothing of the data."""
    config = {"max_sequence_length": 32, "mask": "prefix", "objective": "prefix_lm"}
    with pytest.raises(InputError) as error:
        data.load(source, config, batch_size=2)
    message = str(error.value)
    assert "Received: " in message and "\n" not in message and len(message) < 500
    assert SECRET not in message
    return message


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Files


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", '{"prompt": "sesame"}\n', "'table:FILE:SOURCE:TARGET'"),
        ("a.CSV", "sesame,b\n", "with 2 columns"),
        ("a.csv", "", "no example"),
        ("a.tsv", LINES, "which columns"),
        ("a.json", "[]", "no example"),
        ("a.json", '["sesame"]', "Received: str"),
        ("a.jsonl", '{"text": "sesame"}\n{"text": [3]}', "Received: list"),
        ("a.jsonl", '{"text": "sesame"}\n{"txt": "sesame"}', "a.jsonl', line 2"),
        ("a.jsonl", '{"text": "sesame"}\n{"text": ""}', "a.jsonl', line 2"),
        ("a.jsonl", '{"text": "sesame"}\n\n{"text', "a.jsonl', line 3"),
        ("a.csv", "text\nsesame\n\nsesame,b\n", "2 cells ("),
        ("a.csv", 'text\n"sesame\n1"\n"sesame"b\n', "a.csv', line 4"),
        ("a.csv", 'source,target\na,b\n"a\n\nb",\n', "a.csv', line 3"),
        ("a.csv", "text\nsesame\0", "binary"),
        ("a.csv", "text\nsesam\u00e9".encode("latin-1"), "byte 10 is no UTF-8"),
        ("a.tsv", "source\ttarget\nb\ta\nsesame", "1 cells ("),
        ("a.csv.gz", "text\nsesame", "compressed by gzip"),
        ("a.parquet", b"PAR1sesame", "no Parquet"),
        ("a.xlsx", b"PK\x03\x04", "save them as CSV"),
        ("a.txt", b"PAR1" + LINES.encode(), "Parquet"),
        ("a.gz", gzip.compress(LINES.encode()), "gunzip"),
        ("a.pdf", "%PDF-1.4\n" + LINES, "pdftotext"),
        ("a.rtf", "{\\rtf1 " + LINES, "RTF"),
        ("a.docx", b"PK\x03\x04" + LINES.encode(), ".docx"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(99), "an image"),
        ("a.txt", LINES + "\0", "binary"),
        ("a.bin", bytes(range(1, 256)) * 9, "binary"),
        ("a.bin", b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0\1\0\0\0" * 9, "a binary file"),
        ("a.bin", b"\1\0\0\0" * 9 + bytes(8), "a binary file"),
        ("a.txt", ("\N{GRINNING FACE}" + LINES).encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("a.txt", "", "no text"),
        ("a.txt", b"\xef\xbb\xbf \n", "no text"),
        ("a.txt", LINES.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("a.txt", LINES.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        ("a.txt", LINES.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        ("a.txt", LINES.encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
        ("a b.txt", LINES.encode("latin-1"), "a b.txt' > new.txt`"),
        ("a.txt", LINES.encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
        ("a.txt", LINES.encode()[:-1] + b"\xc3", "1 broken characters, the first at byte"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_what_to_do(tmp_path, name, content, words):
    message = refused(write(tmp_path, name, content))
    assert words in message and name in message


def test_the_command_that_is_named_converts(tmp_path):
    for encoding, name in [("utf-16", "UTF-16"), ("utf-32-be", "UTF-32BE"), ("latin-1", "1252")]:
        path = write(tmp_path, "old.txt", LINES.encode(encoding))
        command = refused(path).split("`")[1].replace("new.txt", str(tmp_path / "new.txt"))
        assert name in command and os.system(command) == 0
        assert sources.read(tmp_path / "new.txt").text == LINES.encode()


def test_a_byte_order_mark_is_left_out_and_nothing_else_changed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbf" + LINES.encode())
    assert sources.read(path).text == LINES.encode() and "byte order mark" in caplog.text
    for odd in (LINES.replace("\n", "\r\n"), LINES.replace("\n", " "), "\u2028\ufeff\r" + LINES):
        assert sources.read(write(tmp_path, "a.txt", odd)).text == odd.encode()


@pytest.mark.parametrize(
    "content, words",
    [
        ("<!DOCTYPE html><html>" + LINES, "HTML"),
        ("".join(f'{{"text": "{i}"}}\n' for i in range(99)), "JSON lines"),
        ("".join(f"{i}\t{i * i}\n" for i in range(99)), "a table"),
        (LINES.replace("\n", "\r\n"), "dos2unix"),
        (LINES, None),
        ("\tindented\n\n\tby tabs\n" * 40 + LINES, None),
        ("".join(f"{i}\n" for i in range(99)), None),
    ],
)
def test_syntax_is_not_learned_without_a_word(tmp_path, caplog, content, words):
    assert sources.read(write(tmp_path, "a.txt", content)).text == content.encode()
    assert (words in caplog.text) if words else not caplog.text


def test_a_folder_reads_its_texts_and_counts_the_rest(tmp_path, caplog):
    write(tmp_path, "b/a.txt", LINES)
    write(tmp_path, "b/b.csv", "1,2")
    write(tmp_path, "b/c.png", b"\x89PNG")
    (tmp_path / "b" / "d").symlink_to("/not/there")
    assert sources.read(tmp_path).text == LINES.encode()
    assert "3 of 4 files" in caplog.text and "b/b.csv, b/c.png, b/d" in caplog.text
    write(tmp_path, "b/e.txt", LINES.encode("utf-16"))
    assert "e.txt" in refused(tmp_path)
    for name in ("a", "e"):
        (tmp_path / "b" / f"{name}.txt").unlink()
    assert "3 of 3 files" in refused(tmp_path)


def test_what_is_small_and_broken_is_not_called_large_or_empty(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    broken = write(tmp_path, "a.csv.gz", gzip.compress(LINES.encode())[:2000] + b"\xff" * 4)
    assert "compressed by gzip" in refused(broken) and "unpacked" not in caplog.text
    assert "nothing but white space" in refused(write(tmp_path, "a.txt", " \n\n  \n"))
    assert "an empty file" in refused(write(tmp_path, "b.txt", ""))


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "moby.txt", LINES)
    for name in ("~/moby.txt", path, str(path)):
        assert sources.read(name).text == LINES.encode()
    assert "did you mean '~/moby.txt'?" in refused("~/mobi.txt")
    assert f"did you mean {str(path)!r}?" in refused(tmp_path / "mobi.txt")
    (tmp_path / "link.txt").symlink_to("/not/there")
    assert "broken link: '/not/there'" in refused(tmp_path / "link.txt")
    assert "neither a file nor a folder" in refused(os.devnull)
    assert "nothing is downloaded" in refused("https://example.org/moby.txt")
    assert "[text]" in refused(LINES) and "[text]" in refused(SECRET * 50)
    assert "no such file" in refused("a\0b")


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", LINES)

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "_format", denied)
    assert "Permission denied" in refused(path)


# Tables

PAIRS = [('a, "b"', "x\ny"), (" ", "é"), ("'", '"'), ("NA", "null")]


def as_csv(names, **style):
    text = io.StringIO(newline="")
    csv.writer(text, **style).writerows([names, *PAIRS])
    return text.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("ending", ["csv", "CSV", "jsonl", "ndjson", "json", "parquet"])
def test_a_table_is_read_as_it_was_written(tmp_path, ending, zipped):
    frame = pd.DataFrame(PAIRS, columns=["question", "answer"]).assign(id=range(len(PAIRS)))
    if ending == "parquet":
        content = frame.to_parquet(engine="pyarrow")
    elif ending == "json":
        content = frame.to_json(orient="records").encode()
    elif ending == "CSV":
        content = b"\xef\xbb\xbf" + frame.to_csv(index=False).encode()  # as Excel writes it
    elif ending == "csv":
        content = as_csv(["question", "answer"], lineterminator="\r\n").encode()
    else:
        content = frame.to_json(orient="records", lines=True).encode()
    name = f"a.{ending}" + ".gz" * zipped
    path = write(tmp_path, name, gzip.compress(content) if zipped else content)
    assert sources.read(path).examples == PAIRS
    assert sources.read(f"table:{path}:answer:question").examples[0] == PAIRS[0][::-1]
    by_json = {"table": {"path": str(path), "source": "question", "target": "answer"}}
    assert sources.read(by_json).examples == PAIRS
    texts = sources.read(f"table:{path}:answer").examples
    assert texts == [(None, answer) for _, answer in PAIRS]


def test_columns_by_number_take_the_first_line_as_an_example(tmp_path):
    path = write(tmp_path, "a:b.tsv", 'he said "no\tsi\t1\nyes"\tno\t2\n')
    pairs = [('he said "no', "si"), ('yes"', "no")]
    assert sources.read(f"table:{path}:0:1").examples == pairs
    assert sources.read({"table": {"path": str(path), "target": 1}}).examples == [
        (None, "si"),
        (None, "no"),
    ]
    assert "Valid: 0, 1, 2" in refused(f"table:{path}:0:3")
    assert "both named or both numbered" in refused(f"table:{path}:0:si")


@pytest.mark.parametrize("large", [False, True])
def test_a_line_of_names_is_no_example(tmp_path, caplog, monkeypatch, large):
    if large:
        monkeypatch.setattr(stored, "LARGE", 0)
    path = write(tmp_path, "a.csv", "id,Question,answer\n1,how,so\n2,why,because\n")
    assert f"'table:{path}:Question:answer'" in refused(f"table:{path}:1:2")
    path = write(tmp_path, "b.csv", "mr,ref\na man,a woman\n")
    assert sources.read(f"table:{path}:0:1").examples[0] == ("mr", "ref")
    assert "its first line is taken as an example" in caplog.text
    caplog.clear()
    path = write(tmp_path, "c.tsv", "a man\tun homme\na cat\tun chat\n")
    assert len(sources.read(f"table:{path}:0:1").examples) == 2
    assert "taken as an example" not in caplog.text


LABELLED = [("sesame", 1, True, 0.5), ("oyster", 0, False, 2.0), ("owl", 1, True, 1.0)]


@pytest.mark.parametrize("large", [False, True])
def test_numbers_are_read_as_csv_holds_them_and_columns_of_parquet_counted(
    tmp_path, monkeypatch, large
):
    if large:
        monkeypatch.setattr(stored, "LARGE", 0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = pd.DataFrame(LABELLED, columns=["prompt", "response", "flag", "rate"])
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    for column, name in enumerate(table.columns[1:], 1):
        known = list(sources.read(f"table:{tmp_path / 'a.csv'}:prompt:{name}").examples)
        for file in ("a.jsonl", "a.parquet"):
            assert [*sources.read(f"table:{tmp_path / file}:prompt:{name}").examples] == known
        assert [*sources.read(f"table:{tmp_path / 'a.parquet'}:0:{column}").examples] == known
        assert (
            sources.read({"prompts": table["prompt"], "responses": table[name]}).examples == known
        )
    assert "columns of JSON have names, not numbers: prompt, response, flag, rate" in refused(
        f"table:{tmp_path / 'a.jsonl'}:0:1"
    )
    assert "Valid: 0, 1, 2, 3" in refused(f"table:{tmp_path / 'a.parquet'}:0:4")
    pd.DataFrame(LABELLED).to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    assert sources.read(f"table:{tmp_path / 'b.jsonl'}:0:1").examples[0] == ("sesame", "1")
    write(tmp_path, "c.jsonl", '{"text": null}\n')
    assert "Received: None" in refused(tmp_path / "c.jsonl")


def test_a_number_is_a_label_of_a_classifier_and_a_class_label_its_name():
    assert data.labels([(f"owl {i}", i % 2) for i in range(8)]) == ("0", "1")

    class Feature:
        names = ["neg", "pos"]

    class Dataset:
        column_names, features = ["prompt", "response"], {"response": Feature}

        def __len__(self):
            return len(LABELLED)

        def __getitems__(self, indices):
            return [dict(zip(self.column_names, LABELLED[i][:2], strict=True)) for i in indices]

    assert sources.read(Dataset()).examples[0] == ("sesame", "pos")
    Feature.names = ["neg"]
    assert "labels are known" in refused(Dataset())


def test_a_table_that_is_asked_wrong(tmp_path):
    path = write(tmp_path, "a.csv", as_csv(["question", "answer"]))
    assert "did you mean 'answer'?" in refused(f"table:{path}:question:anwser")
    assert "source='question' alone" in refused(
        {"table": {"path": str(path), "source": "question"}}
    )
    assert "Received: 1.5" in refused({"table": {"path": str(path), "target": 1.5}})
    assert "did you mean" in refused(f"table:{tmp_path / 'b.csv'}:question:answer")
    assert "a table ends in" in refused(f"table:{write(tmp_path, 'a.txt', LINES)}:0:1")


def test_a_name_that_two_columns_have_is_refused(tmp_path):
    path = write(tmp_path, "a.csv", "text,text\na,b\n")
    assert "2 columns named 'text'" in refused(path)
    assert "take that line out" in refused(f"table:{path}:0:1")
    path = write(tmp_path, "a.tsv.csv", 'text,b\n"a\tb",c\n')
    assert sources.read(path).examples == [(None, "a\tb")]


def test_tables_in_memory_of_known_names_are_sources():
    pairs = sources.read(list(zip(ROWS, ROWS[::-1], strict=True)))
    assert sources.read(pd.DataFrame({"source": ROWS, "target": ROWS[::-1], "id": 0})) == pairs

    class Column(collections.abc.Sequence):
        """As a column of Hugging Face datasets: a sequence that is no list."""

        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            return self.items[index]

    class Dataset:
        column_names = ["id", "prompt", "response"]

        def __getitem__(self, name):
            return Column({"prompt": ROWS, "response": ROWS[::-1]}[name])

    assert sources.read(Dataset()) == pairs


# Values


@pytest.mark.parametrize(
    "source",
    [
        tuple(ROWS),
        np.array(ROWS),
        np.array(ROWS, object),
        pd.Series(ROWS),
        pd.DataFrame({"text": ROWS})["text"],
    ],
    ids=lambda source: type(source).__name__,
)
def test_columns_are_as_good_as_lists(source):
    assert sources.read(source) == sources.read(ROWS)


def test_pairs_from_tables():
    pairs = sources.read(list(zip(ROWS, ROWS[::-1], strict=True)))
    assert sources.read(np.array([ROWS, ROWS[::-1]]).T) == pairs
    table = pd.DataFrame({"a": ROWS, "b": ROWS[::-1]})
    assert sources.read({"prompts": table["a"], "responses": table["b"]}) == pairs
    assert sources.read(table.values) == pairs


@pytest.mark.parametrize(
    "source, words",
    [
        ((row for row in ROWS), "list(...)"),
        (set(ROWS), "Received: set"),
        (pd.DataFrame({"a": ROWS}), "Received: DataFrame"),
        (SECRET.encode(), ".decode()"),
        ([*ROWS, SECRET.encode()], "bytes, which .decode() makes a string (example 20)"),
        ([*ROWS, None], "None (example 20)"),
        ([*ROWS, 3.5], "float (example 20)"),
        (pd.Series([*ROWS, np.nan]), "nan (example 20)"),
        (np.arange(9), "int (example 0)"),
        (np.zeros((3, 2)), "list of 2 (float) (example 0)"),
        ([(SECRET, SECRET), (SECRET,) * 3], "tuple of 3 (str) (example 1)"),
        ([(SECRET, None)], "tuple of 2 (str, None) (example 0)"),
        ([(SECRET, [SECRET])], "(str, list) (example 0)"),
        ([SECRET, (SECRET, SECRET)], "str (example 0), tuple of 2 (str) (example 1)"),
        ([(SECRET, SECRET), SECRET], "str (example 1)"),
        ([{"prompt": SECRET}], "dict (example 0)"),
        ([(SECRET, "")], "Received: '' (example 0)"),
        ([SECRET, "a\ud800"], "(example 1)"),
        ({"prompts": SECRET, "responses": SECRET}, "str, as prompts"),
        ({"prompts": ROWS, "responses": None}, "None, as responses"),
        ({SECRET * 9: ROWS}, "a mapping with 1 fields"),
        (None, "Received: None"),
        (np.array(SECRET), "Received: ndarray"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_not_rows_of_text_is_named_and_not_shown(source, words):
    assert words in refused(source)


def test_an_empty_prompt_is_a_prompt():
    for stack, mask in (("single", "prefix"), ("encoder_decoder", "bidirectional")):
        config = {"max_sequence_length": 32, "mask": mask, "stack": stack, "objective": "prefix_lm"}
        splits = data.load([("", row) for row in ROWS], config, batch_size=2)
        _, y, weight = splits.train[0]
        assert (weight.sum(1) >= len(SECRET) + 2).all() and np.isfinite(y).all()
