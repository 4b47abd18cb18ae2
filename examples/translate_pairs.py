"""Translate with one stack and with two: a UniLM and a T5 on the same pairs.

    python examples/translate_pairs.py                                # about 3 minutes on 2 cores
    python examples/translate_pairs.py --pairs de-en.tsv --size tiny --steps 5000

trains both on the lines of a file, a source, a tab and a target, or on English number words and
their German ones. Both read the source whole and are scored on the same bytes of the target.
"""

import argparse
import os
import random

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import kzoo

ENGLISH = "- one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
ENGLISH = f"{ENGLISH} fifteen sixteen seventeen eighteen nineteen".split()
GERMAN = "- ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn"
GERMAN = f"{GERMAN} fünfzehn sechzehn siebzehn achtzehn neunzehn".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
ZEHNER = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()


def english(n):
    if n >= 100:
        return f"{ENGLISH[n // 100]} hundred" + (f" and {english(n % 100)}" if n % 100 else "")
    if n < 20:
        return ENGLISH[n]
    return TENS[n // 10] + (f"-{ENGLISH[n % 10]}" if n % 10 else "")


def german(n):
    if n >= 100:
        return f"{GERMAN[n // 100]}hundert" + (german(n % 100) if n % 100 else "")
    if n < 20:
        return "eins" if n == 1 else GERMAN[n]
    return (f"{GERMAN[n % 10]}und" if n % 10 else "") + ZEHNER[n // 10]


def read(path):
    with open(path, encoding="utf-8") as file:
        return [tuple(line.rstrip("\n").split("\t")) for line in file]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", help="a file: a source, a tab and a target in each line")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()

    numbers = [(english(n), german(n)) for n in range(1, 1000)]
    pairs = read(options.pairs) if options.pairs else numbers
    random.Random(0).shuffle(pairs)
    asked, pairs = pairs[:4], pairs[4:]  # neither model is shown these
    sources, targets = map(list, zip(*asked, strict=True))

    for family in ("unilm", "t5"):
        model = kzoo.presets.load(f"{family}_{options.size}", positions="learned")
        rate = kzoo.training.learning_rate(model.backbone.hidden_dim)
        model.compile(optimizer=kzoo.training.adamw(rate, options.steps))
        splits = kzoo.data.load(pairs, model, batch_size=32)
        model.fit(splits.train.repeat()[: options.steps], verbose=2)

        bits = model.evaluate(splits.valid, verbose=0, return_dict=True)["bits_per_byte"]
        print(f"{family}: {bits:.3f} held-out bits per byte of target")
        scores = model.score({"prompts": sources, "responses": targets})["bits_per_byte"]
        made = model.generate({"prompts": sources}, sampler="greedy")
        for source, target, score, text in zip(sources, targets, scores, made, strict=True):
            print(f"  {source!r}: {text!r}; the pair has {target!r}, at {score:.2f} bits per byte")
