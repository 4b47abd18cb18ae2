"""What a source holds, in numbers: lengths, duplicates, and what rows of a length would cut."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kzoo.data.pipeline import Splits
from kzoo.data.sources.corpus import JOINT, Corpus
from kzoo.data.sources.index import Indexed
from kzoo.data.sources.records import take
from kzoo.data.splits import spread
from kzoo.encoder import Encoder

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
MOST = 20_000  # documents or examples that are measured; of more, so many evenly spaced
MOST_BYTES = 1 << 26  # of those that are measured, about
LONGEST = 1 << 20  # bytes of a document that are tokenized; the tokens of a longer one follow
ROWS = 256  # of an epoch whose padding is counted


def statistics(corpus: Corpus, encoder: Encoder) -> dict[str, Any]:
    """How long the documents or examples of a source are, in the tokens of an encoder.

    Args:
        corpus: of `kzoo.data.sources.read`.
        encoder: as of `kzoo.data.pipeline.encoder_of`.

    Returns:
        A dict of JSON values: `kind` (`"running text"`, `"texts"` or `"pairs"`), `documents`, the
        number of distinct ones, `duplicates`, that of those left out since they repeat others,
        `bytes`, `measured`, the number of documents that the rest is about, `tokens`,
        `bytes_per_token`, `lengths`, quantiles in tokens of each `source`, `target` and of a row
        that holds the whole `example`, by name a list as long as `QUANTILES`, and `cut`, what rows
        of a length would cut: a list of dicts of `length`, `examples` (the part that is longer)
        and `tokens` (the part that would be lost; of running text, which is cut into windows,
        nothing is).

    Example:
        >>> from kzoo.data.pipeline import encoder_of
        >>> config = kzoo.presets.config("gpt_nano")
        >>> encoder = encoder_of(config, config)
        >>> found = statistics(kzoo.data.sources.read(["abc", "abcdefgh", "abc"]), encoder)
        >>> found["documents"], found["duplicates"], found["lengths"]["target"][-1]
        (2, 1, 8)
    """
    count, size, some = _chosen(corpus)
    pairs, whole = _read(corpus, some)
    running, paired = corpus.examples is None, pairs[0][0] is not None
    texts = {"source": [source for source, _ in pairs]} if paired else {}
    texts["target"] = [target for _, target in pairs]
    lengths = {name: _tokens(of, encoder) for name, of in texts.items()}
    read = sum(len(text.encode()) for of in texts.values() for text in of)
    tokens = sum(of.sum() for of in lengths.values())
    lengths["target"] = np.round(lengths["target"] * whole).astype(int)
    lengths["example"] = _rows(lengths, encoder)
    return {
        "kind": "running text" if running else "pairs" if paired else "texts",
        "documents": count,
        "duplicates": corpus.repeated,
        "bytes": size,
        "measured": len(pairs),
        "tokens": int(tokens),
        "bytes_per_token": round(float(read / max(tokens, 1)), 4),
        "quantiles": list(QUANTILES),
        "lengths": {name: _quantiles(of) for name, of in lengths.items()},
        "cut": [_cut(lengths["example"], length, running) for length in _lengths(lengths)],
    }


def fill(splits: Splits) -> dict[str, float]:
    """The part of a row's tokens that are no padding: of a single stack's rows, or of an
    encoder's and a decoder's, by the name of their mask.

    Args:
        splits: of `kzoo.data.load`; at most 256 of its training batches are looked at.
    """
    total = len(splits.train)
    some = np.unique(np.linspace(0, total - 1, min(ROWS, total)).round().astype(int))
    filled: dict[str, int] = {}
    all_of: dict[str, int] = {}
    for i in some:
        for name, mask in _masks(splits.train[int(i)][0]):
            filled[name] = filled.get(name, 0) + int((mask != 0).sum())
            all_of[name] = all_of.get(name, 0) + mask.size
    return {name: round(filled[name] / all_of[name], 4) for name in filled}


def _masks(x: Mapping[str, np.ndarray]):
    names = {"padding_mask": "row", "encoder_padding_mask": "encoder"}
    names["decoder_padding_mask"] = "decoder"
    return [(names[name], array) for name, array in x.items() if name in names]


def _chosen(corpus):
    """How many documents or examples there are, their bytes, and which of them are measured."""
    if corpus.examples is None:
        sizes = np.asarray(corpus.sizes, np.int64)
    elif isinstance(corpus.examples, Indexed):
        rows = corpus.examples.rows
        sizes = rows["source_size"].astype(np.int64) + rows["target_size"]
    else:
        sizes = np.array([sum(len(t.encode()) for t in pair if t) for pair in corpus.examples])
    affordable = MOST_BYTES // max(1, int(np.minimum(sizes, LONGEST).mean()))
    some = spread(len(sizes), min(MOST, max(1, affordable)))
    return len(sizes), int(sizes.sum()), some


def _read(corpus, some):
    """Some documents or examples, pairs of strings; and the size of each in units of what was
    read of it."""
    if corpus.examples is not None:
        return take(corpus.examples, some), np.ones(len(some))
    sizes = np.asarray(corpus.sizes, np.int64)
    starts = np.cumsum(sizes + len(JOINT)) - sizes - len(JOINT)
    read = np.minimum(sizes, LONGEST)
    texts = [corpus.text[int(starts[i]) : int(starts[i] + read[i])] for i in some]
    pairs = [(None, text.decode("utf-8", "ignore")) for text in texts]
    return pairs, sizes[some] / np.maximum(read[some], 1)


def _rows(lengths, encoder):
    """The tokens of a row that holds each example whole."""
    targets = map(range, lengths["target"])  # an encoder asks for lengths alone
    sources = map(range, lengths["source"]) if "source" in lengths else itertools.repeat(None)
    return np.array([encoder.example_length(*pair) for pair in zip(sources, targets, strict=False)])


def _tokens(texts, encoder):
    return np.array([len(tokens) for tokens in encoder.tokens(texts)])


def _quantiles(lengths):
    return np.quantile(lengths, QUANTILES, method="nearest").astype(int).tolist()


def _lengths(lengths):
    """Powers of two from 64 on, up to one that holds every example."""
    longest = int(lengths["example"].max())
    return [2**k for k in range(6, max(7, min(longest - 1, 2**20).bit_length() + 1))]


def _cut(lengths, length, running):
    beyond = np.maximum(lengths - length, 0)
    lost = 0.0 if running else float(beyond.sum() / lengths.sum())
    return {
        "length": length,
        "examples": round(float((beyond > 0).mean()), 4),
        "tokens": round(lost, 4),
    }
