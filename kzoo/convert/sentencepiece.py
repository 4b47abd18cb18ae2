"""SentencePiece's model files, as T5 has them: a vocabulary of unigrams in a protocol buffer.

The fields that matter are few, so that neither SentencePiece nor protobuf is needed. Numbers of
fields: google/sentencepiece, src/sentencepiece_model.proto.
"""

import struct

from kzoo.errors import InputError

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of a ModelProto
UNIGRAM = 1  # of TrainerSpec.model_type, field 3
UNKNOWN, CONTROL, USER = 2, 3, 4  # of SentencePiece.type, field 3
# T5's sentinels, which transformers adds after the pieces, the last one first.
SENTINELS = 100


def unigrams(path):
    """A `tokenizers.Tokenizer` that gives the ids that SentencePiece does, and T5's sentinels.

    Raises:
        InputError: for another file, or a model of byte pairs.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

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

    vocabulary = [*zip(names, scores, strict=True)]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    vocabulary += [(name, 0.0) for name in sentinels if name not in names]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram(vocabulary, unk_id=kinds.index(UNKNOWN))
    )
    steps = [normalizers.Precompiled(normalizer[2])] if normalizer.get(2) else []
    if normalizer.get(4, 1):  # remove_extra_whitespaces
        steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    spaces = {"replacement": "▁", "prepend_scheme": "always" if normalizer.get(3, 1) else "never"}
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**spaces)
    tokenizer.decoder = decoders.Metaspace(**spaces)
    special = [name for name, kind in zip(names, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens(special + sentinels)
    tokenizer.add_tokens([n for n, kind in zip(names, kinds, strict=True) if kind == USER])
    return tokenizer


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
