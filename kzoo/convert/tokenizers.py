"""Tokenizers in Hugging Face's folders, in the new format and in the older ones.

What changes ids in the files that transformers reads is honoured, or refused by its name.
"""

import codecs
import json
from pathlib import Path

from kzoo.convert.sentencepiece import SENTINELS, unigrams
from kzoo.convert.tensors import read_json
from kzoo.errors import InputError
from kzoo.models.tokenizer_file import FileTokenizer
from kzoo.tokenizer_json import FILE, parse

# As transformers, keras-hub and OpenAI spell them.
WORD_PIECES = ("vocab.txt", "vocabulary.txt")
BYTE_PAIRS = (
    ("vocab.json", "merges.txt"),
    ("vocabulary.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)
SENTENCE_PIECES = ("spiece.model", "vocabulary.spm", "sentencepiece.bpe.model")
CONFIG, ROLES_FILE, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = tuple(f"{role}_token" for role in ("pad", "bos", "cls", "sep", "eos", "mask", "unk"))
# The classes of transformers that kzoo follows, and the model of a tokenizer.json that each reads;
# the last ones take the file as it stands.
CLASSES = {"BertTokenizer": "WordPiece", "GPT2Tokenizer": "BPE", "T5Tokenizer": "Unigram"}
AS_IT_STANDS = ("PreTrainedTokenizer", "TokenizersBackend")
# Keys of tokenizer_config.json that would change ids -> the values that change none.
SETTINGS = {
    "do_basic_tokenize": (True,),
    "never_split": ([],),
    "wordpieces_prefix": ("##",),
    "clean_text": (True,),
    "sp_model_kwargs": ({},),
    "auto_map": ({},),
}
FLAGS = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
# A vocabulary is often padded to a round number of rows.
MOST_UNUSED = 1024


def read_tokenizer(directory, family, vocabulary_size, decoder_start=None):
    """The tokenizer of a folder, or None if it holds none.

    Args:
        directory: a folder with `tokenizer.json`; or with a vocabulary of word pieces
            (`vocab.txt`), of byte pairs and their merges (`vocab.json`, `merges.txt`) or of
            SentencePiece's unigrams (`spiece.model`); and with what `tokenizer_config.json`,
            `special_tokens_map.json` and `added_tokens.json` say of them.
        family: a `Family`, whose usual class and special tokens count where none are stated.
        vocabulary_size: number of ids of the model.
        decoder_start: id of the first token of a decoder, or None.

    Raises:
        InputError: a damaged file; a class or setting that kzoo does not follow, by its name; or
            a tokenizer that does not match `vocabulary_size`.
    """
    directory = Path(directory)
    stated = _stated(directory)
    tokenizer = _from_json(directory, stated, family) or _older(directory, stated, family)
    if tokenizer is None:
        return None
    _add(tokenizer, directory, stated, _usual(tokenizer, stated, family))
    known = tokenizer.get_vocab(with_added_tokens=True)
    special = {role: token for role, token in family.special_tokens.items() if token in known}
    special |= {role: _content(stated[role]) for role in ROLES if stated.get(role)}
    split = bool(stated.get("split_special_tokens"))
    tokenizer = FileTokenizer(special, decoder_start, tokenizer.to_str(), split)
    size = tokenizer.vocabulary.size
    if not size <= vocabulary_size < size + MOST_UNUSED:
        raise InputError(
            f"the tokenizer has {size:,} tokens and the model {vocabulary_size:,}: they do not "
            f"belong together. Received: {directory}"
        )
    return tokenizer


# What is stated ------------------------------------------------------------------------------


def _stated(directory):
    """What the files beside the vocabulary say: key -> value. As in transformers,
    special_tokens_map.json counts only where tokenizer_config.json lists no added tokens."""
    stated = {}
    if (directory / CONFIG).is_file():
        stated |= read_json(directory / CONFIG)
    if (directory / ROLES_FILE).is_file() and "added_tokens_decoder" not in stated:
        stated |= read_json(directory / ROLES_FILE)
    for key, harmless in SETTINGS.items():
        if stated.get(key) is not None and stated[key] not in harmless:
            raise InputError(
                f"{key} in {CONFIG} is {harmless[0]!r}, or left out. Received: {stated[key]!r}"
            )
    if "tokenizer_class" not in stated and (directory / "config.json").is_file():
        stated["tokenizer_class"] = read_json(directory / "config.json").get("tokenizer_class")
    return stated


def _class(stated, family, model):
    """The class of transformers whose ids are wanted, without the ending `Fast`."""
    name = stated.get("tokenizer_class")
    if name is None:
        fits = CLASSES[family.tokenizer_class] == model
        return family.tokenizer_class if fits else AS_IT_STANDS[-1]
    name = name.removesuffix("Fast")
    if name not in (*CLASSES, *AS_IT_STANDS):
        raise InputError(
            f"kzoo follows the tokenizer_class {', '.join(CLASSES)}; where {FILE} says all, "
            f"PreTrainedTokenizerFast. Received: {name}"
        )
    if CLASSES.get(name, model) != model:
        raise InputError(
            f"the tokenizer_class {name} reads a model {CLASSES[name]}. Received: {model}"
        )
    return name


def _content(token):
    return token["content"] if isinstance(token, dict) else token


def _usual(tokenizer, stated, family):
    """The special tokens that a class of transformers has without being told."""
    model = json.loads(tokenizer.to_str())["model"]["type"]
    if _class(stated, family, model) in AS_IT_STANDS:
        return []
    known = tokenizer.get_vocab(with_added_tokens=True)
    usual = {role: token for role, token in family.special_tokens.items() if token in known}
    return list({role: token for role, token in usual.items() if not stated.get(role)}.values())


def _add(tokenizer, directory, stated, usual):
    """Adds the tokens that files beside the vocabulary list, each with the id that they say."""
    import tokenizers

    special = [value for key, value in stated.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = stated.get(key) or []
        special += listed.values() if isinstance(listed, dict) else listed
    special = [token for token in special if isinstance(token, str | dict)]
    ids, source = _listed(directory, stated, {_content(token) for token in special})
    for id, flags in sorted(ids.items()):
        token = tokenizers.AddedToken(**{key: flags[key] for key in FLAGS if key in flags})
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != id:
            raise InputError(
                f"{source} goes on where the vocabulary ends: {token.content!r} would have the id "
                f"{tokenizer.token_to_id(token.content)}. Received: {id}"
            )
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known = tokenizer.get_vocab(with_added_tokens=True)
    for token in (*usual, *special):  # what is stated counts
        if _content(token) in known and _content(token) not in added:
            flags = token if isinstance(token, dict) else {"content": token, "normalized": False}
            flags = {key: flags[key] for key in FLAGS if key in flags} | {"special": True}
            tokenizer.add_special_tokens([tokenizers.AddedToken(**flags)])


def _listed(directory, stated, special):
    """Id -> flags of each added token, and the file that lists them."""
    if "added_tokens_decoder" in stated:
        return {int(id): flags for id, flags in stated["added_tokens_decoder"].items()}, CONFIG
    if not (directory / ADDED).is_file():
        return {}, None
    ids = {id: token for token, id in read_json(directory / ADDED).items()}
    if (directory / FILE).is_file():  # which has them all, with their flags
        named = {t["id"]: t for t in read_json(directory / FILE).get("added_tokens", [])}
        ids = {id: token for id, token in ids.items() if id not in named}
    flags = {
        id: {"content": token, "special": token in special, "normalized": token not in special}
        for id, token in ids.items()
    }
    return flags, ADDED


# tokenizer.json ------------------------------------------------------------------------------


def _from_json(directory, stated, family):
    """The tokenizer of a tokenizer.json, as the class that is stated uses it; or None."""
    if not (directory / FILE).is_file():
        return None
    tokenizer = parse((directory / FILE).read_text(encoding="utf-8"))
    content = json.loads(tokenizer.to_str())
    if content["model"].get("dropout"):
        raise InputError(
            f"dropout in {FILE} would draw ids at random. Received: {content['model']['dropout']}"
        )
    kind = _class(stated, family, content["model"]["type"])
    steps = [(content[step] or {}).get("type") for step in ("normalizer", "pre_tokenizer")]
    made = {
        "BertTokenizer": ["BertNormalizer", "BertPreTokenizer"],
        "GPT2Tokenizer": [None, "ByteLevel"],
    }
    if steps != made.get(kind, steps):
        raise InputError(
            f"the tokenizer_class {kind} has {made[kind]} for normalizer and pre_tokenizer; "
            f"PreTrainedTokenizerFast takes {FILE} as it stands. Received: {steps}"
        )
    if kind == "BertTokenizer":  # whose settings overrule the file's
        tokenizer.normalizer = _bert_normalizer(stated)
        tokenizer.model.unk_token = _content(stated.get("unk_token") or "[UNK]")
    if kind == "GPT2Tokenizer":
        tokenizer.pre_tokenizer = _byte_level(stated)
    spaces = (content["pre_tokenizer"] or {}).get("add_prefix_space")
    if kind in AS_IT_STANDS and None not in (spaces, wanted := stated.get("add_prefix_space")):
        if spaces != wanted:
            raise InputError(
                f"add_prefix_space in {CONFIG} is what {FILE} says, {spaces}. Received: {wanted}"
            )
    return tokenizer


# Older files ---------------------------------------------------------------------------------


def _older(directory, stated, family):
    for name in WORD_PIECES:
        if (directory / name).is_file():
            _class(stated, family, "WordPiece")
            return _word_pieces(directory / name, stated)
    for names in BYTE_PAIRS:
        if all((directory / name).is_file() for name in names):
            _class(stated, family, "BPE")
            return _byte_pairs(*(directory / name for name in names), stated)
    for name in SENTENCE_PIECES:
        if (directory / name).is_file():
            _class(stated, family, "Unigram")
            return _ending(unigrams(directory / name, stated.get("extra_ids", SENTINELS)))
    return None


def _bert_normalizer(stated):
    import tokenizers

    return tokenizers.normalizers.BertNormalizer(
        handle_chinese_chars=stated.get("tokenize_chinese_chars", True),
        strip_accents=stated.get("strip_accents"),
        lowercase=stated.get("do_lower_case", True),
    )


def _word_pieces(path, stated):
    import tokenizers

    unknown = _content(stated.get("unk_token") or "[UNK]")
    vocabulary = _lines(path)
    if unknown not in vocabulary:
        raise InputError(f"word pieces are lines, {unknown} one of them. Received: {path}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = _bert_normalizer(stated)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    ends = [_content(stated.get(f"{name}_token") or f"[{name.upper()}]") for name in ("sep", "cls")]
    if set(ends) <= set(vocabulary):  # of no use here; other libraries add these
        ends = ((name, vocabulary[name]) for name in ends)
        tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    return tokenizer


def _lines(path):
    """Line -> its number. Lines end with a line feed and nothing else: what Python takes for the
    end of one, U+2028 say, is a token of multilingual vocabularies. Of equal ones the last counts,
    and white space at the end is not theirs, as in transformers, which reads with this too."""
    import tokenizers

    if path.read_bytes().startswith(codecs.BOM_UTF8):
        raise InputError(f"{path.name} starts with its first token, no mark. Received: {path}")
    try:
        vocabulary = tokenizers.models.WordPiece.read_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path.name} holds lines of UTF-8 ({error}). Received: {path}") from error
    vocabulary.pop("", None)  # which no text holds
    return vocabulary


def _ending(tokenizer):
    """With T5's end after each text, of which no use is made here; other libraries add it."""
    import tokenizers

    if tokenizer.token_to_id("</s>") is not None:
        end = ("</s>", tokenizer.token_to_id("</s>"))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[end]
        )
    return tokenizer


def _byte_level(stated):
    import tokenizers

    prefix = bool(stated.get("add_prefix_space", False))
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)


def _byte_pairs(vocabulary, merges, stated):
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"no byte pairs and merges ({error}). Received: {vocabulary}") from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = _byte_level(stated)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer
