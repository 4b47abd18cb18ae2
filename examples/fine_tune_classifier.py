"""Fine-tune a language model to label texts, and see what its pretraining was worth.

    python examples/fine_tune_classifier.py                           # about 2 minutes on 2 cores
    python examples/fine_tune_classifier.py --data table:reviews.csv:text:label --text reviews.txt
    python examples/fine_tune_classifier.py --weights hf://google-bert/bert-base-uncased

pretrains a small BERT on text (or takes pretrained weights), gives it a new head for the labels of
the data, and fine-tunes it; then it does the same from random weights. By default the texts are
sentences of Python's documentation, about numbers or about the operating system.
"""

import argparse
import importlib
import inspect
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import kzoo

MODULES = {
    "numbers": ("decimal", "fractions", "math", "cmath", "statistics", "random"),
    "system": ("os", "pathlib", "shutil", "socket", "subprocess", "tarfile", "threading"),
}


def sentences():
    """(first lines of the documentation of functions and methods, label) pairs."""
    found = {}
    for label, names in MODULES.items():
        for module in map(importlib.import_module, names):
            members = list(vars(module).values())
            members += [x for cls in filter(inspect.isclass, members) for x in vars(cls).values()]
            docs = (inspect.getdoc(member) for member in members if callable(member))
            found |= {doc.splitlines()[0]: label for doc in docs if doc}
    return list(found.items())


def pretrained(text, steps, directory):
    """The folder of a BERT that was trained on a text."""
    model = kzoo.presets.load("bert_nano")
    model.compile(optimizer=kzoo.training.adamw(kzoo.training.learning_rate(64), steps))
    splits = kzoo.data.load(text, model, batch_size=32)
    model.fit(splits.train.repeat()[:steps], verbose=2)
    kzoo.presets.save(model, directory)
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="(text, label) pairs, such as table:FILE:TEXT:LABEL")
    parser.add_argument("--text", default="pydoc", help="a text file or a folder to pretrain on")
    parser.add_argument("--weights", help="pretrained ones: a folder or a handle")
    parser.add_argument("--pretraining", type=int, default=1500, help="steps")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning")
    options = parser.parse_args()

    pairs = options.data or sentences()
    objective = {"classification": {"labels": kzoo.data.labels(pairs)}}
    with tempfile.TemporaryDirectory() as directory:
        weights = options.weights or pretrained(options.text, options.pretraining, directory)
        tuned = kzoo.presets.load(weights, objective=objective)  # a new head, and says so
    fresh = kzoo.presets.build(tuned.config, tokenizer=tuned.preprocessor.tokenizer)

    width = tuned.backbone.hidden_dim
    arms = {
        "pretrained": (tuned, kzoo.training.finetuning_rate(width)),
        "random": (fresh, kzoo.training.learning_rate(width)),
    }
    for name, (model, rate) in arms.items():
        splits = kzoo.data.load(pairs, model, batch_size=32)
        model.compile(optimizer=kzoo.training.adamw(rate, options.steps))
        model.fit(splits.train.repeat()[: options.steps], verbose=2)
        measured = model.evaluate(splits.valid, verbose=0, return_dict=True)
        print(
            f"{name} weights: accuracy {measured['accuracy']:.1%}, "
            f"{measured['bits_per_label']:.3f} bits per label "
            f"({splits.facts['label_entropy']:.3f} without the texts)"
        )
    print(tuned.classify(["Return the square root of a number.", "Delete the given file."]))
