"""Tokenizers in Hugging Face's folders, in the new format and in the older ones."""

from pathlib import Path

from kzoo.convert.sentencepiece import unigrams
from kzoo.convert.tensors import read_json
from kzoo.errors import InputError
from kzoo.models.tokenizer_file import FILE, FileTokenizer, parse

# As transformers, keras-hub and OpenAI spell them.
WORD_PIECES = ("vocab.txt", "vocabulary.txt")
BYTE_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("vocabulary.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)
SENTENCE_PIECES = ("spiece.model", "vocabulary.spm", "sentencepiece.bpe.model")
ADDED = "added_tokens.json"
ROLES = tuple(f"{role}_token" for role in ("pad", "bos", "cls", "sep", "eos", "mask", "unk"))
# A vocabulary is often padded to a round number of rows.
MOST_UNUSED = 1024


def read_tokenizer(directory, usual, vocabulary_size, decoder_start=None):
    """The tokenizer of a folder, or None if it holds none.

    Args:
        directory: a folder with `tokenizer.json`; or with a vocabulary of word pieces
            (`vocab.txt`), of byte pairs and their merges (`vocab.json`, `merges.txt`) or of
            SentencePiece's unigrams (`spiece.model`); and with what
            `tokenizer_config.json` and `special_tokens_map.json` say of them.
        usual: role -> string of the special tokens, where the folder does not state them.
        vocabulary_size: number of ids of the model.
        decoder_start: id of the first token of a decoder, or None.

    Raises:
        InputError: a damaged file, or a tokenizer that does not match `vocabulary_size`.
    """
    directory = Path(directory)
    stated = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (directory / name).is_file():
            stated |= read_json(directory / name)
    content = _content(directory, stated)
    if content is None:
        return None
    known = parse(content).get_vocab(with_added_tokens=True)
    special = {role: token for role, token in usual.items() if token in known}
    for role in ROLES:
        token = stated.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            special[role] = token
    tokenizer = FileTokenizer(special, decoder_start, content)
    size = tokenizer.vocabulary.size
    if not size <= vocabulary_size < size + MOST_UNUSED:
        raise InputError(
            f"the tokenizer has {size:,} tokens and the model {vocabulary_size:,}: they do not "
            f"belong together. Received: {directory}"
        )
    return tokenizer


def _content(directory, stated):
    """What tokenizer.json holds or would hold."""
    if (directory / FILE).is_file():
        return (directory / FILE).read_text(encoding="utf-8")
    tokenizer = _older(directory, stated)
    if tokenizer is None or not (directory / ADDED).is_file():
        return tokenizer and tokenizer.to_str()
    added = read_json(directory / ADDED)
    tokenizer.add_tokens(sorted(added, key=added.get))
    wrong = [token for token, id in added.items() if tokenizer.token_to_id(token) != id]
    if wrong:
        raise InputError(f"{ADDED} goes on where the vocabulary ends. Received: {wrong}")
    return tokenizer.to_str()


def _older(directory, stated):
    for name in WORD_PIECES:
        if (directory / name).is_file():
            return _word_pieces(directory / name, stated)
    for names in BYTE_PAIRS:
        if all((directory / name).is_file() for name in names):
            return _byte_pairs(*(directory / name for name in names))
    for name in SENTENCE_PIECES:
        if (directory / name).is_file():
            return _ending(unigrams(directory / name))
    return None


def _word_pieces(path, stated):
    import tokenizers

    lines = path.read_text(encoding="utf-8").splitlines()
    vocabulary = {line: i for i, line in enumerate(lines)}
    if len(vocabulary) < len(lines) or "[UNK]" not in vocabulary:
        raise InputError(f"word pieces are distinct lines, [UNK] one of them. Received: {path}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=stated.get("tokenize_chinese_chars", True),
        strip_accents=stated.get("strip_accents"),
        lowercase=stated.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    names = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    tokenizer.add_special_tokens([name for name in names if name in vocabulary])
    if {"[CLS]", "[SEP]"} <= set(vocabulary):  # of no use here; other libraries add these
        ends = ((name, vocabulary[name]) for name in ("[SEP]", "[CLS]"))
        tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    return tokenizer


def _ending(tokenizer):
    """With T5's end after each text, of which no use is made here; other libraries add it."""
    import tokenizers

    if tokenizer.token_to_id("</s>") is not None:
        end = ("</s>", tokenizer.token_to_id("</s>"))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end]
        )
    return tokenizer


def _byte_pairs(vocabulary, merges):
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"no byte pairs and merges ({error}). Received: {vocabulary}") from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    if tokenizer.token_to_id("<|endoftext|>") is not None:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
