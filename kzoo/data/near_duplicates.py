"""Held-out texts of which a near copy is trained on, counted in a sample by datasketch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kzoo.data import splits
from kzoo.data.sources import Corpus
from kzoo.data.sources.index import folded
from kzoo.data.sources.stored import Stored
from kzoo.errors import InputError
from kzoo.values import is_count

WORDS = 5  # of a shingle
SIMILAR = 0.8  # the Jaccard similarity of near copies
PERMUTATIONS = 128
LEAST = 8  # words of a text that is looked at: of shorter ones, many are alike by chance


def in_corpus(corpus: Corpus, valid: float, size: int) -> dict[str, Any]:
    """`near_duplicates` of the two parts of a corpus, as `load` says: of examples (pairs as one
    text), or of the paragraphs of running text.

    Args:
        corpus: what was read.
        valid: the part that is held out.
        size: at most so many texts of each part are compared.
    """
    if corpus.examples is None:
        parts, _ = splits.texts(corpus, valid)
        texts = [_paragraphs(parts[name]) for name in ("train", "valid")]
    else:
        parts, _ = splits.examples(corpus, valid)
        chosen = [splits.sample(parts[name], size) for name in ("train", "valid")]
        texts = [[f"{source or ''} {target}" for source, target in part] for part in chosen]
    train, held_out = texts
    return near_duplicates(train, held_out, size)


def _paragraphs(text):
    """Those of a text; of one that is not held in memory, of a sample."""
    runs = text.sample(splits.SAMPLE).chunks() if isinstance(text, Stored) else [text]
    return [one for run in runs for one in run.tobytes().decode("utf-8", "ignore").split("\n\n")]


def near_duplicates(
    train: Sequence[str], held_out: Sequence[str], sample: int = 2000
) -> dict[str, Any]:
    """Counts the held-out texts that are nearly a text of training.

    Two texts are near copies if their sets of shingles (runs of 5 words, whatever their case and
    white space) have a Jaccard similarity of 0.8 or more, estimated by MinHash (Broder 1997) with
    128 permutations and found by locality-sensitive hashing, as in the deduplication of language
    models' data (Lee et al. 2022, arXiv:2107.06499). Texts of fewer than 8 words are left out.

    Args:
        train, held_out: texts.
        sample: at most so many of each are compared, evenly spread. Of a sample of training, fewer
            copies are found than there are.

    Returns:
        A dict that JSON can hold: `rule`, `train_texts` and `held_out_texts`, the numbers of those
        compared, and `near_copies`, how many held-out ones have a near copy among the others.

    Raises:
        InputError: datasketch is not installed, or the sample is no positive number.

    Example:
        >>> text = "the quick brown fox jumps over the lazy dog and runs into the wood again"
        >>> other = "all happy families are alike each unhappy family is unhappy in its own way"
        >>> facts = near_duplicates([text], [text + " today", other])
        >>> facts["held_out_texts"], facts["near_copies"]
        (2, 1)
    """
    if not is_count(sample):
        raise InputError(f"a sample is a positive number of texts. Received: {sample!r:.60}")
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise InputError(
            "near duplicates are counted by the package datasketch: "
            "pip install 'kzoo[near_duplicates]'. "
            f"Received: near_duplicates={sample}"
        ) from error
    index = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)
    learned = [_hash(words) for words in _words(train, sample)]
    for i, one in enumerate(learned):
        index.insert(i, one)
    scored = [_hash(words) for words in _words(held_out, sample)]
    copies = sum(
        any(one.jaccard(learned[i]) >= SIMILAR for i in index.query(one)) for one in scored
    )
    return {
        "rule": f"MinHash of {WORDS}-word shingles, {PERMUTATIONS} permutations, "
        f"Jaccard similarity {SIMILAR} or more",
        "train_texts": len(learned),
        "held_out_texts": len(scored),
        "near_copies": copies,
    }


def _words(texts, sample):
    """The words of some texts, evenly spread."""
    chosen = np.unique(np.linspace(0, max(len(texts) - 1, 0), min(sample, len(texts))).astype(int))
    words = (folded(texts[i]).split() for i in chosen)
    return [one for one in words if len(one) >= LEAST]


def _hash(words):
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS)
    runs = range(len(words) - WORDS + 1)
    made.update_batch([" ".join(words[i : i + WORDS]).encode() for i in runs])
    return made
