"""From a source to two Grain datasets of batches: one to train on, one held out."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from kzoo import masks, objectives
from kzoo.data import sources, splits, text
from kzoo.data.batches import Batches
from kzoo.encoder import Bytes, Encoder, utf8
from kzoo.errors import InputError, unknown
from kzoo.objectives.layouts import layout
from kzoo.typing import ObjectiveSpec
from kzoo.values import check_batch_size, is_count, is_number

log = logging.getLogger("kzoo")

_HELD_OUT_SEED = 9529


@dataclasses.dataclass(frozen=True)
class Splits:
    """What `load` returns. `train, valid = load(...)` works too.

    Attributes:
        train: `grain.MapDataset` of one epoch of batches, `len(train)` of them.
        valid: `grain.MapDataset` of the held-out batches.
        facts: a dict that JSON can hold: `source`, `sha256` of the data, `row_length` in
            tokens, `train_rows` and `valid_rows`, the numbers of examples, `train_bytes` and
            `valid_bytes` (of pairs: of their targets), `cut_rows`, how many examples were longer
            than a sequence and are cut, `unigram_entropy` and `bigram_entropy` of the held-out
            bytes, in bits per byte, and `split`, what the two parts have in common: of examples,
            the counts of `kzoo.data.splits.hold_out`; of running text, `repeated_bytes`, cut out
            of the training part; of texts, `shared_bytes`, those held out that stand in training
            too, in runs of 32 or more. A file's tokenizer has `tokenizer_sha256`, of its
            content, and `tokenizer_size`, its number of ids.
    """

    train: grain.MapDataset
    valid: grain.MapDataset
    facts: dict

    def __iter__(self):
        return iter((self.train, self.valid))


def load(
    source: Any,
    model_or_config: Any,
    *,
    batch_size: int,
    objective: ObjectiveSpec | None = None,
    valid: float = 0.1,
    seed: int = 0,
    tokenizer: Any = None,
) -> Splits:
    """Data for a model: batches to train on and held-out batches, which never overlap.

    Args:
        source: the name of a source (`kzoo.data.sources`): `"pydoc"` (Python's own
            documentation, about 2 MB, no network), `"tfds:NAME"` (the text of a TFDS data set),
            `"synthetic:NAME"` (of `kzoo.data.tasks`); its JSON, with further fields,
            `{"synthetic": {"task": {"copy": {"length": 8}}}}`; the path of a text file or of a
            folder of them, or of a table (`kzoo.data.sources.Table`), `"table:FILE:SOURCE:TARGET"`
            where its columns are to be said; a list of strings, a list of
            `(prompt, response)` pairs, or `{"prompts": [...], "responses": [...]}`; NumPy
            arrays and columns of a pandas table are as good as lists. A text is UTF-8.
        model_or_config: a model, or a mapping with its fields `max_sequence_length`,
            `mask`, `stack`, `objective` and `tokenizer`; a model if it has segment embeddings, or
            if its tokenizer is a file's and not given.
        batch_size: examples of a batch.
        objective: what is predicted, instead of the config's.
        valid: the part that is held out, between 0 and 1. Which part depends on nothing
            else. Examples are held out in groups that share a source, or a target of free text
            (`kzoo.data.splits.hold_out`), running text in blocks (`kzoo.data.text.split`).
        seed: of the order and of the random choices (boundaries, masks) in training.
        tokenizer: of a config whose tokenizer is a file's, such as that of
            `kzoo.models.tokenizer_file.read_file`; a model has its own.

    Returns:
        `Splits(train, valid)`, whose elements are `(x, y, sample_weight)` as
        `kzoo.encoder.Encoder.batch` makes them, `[batch_size, row_length]` each;
        `x` has `"source_mask"` where the model's mask contains a prefix, and `"segment_ids"`
        where it has segment embeddings. Sequences of running text have `max_sequence_length`
        tokens; of strings and pairs, as many as the longest needs, and at most that.

        `train` is one epoch, in random order. `train.repeat()` goes on with a new order and
        new random choices in each epoch, and `train.repeat()[k:]` goes on at batch k. A slice
        of `train` keeps its examples: `train[:3].repeat()` draws from no others.
        `valid` is the same for every seed; its last batch is filled with padding of
        zero weight.

    Raises:
        InputError: an unknown source or objective; a file that is missing, empty, a table,
            binary or in another encoding; too little text for a sequence, or too few
            examples for a batch; `valid` outside 0 to 1.

    Example:
        >>> config = {"max_sequence_length": 64, "mask": "causal", "objective": "causal_lm"}
        >>> train, valid = load("synthetic:copy", config, batch_size=32)
        >>> x, y, sample_weight = train[0]
        >>> x["token_ids"].shape
        (32, 34)
    """
    config = _config(model_or_config, objective)
    _check(config, batch_size, valid, seed)
    encoder = encoder_of(model_or_config, config, tokenizer)
    corpus = sources.read(source)
    split = _split_text if corpus.examples is None else _split_examples
    longest = config["max_sequence_length"]
    train, held_out, length, cut, apart = split(corpus, longest, valid, encoder)
    _check_enough(train, batch_size)

    def encode(part, indices, rng, **kwargs):
        sources = part.sources and [part.sources[i] for i in indices]
        targets = [part.targets[i] for i in indices]
        return encoder.batch(sources, targets, length, rng, complete=part.complete, **kwargs)

    # What the shortest example is too short for is refused here, not in mid-training.
    rng = np.random.default_rng(_HELD_OUT_SEED)
    encode(train, [min(range(len(train.targets)), key=lambda i: len(train.targets[i]))], rng)
    every = range(len(train.targets))
    # No `functools.partial`: Grain names what it calls by its repr, here that of every example.
    batches = Batches(every, batch_size, seed, lambda *drawn: encode(train, *drawn))

    # All at once, so that the choices do not depend on the batch size either.
    rng = np.random.default_rng(_HELD_OUT_SEED)
    count = len(held_out.targets)
    encoded = encode(held_out, range(count), rng, held_out=True)
    facts = {
        "source": corpus.name,
        "sha256": corpus.sha256,
        "row_length": length,
        **_counts(train, held_out),
        "cut_rows": cut,
        "split": apart,
        "unigram_entropy": text.unigram_entropy(held_out.text),
        "bigram_entropy": text.bigram_entropy(held_out.text),
        **_of_tokenizer(encoder.tokenizer),
    }
    pad = encoder.vocabulary.pad
    return Splits(batches, _batches(encoded, count, batch_size, pad), facts)


def _of_tokenizer(tokenizer):
    """What facts say of a file's tokenizer; those of bytes say nothing."""
    if tokenizer is Bytes:
        return {}
    digest = hashlib.sha256(tokenizer.content.encode()).hexdigest()
    return {"tokenizer_sha256": digest, "tokenizer_size": tokenizer.vocabulary.size}


def _counts(train, held_out):
    """How many examples, and bytes of their targets, the two parts have."""
    return {
        "train_rows": len(train.targets),
        "valid_rows": len(held_out.targets),
        "train_bytes": len(train.text),
        "valid_bytes": len(held_out.text),
    }


def _config(model_or_config, objective):
    """The fields of a model, with its objective replaced if there is another."""
    config = getattr(model_or_config, "config", model_or_config)
    needed = ["max_sequence_length", "mask", "objective"]
    if isinstance(config, Mapping):
        config = dict(config) if objective is None else {**config, "objective": objective}
    if not isinstance(config, Mapping) or not set(needed) <= set(config):
        received = sorted(config) if isinstance(config, Mapping) else config
        raise InputError(
            f"data is made for a model, or a mapping with {', '.join(needed)}, such as "
            f"kzoo.presets.config(name). Received: {received!r:.120}"
        )
    return config


def _check(config, batch_size, valid, seed):
    if config.get("tokenizer", "bytes") not in ("bytes", "file"):
        raise unknown("tokenizer", config["tokenizer"], ["bytes", "file"])
    if config["max_sequence_length"] < 4:
        raise InputError(
            "a sequence has at least 4 tokens. "
            f"Received: max_sequence_length={config['max_sequence_length']!r}"
        )
    check_batch_size(batch_size)
    if not is_count(seed, least=0):
        raise InputError(f"seed is an integer in [0, 2^31). Received: {seed!r:.60}")
    if not is_number(valid) or not 0 < valid < 1:
        raise InputError(
            f"valid is the part held out, between 0 and 1; usual is 0.1. Received: {valid!r}"
        )


def _check_enough(train, batch_size):
    if len(train.targets) < batch_size:
        raise InputError(
            "too little data for a batch: use more data, shorter texts, or a batch_size of at most "
            f"{len(train.targets)}. Received: {len(train.targets)} examples and "
            f"batch_size={batch_size}"
        )


def encoder_of(model_or_config, config, tokenizer=None):
    """How a model reads text: an `Encoder`; the arguments are those of `load`."""
    preprocessor = getattr(model_or_config, "preprocessor", None)
    from_file = config.get("tokenizer", "bytes") == "file"
    tokenizer = preprocessor.tokenizer if preprocessor is not None else tokenizer
    if from_file and tokenizer is None or config.get("num_segments") and preprocessor is None:
        raise InputError(
            "data for a model with a file's tokenizer, or with segments, is made for the model "
            f"itself, loaded with its tokenizer. Received: {model_or_config!r:.80}"
        )
    source_mask = masks.get(config["mask"]).needs_source
    return Encoder(
        objectives.get(config["objective"]),
        layout(config.get("stack", "single"), source_mask, preprocessor and preprocessor.segments),
        tokenizer if from_file else Bytes,
    )


def _batches(encoded, count, batch_size, pad):
    """Encoded examples in their order, the last batch filled with padding of zero weight."""
    fill = (0, -count % batch_size), (0, 0)
    x, y, sample_weight = encoded
    padding = {name: pad if name.endswith("token_ids") else 0 for name in x}
    x = {name: np.pad(a, fill, constant_values=padding[name]) for name, a in x.items()}
    y, sample_weight = np.pad(y, fill, constant_values=pad), np.pad(sample_weight, fill)

    def batch(start):
        at = slice(start, start + batch_size)
        return {name: a[at] for name, a in x.items()}, y[at], sample_weight[at]

    return grain.MapDataset.range(0, count, batch_size).map(batch)


class _Part(NamedTuple):
    """The tokens of one part of the data."""

    sources: list | None  # of token arrays
    targets: list | np.ndarray
    complete: bool  # whether EOS follows
    text: np.ndarray  # the bytes of the targets


def _split_text(corpus, length, valid, encoder):
    """Windows of a text's two parts; their length; that none is cut; facts of the split."""
    size = encoder.window(length)
    in_bytes = encoder.tokenizer is Bytes

    def tokens_of(part):
        tokens = part if in_bytes else np.concatenate(encoder.tokens(text.pieces(part)))
        windows = text.windows(tokens, size)
        read = windows.reshape(-1) if in_bytes else part
        return _Part(None, windows, complete=False, text=read)

    parts = text.split(corpus.text, valid)
    train, held_out = map(tokens_of, parts)
    if not len(train.targets) or not len(held_out.targets):
        unit = "bytes" if in_bytes else "tokens"
        raise InputError(
            f"the text is too short: its {valid:.0%} to hold out and the rest need {size} {unit} "
            f"or more each, for {length} tokens at once. Received: {len(corpus.text)} bytes"
        )
    repeated = len(corpus.text) - sum(map(len, parts))
    apart = {"repeated_bytes": repeated} | splits.overlap(*([part] for part in parts))
    return train, held_out, length, 0, apart


def _split_examples(corpus, length, valid, encoder):
    """Examples, whole groups held out; the length that they need; how many it cuts; facts of the
    split."""
    texts = [utf8(target) for _, target in corpus.examples]
    targets = encoder.tokens(target for _, target in corpus.examples)
    paired = corpus.examples[0][0] is not None
    sources = [None] * len(targets)
    if paired:
        sources = encoder.tokens(source for source, _ in corpus.examples)

    needed = np.array(
        [encoder.example_length(*pair) for pair in zip(sources, targets, strict=True)]
    )
    cut = int((needed > length).sum())
    if cut:
        log.warning(
            "%d of %d examples are longer than %d tokens and are cut", cut, len(needed), length
        )

    held_out, apart = splits.hold_out(corpus.examples, valid)

    def part(indices):
        return _Part(
            [sources[i] for i in indices] if paired else None,
            [targets[i] for i in indices],
            complete=True,
            text=np.concatenate([texts[i] for i in indices]),
        )

    train, valid = part(np.flatnonzero(~held_out)), part(np.flatnonzero(held_out))
    if not paired:
        apart |= splits.overlap(
            *([texts[i] for i in np.flatnonzero(held_out == side)] for side in (False, True))
        )
    return train, valid, int(min(length, needed.max())), cut, apart
