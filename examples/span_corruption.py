"""Teach a T5 to fill in what was cut out of a text, as T5 was pretrained.

    python examples/span_corruption.py                                # about 2 minutes on 2 cores
    python examples/span_corruption.py --text my_book.txt --size tiny --steps 5000

Of each piece of text 15% of the bytes are cut out, in spans of three on average. The encoder reads
the rest, with a mark in the place of each span; the decoder writes each mark and its span.
"""

import argparse
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before anything imports Keras

import numpy as np

import kzoo
from kzoo.vocabulary import SENTINELS


def shown(ids):
    """Ids as text, with <0>, <1>, ... where spans were cut out."""
    text = b""
    for token in map(int, ids):
        if token < 256:
            text += bytes([token])
        elif token in SENTINELS:
            text += b"<%d>" % (token - SENTINELS[0])
    return text.decode(errors="replace")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", default="pydoc", help="a text file or a folder of them")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--span", type=float, default=3.0, help="bytes of a span, on average")
    options = parser.parse_args()

    objective = {"span_corruption": {"span": options.span}}
    model = kzoo.presets.load(f"t5_{options.size}", objective=objective)
    rate = kzoo.training.learning_rate(model.backbone.hidden_dim)
    model.compile(optimizer=kzoo.training.adamw(rate, options.steps))
    splits = kzoo.data.load(options.text, model, batch_size=16, valid=0.03)
    model.fit(splits.train.repeat()[: options.steps], verbose=2)

    bits = model.evaluate(splits.valid, verbose=0, return_dict=True)["bits_per_byte"]
    print(f"held out: {bits:.3f} bits per byte that was cut out")

    x, y, weight = splits.valid[0]
    logits = np.asarray(model.predict_on_batch({name: x[name] for name in model.input}))
    for i in range(3):  # each next byte, given the true ones before it
        scored = weight[i] > 0
        print(f"read:      {shown(x['encoder_token_ids'][i])!r}")
        print(f"cut out:   {shown(y[i][scored])!r}")
        print(f"predicted: {shown(logits[i].argmax(-1)[scored])!r}")
