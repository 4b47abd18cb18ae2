"""From a source to two Grain datasets of batches: one to train on, one held out."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import numpy as np

from kzoo import masks, objectives
from kzoo.data import fitting, round_trip, sources, splits, text
from kzoo.data import packing as packings
from kzoo.data.batches import Batches, Mixed
from kzoo.data.classes import check_labelled, label_entropy
from kzoo.data.parts import Drawn, Part, held_out
from kzoo.data.sources.index import Indexed
from kzoo.data.sources.records import take
from kzoo.data.sources.stored import Stored, Windows
from kzoo.data.sources.token_file import token_windows
from kzoo.encoder import Bytes, Encoder, utf8
from kzoo.errors import InputError, unknown
from kzoo.objectives.layouts import layout
from kzoo.objectives.rows import Lengths, packed, trimmed
from kzoo.typing import ObjectiveSpec
from kzoo.values import check_batch_size, is_count, is_number

log = logging.getLogger("kzoo")


@dataclasses.dataclass(frozen=True)
class Splits:
    """What `load` returns. `train, valid = load(...)` works too.

    Attributes:
        train: `grain.MapDataset` of one epoch of batches, `len(train)` of them.
        valid: `grain.MapDataset` of the held-out batches.
        test: the same of the source's official test split, or None: it has none.
        facts: a dict that JSON can hold: `source`, `sha256` of the data, `row_length` in
            tokens, `repeated`, how many documents or examples repeat others and are left out
            before anything is split (of each official split: `repeated_by_split`), `train_rows`
            and `valid_rows`, the numbers of examples, `train_bytes` and `valid_bytes` (of pairs:
            of their targets), `cut_rows`, how many examples were longer than a sequence and are
            cut, of strings and pairs also `cut_tokens`,
            `cut_to_one_token` and `split_rows` (`kzoo.data.fitting.fit`), `packing`, the rows of
            `train` and how full they are (`kzoo.data.packing.facts`), `unigram_entropy` and
            `bigram_entropy` of the held-out bytes, in bits per byte, and `split`, what the two
            parts have in common: of examples, the counts of `kzoo.data.splits.hold_out`; of
            running text, `repeated_bytes`, cut out of the training part; of texts, `shared_bytes`,
            those held out that stand in training too, in runs of 32 or more. Of official splits
            nothing is moved or cut, and only what repeats itself within one is left out:
            `official` is true, and what they have in common is counted.
            Where that is done in a sample, `sampled_bytes` or `sampled_rows`, of training and
            held-out text: how large it is.
            Where there is a test split, `test_rows`, `test_bytes`, and `test_split`, what it has
            in common with training. A file's tokenizer has `tokenizer_sha256`, of its content, and
            `tokenizer_size`, its number of ids, and `tokenizer_loss`, which texts of a sample it
            does not give back as they were (`kzoo.data.round_trip.facts`). A classifier's examples
            have `label_entropy`, that of the held-out labels in bits.
    """

    train: grain.MapDataset
    valid: grain.MapDataset
    facts: dict
    test: grain.MapDataset | None = None

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
    near_duplicates: int = 0,
) -> Splits:
    """Data for a model: batches to train on and held-out batches, which never overlap.

    Args:
        source: the name of a source (`kzoo.data.sources`): `"pydoc"` (the documentation of
            Python 3.11.7, 2 MB that travel with kzoo), `"tfds:NAME"` (a TFDS data set),
            `"synthetic:NAME"` (of `kzoo.data.tasks`); its JSON, with further fields,
            `{"synthetic": {"task": {"copy": {"length": 8}}}}`; the path of a text file or of a
            folder of them, or of a table (`kzoo.data.sources.Table`), `"table:FILE:SOURCE:TARGET"`
            where its columns are to be said; a list of strings, a list of
            `(prompt, response)` pairs, or `{"prompts": [...], "responses": [...]}`; NumPy
            arrays and columns of a pandas table are as good as lists; a `Dataset` or
            `DatasetDict` of Hugging Face `datasets`. A text is UTF-8.
        model_or_config: a model, or a mapping with its fields `max_sequence_length`,
            `mask`, `stack`, `objective` and `tokenizer`; a model if it has segment embeddings, or
            if its tokenizer is a file's and not given.
        batch_size: examples of a batch.
        objective: what is predicted, instead of the config's.
        valid: the part that is held out, between 0 and 1, unless the source has an official
            validation split, which is held out then. Which part depends on nothing else. Examples
            are held out in groups that share a source, or a target of free text
            (`kzoo.data.splits.hold_out`), running text in blocks (`kzoo.data.text.split`).
        seed: of the order and of the random choices (boundaries, masks) in training.
        packing: how examples stand in the rows of a batch, and what becomes of those that are
            longer, by name or JSON (`kzoo.data.packing`): `"padded"`, each in a row of its own;
            `"buckets"`, those of like length in a batch; `"first_fit"`, several in a row, of which
            a batch has `batch_size`. Held-out examples, and the windows of running text, stand
            each in a row of its own.
        near_duplicates: how many texts of each part are compared, to count in
            `facts["near_duplicates"]` the held-out ones that are nearly those of training
            (`kzoo.data.near_duplicates`; needs `pip install datasketch`). 0 counts none.
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
    encoder = encoder_of(model_or_config, config, tokenizer)
    packing = packings.get(packing)
    if encoder.objective.labels is not None and isinstance(packing, packings.FirstFit):
        raise InputError(
            "a classifier has one label for each row, so its examples are not packed; use 'padded' "
            f"or 'buckets'. Received: {packing.get_config()!r}"
        )
    corpus = sources.read(source)
    if encoder.objective.labels is not None:
        check_labelled(corpus.examples)
    split = _split_text if corpus.examples is None else _split_examples
    longest = config["max_sequence_length"]
    parts, of_parts = split(corpus, longest, valid, encoder, packing)
    widest = Lengths(*np.max([part.sizes.max(0) for part in parts.values()], axis=0).tolist())
    counts = {f"{name}_rows": len(part) for name, part in parts.items()}
    counts |= {f"{name}_bytes": len(part.text) for name, part in parts.items()}
    train = parts.pop("train")
    alone = packing if isinstance(packing, packings.Padded) else packings.Padded()
    plan = (alone if corpus.examples is None else packing).plan(
        train.sizes, widest, longest, batch_size, seed
    )
    _check_enough(plan, batch_size)

    # What the shortest example is too short for is refused here, not in mid-training.
    read = _Reader(encoder, widest.row, alone.lengths(widest))
    read.encode(train, [train.shortest], np.random.default_rng(0))
    paired = encoder.objective.has_source or bool(widest.encoder)
    taken = train.sizes if train.sampled is None else train.sampled
    of_rows = packings.facts(packing, plan, taken, paired)
    facts = {
        "source": corpus.name,
        "sha256": corpus.sha256,
        **_repeated(corpus),
        "row_length": of_rows["row_length"],
        **counts,
        **of_parts,
        "packing": of_rows,
        **_near(corpus, valid, near_duplicates),
        "unigram_entropy": text.unigram_entropy(parts["valid"].text),
        "bigram_entropy": text.bigram_entropy(parts["valid"].text),
        **_of_encoder(encoder, corpus, parts["valid"]),
    }
    pad = encoder.vocabulary.pad
    kept = {name: held_out(read.alone, part, batch_size, pad) for name, part in parts.items()}
    return Splits(read.batches(train, plan, batch_size, seed), facts=facts, **kept)


class _Reader(NamedTuple):
    """Makes batches of the examples of parts."""

    encoder: Encoder
    length: int  # tokens that hold any example in one sequence
    lengths: Lengths  # of a row that holds one example

    def encode(self, part, indices, rng, **kwargs):
        """Some examples, one in a row: `(x, y, sample_weight)`."""
        sources, targets = part.take(indices)
        kwargs["complete"] = part.ends(indices)
        return self.encoder.batch(sources, targets, self.length, rng, **kwargs)

    def alone(self, part, indices, rng, **kwargs):
        """The same, with no column that no example of the data needs."""
        return trimmed(self.encode(part, indices, rng, **kwargs), self.lengths)

    def rows(self, part, rows, numbers, rng):
        """Some `Rows` of examples."""
        examples, row = rows.members(numbers)
        batch = self.encode(part, examples, rng)
        if not rows.packed:
            return trimmed(batch, rows.lengths)
        next_token = self.encoder.objective.next_token
        return packed(batch, row, len(numbers), rows.lengths, next_token, self.encoder.vocabulary)

    def batches(self, part, plan, batch_size, seed):
        """The data set of a plan, a list of `Rows`."""

        def of(rows):
            # No `functools.partial`: Grain names what it calls by its repr, here all examples.
            def read(numbers, rng):
                return self.rows(part, rows, numbers, rng)

            return Batches(range(len(rows)), batch_size, seed, read)

        found = [of(rows) for rows in plan]
        return found[0] if len(found) == 1 else Mixed(found, seed)


def _repeated(corpus):
    """How many documents or examples were left out since they repeat others."""
    by_split = {"train": corpus.repeated}
    by_split |= {part: other.repeated for part, other in corpus.official.items()}
    facts = {"repeated": sum(by_split.values())}
    return facts | ({"repeated_by_split": by_split} if corpus.official else {})


def _near(corpus, valid, count):
    """The facts of near duplicates, if they are asked for."""
    if not count:
        return {}
    from kzoo.data.near_duplicates import in_corpus

    return {"near_duplicates": in_corpus(corpus, valid, count)}


def _of_encoder(encoder, corpus, valid):
    """The facts of the tokenizer and of a classifier's held-out labels."""
    found = _of_tokenizer(encoder.tokenizer)
    if encoder.objective.labels is None:
        return found | round_trip.facts(encoder.tokenizer, corpus)
    return found | {"label_entropy": label_entropy(valid)}


def _of_tokenizer(tokenizer):
    """What facts say of a file's tokenizer; those of bytes say nothing."""
    if tokenizer is Bytes:
        return {}
    return {"tokenizer_sha256": _digest(tokenizer), "tokenizer_size": tokenizer.vocabulary.size}


def _digest(tokenizer):
    return hashlib.sha256(tokenizer.content.encode()).hexdigest()


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


def _split_text(corpus, longest, valid, encoder, packing):
    """Windows of a text's parts, by name, and facts: that none is cut, and of the split."""
    size = encoder.window(longest)
    in_bytes = encoder.tokenizer is Bytes
    window = [longest, *encoder.part_lengths(None, size, longest, complete=False)]

    def tokens_of(name, part):
        if in_bytes and isinstance(part, Stored):
            part = part.part([0], [len(part) // size * size])
            windows, read = Windows(part, size), part
        elif isinstance(part, Stored):
            windows, read = _stored_windows(corpus, name, part, size, valid, encoder), part
        else:
            tokens = part if in_bytes else np.concatenate(encoder.tokens(text.pieces(part)))
            windows = text.windows(tokens, size)
            read = windows.reshape(-1) if in_bytes else part
        sizes = np.broadcast_to(window, (len(windows), 3))
        return Part(None, windows, complete=False, text=read, sizes=sizes)

    texts, facts = splits.texts(corpus, valid)
    parts = {name: tokens_of(name, part) for name, part in texts.items()}
    if not all(map(len, parts.values())):
        unit = "bytes" if in_bytes else "tokens"
        raise InputError(
            f"the text is too short: its {valid:.0%} to hold out and the rest need {size} {unit} "
            f"or more each, for {longest} tokens at once. Received: {len(corpus.text)} bytes"
        )
    return parts, {"cut_rows": 0, **facts}


def _stored_windows(corpus, name, part, size, valid, encoder):
    """The windows of the subwords of a part of a text that is not held in memory."""
    held_out_here = None if "valid" in corpus.official else valid
    sha256 = corpus.official.get(name, corpus).sha256
    identity = [sha256, name, held_out_here, _digest(encoder.tokenizer)]

    def strings():
        return text.pieces(part)

    return token_windows(strings, encoder.tokens, size, identity, corpus.name)


def _split_examples(corpus, longest, valid, encoder, packing):
    """Examples by part, whole groups held out, and facts: what is cut, and of the split."""
    chosen, facts = splits.examples(corpus, valid)
    large = any(isinstance(examples, Indexed) for examples in chosen.values())
    if large and isinstance(packing, packings.Padded) and packing.long == "truncate":
        parts, of_cut = _unplanned(chosen, longest, encoder)
    else:
        parts, of_cut = _planned(chosen, longest, encoder, packing.long)
    return parts, {**of_cut, **facts}


def _planned(chosen, longest, encoder, long):
    """The parts of examples whose tokens are counted, and facts of what is cut."""
    held = {
        name: _tokens(examples, encoder)
        for name, examples in chosen.items()
        if not isinstance(examples, Indexed)
    }
    lengths = {
        name: _counts(*held[name]) if name in held else _counts_of(examples, encoder)
        for name, examples in chosen.items()
    }
    fitted, facts = fitting.fit(encoder, lengths, longest, long)
    parts = {}
    for name, of in fitted.items():
        if name not in held:
            parts[name] = Drawn(chosen[name], encoder, of.sizes, of)
            continue
        sources, targets = (tokens and take(tokens, of.example) for tokens in held[name])
        read = np.concatenate([utf8(target) for _, target in chosen[name]])
        cut = of.cut(range(len(of.example)), sources, targets)
        parts[name] = Part(*cut, of.complete, text=read, sizes=of.sizes)
    return parts, facts


def _tokens(examples, encoder):
    """The sources, or None, and the targets of examples: two lists of token arrays."""
    sources = None
    if examples[0][0] is not None:
        sources = encoder.tokens(source for source, _ in examples)
    return sources, encoder.targets(target for _, target in examples)


def _counts(sources, targets):
    """How many tokens there are in each source, or None, and in each target: two arrays."""
    counts = [tokens and np.array([len(one) for one in tokens]) for tokens in (sources, targets)]
    return tuple(counts)


def _counts_of(examples, encoder):
    """The same of examples that are not held in memory."""
    if encoder.tokenizer is Bytes:
        sources, targets = examples.sizes.T
    else:
        of = encoder.tokenizer
        sources, targets = examples.token_counts(of.encode, _digest(of)).T
    if encoder.objective.labels is not None:
        targets = np.ones_like(targets)
    return sources if examples.paired else None, targets


def _unplanned(chosen, longest, encoder):
    """The parts of examples in rows of which each holds any, and facts of what is cut in a
    sample."""
    parts, needed = {}, []
    for name, examples in chosen.items():
        large = isinstance(examples, Indexed)
        some = splits.sample(examples, splits.SAMPLED) if large else examples
        tokens = _tokens(some, encoder)
        sizes = np.broadcast_to([longest] * 3, (len(examples), 3))
        of_part = fitting.needed(encoder, *_counts(*tokens))
        sampled = fitting.sizes(encoder, *_counts(*tokens), of_part, longest)
        if large:
            parts[name] = Drawn(examples, encoder, sizes, sampled=sampled)
        else:
            read = np.concatenate([utf8(target) for _, target in examples])
            parts[name] = Part(*tokens, complete=True, text=read, sizes=sizes, sampled=sampled)
        needed += of_part.tolist()
    cut = sum(one > longest for one in needed)
    if cut:
        log.warning(
            "%d of %d examples of a sample are longer than %d tokens and are cut",
            *(cut, len(needed), longest),
        )
    counted = sum(map(len, parts.values())) > len(needed)
    return parts, {"cut_rows": cut} | ({"cut_rows_among": len(needed)} if counted else {})
