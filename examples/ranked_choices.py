"""Questions with choices: which answer does a model find likeliest, alone and after examples?

    python examples/ranked_choices.py                                  # about 1 minute on 2 cores
    python examples/ranked_choices.py --preset gpt_tiny --steps 600
    python examples/ranked_choices.py --model runs/book --questions my_questions.jsonl

trains a small model on lines such as "after c comes d", and asks it before and after the training.
A file of questions has one JSON object a line: {"question": "...", "choices": [...], "answer": 0}.
"""

import argparse
import os
import random
import string

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import keras

import kzoo

LETTERS = string.ascii_lowercase


def questions(draw):
    """Which letter comes after each: the right one and three others."""
    found = []
    for letter, following in zip(LETTERS, LETTERS[1:], strict=False):
        others = draw.sample([other for other in LETTERS if other != following], 3)
        choices = draw.sample([following, *others], 4)
        answer = choices.index(following)
        found.append({"question": f"after {letter} comes", "choices": choices, "answer": answer})
    return found


def lessons(draw, count):
    """What the model is trained on: texts of three lines in random order."""
    lines = [f"after {one} comes {two}" for one, two in zip(LETTERS, LETTERS[1:], strict=False)]
    return ["\n\n".join(draw.sample(lines, 3)) for _ in range(count)]


def show(model, asked, when):
    for shots in (0, 2):
        found = kzoo.evaluate_choices(model, asked, num_fewshot=shots)
        print(
            f"{when}, {shots} shots: acc {found['acc']:.2f} ± {found['acc_stderr']:.2f}, "
            f"acc_norm {found['acc_norm']:.2f}, of {found['examples']} questions"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt_nano", help="of the family gpt")
    parser.add_argument("--model", help="a folder that kzoo train saved, to be asked as it is")
    parser.add_argument("--questions", help="a file of your own; by default, letters")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    draw = random.Random(0)
    asked = questions(draw)
    if options.questions:
        asked = kzoo.evaluation.read(options.questions)
    model = kzoo.presets.load(options.model or options.preset)
    show(model, asked, "as loaded")
    if options.model is None:
        model.compile(optimizer=keras.optimizers.AdamW(3e-3))  # small models take large steps
        model.fit(lessons(draw, 32 * options.steps), batch_size=32, verbose=0)
        show(model, asked, f"after {options.steps} steps")
