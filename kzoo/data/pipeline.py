"""From a source to two Grain datasets of batches: one to train on, one held out."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from kzoo import masks, objectives
from kzoo.data import fitting, sources, splits, text
from kzoo.data import packing as packings
from kzoo.data.batches import Batches, Mixed
from kzoo.encoder import Bytes, Encoder, utf8
from kzoo.errors import InputError, unknown
from kzoo.objectives.layouts import layout
from kzoo.objectives.rows import Lengths, packed, trimmed
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
            than a sequence and are cut, of strings and pairs also `cut_tokens`,
            `cut_to_one_token` and `split_rows` (`kzoo.data.fitting.Fitted`), `packing`, the rows
            of `train` and how full they are (`kzoo.data.packing.facts`), `unigram_entropy` and
            `bigram_entropy` of the held-out bytes, in bits per byte, and `split`, what the two
            parts have in common: of examples, the counts of `kzoo.data.splits.hold_out`; of
            running text, `repeated_bytes`, cut out of the training part; of texts, `shared_bytes`,
            those held out that stand in training too, in runs of 32 or more. A file's tokenizer
            has `tokenizer_sha256`, of its content, and `tokenizer_size`, its number of ids.
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
    packing: Any = "padded",
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
        packing: how examples stand in the rows of a batch, and what becomes of those that are
            longer, by name or JSON (`kzoo.data.packing`): `"padded"`, each in a row of its own;
            `"buckets"`, those of like length in a batch; `"first_fit"`, several in a row, of which
            a batch has `batch_size`. Held-out examples stand each in a row of its own.
        tokenizer: of a config whose tokenizer is a file's, such as that of
            `kzoo.models.tokenizer_file.read_file`; a model has its own.

    Returns:
        `Splits(train, valid)`, whose elements are `(x, y, sample_weight)` as
        `kzoo.encoder.Encoder.batch` makes them, `[batch_size, row_length]` each;
        `x` has `"source_mask"` where the model's mask contains a prefix, and `"segment_ids"`
        where it has segment embeddings. Sequences of running text have `max_sequence_length`
        tokens; of strings and pairs, as many as the longest needs, and at most that. An encoder's
        and a decoder's have lengths of their own.

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
    packing = packings.get(packing)
    encoder = encoder_of(model_or_config, config, tokenizer)
    corpus = sources.read(source)
    split = _split_text if corpus.examples is None else _split_examples
    longest = config["max_sequence_length"]
    train, held_out, of_split = split(corpus, longest, valid, encoder, packing.long)
    widest = Lengths(*np.maximum(train.sizes.max(0), held_out.sizes.max(0)).tolist())
    plan = packing.plan(train.sizes, widest, longest, batch_size, seed)
    _check_enough(plan, batch_size)

    # What the shortest example is too short for is refused here, not in mid-training.
    read = _Reader(encoder, widest.row)
    rng = np.random.default_rng(_HELD_OUT_SEED)
    read.encode(train, [min(range(len(train.targets)), key=lambda i: len(train.targets[i]))], rng)
    batches = _train_batches(read, train, plan, batch_size, seed)

    # All at once, so that the choices do not depend on the batch size either.
    rng = np.random.default_rng(_HELD_OUT_SEED)
    count = len(held_out.targets)
    single = packing if isinstance(packing, packings.Padded) else packings.Padded()
    (alone,) = single.plan(held_out.sizes, widest, longest, batch_size, seed)
    encoded = trimmed(read.encode(held_out, range(count), rng, held_out=True), alone.lengths)
    paired = train.sources is not None or encoder.objective.has_source
    of_rows = packings.facts(packing, plan, train.sizes, paired)
    facts = {
        "source": corpus.name,
        "sha256": corpus.sha256,
        "row_length": of_rows["row_length"],
        **_counts(train, held_out),
        **of_split,
        "packing": of_rows,
        "unigram_entropy": text.unigram_entropy(held_out.text),
        "bigram_entropy": text.bigram_entropy(held_out.text),
        **_of_tokenizer(encoder.tokenizer),
    }
    pad = encoder.vocabulary.pad
    return Splits(batches, _batches(encoded, count, batch_size, pad), facts)


class _Reader(NamedTuple):
    """Makes batches of `length` tokens of some examples of a part."""

    encoder: Encoder
    length: int

    def encode(self, part, indices, rng, **kwargs):
        """The examples, one in a row: `(x, y, sample_weight)`."""
        sources = part.sources and [part.sources[i] for i in indices]
        targets = [part.targets[i] for i in indices]
        complete = np.broadcast_to(part.complete, len(part.targets))[list(indices)]
        return self.encoder.batch(sources, targets, self.length, rng, complete=complete, **kwargs)

    def rows(self, part, rows, indices, rng):
        """Some `Rows` of examples."""
        examples, row = rows.members(indices)
        batch = self.encode(part, examples, rng)
        if not rows.packed:
            return trimmed(batch, rows.lengths)
        next_token = self.encoder.objective.next_token
        return packed(batch, row, len(indices), rows.lengths, next_token, self.encoder.vocabulary)


def _train_batches(read, part, plan, batch_size, seed):
    def of(rows):
        # No `functools.partial`: Grain names what it calls by its repr, here that of every example.
        return Batches(
            range(len(rows)), batch_size, seed, lambda *drawn: read.rows(part, rows, *drawn)
        )

    parts = [of(rows) for rows in plan]
    return parts[0] if len(parts) == 1 else Mixed(parts, seed)


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


def _check_enough(plan, batch_size):
    most = max(map(len, plan))
    if most < batch_size:
        raise InputError(
            "too little data for a batch: use more data, shorter texts, or a batch_size of at most "
            f"{most}. Received: {most} {'rows' if plan[0].packed else 'examples'} and "
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
    complete: bool | np.ndarray  # whether EOS follows, all of them or each
    text: np.ndarray  # the bytes of the targets
    sizes: np.ndarray  # integers [examples, 3]: see `kzoo.data.fitting.Fitted`


def _split_text(corpus, longest, valid, encoder, long):
    """Windows of a text's two parts, and facts of the split: nothing is cut."""
    size = encoder.window(longest)
    in_bytes = encoder.tokenizer is Bytes

    def tokens_of(part):
        tokens = part if in_bytes else np.concatenate(encoder.tokens(text.pieces(part)))
        windows = text.windows(tokens, size)
        read = windows.reshape(-1) if in_bytes else part
        parts = encoder.part_lengths(None, tokens[:size], longest, complete=False)
        sizes = np.broadcast_to([longest, *parts], (len(windows), 3))
        return _Part(None, windows, complete=False, text=read, sizes=sizes)

    parts = text.split(corpus.text, valid)
    train, held_out = map(tokens_of, parts)
    if not len(train.targets) or not len(held_out.targets):
        unit = "bytes" if in_bytes else "tokens"
        raise InputError(
            f"the text is too short: its {valid:.0%} to hold out and the rest need {size} {unit} "
            f"or more each, for {longest} tokens at once. Received: {len(corpus.text)} bytes"
        )
    repeated = len(corpus.text) - sum(map(len, parts))
    apart = {"repeated_bytes": repeated} | splits.overlap(*([part] for part in parts))
    return train, held_out, {"cut_rows": 0, "split": apart}


def _split_examples(corpus, longest, valid, encoder, long):
    """Examples, whole groups held out, and facts: what was cut, and of the split."""
    texts = [utf8(target) for _, target in corpus.examples]
    targets = encoder.tokens(target for _, target in corpus.examples)
    paired = corpus.examples[0][0] is not None
    sources = encoder.tokens(source for source, _ in corpus.examples) if paired else None
    fitted = fitting.fit(encoder, sources, targets, longest, long)
    held_out, apart = splits.hold_out(corpus.examples, valid)

    def part(side):
        indices = np.flatnonzero(held_out[fitted.document] == side)
        return _Part(
            [fitted.sources[i] for i in indices] if paired else None,
            [fitted.targets[i] for i in indices],
            complete=fitted.complete[indices],
            text=np.concatenate([texts[i] for i in np.flatnonzero(held_out == side)]),
            sizes=fitted.sizes[indices],
        )

    if not paired:
        apart |= splits.overlap(
            *([texts[i] for i in np.flatnonzero(held_out == side)] for side in (False, True))
        )
    return part(False), part(True), {**fitted.facts, "split": apart}
