"""Train a BPE on your own text and a model on its tokens, and compare its bits with those of bytes.

    python examples/own_bpe.py                                        # about 2 minutes on 2 cores
    python examples/own_bpe.py --text my_book.txt --size 4096 --steps 2000

The tokenizer learns from the training part of the text alone. Bits per byte count the bytes of the
text, whatever the tokens are, so that the two models compare.
"""

import argparse
import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import keras

import kzoo

SENTENCE = "Return a list of the names of all files in the directory."

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt_nano")
    parser.add_argument("--text", default="pydoc", help="a text file or a folder of them")
    parser.add_argument("--kind", default="bpe", help="or unigram")
    parser.add_argument("--size", type=int, default=2048, help="number of ids")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()

    path = kzoo.data.train_tokenizer(options.text, kind=options.kind, size=options.size)
    print(f"{options.kind} of {options.size} ids: {path}")

    for tokenizer in ("bytes", path):  # or {"tokenizer": {"bpe": 2048}} in a study
        model = kzoo.presets.load(options.preset, tokenizer=tokenizer)
        model.compile(optimizer=keras.optimizers.AdamW(3e-3))  # small models take large steps
        splits = kzoo.data.load(options.text, model, batch_size=16)
        model.fit(splits.train.repeat()[: options.steps], verbose=0)

        bits = model.evaluate(splits.valid, verbose=0, return_dict=True)["bits_per_byte"]
        tokens = len(model.preprocessor.tokenizer(SENTENCE))
        name = "bytes" if tokenizer == "bytes" else options.kind
        print(
            f"{name}: {model.count_params():,} parameters, {bits:.3f} bits per held-out byte; "
            f"{tokens} tokens in {len(SENTENCE)} bytes"
        )

    score = model.score([SENTENCE], end_token=False)["bits_per_byte"][0]
    print(f"{score:.3f} bits per byte: {SENTENCE}")
    with tempfile.TemporaryDirectory() as directory:
        kzoo.presets.save(model, directory)  # with its tokenizer
        again = kzoo.presets.load(directory)
        assert (again.score([SENTENCE])["nats"] == model.score([SENTENCE])["nats"]).all()
        print("saved and loaded: the same scores")
