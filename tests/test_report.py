import copy
import json
import re

import numpy as np
import pytest

from kzoo import presets
from kzoo.config import count_parameters
from kzoo.errors import InputError
from kzoo.studies.page import plot, report, table
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


# The curves -------------------------------------------------------------------------------


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_plot_has_a_panel_per_group_and_a_colour_per_family(records):
    figure = plot(records)
    assert [axes.get_title() for axes in figure.axes] == list(table(records)["group"].unique())
    text, masked, copying, _ = figure.axes
    curves = lines(text)
    assert list(curves) == ["unilm", "gpt", "gpt linear"]
    assert curves["gpt"].get_xydata().tolist() == [[10, 5.125], [20, 4.125]]
    assert curves["gpt"].get_color() == curves["gpt linear"].get_color()
    colours = {curves["gpt"].get_color(), curves["unilm"].get_color()}
    assert len(colours | {lines(masked)["half heads"].get_color()}) == 3
    assert lines(copying)["gpt"].get_color() == curves["gpt"].get_color()
    dashes = [curves[arm].get_linestyle() for arm in ("unilm", "gpt", "gpt linear")]
    assert dashes == ["-", "-", "--"]
    # The entropies of text stand where its next byte is predicted, and nowhere else.
    labels = [[note.get_text().strip() for note in axes.texts] for axes in figure.axes]
    assert labels == [["unigram entropy 4.71", "bigram entropy 3.34"], [], [], []]
    assert figure.canvas.manager is None  # pyplot would have given it one


def test_plot_ends_a_curve_where_it_became_nan(records):
    end_with_nan(records[0])
    end_with_nan(records[1])
    axes = plot(records).axes[0]
    assert lines(axes)["unilm"].get_xydata().tolist() == [[10, 4]]
    assert [line.get_marker() for line in axes.lines].count("x") == 2
    with pytest.raises(InputError, match="Received: none"):
        plot([])


# The page ---------------------------------------------------------------------------------


def visible(page):
    """What a reader sees of a page, its pictures left aside."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", text)


def test_report_is_complete_and_self_contained(tmp_path, records):
    path = report(write(tmp_path, records))
    assert path == tmp_path / "report.html"
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "report.html",
        "results.jsonl",
        "study.json",
    ]
    page = path.read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert "A study &lt;of&gt; nothing." in page
    text = visible(page)
    assert "16 of 16 runs finished" in text
    assert "incomplete" not in text and "became NaN in" not in text
    assert text.count("unigram entropy of the text 4.710") == 1
    for part in (
        "Different between arms: mask , mechanism , objective .",
        "124,672 in every arm",
        "continuation on synthetic:copy",
        "draws no verdicts",
        "± 0.72 s",
        "1234abc with uncommitted changes",
        "ab" * 32,
        "dense softmax",
        "kzoo 0.1.0, jax 0.10.2",
    ):
        assert part in text, part


def test_report_says_what_is_missing_and_what_became_nan(tmp_path, records):
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
    assert study == STUDY
    assert kept == records  # in the study's order, whatever that of the lines
    assert "line 17 is cut short" in caplog.text


def test_an_arm_may_run_on_some_of_the_data(tmp_path, records):
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
