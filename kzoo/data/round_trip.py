"""Whether a file's tokenizer gives back the texts of a source, tried on a sample of them."""

import logging
from typing import Any

from kzoo import tokenizer_json
from kzoo.data import splits
from kzoo.data.sources.corpus import Corpus
from kzoo.data.sources.stored import Stored
from kzoo.encoder import Bytes

log = logging.getLogger("kzoo")

TEXTS = 256  # of each part of a source
STRETCH = 1 << 12  # bytes of running text, or characters of an example


def facts(tokenizer: Any, corpus: Corpus) -> dict[str, Any]:
    """What a tokenizer loses of a source, with a warning where it does.

    A sample is looked at, evenly spread over all that is trained on and held out: 256 examples, or
    stretches of 4096 bytes of running text, of each official split or of the whole.

    Args:
        tokenizer: of an `Encoder`.
        corpus: the source.

    Returns:
        `{"tokenizer_loss": {"sampled_texts": int, "lost_texts": int}}`, and beside these counts,
        where any text is lost, of the source or of one with all that tokenizers lose, an
        `"example"`; nothing of bytes, which lose nothing.
    """
    if tokenizer is Bytes:
        return {}
    texts = [text for part in (corpus, *corpus.official.values()) for text in _sample(part)]
    count, lost, example = tokenizer.loss(texts)
    found = {"sampled_texts": count, "lost_texts": lost}
    if lost:
        log.warning(
            "%s: %d of %d sampled texts do not come back from the tokenizer as they were, which %s:"
            " bits per byte leave out what it loses",
            *(corpus.name, lost, count, example),
        )
    elif example := tokenizer.loss([tokenizer_json.PROBE]).example:
        log.warning(
            "%s: %d sampled texts come back from the tokenizer as they were, but others would not, "
            "since it %s: bits per byte leave out what it loses",
            *(corpus.name, count, example),
        )
    return {"tokenizer_loss": found | ({"example": example} if example else {})}


def _sample(corpus):
    """Some texts of one part of a source: strings."""
    if corpus.examples is not None:
        pairs = splits.sample(corpus.examples, TEXTS)
        yield from (text[:STRETCH] for pair in pairs for text in pair if text)
        return
    held = corpus.text
    count = -(-len(held) // STRETCH)
    for i in splits.spread(count, min(TEXTS, count)):
        start, stop = int(i) * STRETCH, min(len(held), (int(i) + 1) * STRETCH)
        content = held.read(start, stop) if isinstance(held, Stored) else held[start:stop]
        yield bytes(content).decode("utf-8", "ignore")  # without half a character at an end
