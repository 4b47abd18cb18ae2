"""The benchmarks: what they report, not how fast anything is."""

import json
import math

import pytest

from kzoo.bench import (
    attention,
    bench_attention,
    bench_data,
    bench_generate,
    bench_train,
    generate,
    measure,
    plot,
    tables,
)
from kzoo.bench.attention import Size, Work, multiply_adds
from kzoo.bench.train import Sizes
from kzoo.cli import main
from kzoo.errors import InputError

TINY = Sizes(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=384, batch=2, time=8)


def check_timing(row):
    if row["reason"] is not None:
        assert row["reason"] and row["median_seconds"] is None and row["seconds"] == []
        return
    for field in ("median_seconds", "first_seconds"):
        assert math.isfinite(row[field]) and row[field] > 0
    assert row["iqr_seconds"] >= 0 and row["compile_seconds"] >= 0


def check_ratios(row, others):
    for name, ratio in row["ratio"].items():
        mine, other = row["median_seconds"], others[name]["median_seconds"]
        if mine and other:
            assert ratio == pytest.approx(mine / other)
        else:
            assert ratio is None


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One run of the command: what it printed, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("bench") / "new"
    arguments = "bench attention --times 32 16 16 --heads 2 --dim 4 --repeats 1 --json --out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "PEAK_SIZE", 256)
        real = attention._torch_memory  # seconds each: once is enough
        patch.setattr(
            attention,
            "_torch_memory",
            lambda size, dtype: real(size, dtype) if size.time == 32 else None,
        )
        printed = []
        patch.setattr("builtins.print", lambda text, **kwargs: printed.append(text))
        assert main([*arguments.split(), str(out)]) == 0
    (line,) = printed
    return json.loads(line), out


@pytest.mark.slow
def test_attention_reports_every_contestant(result):
    result, out = result
    assert result == json.loads((out / "bench.json").read_text())
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert result["settings"]["times"] == [16, 32] and result["settings"]["dtype"] == "float32"
    peak = result["matmul_peak"]
    assert peak["best"] == max(peak["xla"], peak["torch"] or 0) > 0
    rows = {(row["time"], row["contestant"]): row for row in result["rows"]}
    assert set(rows) == {(time, name) for time in (16, 32) for name in attention.CONTESTANTS}
    for (time, _), row in rows.items():
        check_timing(row)
        others = {name: rows[time, name] for name in attention.REFERENCES}
        check_ratios(row, others)
        if row["reason"] is None:
            fraction = 2 * row["multiply_adds"] / row["median_seconds"] / peak["best"]
            assert row["peak_fraction"] == pytest.approx(fraction)
            assert (row["memory_bytes"] is None) == (row["memory_reason"] is not None)
    for name in attention.CONTESTANTS:
        # Two may not be installed, the third takes 64 tokens at least.
        if name not in ("torch_sdpa", "fla_gated_linear", "keras_hub_gated_delta"):
            assert rows[16, name]["reason"] is None
            # At least queries, keys, values, cotangent, output and three gradients.
            assert rows[16, name]["memory_bytes"] >= 8 * 4 * 16 * 2 * 4
    assert rows[16, "linear_causal"]["kernel"] == "chunk_scan"
    assert rows[16, "softmax_dense"]["kernel"] == "dense"


@pytest.mark.slow
def test_tables_and_picture_say_why_something_is_missing(result):
    import io

    from rich.console import Console

    result, _ = result
    rows = [dict(row) for row in result["rows"]]
    for row in rows:
        if row["contestant"] == "softmax_dense":
            row |= {**dict.fromkeys(("median_seconds", "iqr_seconds", "memory_bytes"), None)}
            row |= {"peak_fraction": None, "reason": "too long"}
        if row["contestant"] == "torch_sdpa":
            row |= {"memory_bytes": None, "memory_reason": "unknown here"}
    changed = {**result, "rows": rows}
    console = Console(file=io.StringIO(), width=200)
    for part in tables(changed):
        console.print(part)
    text = console.file.getvalue()
    assert "too long" in text and "no memory: unknown here" in text and "nan" not in text
    time_axes, memory_axes = plot(changed).axes
    for axes, field in ((time_axes, "median_seconds"), (memory_axes, "memory_bytes")):
        assert len(axes.lines) == len({row["contestant"] for row in rows if row[field]})


def test_what_would_take_too_long_is_left_out_with_the_reason():
    size = Size(1, 2**15, 8, 64)
    dense = attention._entry(
        "softmax_dense", Work("softmax", "causal", "dense"), size, "", (), None
    )
    slow = attention._entry("linear_causal", Work("linear", "causal"), size, "", (), (2**14, 11.0))
    reasons = {"dense": "32.0 GiB", "slow": "about 22 s"}
    for name, row in measure.race({"dense": dense, "slow": slow}, 1).items():
        assert reasons[name] in row["reason"] and row["median_seconds"] is None
    ready = {"x": lambda: measure.Ready(lambda: None, {"memory_bytes": 1})}
    row = measure.race(ready, 3, limit=-1.0)["x"]
    assert "one call took" in row["reason"] and row["seconds"] == [] and row["memory_bytes"] == 1


def test_rounds_interleave():
    calls = []
    entries = {name: lambda n=name: measure.Ready(lambda: calls.append(n)) for name in "ab"}
    results = measure.race(entries, 3)
    assert calls == ["a", "b"] * 4
    assert all(len(results[name]["seconds"]) == 3 for name in "ab")


def test_multiply_adds():
    size = Size(2, 1024, 3, 64)
    tokens = 2 * 3 * 1024
    chunk = attention.choose_chunk(64, 64)
    causal = multiply_adds(Work("linear", "causal"), size)
    assert causal == tokens * 7 * 64 * (chunk + 64)
    whole = multiply_adds(Work("linear", "bidirectional"), size)
    assert whole == tokens * 6 * 64 * 64
    assert multiply_adds(Work("linear", "prefix"), size) == (causal + whole) / 2
    pairs = 2 * 3 * sum(range(1, 1025))
    assert multiply_adds(Work("softmax", "causal"), size) == pairs * 7 * 64


@pytest.mark.slow
def test_train_reports_every_contestant():
    result = json.loads(json.dumps(bench_train(1, TINY)))
    rows = {row["contestant"]: row for row in result["rows"]}
    assert list(rows) == ["kzoo", "kzoo_linear", "keras_hub_gpt2", "plain_jax", "transformers_gpt2"]
    for row in rows.values():
        check_timing(row)
        check_ratios(row, rows)
        if row["reason"] is None:
            assert row["tokens_per_second"] == pytest.approx(16 / row["median_seconds"])
            # Nothing is learned yet, so that all know as little.
            assert row["first_loss"] == pytest.approx(math.log(384), abs=1.0)
        else:
            assert row["contestant"] == "transformers_gpt2" and "installed" in row["reason"]
    assert rows["plain_jax"]["parameters"] == rows["keras_hub_gpt2"]["parameters"]
    assert rows["kzoo_linear"]["parameters"] == rows["kzoo"]["parameters"]
    assert rows["kzoo"]["parameters"] == rows["keras_hub_gpt2"]["parameters"]
    assert len(tables(result)) >= 2  # and one for what is not installed


@pytest.mark.slow
def test_generate_reports_steps_and_turns(monkeypatch):
    arms = ("softmax_causal", "linear_prefix", "linear_encoder_decoder")
    monkeypatch.setattr(generate, "ARMS", {name: generate.ARMS[name] for name in arms})
    settings = {"steps": 2, "turns": 2, "turn_tokens": 3, "reply_tokens": 2, "repeats": 2}
    result = bench_generate((40, 8), sizes=generate.Sizes(1, 16, 2), **settings)
    result = json.loads(json.dumps(result))
    assert result["settings"]["lengths"] == [8, 40] and result["bar"] == 1.1
    rows = {(row["contestant"], row["time"]): row for row in result["rows"]}
    assert list(rows) == [(name, length) for name in arms for length in (8, 40)]
    for (name, _), row in rows.items():
        for timing in (row, row["prefill"]):
            assert len(timing["seconds"]) == 2 and timing["median_seconds"] > 0
            assert timing["iqr_seconds"] >= 0
        assert row["tokens_per_second"] == pytest.approx(1 / row["median_seconds"])
        first = rows[name, 8]["median_seconds"]
        assert row["ratio"] == pytest.approx(row["median_seconds"] / first)
    turns = {(row["contestant"], row["turn"]): row for row in result["turns"]}
    assert list(turns) == [(name, turn) for name in arms for turn in (1, 2)]
    for (name, turn), row in turns.items():
        # BOS said SEP, and then reply SEP said SEP: causal reads what is new and, of the reply,
        # the last token.
        assert row["context"] == (5 if turn == 1 else 12)
        assert row["reused"] == (6 if (name, turn) == ("softmax_causal", 2) else 0)
        assert len(row["seconds"]) == 2 and row["median_seconds"] > 0
    result["rows"][3]["ratio"] = 2.5
    text = [part for part in tables(result) if isinstance(part, str)]
    assert any("linear prefix: a step after 40" in part and "2.50" in part for part in text)


WRONG = [
    ("attention --times 0", "positive integer"),
    ("attention --times 16 x", "positive integer"),
    ("attention --heads 0", "positive integer"),
    ("attention --dtype flaot32", "did you mean 'float32'"),
    ("attention --out TMP", "new or empty folder"),
    ("train --steps 0", "positive integer"),
    ("train --out TMP/file", "new or empty folder"),
    ("generate --lengths 256", "at least two"),
    ("generate --lengths 1 256", "3 tokens or more"),
    ("generate --repeats 0", "positive integer"),
    ("generate --out TMP/file", "new or empty folder"),
    ("trian", "invalid choice"),
    ("", "required"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_input_is_one_line_and_status_2(arguments, message, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["bench", *arguments.replace("TMP", str(tmp_path)).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("kzoo: ") and message in captured.err


def test_wrong_arguments_of_the_functions(monkeypatch):
    for wrong in ({"times": ()}, {"times": (16, 0)}, {"heads": 2.5}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="Received: "):
            bench_attention(**wrong)
    for steps, sizes in ((0, TINY), (1, TINY._replace(batch=0)), (1, TINY._replace(num_heads=3))):
        with pytest.raises(InputError, match="Received: "):
            bench_train(steps, sizes)
    with pytest.raises(InputError, match="steps must be a positive integer"):
        bench_generate(steps=0)
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    for bench in (bench_train, bench_generate):
        with pytest.raises(InputError, match="JAX backend"):
            bench()


def test_data_beside_training(tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("The owl sat down in the old tree.\n" * 9 + "".join(map(str, range(900))))
    result = json.loads(
        json.dumps(bench_data(str(book), 1, preset="gpt_nano", tokenizers={"bytes": "bytes"}))
    )
    (row,) = result["rows"]
    rates = [row[f"{part}_tokens_per_second"] for part in ("tokenize", "batches", "pipeline")]
    assert all(rate > 0 for rate in rates) and rates[2] < min(rates[:2])
    assert row["ratio"] == pytest.approx(rates[2] / row["train_tokens_per_second"])
    table, *notes = tables(result)
    assert table.row_count == 1 and table.columns[-1].header == "data ÷ training"
    assert any("below the bar" in note for note in notes) == (row["ratio"] < result["bar"])
    with pytest.raises(InputError, match="rounds"):
        bench_data(rounds=0)
