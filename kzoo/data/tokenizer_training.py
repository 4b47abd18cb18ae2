"""Tokenizers of one's own, trained on the training part of a source by the library `tokenizers`."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kzoo import tokenizer_json
from kzoo.compilation_cache import folder
from kzoo.data import sources, splits, text
from kzoo.errors import InputError, unknown
from kzoo.files import whole_folder
from kzoo.tokenizer_json import FILE
from kzoo.values import is_count, is_number
from kzoo.vocabulary import NUM_BYTES, NUM_SENTINELS

log = logging.getLogger("kzoo")

CONFIG = "tokenizer_config.json"
ROLES = {
    "pad_token": "[PAD]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MODES = ("[R]", "[S]", "[X]")
SPECIAL = (*ROLES.values(), *MODES, *(f"<extra_id_{k}>" for k in range(NUM_SENTINELS)))
LEAST = NUM_BYTES + len(SPECIAL)
_RULE = 2  # of what is trained; another one trains anew


def train_tokenizer(
    source: Any,
    *,
    kind: str = "bpe",
    size: int = 4096,
    valid: float = 0.1,
    directory: str | Path | None = None,
) -> Path:
    """A tokenizer of subwords, trained on what `load(source, ..., valid=valid)` trains on.

    Its pieces are made of bytes, so that every text is read and comes back exactly as it was
    written. The special tokens of all objectives have ids of their own: padding, BOS, EOS,
    SEP, MASK, UL2's three mode tokens and 100 sentinels. The same source, kind, size and part give
    the same file, which is trained once.

    Args:
        source: as in `load`.
        kind: `"bpe"` (Sennrich et al. 2016, arXiv:1508.07909, on bytes) or `"unigram"` (Kudo 2018,
            arXiv:1804.10959, on bytes).
        size: number of ids, special ones among them; at least 364. A text that is too short for so
            many gives fewer, and the log says how many.
        valid: the part that is held out, as in `load`; nothing is learned from it.
        directory: where the tokenizer is written; by default a folder of the user's cache.

    Returns:
        The path of the `tokenizer.json`, for `kzoo.presets.load(name, tokenizer=path)`.

    Raises:
        InputError: for an unknown kind, a size that is too small, or a source that `load` refuses.

    Example:
        >>> path = train_tokenizer("pydoc", size=1024)
        >>> model = kzoo.presets.load("gpt_nano", tokenizer=path)
        >>> model.config["vocabulary_size"]
        1024
    """
    check(kind, size)
    if not is_number(valid) or not 0 < valid < 1:
        raise InputError(
            f"valid is the part held out, between 0 and 1; usual is 0.1. Received: {valid!r}"
        )
    corpus = sources.read(source)
    facts = {"sha256": corpus.sha256, "kind": kind, "size": int(size), "valid": float(valid)}
    facts |= {"rule": _RULE, "tokenizers": _version()}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    base = folder("tokenizers").parent if directory is None else Path(directory).expanduser()
    made = base / f"{kind}-{size}-{name}" if directory is None else base
    if _facts(made) != facts:
        _write(made, TRAINERS[kind](_texts(corpus, valid), int(size)), facts)
    found = tokenizer_json.size(made / FILE)
    if found < size:
        log.warning("%s: the text gives %d ids of the %d asked for", corpus.name, found, size)
    return made / FILE


def check(kind, size):
    """`InputError` unless there is such a kind of tokenizer, and it can have so many ids."""
    if not isinstance(kind, str) or kind not in TRAINERS:
        raise unknown("kind of tokenizer", kind, TRAINERS)
    if not is_count(size, least=LEAST):
        raise InputError(
            f"the size of a tokenizer is an integer, {LEAST} ids or more: {NUM_BYTES} bytes and "
            f"{len(SPECIAL)} special tokens. Received: size={size!r:.60}"
        )


def _version():
    import tokenizers

    return tokenizers.__version__


def _texts(corpus, valid):
    """The strings of the part that is trained on: a list."""
    if corpus.examples is None:
        return text.pieces(splits.texts(corpus, valid)[0]["train"])
    pairs = splits.examples(corpus, valid)[0]["train"]
    return [one for pair in pairs for one in pair if one]


def _facts(made):
    """What the tokenizer of a folder was made from; None where there is none."""
    try:
        found = json.loads((made / CONFIG).read_text("utf-8"))["kzoo"]
        content = (made / FILE).read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = found.pop("content", None) == hashlib.sha256(content).hexdigest()
    return found if same else None


def _write(made, tokenizer, facts):
    content = tokenizer.to_str()
    stated = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ROLES,
        "split_special_tokens": True,  # a text that holds "[BOS]" comes back too
        "kzoo": {**facts, "content": hashlib.sha256(content.encode()).hexdigest()},
    }
    with whole_folder(made, last=CONFIG) as part:
        (Path(part) / FILE).write_text(content, encoding="utf-8")
        (Path(part) / CONFIG).write_text(json.dumps(stated, indent=2), encoding="utf-8")


# Kinds ------------------------------------------------------------------------------------------


def _on_bytes(model):
    """A tokenizer whose pieces are bytes, each written as one character."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(texts, size):
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _on_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts, size):
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _on_bytes(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TRAINERS: dict[str, Callable[[list[str], int], Any]] = {"bpe": _bpe, "unigram": _unigram}
