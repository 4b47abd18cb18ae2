"""Results of the benchmarks as tables for the terminal and as a figure."""

from rich.table import Table

# Okabe and Ito's colours, told apart by the colour-blind, without yellow; then greys.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#000000", "#7f7f7f", "#8c564b"),
)
GREY = "#444444"


def tables(result):
    """The tables of the result of a benchmark, and notes below them.

    Returns:
        A list of `rich.table.Table` and strings, to be printed one after the other.

    Example:
        >>> for part in tables(bench_train()):
        ...     console.print(part)
    """
    shown = {"attention": _attention, "train": _train, "generate": _generate, "data": _data}
    parts = shown[result["bench"]](result)
    processors, load = (result["machine"][key] for key in ("processors", "load_average"))
    busy = "" if load is None else f"; load average at the start {load:.1f}"
    notes = {row.get("memory_reason") for row in result["rows"]} - {None}
    lines = [f"no memory: {note}" for note in sorted(notes)]
    return [*parts, *lines, f"{processors} processors{busy}; spread is the interquartile range"]


def _attention(result):
    settings, peak, parts = result["settings"], result["matmul_peak"], []
    for time in settings["times"]:
        rows = [row for row in result["rows"] if row["time"] == time]
        table = _table(
            f"time {time}, batch {settings['batch']}, {settings['heads']} heads of "
            f"{settings['dim']}, {settings['dtype']}, forward and backward",
            ["÷ SDPA", "÷ dense", "÷ linear", "of peak", "MiB"],
        )
        for row in rows:
            fraction, memory = row["peak_fraction"], row["memory_bytes"]
            table.add_row(
                ", ".join([_label(row), *([row["kernel"]] if row["kernel"] else [])]),
                *_timing(row),
                *(_number(x, 2) for x in row["ratio"].values()),
                _number(fraction and 100 * fraction, 0, "%"),
                _number(memory and memory / 2**20, 1),
            )
        parts += [table, *_reasons(rows), ""]
    rates = [f"{name} {_number(peak[name] and peak[name] / 1e9, 0)}" for name in ("xla", "torch")]
    return [*parts, f"matmul peak, GFLOP/s in float32: {', '.join(rates)}; the better one counts"]


def _train(result):
    settings = result["settings"]
    table = _table(
        f"train step: {settings['num_layers']} layers, width {settings['hidden_dim']}, "
        f"{settings['num_heads']} heads, vocabulary {settings['vocabulary_size']}, batch "
        f"{settings['batch']} × {settings['time']}, {settings['dtype']}",
        ["tokens/s", "÷ kzoo", "parameters", "first loss"],
    )
    for row in result["rows"]:
        table.add_row(
            _label(row),
            *_timing(row),
            _number(row["tokens_per_second"], 0),
            _number(row["ratio"]["kzoo"], 2),
            _number(row["parameters"], 0),
            _number(row["first_loss"], 2),
        )
    return [table, *_reasons(result["rows"])]


def _data(result):
    settings = result["settings"]
    columns = ("tokenize", "batch", "both", "first batch s", "trains on", "data ÷ training")
    table = _plain(
        f"thousand tokens/s of {settings['source']}, {settings['batch']} × {settings['time']} a "
        f"batch, for {settings['preset']}",
        columns,
    )
    for row in result["rows"]:
        rates = ("tokenize", "batches", "pipeline")
        table.add_row(
            _label(row),
            *(_number(row[f"{rate}_tokens_per_second"] / 1e3, 0) for rate in rates),
            _number(row["first_batch_seconds"], 1),
            _number(row["train_tokens_per_second"] / 1e3, 1),
            _number(row["ratio"], 0),
        )
    missed = [
        f"{_label(row)}: data comes at {row['ratio']:.1f} times the rate of training, below the "
        f"bar of {result['bar']}"
        for row in result["rows"]
        if row["ratio"] < result["bar"]
    ]
    return [table, *missed]


def _generate(result):
    settings = result["settings"]
    sizes = (
        f"{settings['num_layers']} layers, width {settings['hidden_dim']}, "
        f"{settings['num_heads']} heads, {settings['dtype']}, one sequence"
    )
    shortest, longest = settings["lengths"][0], settings["lengths"][-1]
    columns = ("prompt", "prompt ms", "spread", "step ms", "spread", f"÷ {shortest}", "tokens/s")
    table = _plain(f"a prompt, and a step after it: {sizes}", columns)
    for row in result["rows"]:
        timings = (row["prefill"], row)
        table.add_row(
            _label(row),
            _number(row["time"], 0),
            *(_number(1e3 * t[f"{x}_seconds"], 2) for t in timings for x in ("median", "iqr")),
            _number(row["ratio"], 2),
            _number(row["tokens_per_second"], 0),
        )
    numbers = range(1, settings["turns"] + 1)
    turns = {(row["contestant"], row["turn"]): row for row in result["turns"]}
    talk = _plain(
        "ms to the first token of a turn ± spread, tokens reused of those there were: "
        f"{settings['turn_tokens']} said, {settings['reply_tokens']} replied",
        [f"turn {i}" for i in numbers],
    )
    for name in dict.fromkeys(name for name, _ in turns):
        cells = [_turn(turns[name, i]) for i in numbers]
        talk.add_row(name.replace("_", " "), *cells)
    missed = [
        f"{_label(row)}: a step after {longest} tokens takes {row['ratio']:.2f} of one after "
        f"{shortest}, above the bar of {result['bar']}"
        for row in result["rows"]
        if not row["contestant"].startswith("softmax") and row["ratio"] > result["bar"]
    ]
    return [table, "", talk, *missed]


def _turn(row):
    median, spread = (_number(1e3 * row[f"{x}_seconds"], 0) for x in ("median", "iqr"))
    return f"{median} ± {spread}, {row['reused']}/{row['context']}"


def _table(title, columns):
    return _plain(title, ("median ms", "spread", "compile s", *columns))


def _plain(title, columns):
    style = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False}
    table = Table("", title=title, padding=(0, 0, 0, 1), **style)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _label(row):
    return row["contestant"].replace("_", " ")


def _reasons(rows):
    return [f"{_label(row)}: not run, {row['reason']}" for row in rows if row["reason"]]


def _timing(row):
    median, spread = row["median_seconds"], row["iqr_seconds"]
    milliseconds = [None if x is None else 1e3 * x for x in (median, spread)]
    return *(_number(x, 1) for x in milliseconds), _number(row["compile_seconds"], 1)


def _number(value, digits, unit=""):
    return "–" if value is None else f"{value:,.{digits}f}{unit}"


def plot(result):
    """Time and memory by length, from a result of `bench_attention`; both axes are logarithmic.

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
        >>> plot(bench_attention()).savefig("bench.png")
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    settings = result["settings"]
    figure = Figure((11, 5), facecolor="white", layout="constrained")
    panels = {"median_seconds": (1e3, "milliseconds"), "memory_bytes": (2**-20, "MiB")}
    names = list(dict.fromkeys(row["contestant"] for row in result["rows"]))
    shown = {}
    for axes, (field, (scale, unit)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for i, name in enumerate(names):
            rows = [row for row in result["rows"] if row["contestant"] == name]
            points = [(row["time"], scale * row[field]) for row in rows if row[field]]
            if not points:
                continue
            dash = "-" if name.startswith("linear") else "--"
            style = {"marker": "o", "markersize": 4, "color": COLOURS[i % len(COLOURS)]}
            (line,) = axes.plot(*zip(*points, strict=True), dash, **style)
            shown[_label(rows[0])] = line
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(settings["times"], [f"{time:,}" for time in settings["times"]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("tokens", color=GREY)
        axes.set_ylabel(unit, color=GREY)
        axes.set_title("time" if scale > 1 else "memory", color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    where = {"loc": "outside right upper", "fontsize": 9, "frameon": False}
    figure.legend(list(shown.values()), list(shown), **where)
    figure.suptitle(
        f"attention forward and backward, {settings['heads']} heads of {settings['dim']}, "
        f"batch {settings['batch']}, {settings['dtype']}, {result['machine']['processors']} "
        f"processors ({result['machine']['device']})",
        fontsize=11,
        color=GREY,
    )
    return figure
