"""What of a conversation's cache the next turn can keep, and how long a turn takes to begin.

    python examples/studies/q8-cache-reuse/conversation.py            # half a minute on 2 cores
    python examples/studies/q8-cache-reuse/conversation.py --size small --turns 8

A GPT, a UniLM and a T5 with random weights are asked turn after turn. Printed are, at each turn,
the tokens of its prompt and those that were computed, the largest change of a key or value of an
earlier token, and the seconds to the first token.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import kzoo

FAMILIES = ("gpt", "unilm", "t5")
REMARK = "Tell me more of it. "


def rows(size, turns, repeats=3):
    """A dict for each family and turn, of `kzoo.analysis.cache_reuse`; all turns together fill
    half of the longest sequence."""
    found = []
    for family in FAMILIES:
        model = kzoo.presets.load(f"{family}_{size}")
        length = model.backbone.max_sequence_length // (2 * turns)
        said = [(REMARK * length)[:length]] * turns
        for turn in kzoo.analysis.cache_reuse(model, said, repeats=repeats):
            found.append({"family": family, **turn})
    return found


def table(found):
    """The rows as Markdown."""
    head = ["family", "turn", "tokens", "computed", "change of keys and values", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in found:
        changes = [row[name] for name in ("key_change", "value_change")]
        change = "" if None in changes else f"{max(changes):.2g}"
        counts = [str(row[name]) for name in ("turn", "tokens", "encoded")]
        lines.append([row["family"], *counts, change, f"{row['seconds']:.3f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", help="of the presets")
    parser.add_argument("--turns", type=int, default=4)
    options = parser.parse_args()
    print(table(rows(options.size, options.turns)), end="")
