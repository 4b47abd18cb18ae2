"""Running text: how it is held out, cut into windows and measured. Bytes in NumPy arrays."""

import logging

import numpy as np

log = logging.getLogger("kzoo")

BLOCK = 4096  # bytes held out at once
PIECE = 1 << 16  # bytes that a tokenizer takes at once
SHARED = 64  # no run of so many bytes stands in both parts
NEAR = 32  # bytes; what stands in both parts in runs of so many is counted
WORD = 8  # bytes


def spread(count, chosen):
    """`chosen` of the indices below `count`, evenly spread, the last one among them."""
    return (np.arange(1, chosen + 1) * count) // chosen - 1


def split(text, valid):
    """Holds out about `valid` of a text, in blocks spread evenly through it.

    Blocks of about 4096 bytes begin and end at line breaks where one is near. Then runs of
    64 bytes or more that stand in the held-out part too are cut out of the training part,
    so that repeated passages are not scored after being learned. A text that is mostly
    repetition keeps its training part, with a warning. What is changed more often than every
    64 bytes is no repetition here: `shared` counts it.

    Args:
        text: bytes.
        valid: the part to hold out, between 0 and 1.

    Returns:
        `(train, held_out)`, uint8 arrays of one dimension. They depend on nothing but the
        arguments.
    """
    starts, ends = _blocks(text, valid)
    held_out = [_bytes(text[start:end]) for start, end in zip(starts, ends, strict=True)]
    train = [_bytes(text[a:b]) for a, b in zip([0, *ends[:-1]], starts, strict=True)]
    whole, known = np.concatenate(train), np.sort(_runs(held_out, SHARED))
    kept = whole[~_covered(train, known)]
    while (repeated := _covered([kept], known)).any():  # what a cut has joined
        kept = kept[~repeated]
    train, held_out = whole, np.concatenate(held_out)
    if 2 * len(kept) >= len(train):
        return kept, held_out
    log.warning(
        "the text repeats itself: %d%% of the training part stands in the held-out part too, "
        "so the held-out loss measures memory",
        100 - 100 * len(kept) // len(train),
    )
    return train, held_out


def split_stored(text, valid):
    """Holds out about `valid` of a text that is not held in memory, in the same blocks as `split`
    does; what stands in both parts stays there.

    Args:
        text: a `kzoo.data.sources.stored.Stored`.
        valid: the part to hold out, between 0 and 1.

    Returns:
        `(train, held_out)`, of the same kind.
    """
    starts, ends = _blocks(text, valid)
    return text.part([0, *ends[:-1]], starts), text.part(starts, ends)


def _blocks(text, valid):
    """Where the held-out blocks of a text begin and end: two lists."""
    size = len(text) * valid
    count = max(1, round(size / BLOCK))
    ends = np.arange(1, count + 1) * len(text) / count
    starts = [_line_start(text, int(end - size / count), int(size / count / 8)) for end in ends]
    ends = [_line_start(text, int(end), int(size / count / 8)) for end in ends]
    return starts, ends


def shared(train, held_out):
    """Held-out bytes that stand in training too, in runs of 32 or more.

    Args:
        train, held_out: lists of uint8 arrays; a run lies within one of them.

    Returns:
        An integer.
    """
    learned, scored = _runs(train, NEAR), _runs(held_out, NEAR)
    both = np.sort(learned[_among(learned, np.sort(scored))])
    return int(_bytes_of(_among(scored, both) & (scored != 0), NEAR).sum())


def shared_with_much(train, held_out):
    """As `shared`, some twenty times as fast: of runs of 39 bytes or more, up to 7 bytes at either
    end are left out, and of shorter ones some.

    Training text is looked at from every eighth byte on, held-out text from every byte on.

    Args:
        train: an iterable of uint8 arrays, which may be `joined` ones.
        held_out: as of `shared`.
    """
    whole = joined(held_out, 0xFE)
    scored = np.zeros(len(whole), np.uint64)
    for offset in range(WORD):
        runs = _runs_of_words(whole[offset:])
        scored[offset : offset + WORD * len(runs) : WORD] = runs
    known = np.sort(scored)
    stands = np.zeros(len(known), bool)
    for text in train:
        runs = _runs_of_words(text)
        stands[np.searchsorted(known, runs[_among(runs, known)])] = True
    seen = stands[np.searchsorted(known, scored)] & (scored != 0)
    return int(_bytes_of(seen, NEAR).sum())


def joined(texts, end=0xFF):
    """Texts as one uint8 array, with a byte behind each that no text has."""
    end = np.array([end], np.uint8)
    return np.concatenate([part for text in texts for part in (text, end)])


def windows(stream, size):
    """A token array as windows that do not overlap: `[count, size, ...]`. The rest is left out."""
    count = len(stream) // size
    return stream[: count * size].reshape(count, size, *stream.shape[1:])


def pieces(text):
    """A text as strings that end at line breaks, of about 64 KB each: a list of one at least.

    Args:
        text: uint8 array, or a text that is not held in memory, whose strings are made one at a
            time. Bytes that are no UTF-8, as where a repetition was cut out, are left
            out.
    """
    if hasattr(text, "chunks"):
        return _pieces_of_chunks(text)
    text, parts, start = text.tobytes(), [], 0
    while start < len(text):
        end = text.find(b"\n", start + PIECE) + 1 or len(text)
        parts.append(text[start:end].decode("utf-8", "ignore"))
        start = end
    return parts or [""]


def _pieces_of_chunks(text):
    rest = b""
    for chunk in text.chunks(PIECE):
        whole, line, begun = (rest + chunk.tobytes()).rpartition(b"\n")
        rest = begun
        if whole:
            yield (whole + line).decode("utf-8", "ignore")
    yield rest.decode("utf-8", "ignore")


def unigram_entropy(text):
    """Entropy of a byte, from the text's own counts.

    Args:
        text: bytes or a uint8 array, not empty.

    Returns:
        A float, in bits per byte.

    Example:
        >>> unigram_entropy(b"abab")
        1.0
    """
    return _entropy(sum(np.bincount(chunk, minlength=256) for chunk in _chunks(text)))


def bigram_entropy(text):
    """Entropy of a byte given the byte before it, from the text's own counts.

    What a model reaches that looks back by one byte; a language model that does not beat
    it has not learned from context.

    Args:
        text: bytes or a uint8 array, of two bytes or more.

    Returns:
        A float, in bits per byte.

    Example:
        >>> bigram_entropy(b"abababab")
        0.0
    """
    pairs, before = np.zeros(256 * 256, np.int64), np.zeros(0, np.uint8)
    for chunk in _chunks(text):
        chunk = np.concatenate([before, chunk]).astype(np.int64)
        pairs += np.bincount(chunk[:-1] * 256 + chunk[1:], minlength=len(pairs))
        before = chunk[-1:].astype(np.uint8)
    return max(0.0, _entropy(pairs) - _entropy(pairs.reshape(256, 256).sum(1)))


def _entropy(counts):
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def _bytes(text):
    return text if isinstance(text, np.ndarray) else np.frombuffer(text, np.uint8)


def _chunks(text):
    """A text, in memory or not, as uint8 arrays, at least one."""
    return text.chunks() if hasattr(text, "chunks") else [_bytes(text)]


def _line_start(text, at, reach):
    """The beginning of the next line, if there is one within `reach` bytes, else `at`."""
    return text.find(b"\n", at, at + reach) + 1 or at


def _runs(texts, size):
    """A 64-bit hash of the `size` bytes from each position of the joined texts on; 0 where they
    reach into the next text."""
    texts = [text for text in texts if len(text)] or [np.zeros(0, np.uint8)]
    runs = _doubled(np.concatenate(texts).astype(np.uint64), size)
    which = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    return np.where(which[: len(runs)] == which[len(which) - len(runs) :], runs, np.uint64(0))


def _runs_of_words(text):
    """A 64-bit hash of the 32 bytes from each eighth byte of a text on."""
    return _doubled(text[: len(text) // WORD * WORD].view(np.uint64), NEAR // WORD)


def _doubled(runs, size):
    """A 64-bit hash of `size` integers, a power of two, from each on, by doubling."""
    width = 1
    while width < size:
        left, right = runs[:-width], runs[width:]
        right = (right ^ (right >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        runs = left * np.uint64(0xD1342543DE82EF95) + right
        width *= 2
    return runs


def _covered(texts, known):
    """Which bytes of the joined texts belong to a run whose hash is in the sorted `known`: bool."""
    runs = _runs(texts, SHARED)
    return _bytes_of(_among(runs, known) & (runs != 0), SHARED)[: sum(map(len, texts))]


def _among(runs, known):
    """Which hashes are in the sorted array `known`: bool. By a table first: most are not."""
    bits = max(1, 8 * len(known)).bit_length()
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, bool)
    table[known >> shift] = True
    found = table[runs >> shift]
    some = runs[found]
    found[found] = known[np.minimum(np.searchsorted(known, some), len(known) - 1)] == some
    return found


def _bytes_of(runs, size):
    """Which bytes belong to a run of `size` that begins where `runs`, bool, says so."""
    found = np.zeros(len(runs) + size, np.int64)
    found[: len(runs)] += runs
    found[size:] -= runs
    return np.cumsum(found)[:-1] > 0
