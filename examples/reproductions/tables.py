"""The tables of the reproductions' page, from their records, the published figures beside them.

python examples/reproductions/tables.py                           # of the committed records
python examples/reproductions/tables.py --records runs/reproductions
"""

import argparse
import pathlib
import re
import textwrap

from records import read

from kzoo.studies.evidence import draw
from kzoo.studies.records import read as records_of

HERE = pathlib.Path(__file__).parent

# Held-out losses in the logs of the paper's code (github.com/ischlag/fast-weight-transformers,
# synthetic/logs, the smallest of each): rule -> size -> loss. It has none of elu1 with updates.
SCHLAG = {
    "softmax": {20: 0.0006, 40: 0.0003, 60: 0.0001, 80: 0.0000, 100: 0.0000},
    "elu1": {20: 0.0009, 40: 0.0008, 60: 0.0245, 80: 0.1084, 100: 0.1642},
    "elu1, updates": {},
    "delta, updates": {20: 0.0008, 40: 0.0007, 60: 0.0005, 80: 0.0940, 100: 0.1502},
}
# Means of the bands of figure 2, "BERT at initialization", read from the coordinates in its file
# (github.com/twistedcubic/attention-rank-collapse, paper-plotting/figures/residual_BERT_vert.pdf).
DONG = {
    "attention": [0.612, 0.018, 0.000, 0.000, 0.000, 0.000, 0.000],
    "attention and feed-forward": [0.597, 0.017, 0.000, 0.000, 0.000, 0.000, 0.000],
    "attention and skips": [0.607, 0.565, 0.559, 0.562, 0.529, 0.496, 0.449],
    "transformer": [0.597, 0.563, 0.535, 0.537, 0.493, 0.439, 0.345],
}
DEPTHS = (0, 1, 2, 4, 6, 8, 12)
# "Attention solves MQAR" at width 64 at every length: Arora et al. 2023, section 4 and figure 2.
ZOOLOGY = {"softmax, learned": "1.00"}
# Records of the study, and of some of its arms with half and three times the steps.
MQAR = ("results.jsonl", "2000_steps.jsonl", "12000_steps.jsonl")


def capacity(records):
    """Held-out losses by rule and number of keys, ours / the paper's."""
    ours = {(_rule(record), record["size"]): record["loss"] for record in records}
    sizes = sorted({size for _, size in ours})
    rows = [["rule", *(f"{size} keys" for size in sizes)], ["---"] * (len(sizes) + 1)]
    for rule, published in SCHLAG.items():
        if any((rule, size) in ours for size in sizes):
            rows.append([rule, *(_cell(ours.get((rule, s)), published.get(s), 4) for s in sizes)])
    return _lines(rows)


def collapse(records):
    """Relative residuals by arm and depth, ours / the paper's, in its norm."""
    rows = [["arm", *(f"layer {depth}" for depth in DEPTHS)], ["---"] * (len(DEPTHS) + 1)]
    for record in records:
        if record["norm"] == "composite":
            ours = [record["residuals"][depth] for depth in DEPTHS]
            cells = [_cell(*pair, 3) for pair in zip(ours, DONG[record["arm"]], strict=True)]
            rows.append([record["arm"], *cells])
    return _lines(rows)


def mqar(records):
    """The part of the answers that is right, by arm, and by symbols of an example and steps."""
    ours = {(r["arm"], (_symbols(r), r["steps"])): r["metrics"]["accuracy"] for r in records}
    settings = sorted({setting for _, setting in ours}, key=lambda of: (-of[0], of[1]))
    columns = ["arm", *(f"{symbols} symbols, {steps:,} steps" for symbols, steps in settings)]
    columns.append("the paper")
    rows = [columns, ["---"] * len(columns)]
    for arm in dict.fromkeys(arm for arm, _ in ours):
        found = (f"{ours[arm, of]:.2f}" if (arm, of) in ours else "" for of in settings)
        rows.append([arm, *found, ZOOLOGY.get(arm, "")])
    return _lines(rows)


def mqar_seeds(study, records):
    """The same of several seeds by arm, and the verdicts that these support."""
    rows = [["arm", "seeds", "mean", "least", "greatest"], ["---"] * 5]
    for arm in study["arms"]:
        found = [r["metrics"]["accuracy"] for r in records if r["arm"] == arm]
        shown = (f"{x:.3f}" for x in (sum(found) / len(found), min(found), max(found)))
        rows.append([arm, str(len(found)), *shown])
    said = [f"- **{each.hypothesis.name}.** {each.sentence}." for each in draw(study, records)]
    wrap = {"width": 120, "subsequent_indent": "  ", "break_long_words": False}
    lines = [textwrap.fill(line, break_on_hyphens=False, **wrap) for line in said]
    return "\n".join([_lines(rows), *lines]) + "\n"


def tables(folder):
    """The tables of a folder's records: name -> Markdown, of those that are there."""
    made = {
        "capacity": capacity(read(folder / "capacity.jsonl")),
        "collapse": collapse(read(folder / "collapse.jsonl")),
        "mqar": mqar([row for name in MQAR for row in read(folder / "mqar" / name)]),
    }
    if (folder / "mqar_seeds").is_dir():
        made["mqar_seeds"] = mqar_seeds(*records_of(folder / "mqar_seeds"))
    return {name: table for name, table in made.items() if table.count("\n") > 2}


def _symbols(record):
    return int(re.search(r"length=(\d+)", record["data"])[1])


def _rule(record):
    return record["rule"] + ", updates" * record["updates"]


def _cell(ours, published, digits):
    shown = ("" if number is None else f"{number:.{digits}f}" for number in (ours, published))
    return " / ".join(shown).strip()


def _lines(rows):
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=pathlib.Path, default=HERE)
    for name, table in tables(parser.parse_args().records).items():
        print(f"{name}\n\n{table}")
