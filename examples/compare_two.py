"""Does it help a language model to see the whole source at once? Two arms, one difference.

    python examples/compare_two.py                                    # about 3 minutes on 2 cores
    python examples/compare_two.py --text my_book.txt --steps 1000

trains a GPT and a UniLM of 125 thousand parameters on Python's own documentation, or on a text
file or a folder of them. Both predict the same targets of the same pieces of text; only the mask
over the source differs. The cells (`# %%`) can be run one by one in a notebook.
"""

# %% Settings
import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import kzoo

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--text", default="pydoc", help="a text file or a folder of them")
parser.add_argument("--steps", type=int, default=300)
options, _ = parser.parse_known_args()  # a notebook has arguments of its own

# %% Train both arms, with two seeds each
results = kzoo.compare(
    {
        "causal": ("gpt_nano", {"objective": "prefix_lm"}),
        "prefix": ("unilm_nano", {}),
    },
    data=options.text,
    seeds=2,
    steps=options.steps,
    valid=0.03,
)

# %% The table: held-out bits per byte of target
table = results.table()
print(table[["arm", "parameters", "mean", "min", "max", "seconds"]].to_string(index=False))

# %% The same seed gives both arms the same initial values and batches, so pair by seed
causal, prefix = (table[table["arm"] == arm].iloc[0] for arm in ("causal", "prefix"))
for seed in ("seed 0", "seed 1"):
    print(f"{seed}: prefix - causal = {prefix[seed] - causal[seed]:+.4f} bits per byte")
print("Two seeds show the size of the noise; they are too few for a verdict.")

# %% Curves, masks, spectra of attention, provenance, on one page
print(results.report())
