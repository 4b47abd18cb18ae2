"""Train a model on text, score sentences with it, save it, load it.

    python examples/train_and_score.py                                # about 1 minute on 2 cores
    python examples/train_and_score.py --preset gpt_tiny --text my_book.txt --steps 2000

takes a preset that predicts the next byte (gpt_*, unilm_*) or masked bytes (bert_*).
"""

import argparse
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import keras

import kzoo

SENTENCES = [
    "Return a list of the names of all files in the directory.",
    "directory the in files all of names the of list a Return.",
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt_nano")
    parser.add_argument("--text", default="pydoc", help="a text file or a folder of them")
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()

    model = kzoo.presets.load(options.preset)
    model.compile(optimizer=keras.optimizers.AdamW(3e-3))  # small models take large steps

    # Grain batches: random order, drawn anew in each epoch; held-out text never overlaps.
    splits = kzoo.data.load(options.text, model, batch_size=16, valid=0.03)
    model.fit(splits.train.repeat()[: options.steps])

    bits = model.evaluate(splits.valid, verbose=0, return_dict=True)["bits_per_byte"]
    entropy = splits.facts["unigram_entropy"]
    print(f"held out: {bits:.3f} bits per scored byte; the text's unigram entropy: {entropy:.3f}")

    scores = model.score(
        SENTENCES, end_token=False
    )  # the model was trained on running text, without end tokens
    for sentence, bits in zip(SENTENCES, scores["bits_per_byte"], strict=True):
        print(f"{bits:.3f} bits per byte: {sentence}")

    with tempfile.TemporaryDirectory() as directory:
        kzoo.presets.save(model, directory)
        again = kzoo.presets.load(directory)
        assert (again.score(SENTENCES)["nats"] == model.score(SENTENCES)["nats"]).all()
        print("saved and loaded: the same scores")
