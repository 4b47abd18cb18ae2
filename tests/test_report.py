import copy
import json
import math
import re

import made_study
import numpy as np
import pytest

from kzoo import presets
from kzoo.config import count_parameters
from kzoo.errors import InputError
from kzoo.studies.page import curves, index, plot, report, table
from kzoo.studies.page.figure import Figure
from kzoo.studies.page.labels import shortened
from kzoo.studies.page.tables import points, runs
from kzoo.studies.records import read

ARMS = {
    "unilm": {"preset": "unilm_nano", "overrides": {}},
    "gpt": {"preset": "gpt_nano", "overrides": {"objective": "prefix_lm"}},
    "gpt linear": {
        "preset": "gpt_nano",
        "overrides": {"objective": "prefix_lm", "mechanism": "linear"},
    },
    "half heads": {"preset": "bert_mixed_heads_nano", "overrides": {}},
}
STUDY = {
    "name": "small",
    "description": "A study <of> nothing.",
    "data": ["pydoc", "synthetic:copy"],
    "arms": ARMS,
    "seeds": [0, 1],
    "steps": 20,
    "batch_size": 4,
    "learning_rate": 0.003,
    "valid": 0.1,
    "evaluations": 2,
}


def head(number):
    return {
        "stack": "",
        "layer": number // 2,
        "head": number % 2,
        "mask": "causal",
        "tokens": 16.0,
        "numerical_rank": 16.0,
        "entropy_rank": 4.0 + number,
        "stable_rank": 2.0,
        "k99": 9.0,
        "condition": 1e4,
        "concentration": 0.3,
    }


def run(data, arm, seed):
    config = presets.config(ARMS[arm]["preset"], **ARMS[arm]["overrides"])
    masked = config["objective"] == "masked_lm"
    bits = 3.0 + list(ARMS).index(arm) + seed / 4
    return {
        "run": f"{data}/{arm}/{seed}",
        "arm": arm,
        "data": data,
        "seed": seed,
        "group": f"{'masked bytes' if masked else 'continuation'} on {data}",
        "measure": "bits per masked byte" if masked else "bits per byte of target",
        "status": "finished",
        "steps": 20,
        "train_loss": [3.0] * 20,
        "held_out": [[10, bits + 1], [20, bits]],
        "bits": bits,
        "scored_tokens": 1234,
        "parameters": count_parameters(config),
        "seconds": 2.0 + seed,
        "tokens_per_second": 1000.0,
        "config": config,
        "overrides": ARMS[arm]["overrides"],
        "spectrum": [head(number) for number in range(4)],
        "facts": {
            "source": data,
            "sha256": "ab" * 32,
            "train_bytes": 1000,
            "unigram_entropy": 4.71,
            "bigram_entropy": 3.34,
        },
        "provenance": {
            "commit": "1234abc",
            "dirty": True,
            "versions": {"kzoo": "0.1.0", "jax": "0.10.2"},
            "backend": "jax",
            "platform": "Linux",
            "device": "cpu × 1",
            "python": "3.11.9",
            "started": "2026-01-01T00:00:00",
            "kernels": ["dense softmax", "dense softmax"],
            "processors": 2,
        },
    }


@pytest.fixture(scope="module")
def all_records():
    return [
        run(data, arm, seed)
        for data in STUDY["data"]
        for arm in STUDY["arms"]
        for seed in STUDY["seeds"]
    ]


@pytest.fixture
def records(all_records):
    return copy.deepcopy(all_records)


@pytest.fixture
def unsaved(monkeypatch):
    """Pages without the pictures beside them, which take most of their time."""
    monkeypatch.setattr(Figure, "save", lambda self, path: path)


def write(directory, records, end=""):
    (directory / "study.json").write_text(json.dumps(STUDY))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "results.jsonl").write_text(lines + end)
    return directory


def end_with_nan(record):
    record.update(status="nan", bits=None, spectrum=[], steps=13)
    record["held_out"] = [[10, 4.0], [20, float("nan")]]


# The table --------------------------------------------------------------------------------


def test_table_keeps_groups_and_the_order_of_the_study(records):
    frame = table(records)
    assert list(frame["group"].unique()) == [
        "continuation on pydoc",
        "masked bytes on pydoc",
        "continuation on synthetic:copy",
        "masked bytes on synthetic:copy",
    ]
    assert list(frame["arm"]) == list(ARMS) * 2
    row = frame[frame["arm"] == "gpt linear"].iloc[0]
    assert row[["mean", "min", "max", "seed 0", "seed 1"]].tolist() == [5.125, 5, 5.25, 5, 5.25]
    assert row[["mask", "mechanism", "objective"]].tolist() == ["causal", "linear", "prefix_lm"]
    assert row["parameters"] == 124672
    assert row["seconds"] == 2.5
    assert json.loads(frame["mask"].iloc[3]) == {"heads": ["causal", "reversed"]}
    # In whichever order the rows of a group came, none is moved by its score.
    assert list(table(records[::-1])["arm"]) == list(ARMS)[::-1] * 2


def test_table_of_runs_that_are_missing_or_ended_with_nan(records):
    end_with_nan(records[1])
    end_with_nan(records[2])
    end_with_nan(records[3])
    frame = table([record for record in records if record["run"] != "pydoc/half heads/1"])
    assert frame["finished"].tolist()[:4] == [1, 0, 2, 1]
    assert frame["nan"].tolist()[:4] == [1, 2, 0, 0]
    assert frame["mean"].iloc[0] == 3.0
    assert np.isnan(frame["seed 1"].iloc[0]) and np.isnan(frame["mean"].iloc[1])
    assert table([]).empty and "mean" in table([])


def test_a_path_is_named_by_its_end(records):
    names = {"pydoc": "/data/english/book.txt", "synthetic:copy": "/data/german/book.txt"}
    for record in records:
        record["group"] = record["group"].replace(record["data"], names[record["data"]])
        record["data"] = names[record["data"]]
    assert table(records)["group"].iloc[-1] == "masked bytes on german/book.txt"
    alone = [record for record in records if "english" in record["data"]]
    assert table(alone)["group"].iloc[0] == "continuation on book.txt"
    assert shortened(["C:\\my\\book.txt", "/", "/"]) == {"C:\\my\\book.txt": "book.txt", "/": "/"}
    assert shortened(["a/b", "b"]) == {"a/b": "a/b", "b": "b"}


def test_runs_and_points_are_all_there(records):
    frame = runs(records)
    assert len(frame) == 16 and frame["bits"].iloc[1] == 3.25
    records[0]["steps_to_3_bits"] = 12  # a metric that came later
    assert runs(records)["steps_to_3_bits"].iloc[0] == 12
    frame = points(records)
    assert len(frame) == 16 * 22
    assert frame[frame["curve"] == "training"]["value"].unique() == [3.0]


# The curves -------------------------------------------------------------------------------


def test_bands_hold_every_recorded_point(records):
    first, second = records[2], records[3]
    rng = np.random.default_rng(0)
    for record in (first, second):
        record["train_loss"] = (math.log(2) * rng.uniform(2, 5, 1234)).tolist()
    rows = curves.bands([first, second], "training")
    assert len(rows) == curves.MOST and rows[-1][0] == 1234
    each = np.log2(np.e) * np.array([first["train_loss"], second["train_loss"]])
    assert min(row[2] for row in rows) == pytest.approx(each.min())
    assert max(row[3] for row in rows) == pytest.approx(each.max())
    assert curves.bands([first, second], "held-out") == [(10, 5.125, 5, 5.25), (20, 4.125, 4, 4.25)]
    end_with_nan(first)
    assert curves.bands([first], "held-out") == [(10, 4, 4, 4)]
    assert curves.bands([{**first, "held_out": []}], "held-out") == []


def panels(figure):
    """Title -> (arms in order, colours, dashes, entropies) of each panel of a figure."""
    spec, found = figure.spec(), {}
    for panel in spec["concat"]:
        line = next(each["encoding"] for each in panel["layer"] if each["mark"]["type"] == "line")
        texts = [each for each in panel["layer"] if each["mark"]["type"] == "text"]
        arms, colours = (line["color"]["scale"][part] for part in ("domain", "range"))
        found[panel["title"]] = (
            dict(zip(arms, colours, strict=True)),
            dict(zip(arms, line["strokeDash"]["scale"]["range"], strict=True)),
            [row["name"] for row in spec["datasets"][texts[0]["data"]["name"]]] if texts else [],
        )
    return found


def test_plot_has_a_panel_per_group_and_a_colour_per_family(records):
    found = panels(plot(records))
    assert list(found) == list(table(records)["group"].unique())
    (colours, dashes, levels), (masked, _, none), (copying, *_), _ = found.values()
    assert list(colours) == ["unilm", "gpt", "gpt linear"]
    assert colours["gpt"] == colours["gpt linear"] == copying["gpt"]
    assert len({colours["gpt"], colours["unilm"], masked["half heads"]}) == 3
    assert dashes["gpt"] == dashes["unilm"] == [1, 0] != dashes["gpt linear"]
    # The entropies of text stand where its next byte is predicted, and nowhere else.
    assert levels == ["unigram entropy 4.71", "bigram entropy 3.34"] and none == []


def test_plot_ends_a_curve_where_it_became_nan(records):
    end_with_nan(records[0])
    end_with_nan(records[1])
    figure = plot(records)
    rows = next(rows for rows in figure.spec()["datasets"].values() if "unilm,10" in rows)
    assert "unilm,10,4,4,4,1" in rows and "unilm,20" not in rows
    assert "with a run that became NaN" in figure.alternative
    with pytest.raises(InputError, match="Received: 0 runs"):
        plot([])


def test_a_figure_shows_itself_in_a_notebook_and_is_saved(records, tmp_path):
    figure = plot(records)
    shown = figure._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg") and "var(--" not in shown["image/svg+xml"]
    assert figure.save(tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(figure.save(tmp_path / "curves.json").read_text())["concat"]
    with pytest.raises(InputError, match="svg, png, json. Received: 'curves.pdf'"):
        figure.save("curves.pdf")


# The page ---------------------------------------------------------------------------------


def visible(page):
    """What a reader sees of a page, its pictures left aside."""
    text = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", text)


def test_report_is_complete_and_self_contained(tmp_path, records):
    path = report(write(tmp_path, records))
    assert path == tmp_path / "report.html"
    files = ["report", "report.html", "results.jsonl", "study.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    page = path.read_text(encoding="utf-8")
    html = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all((tmp_path / link).is_file() for link in links if not link.startswith(("#", "data:")))
    assert not re.search(r"<link|@import|url\(", html) and "default-src 'none'" in html
    ids = set(re.findall(r' id="([^"]*)"', html))
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    beside = {file.name for file in (tmp_path / "report").iterdir()}
    assert {"results.csv", "runs.csv", "curves.csv", "costs.csv", "spectra.csv"} <= beside
    for figure in re.findall(r'data-figure="([^"]*)"', html):
        assert {f"{figure}.svg", f"{figure}.png"} <= beside
    assert "A study &lt;of&gt; nothing." in page
    text = visible(page)
    assert "16 of 16 runs finished" in text
    assert "incomplete" not in text and "became NaN in" not in text
    assert text.count("unigram entropy of the text 4.710") == 1
    for part in (
        "Different between arms: mask , mechanism , objective .",
        "124,672 in every arm",
        "continuation on synthetic:copy",
        "This study draws no verdicts: it states no hypotheses and it has 2 seeds, where a",
        "± 0.72 s",
        "1234abc with uncommitted changes",
        "ab" * 32,
        "dense softmax",
        "kzoo 0.1.0, jax 0.10.2",
    ):
        assert part in text, part


def test_report_says_what_is_missing_and_what_became_nan(tmp_path, records, unsaved):
    end_with_nan(records[2])
    records = [record for record in records if record["run"] != "pydoc/unilm/0"]
    records = [record for record in records if record["data"] == "pydoc"]
    text = visible(report(write(tmp_path, records)).read_text(encoding="utf-8"))
    assert "6 of 16 runs finished" in text
    assert "became NaN in 1 run." in text
    assert "gpt on pydoc, seed 0, after 13 steps" in text
    assert "This study is incomplete." in text
    assert "unilm on pydoc, seed 0 " in text
    assert "gpt linear on synthetic:copy, seeds 0, 1" in text
    assert "1 of 2 runs (1 NaN)" in text


def test_report_of_a_study_that_has_just_begun(tmp_path):
    text = visible(report(write(tmp_path, [])).read_text(encoding="utf-8"))
    assert "0 of 16 runs finished" in text
    assert "What a verdict would need" in text


def test_a_line_cut_short_is_left_out_and_said(tmp_path, records, caplog):
    study, kept = read(write(tmp_path, records[::-1], end='{"run": "pydoc/gp'))
    assert study == {**STUDY, "packing": study["packing"]}  # one that was begun before had none
    assert kept == records  # in the study's order, whatever that of the lines
    assert "line 17 is no record of a run" in caplog.text


def test_an_arm_may_run_on_some_of_the_data(tmp_path, records, unsaved):
    study = copy.deepcopy(STUDY)
    study["arms"]["gpt linear"]["data"] = ["pydoc"]
    records = [record for record in records if record["run"][:-1] != "synthetic:copy/gpt linear/"]
    write(tmp_path, records)
    (tmp_path / "study.json").write_text(json.dumps(study))
    text = visible(report(tmp_path).read_text(encoding="utf-8"))
    assert "14 of 14 runs finished" in text
    assert "incomplete" not in text


def test_files_that_are_missing_or_broken(tmp_path, records):
    with pytest.raises(InputError, match="study.json is missing"):
        report(tmp_path / "nowhere")
    write(tmp_path, records)
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(InputError, match="results.jsonl is missing"):
        report(tmp_path)
    write(tmp_path, records)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match="not JSON .line 1"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "field, value, what",
    [
        ("held_out", [[10, "3"]], "has held_out pairs"),
        ("bits", None, "that finished has bits"),
        ("train_loss", [3.0, {}], "has a train_loss of numbers"),
        ("seconds", "2 s", "has a seconds of its kind"),
        ("config", {}, "has a config with mask"),
        ("provenance", {"versions": {}}, "has a provenance with kernels"),
    ],
)
def test_records_edited_by_hand_are_refused(tmp_path, records, field, value, what):
    records[2][field] = value
    with pytest.raises(InputError, match=what) as error:
        report(write(tmp_path, records))
    assert "pydoc/gpt/0" in str(error.value) and "\n" not in str(error.value)
    del records[2][field]
    with pytest.raises(InputError, match=f"no {field}"):
        report(write(tmp_path, records))
    assert not (tmp_path / "report.html").exists()


def test_an_arm_alone_and_a_curve_without_points(tmp_path, records, unsaved):
    alone = [{**record, "held_out": [], "train_loss": []} for record in records[:2]]
    study = {**STUDY, "arms": {"unilm": ARMS["unilm"]}, "data": ["pydoc"]}
    write(tmp_path, alone)
    (tmp_path / "study.json").write_text(json.dumps(study))
    page = report(tmp_path).read_text(encoding="utf-8")
    assert "it has one arm, with nothing to compare it to" in visible(page)
    assert 'data-figure="curves' not in page and "2 of 2 runs finished" in visible(page)


def test_runs_left_out_are_named_with_their_reasons(tmp_path, records, unsaved):
    write(tmp_path, records)
    excluded = {"pydoc/gpt/1": "the disk was full <twice>"}
    (tmp_path / "study.json").write_text(json.dumps({**STUDY, "excluded": excluded}))
    text = visible(report(tmp_path).read_text(encoding="utf-8"))
    assert "pydoc/gpt/1: the disk was full &lt;twice&gt;" in text


def test_studies_are_joined_in_one_page(tmp_path, records, unsaved):
    for name in ("a b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="study.json is missing"):
        index([write(tmp_path / "runs" / "a b", records), tmp_path / "runs" / "c"])
    assert not (tmp_path / "runs" / "a b" / "report.html").exists()
    made_study.write(tmp_path / "runs" / "c", made_study.study(tuning=None, steps=20))
    path = index([tmp_path / "runs" / "a b", tmp_path / "runs" / "c"])
    assert path == tmp_path / "runs" / "studies.html"
    page = path.read_text(encoding="utf-8")
    text = visible(page)
    assert "2 studies, 4 verdicts" in text
    assert text.index("Q5: confirmed") < text.index("small 4 pydoc, synthetic:copy 2 20 16 of 16")
    assert 'href="a%20b/report.html"' in page and 'href="c/report.html"' in page
    assert (tmp_path / "runs" / "c" / "report.html").is_file()
    with pytest.raises(InputError, match="are different folders"):
        index([tmp_path / "runs" / "c"] * 2)
