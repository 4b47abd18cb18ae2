"""SentencePiece's model files, as T5 has them: a vocabulary of unigrams in a protocol buffer.

The fields that matter are few, so that neither SentencePiece nor protobuf is needed. Numbers of
fields: google/sentencepiece, src/sentencepiece_model.proto.
"""

import re
import struct

from kzoo.errors import InputError

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of a ModelProto
UNIGRAM = 1  # of TrainerSpec.model_type, field 3
# Of TrainerSpec: split_by_whitespace, treat_whitespace_as_suffix, byte_fallback.
WORDS, SUFFIX, BYTES = 22, 24, 35
CHARS, PREFIX, TRIM, ESCAPE = 2, 3, 4, 5  # of NormalizerSpec
UNKNOWN, CONTROL, USER, UNUSED = 2, 3, 4, 5  # of SentencePiece.type, field 3
# T5's sentinels, which transformers adds after the pieces, the last one first.
SENTINELS = 100


def unigrams(path, sentinels=SENTINELS):
    """A `tokenizers.Tokenizer` that gives the ids that SentencePiece does, with T5's sentinels.

    Raises:
        InputError: for another file, a model of byte pairs, or a setting that T5 does not have.
    """
    import tokenizers

    try:
        parts = _fields(path.read_bytes())
        trainer, normalizer = (dict(_fields(dict(parts)[part])) for part in (TRAINER, NORMALIZER))
        pieces = [dict(_fields(value)) for number, value in parts if number == PIECES]
        names = [piece[1].decode() for piece in pieces]
        scores = [struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0 for piece in pieces]
        kinds = [piece.get(3, 1) for piece in pieces]
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise InputError(f"no model of SentencePiece ({error!r}). Received: {path}") from error
    if trainer.get(3, UNIGRAM) != UNIGRAM or UNKNOWN not in kinds:
        raise InputError(f"kzoo reads SentencePiece's unigrams only. Received: {path}")
    for unknown, setting in (
        (trainer.get(SUFFIX), "treat_whitespace_as_suffix"),
        (not normalizer.get(ESCAPE, 1), "escape_whitespaces=false"),
        (UNUSED in kinds, "unused pieces"),
    ):
        if unknown:
            raise InputError(f"kzoo reads no SentencePiece model with {setting}. Received: {path}")

    vocabulary = [*zip(names, scores, strict=True)]
    extra = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    vocabulary += [(name, 0.0) for name in extra if name not in names]
    model = tokenizers.models.Unigram(
        vocabulary, unk_id=kinds.index(UNKNOWN), byte_fallback=bool(trainer.get(BYTES))
    )
    tokenizer = tokenizers.Tokenizer(model)
    whole = [name for name, kind in zip(names, kinds, strict=True) if kind == USER]
    _steps(tokenizer, normalizer, bool(trainer.get(WORDS, 1)), whole)
    special = [name for name, kind in zip(names, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens(special + extra)
    return tokenizer


def _steps(tokenizer, normalizer, by_word, whole):
    """What comes before and after the unigrams, in SentencePiece's order; `by_word` says that no
    piece spans words, and `whole` are the pieces that it never cuts or joins."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    steps = [normalizers.Precompiled(normalizer[CHARS])] if normalizer.get(CHARS) else []
    if normalizer.get(TRIM, 1):  # of spaces alone, and at the end of their sign
        steps += [normalizers.Replace(Regex(edge), "") for edge in (r"\A +", r"[ ▁]+\z")]
        steps += [normalizers.Replace(Regex(" {2,}"), " ")]
    prefix = bool(normalizer.get(PREFIX, 1))
    if prefix:  # also before a text that starts with the sign for a space, unlike Metaspace's
        steps += [normalizers.Replace(" ", "▁"), normalizers.Replace(Regex(r"\A▁"), "▁▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    spaces = {"replacement": "▁", "prepend_scheme": "always" if prefix else "never"}
    by_word = by_word and bool(normalizer.get(TRIM, 1))
    cuts = [pre_tokenizers.Metaspace(**spaces, split=by_word)]
    if whole:
        pattern = "|".join(re.escape(piece) for piece in sorted(whole, key=len, reverse=True))
        cuts.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    ends = [decoders.ByteFallback(), decoders.Metaspace(**spaces)]
    tokenizer.decoder = decoders.Sequence(ends)


def _fields(data):
    """The `(number, value)` of a message: integers, or bytes for all else."""
    fields, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                size, at = _varint(data, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("it ends too early")
        fields.append((number, value))
    return fields


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
