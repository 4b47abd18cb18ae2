"""The numbers of the pages in this folder, from the records beside them.

    python examples/studies/answers.py              # writes the pages' numbers anew
    python examples/studies/answers.py --figures    # and draws the curves of each study

A page is a `README.md`. What stands between `<!-- verdicts of rotary -->` and `<!-- end -->` is
made from the folder `rotary` beside it, which `kzoo compare rotary.json --out rotary` wrote; all
other text is written by hand.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

from kzoo.studies.evidence import arm_facts, draw
from kzoo.studies.page import plot
from kzoo.studies.page.labels import by
from kzoo.studies.records import read

HERE = Path(__file__).parent
BLOCK = re.compile(r"<!-- (\w+)(?: of ([\w-]+))? -->\n(.*?)<!-- end -->", re.DOTALL)
WIDTH = 120


def arms(study, records):
    """A table for each group of arms whose bits compare."""
    tables = []
    for group, runs in by(records, "group").items():
        measure = runs[0]["measure"]
        bits_said = f"held-out {measure}"
        rows = [["arm", "rate", bits_said, "least to greatest", "accuracy", "seeds", "to know"]]
        for arm, of in by(runs, "arm").items():
            bits = [run["bits"] for run in of if run["bits"] is not None]
            rates = ", ".join(f"{rate:g}" for rate in sorted({run["learning_rate"] for run in of}))
            right = np.mean([run["metrics"]["accuracy"] for run in of])
            span = f"{min(bits):.3f} to {max(bits):.3f}"
            cells = [f"{np.mean(bits):.3f}", span, f"{right:.3f}", str(len(of)), _doubts(study, of)]
            rows.append([arm, rates, *cells])
        entropy = runs[0]["facts"].get("bigram_entropy")
        said = f"; the bigram entropy of the held-out text is {entropy:.3f} bits" if entropy else ""
        tables.append(f"{group[0].upper()}{group[1:]}{said}:\n\n{_table(rows)}")
    return "\n".join(tables)


def _doubts(study, runs):
    """What makes one doubt an arm."""
    facts = arm_facts(runs, study)
    said = {
        "falls still": facts.still_falling,
        "above the bigram entropy": facts.above_bigram,
        "rate at the edge of its grid": facts.at_edge,
        f"{len(facts.diverged)} diverged": facts.diverged,
        f"{len(facts.stalled)} stalled": facts.stalled,
    }
    return ", ".join(words for words, so in said.items() if so)


def verdicts(study, records):
    """The sentence of each hypothesis, without its notes, of which `arms` has those on arms."""
    if not study.get("hypotheses"):
        return "The study states no hypotheses: it describes.\n"
    found = draw(study, records)
    if not found:
        return "No verdict yet: it is drawn when all runs are there.\n"
    lines = [f"- **{each.hypothesis.name}.** {_capital(each.sentence)}." for each in found]
    return "".join(_wrapped(line) for line in lines)


def curves(study, records):
    """Mean held-out bits along training, a row for each arm; where arms make unlike numbers of
    steps, at parts of each arm's."""
    tables = []
    for runs in by(records, "group").values():
        made = {tuple(step for step, *_ in run["held_out"]) for run in runs}
        steps, numbers = next(iter(made)), _spread(range(len(runs[0]["held_out"])))
        heads = [f"{steps[n]} steps" for n in numbers]
        if len(made) > 1:
            heads = [f"{100 * (n + 1) / len(steps):.0f}% of the steps" for n in numbers]
        rows = [["arm", *heads]]
        for arm, of in by(runs, "arm").items():
            points = [[bits for _, bits, *_ in run["held_out"]] for run in of]
            rows.append([arm, *(f"{np.mean([p[n] for p in points]):.3f}" for n in numbers)])
        tables.append(_table(rows))
    return "\n".join(tables)


def _spread(steps):
    """Eight of them at most, the last among them."""
    return steps[-1 :: -max(1, math.ceil(len(steps) / 8))][::-1]


def runs(study, records):
    """How many runs there are, what they took, and where they ran."""
    asked = sum(len(study["seeds"]) for arm in study["arms"].values() for _ in arm["data"])
    minutes = sum(record["seconds"] for record in records) / 60
    origins = [record["provenance"] for record in records]
    processors = sorted({origin["processor"] for origin in origins})
    days = sorted({origin["started"][:10] for origin in origins})
    used = [origin["versions"] for origin in origins]
    versions = sorted({f"{name} {of[name]}" for of in used for name in ("jax", "keras")})
    commits = sorted({origin["commit"][:7] for origin in origins})
    where = f"{', '.join(processors)}, with {' and '.join(versions)}"
    return _wrapped(
        f"{len(records)} of {asked} runs are there; they took {minutes:.0f} minutes of one "
        f"process, on {where}, at commit {', '.join(commits)}, "
        f"{' to '.join(dict.fromkeys([days[0], days[-1]]))}."
    )


def ranks(records):
    """Figures of the attention matrices at the first and the last step, a row for each arm, and the
    held-out bits at the last."""
    figures = ("numerical_rank", "entropy_rank", "stable_rank", "k99", "concentration")
    rows = [["mechanism", "mask", *(figure.replace("_", " ") for figure in figures), "bits"]]
    for mechanism, mask, of in _arms(records):
        ends = [
            {f: np.mean([r["spectrum"]["as it is"][f] for r in runs]) for f in figures}
            for runs in _ends(of)
        ]
        last = [run["bits"] for run in of[max(of)]]
        bits = "" if None in last else f"{np.mean(last):.2f}"
        changes = (_change(*(end[f] for end in ends)) for f in figures)
        rows.append([mechanism, mask, *changes, bits])
    return _table(rows)


def controls(records):
    """The entropy rank of each control at the first and the last step, a row for each arm."""
    names = ("as it is", "permuted", "identity mix", "random half")
    rows = [["mechanism", "mask", *names]]
    for mechanism, mask, of in _arms(records):
        cells = []
        for name in names:
            ends = [[r["spectrum"].get(name) for r in runs] for runs in _ends(of)]
            there = all(all(runs) for runs in ends)
            means = [np.mean([r["entropy_rank"] for r in runs]) for runs in ends] if there else []
            cells.append(_change(*means) if there else "")
        rows.append([mechanism, mask, *cells])
    return _table(rows)


def residuals(records, figure="residual"):
    """The relative residual behind the last layer at the first and the last step, by what is left
    out of the model."""
    parts = list(records[0][figure])
    rows = [["mechanism", "mask", *(f"without {part}" for part in parts)]]
    for mechanism, mask, of in _arms(records):
        cells = []
        for part in parts:
            ends = [[r[figure][part][-1] for r in runs] for runs in _ends(of)]
            # No residual is 0 by rounding: it was written where all states had become 0.
            cells.append(_change(*(np.mean(x) if all(x) else None for x in ends), digits=3))
        rows.append([mechanism, mask, *cells])
    return _table(rows)


def late_residuals(records):
    """`residuals` of the last half of the tokens."""
    return residuals(records, "residual_last_half")


def _arms(records):
    """(mechanism, mask, step -> its records) of each arm that was measured."""
    for mechanism, of_mechanism in by(records, "mechanism").items():
        for mask, of in by(of_mechanism, "mask").items():
            yield mechanism, mask, by(of, "step")


def _ends(of):
    """The records at the first step and at the last, if there is another."""
    return [of[step] for step in sorted({min(of), max(of)})]


def _change(*ends, digits=2):
    return " → ".join("none" if x is None else f"{x:.{digits}f}" for x in ends)


def answers():
    """Every verdict, by question and study, and the questions that no study has answered."""
    lines, waiting = [], []
    for page in sorted(HERE.glob("q*/README.md"), key=_number):
        title = page.read_text().splitlines()[0].removeprefix("# ")
        link = f"[{title}]({page.parent.name}/README.md)"
        folders = sorted(path.parent for path in page.parent.glob("*/results.jsonl"))
        if not folders and not BLOCK.search(page.read_text()):
            waiting.append(f"- {link}\n")
            continue
        lines.append(f"### {link}\n\n")
        for folder in folders:
            lines.append(f"*{folder.name}*\n\n{verdicts(*_read(folder))}\n")
    return "".join([*lines, "### Not run yet\n\n", *waiting])


def _number(page):
    return int(re.match(r"q(\d+)", page.parent.name)[1])


OF_STUDIES = {each.__name__: each for each in (arms, verdicts, curves, runs)}
OF_MEASUREMENTS = {each.__name__: each for each in (ranks, controls, residuals, late_residuals)}


def page(path):
    """The text of a page, with its numbers made anew."""

    def made(block):
        kind, name, _ = block.groups()
        of = f" of {name}" if name else ""
        if kind == answers.__name__:
            found = answers()
        elif kind in OF_STUDIES:
            found = OF_STUDIES[kind](*_read(path.parent / name))
        else:
            lines = (path.parent / f"{name}.jsonl").read_text().splitlines()
            found = OF_MEASUREMENTS[kind]([json.loads(line) for line in lines])
        return f"<!-- {kind}{of} -->\n\n{found}\n<!-- end -->"

    return BLOCK.sub(made, path.read_text())


def pages():
    """The paths of all pages."""
    return [*sorted(HERE.glob("q*/README.md")), HERE / "README.md"]


def _read(folder):
    study, records = read(folder)
    return study, sorted(records, key=lambda record: list(study["arms"]).index(record["arm"]))


def _capital(text):
    return text[0].upper() + text[1:]


def _table(rows):
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _wrapped(text):
    """Lines of at most `WIDTH` letters, of a list's item indented."""
    import textwrap

    inner = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=inner, break_on_hyphens=False) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", action="store_true", help="draw curves.svg of each study too")
    options = parser.parse_args()
    for path in pages():
        path.write_text(page(path))
    if options.figures:
        for results in sorted(HERE.glob("q*/*/results.jsonl")):
            plot(_read(results.parent)[1]).save(results.parent / "curves.svg")


if __name__ == "__main__":
    main()
