"""kzoo data: what a source holds, and what a model is given of it."""

import sys

from kzoo.cli.arguments import (
    add_command,
    add_json,
    add_overrides,
    add_tokenizer,
    json_or_text,
    leave_tensorflow,
    load_backend,
    overrides,
    packing,
    positive,
    print_json,
    share,
    source,
    with_labels,
)
from kzoo.errors import InputError

DEFAULT = "gpt_nano"
# Others have a UniLM, which takes all.
OF_OBJECTIVE = {"causal_lm": DEFAULT, "masked_lm": "bert_nano", "classification": "bert_nano"}
STYLES = {"source": "cyan", "target": "green", "special": "magenta"}
SIGNS = str.maketrans({"\n": "↵", "\t": "→", "\r": "␍", "\0": "␀"})
# Of a split: how much of its two parts `shared_bytes` were found in.
SAMPLED = {"sampled_bytes": "bytes", "sampled_rows": "examples"}
CELLS = 64  # the most cells in which keys are drawn


def add(commands):
    help = "show what a source holds and what a model is given of it"
    more = (
        "SOURCE is what kzoo train takes as --text. Without --show, and with --stats, its numbers "
        "are printed: lengths, duplicates, bytes per token, and what rows of a length would cut."
    )
    data = add_command(commands, "data", help, _data, more=more)
    data.add_argument("source", type=source, metavar="SOURCE")
    data.add_argument(
        "--preset", metavar="NAME", help=f"for which model; default: {DEFAULT}, or by the objective"
    )
    data.add_argument("--objective", metavar="JSON", help="a name or JSON, instead of the preset's")
    data.add_argument("--show", type=positive, metavar="N", help="print so many training examples")
    data.add_argument("--stats", action="store_true", help="print numbers")
    data.add_argument(
        "--packing",
        type=packing,
        default="padded",
        metavar="NAME_OR_JSON",
        help="how examples stand in rows, as in kzoo train; default: padded",
    )
    data.add_argument("--valid", type=share, default=0.1, metavar="SHARE", help="held out")
    add_tokenizer(data)
    add_overrides(data)
    add_json(data, "one JSON line on stdout, no tables and colours")


def _data(options):
    config = _config(options)
    leave_tensorflow([options.source])
    from kzoo import data

    corpus = data.sources.read(options.source)  # which refuses what is no text before Keras loads
    load_backend()
    from kzoo.data import pipeline, showing, statistics, tokenizer_spec
    from kzoo.models.tokenizer_file import read_file

    file = tokenizer_spec.file(options.tokenizer, corpus, options.valid)
    tokenizer = file and read_file(file)
    # One example in a batch, so that few are enough.
    settings = {"batch_size": 1, "valid": options.valid, "seed": config["seed"]}
    settings |= {"packing": options.packing, "tokenizer": tokenizer}
    splits = data.load(corpus, config, **settings)
    encoder = pipeline.encoder_of(config, config, tokenizer)
    result = {"source": options.source, "facts": splits.facts}
    if options.stats or not options.show:
        result["statistics"] = statistics.statistics(corpus, encoder)
        result["fill"] = statistics.fill(splits)
    if options.show:
        batches = (splits.train[i] for i in range(min(options.show, len(splits.train))))
        found = (one for batch in batches for one in showing.shown(batch, config, encoder))
        result["examples"] = [one for one, _ in zip(found, range(options.show), strict=False)]
    if options.json:
        print_json(result)
        return
    _print(result)


def _config(options):
    """The config of the model that the data are for."""
    from kzoo import presets
    from kzoo.data import tokenizer_spec

    own = overrides(options.set)
    preset = options.preset or DEFAULT
    if options.objective is not None:
        if "objective" in own:
            raise InputError(
                f"--objective or --set gives the objective. Received: {options.objective!r} in both"
            )
        own["objective"] = json_or_text(options.objective, f"--objective {options.objective!r}")
        if options.preset is None:
            preset = OF_OBJECTIVE.get(options.objective, "unilm_nano")
    own = with_labels(own, options.source)
    own |= tokenizer_spec.config_fields(options.tokenizer, own)
    return presets.config(preset, **own)


# On the terminal ------------------------------------------------------------------------------


def _print(result):
    from rich.console import Console

    # A pipe has no width; whole lines are found by `grep`.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)
    for i, example in enumerate(result.get("examples", ())):
        _print_example(console, i, example)
    if "statistics" in result:
        _print_statistics(console, result)


def _print_example(console, number, example):
    from rich.text import Text

    tokens, scored = example["tokens"], example["scored_tokens"]
    console.print(Text(f"example {number}: {tokens} tokens, {scored} scored", style="bold"))
    if example["source"] is not None:
        _print_line(console, "source", Text(_signs(example["source"]), style=STYLES["source"]))
    _print_line(console, "target", Text(_signs(example["target"]), style=STYLES["target"]))
    for stack, runs in example["reads"].items():
        read = Text()
        for run in runs:
            style = STYLES[run["kind"]] + (" bold underline" if run["scored"] else "")
            read.append(_signs(run["text"]), style=style)
        _print_line(console, "reads" if len(example["reads"]) == 1 else stack, read)
    scored = Text(" … ", style="dim").join(Text(_signs(text)) for text in example["scored"])
    _print_line(console, "scored", scored)
    for stack, views in example["sees"].items():
        alone = len(example["sees"]) == 1
        for view in views:
            _print_view(console, "" if alone else f"{stack}, ", view, len(views) > 1)
    if len(example["sees"]) > 1:
        _print_line(console, "", Text("the decoder sees all that the encoder reads", style="dim"))
    console.print()


def _print_view(console, stack, view, several):
    from rich.text import Text

    which = f"layers {view['layers']}, heads {view['heads']}" if several else ""
    if stack or which:
        _print_line(console, "", Text(f"{stack}{which}".removesuffix(", "), style="dim"))
    for query in view["queries"]:
        label = f"{query['position']:>5} {_signs(query['text']):<8.8} sees "
        _print_line(console, "", Text(label) + Text(_cells(query["keys"]), style="blue"))


def _print_line(console, title, text):
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8)
    grid.add_column(overflow="fold")
    grid.add_row(Text(title, style="dim"), text)
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))


def _signs(text):
    return text.translate(SIGNS)


def _cells(keys):
    """A row of a mask in at most `CELLS` characters: all, some or none of their keys are seen."""
    width = -(-len(keys) // CELLS)
    groups = (keys[at : at + width] for at in range(0, len(keys), width))
    return "".join("█" if "0" not in group else "▒" if "1" in group else "·" for group in groups)


def _print_statistics(console, result):
    from rich.table import Table

    found, facts = result["statistics"], result["facts"]
    documents = "documents" if found["kind"] == "running text" else "examples"
    console.print(
        f"{result['source']}: {found['kind']}, {found['documents']:,} {documents} "
        f"({found['duplicates']:,} duplicates left out), {found['bytes']:,} bytes, "
        f"{found['bytes_per_token']:.2f} bytes per token"
    )
    console.print(_rows(facts, result["fill"]))
    lengths = Table(box=None, pad_edge=False)
    lengths.add_column("")
    for quantile in found["quantiles"]:
        names = {0.0: "least", 0.5: "median", 1.0: "most"}
        lengths.add_column(names.get(quantile, f"{quantile:.0%}"), justify="right")
    for part, values in found["lengths"].items():
        lengths.add_row(part, *(f"{value:,}" for value in values))
    console.print(f"tokens of {found['measured']:,} {documents}", style="bold")
    console.print(lengths)
    if found["kind"] == "running text":
        console.print("running text is cut into rows, and none of it is lost")
    else:
        _print_cut(console, found["cut"])
    for part in ("split", "test_split"):
        if part in facts:
            console.print(f"{part.replace('_', ' ')}: {_facts(facts[part])}")
    entropies = (facts["unigram_entropy"], facts["bigram_entropy"])
    console.print(
        "entropy of held-out bytes: unigram {:.3f}, bigram {:.3f} bits".format(*entropies)
    )


def _rows(facts, fill):
    """How many rows there are, and how full: a sentence."""
    filled = ", ".join(f"{name} {part:.1%}" for name, part in fill.items())
    trained, held_out = facts["train_rows"], facts["valid_rows"]
    rows, length = facts["packing"]["rows"], facts["packing"]["row_length"]
    if rows == trained:
        many = f"{rows:,} rows to train on, {held_out:,} held out, of {length} tokens"
    else:
        many = (
            f"{trained:,} examples to train on in {rows:,} rows of {length} tokens, {held_out:,} "
            "held out, one in a row"
        )
    return f"{many}; filled: {filled}"


def _facts(facts):
    said = {name: value for name, value in facts.items() if name not in SAMPLED}
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
    for sampled in SAMPLED.keys() & facts.keys():
        (of_train, held_out), unit = facts[sampled], SAMPLED[sampled]
        words += f"; shared bytes are counted in a sample, of {of_train:,} {unit} of training and "
        words += f"{held_out:,} held out"
    return words


def _print_cut(console, rows):
    from rich.table import Table

    cut = Table(box=None, pad_edge=False)
    for column in ("length", "longer", "tokens lost"):
        cut.add_column(column, justify="right")
    for row in rows:
        cut.add_row(f"{row['length']:,}", f"{row['examples']:.1%}", f"{row['tokens']:.1%}")
    console.print("what rows of a length would cut", style="bold")
    console.print(cut)
