"""The power law of loss against parameters and FLOPs, for each family of a study of sizes.

    python examples/studies/q15-scaling/power_law.py runs/q15-sizes

The label of an arm is its family and, last, its size: "GPT 64". bits = a · x^−b is fitted to the
sizes of a family, in logarithms, for each seed; b is given with its 95% t interval over seeds. The
three sizes of the study beside this file tell a slope; they do not tell whether it bends.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from kzoo.studies.records import read

AGAINST = ("parameters", "flops")


def exponents(records, against):
    """b of each seed, by family.

    Args:
        records: of a study's runs.
        against: the field of a record that bits fall with.

    Returns:
        A dict: family -> list of floats, of the seeds whose runs finished at two sizes or more.
    """
    points = {}
    for record in records:
        if record["status"] == "finished":
            of_family = points.setdefault(record["arm"].rpartition(" ")[0], {})
            of_family.setdefault(record["seed"], []).append((record[against], record["bits"]))
    return {
        family: [
            -float(np.polyfit(*np.log(np.array(sizes)).T, 1)[0])
            for sizes in of_family.values()
            if len(sizes) > 1
        ]
        for family, of_family in points.items()
    }


def table(records):
    """The exponents with their intervals, as Markdown."""
    lines = [["family", *(f"b, {name}" for name in AGAINST)], ["---"] * (1 + len(AGAINST))]
    found = [exponents(records, against) for against in AGAINST]
    for family in found[0]:
        lines.append([family, *(_interval(of[family]) for of in found)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _interval(values):
    if not values:
        return ""
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of a study")
    print(table(read(parser.parse_args().directory)[1]), end="")
