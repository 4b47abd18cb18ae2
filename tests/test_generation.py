import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from marks import once

from kzoo import presets
from kzoo.errors import InputError
from kzoo.models import ByteTokenizer
from kzoo.models.compiled import compiled
from kzoo.models.conversation import pieces
from kzoo.vocabulary import BOS, PAD, SEP, VOCABULARY_SIZE
from kzoo.vocabulary import MASK as MASK_ID

TIME = 18
SMALL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "num_heads": 2,
    "intermediate_dim": 32,
    "max_sequence_length": TIME,
    "tie_embeddings": False,  # tied and untrained, a model repeats what it read
}
TEXTS = ["to be", "or not", "é", ""]


# What generates more than once is compiled, but on TensorFlow, which takes ten seconds to do it.
EAGERLY = keras.backend.backend() == "tensorflow"


def load(family, draw=0, eagerly=True, **overrides):
    """A model with weights so large that its most likely tokens vary, in most draws."""
    model = presets.load(f"{family}_nano", **{**SMALL, **overrides})
    rng = np.random.default_rng(draw)
    for variable in model.weights:
        noise = rng.normal(size=variable.shape).astype("float32")
        matrix = len(variable.shape) > 1
        variable.assign(0.7 * noise if matrix else variable.numpy() + 0.3 * noise)
    model.compile(run_eagerly=eagerly, sampler="greedy")
    return model


def numpy(x):
    return ops.convert_to_numpy(x)


def sequences(x):
    """The tokens of each sequence of a batch, without padding, as lists."""
    pairs = zip(x["token_ids"], x["padding_mask"], strict=True)
    return [row[mask != 0].tolist() for row, mask in pairs]


def chosen(model, given, prompts):
    """The most likely token after each token of each sequence, from one pass without a cache.

    No token depends on later ones, so a sequence with these tokens is the greedy one.
    """
    ids = np.full((len(given), TIME), PAD, "int32")
    for i, sequence in enumerate(given):
        ids[i, : len(sequence)] = sequence
    column = np.arange(TIME)
    real = (column < np.array([[len(sequence)] for sequence in given])).astype("int32")
    source = column < np.array([[len(prompt)] for prompt in prompts])
    x = {"token_ids": ids, "padding_mask": real, "source_mask": source.astype("int32")}
    x["segment_ids"] = 1 - x["source_mask"]
    return numpy(model.predict_on_batch({name: x[name] for name in model.input})).argmax(-1)


def by_steps(model, prompts, max_length):
    """Greedy sequences, by a pass over the whole sequence for every token."""
    grown = [list(prompt) for prompt in prompts]
    while any(len(sequence) < max_length for sequence in grown):
        tokens = chosen(model, grown, prompts)
        for sequence, following in zip(grown, tokens, strict=True):
            if len(sequence) < max_length:
                sequence.append(int(following[len(sequence) - 1]))
    return grown


def assert_greedy(given, prompts, tokens):
    """Sequences begin with their prompts and continue with the tokens of `chosen`."""
    for prompt, sequence, following in zip(prompts, given, tokens, strict=True):
        assert sequence[: len(prompt)] == prompt and len(sequence) == TIME
        assert sequence[len(prompt) :] == following[len(prompt) - 1 : TIME - 1].tolist()
    new = [sequence[len(prompt) :] for sequence, prompt in zip(given, prompts, strict=True)]
    assert len(set(sum(new, []))) > 4  # else it would show little


# Every two of family, mechanism and positions meet.
MODELS = [
    pytest.param("gpt", {"positions": "none"}),
    pytest.param("gpt", {"positions": "rotary"}, marks=pytest.mark.torch),
    pytest.param(
        "gpt", {"mechanism": {"linear": {"feature_map": "hedgehog"}}, "positions": "learned"}
    ),
    pytest.param(
        "gpt", {"mechanism": {"linear": {"feature_map": "relu"}}, "positions": "sinusoidal"}
    ),
    pytest.param("unilm", {"positions": "learned"}),
    pytest.param("unilm", {"positions": "sinusoidal"}),
    pytest.param(
        "unilm", {"mechanism": {"linear": {"feature_map": "taylor2"}}, "positions": "none"}
    ),
    pytest.param(
        "unilm",
        {
            "mechanism": {"linear": {"feature_map": {"favor": {"features": 8}}}},
            "positions": "rotary",
        },
        marks=pytest.mark.torch,
    ),
]
AROUND = {"qk_norm": "rms", "output_norm": True, "output_gate": True, "short_convolution": 3}
RELATIVE = {"positions": "relative", "relative_buckets": 8, "relative_distance": 12}
OPTIONS = [
    ("unilm", {"mask": {"layers": ["causal", "prefix"]}, "kv_heads": 1, "identity_mix": 0.3}),
    ("unilm", {"mask": {"heads": ["prefix", "causal"]}, "mechanism": "linear", "kv_heads": 1}),
    ("unilm", {"mask": "causal", "norm_placement": "post", "mechanism": "linear"}),
    (
        "gpt",
        {
            "kv_heads": 1,
            "normalization": "rms_norm",
            "mechanism": {"softmax": {"scale": 1.0}},
            **RELATIVE,
        },
    ),
    ("unilm", {"num_segments": 2, "embedding_norm": True, "identity_mix": 0.3}),
]
MODELS += [pytest.param(*option, marks=pytest.mark.torch) for option in OPTIONS[1::2]]
MODELS += OPTIONS[::2]


def name(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else value


@pytest.mark.slow
@pytest.mark.parametrize("family, overrides", MODELS, ids=name)
def test_generation_equals_greedy_decoding_without_a_cache(family, overrides):
    model = load(family, **overrides)
    x = model.preprocessor.generate_preprocess({"prompts": TEXTS})
    got = sequences(model.generate(x, stop_token_ids=None))
    assert_greedy(got, sequences(x), chosen(model, got, sequences(x)))


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("mechanism", [once("softmax"), "linear"])
def test_a_mask_token_predicts_the_token_at_its_position(mechanism):
    """As UniLM's published weights do: the mask is read at each step, and forgotten."""
    fields = {"num_segments": 6, "positions": "learned", "prediction_site": "mask"}
    model = load("unilm", eagerly=EAGERLY, mechanism=mechanism, **fields)
    x = model.preprocessor.generate_preprocess(TEXTS[:2])
    got = sequences(model.generate(x, stop_token_ids=None))
    assert any(len(set(row)) > 6 for row in got)
    batches = []
    for prompt, row in zip(sequences(x), got, strict=True):
        # The row's beginnings, each with a mask behind it.
        ends = np.arange(len(prompt), len(row))
        column = np.arange(len(row))
        ids = np.where(column < ends[:, None], row, np.where(column == ends[:, None], MASK_ID, PAD))
        source = np.broadcast_to(column < len(prompt), ids.shape).astype("int32")
        padding = (column <= ends[:, None]).astype("int32")
        batch = {"token_ids": ids.astype("int32"), "padding_mask": padding, "source_mask": source}
        batches.append({**batch, "segment_ids": 5 - source, "ends": ends})
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    ends = whole.pop("ends")
    want = numpy(model.predict_on_batch(whole))[np.arange(len(ends)), ends].argmax(-1)
    new = [row[len(prompt) :] for prompt, row in zip(sequences(x), got, strict=True)]
    assert sum(new, []) == want.tolist()
    text = model.generate("ab", max_length=TIME)
    assert text == "".join(model.stream("ab", max_length=TIME))
    for use in (model.fit, model.evaluate, model.score):
        with pytest.raises(InputError, match="prediction_site='next'"):
            use({"prompts": ["a"], "responses": ["b"]})
    with pytest.raises(InputError, match="prediction_site must be 'next'"):
        presets.load("t5_nano", prediction_site="mask")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    "family, overrides",
    [
        once("t5", {"positions": "learned"}),
        once("t5_mixed_encoder", {"mechanism": "gated_linear", **AROUND}),
        ("t5_mixed_encoder", {"mechanism": "linear", "kv_heads": 1}),
        ("t5_shared", {**RELATIVE, "draw": 1}),
    ],
    ids=name,
)
def test_a_decoder_goes_on_from_what_an_encoder_read_once(family, overrides):
    model = load(family, **overrides)
    x = model.preprocessor.generate_preprocess(TEXTS)
    assert x["decoder_token_ids"].tolist() == [[BOS]] * len(TEXTS)
    got = sequences(model.generate(x, stop_token_ids=None))
    y = {"decoder_token_ids": np.array(got, "int32")}
    y["decoder_padding_mask"] = np.ones_like(y["decoder_token_ids"])
    for name, filling in (("encoder_token_ids", PAD), ("encoder_padding_mask", 0)):
        wider = [(0, 0), (0, TIME - x[name].shape[1])]
        y[name] = np.pad(x[name], wider, constant_values=filling)
    assert_greedy(got, [[BOS]] * len(got), numpy(model.predict_on_batch(y)).argmax(-1))


@pytest.fixture(scope="module")
def gpt():
    return load("gpt", eagerly=EAGERLY)


@pytest.fixture(scope="module")
def unilm():
    return load("unilm", eagerly=EAGERLY, mechanism="linear")


@pytest.fixture(scope="module")
def t5():
    return load("t5", eagerly=EAGERLY)


def test_it_equals_a_pass_for_every_token(gpt):
    """What `chosen` takes for granted, once without it."""
    x = gpt.preprocessor.generate_preprocess(TEXTS)
    got = gpt.generate(x, max_length=13, stop_token_ids=None)
    assert sequences(got) == by_steps(gpt, sequences(x), 13)


# The cache ----------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize(
    "family, mechanism",
    [
        *[(family, name) for family in ("gpt", "unilm") for name in ("softmax", "linear")],
        ("gpt", {"gated_linear": {"gate": "softplus"}}),
        ("unilm", {"retention": {"log_decay": "learned"}}),
        ("unilm", {"gated_linear": {"feature_map": "elu1", "normalize": True}}),
        ("unilm", "options"),
    ],
    ids=str,
)
def test_extending_in_parts_equals_one_pass(family, mechanism):
    overrides = {"mechanism": mechanism} if mechanism != "options" else AROUND
    # UniLM shows that each layer keeps a cache of its own.
    model = load(family, num_layers=1 if family == "gpt" else 2, **overrides)
    start, source_end, time = np.array([0, 4]), np.array([8, 8]), 16
    ids = np.random.default_rng(0).integers(256, size=(2, time)).astype("int32")
    column = np.arange(time)
    real = column >= start[:, None]
    x = {"token_ids": ids, "padding_mask": real.astype("int32")}
    x["source_mask"] = (real & (column < source_end[:, None])).astype("int32")
    want = numpy(model.backbone.predict_on_batch({name: x[name] for name in model.input}))

    def extend(cache, tokens, *where):
        tokens, *where = map(ops.convert_to_tensor, (tokens, *where))
        index, end = (0, *where) if len(where) == 1 else where
        return model.backbone.decode(tokens, cache, index, end)

    extend = compiled(extend, model.backbone)
    begin = (ops.convert_to_tensor(x.astype("int32")) for x in (start, source_end))
    got, cache = [], model.backbone.init_cache(*begin, time)
    # The first part has columns that stay free, whatever stands in them.
    hidden, cache = extend(cache, ids[:, :12], np.array([9, 9], "int32"))
    got.append(numpy(hidden)[:, :9])
    for index, end in [(9, 14), (14, 15), (15, 16), (15, 16)]:
        before = [numpy(x) for x in keras.tree.flatten(cache)]
        where = (np.array(index, "int32"), np.array([end, end], "int32"))
        hidden, cache = extend(cache, ids[:, index:end], *where)
        assert numpy(cache["length"]).tolist() == [end, end]
        got.append(numpy(hidden))
    again = got.pop()  # the last column a second time: it is computed, and nothing changes
    for a, b in zip(before, keras.tree.flatten(cache), strict=True):
        np.testing.assert_array_equal(numpy(b), a)
    np.testing.assert_allclose(again, got[-1], atol=2e-4)
    np.testing.assert_allclose(np.concatenate(got, axis=1)[real], want[real], atol=2e-4)


@pytest.mark.torch
@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch compiles nothing here")
def test_a_program_is_traced_once_for_each_shape(gpt, monkeypatch):
    model, traced = load("gpt", eagerly=False), []
    step = model.generate_step

    def counted(inputs, stop_token_ids=None):
        traced.append(1)
        return step(inputs, stop_token_ids)

    monkeypatch.setattr(model, "generate_step", counted)
    for texts, max_length in [(["ab", "c"], 10), (["to be", ""], 16), (["", "x"], 9)]:
        got = model.generate(texts, max_length=max_length)
        assert got == gpt.generate(texts, max_length=max_length)
    assert len(traced) == 1  # all widths are in one bucket
    model.generate(["a", "b", "c"], max_length=9)
    assert len(traced) == 2


# What comes back ----------------------------------------------------------------------------


@pytest.mark.slow
def test_strings_come_back_with_their_prompt_and_answers_without(gpt, unilm, t5):
    plain = gpt.generate(TEXTS, max_length=13, stop_token_ids=None)
    new = gpt.generate(TEXTS, max_length=13, stop_token_ids=None, strip_prompt=True)
    assert plain == [text + more for text, more in zip(TEXTS, new, strict=True)]
    assert gpt.generate(TEXTS[0], max_length=13, stop_token_ids=None) == plain[0]
    x = gpt.preprocessor.generate_preprocess(TEXTS)
    assert sequences(x)[0] == [BOS, *b"to be"]
    tokens = gpt.generate(x, max_length=13, stop_token_ids=None, strip_prompt=True)
    assert [gpt.preprocessor.tokenizer.detokenize(row) for row in sequences(tokens)] == new
    for model in (gpt, unilm, t5):
        of_pairs = model.generate({"prompts": TEXTS}, max_length=13, stop_token_ids=None)
        assert len(of_pairs) == len(TEXTS)
        one = model.generate({"prompts": TEXTS[1]}, max_length=13, stop_token_ids=None)
        assert one == of_pairs[1]
        if model is not gpt:  # a plain string is a source too
            assert model.generate(TEXTS, max_length=13, stop_token_ids=None) == of_pairs


def test_a_sequence_ends_before_a_stop_token(gpt):
    x = gpt.preprocessor.generate_preprocess(TEXTS)
    free = sequences(gpt.generate(x, max_length=16, stop_token_ids=None, strip_prompt=True))
    stop = free[0][3]
    stopped = sequences(gpt.generate(x, max_length=16, stop_token_ids=stop, strip_prompt=True))
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[0]) < len(free[0])
    assert max(len(row) for row in sequences(gpt.generate(x, max_length=16))) <= 16


# Samplers -----------------------------------------------------------------------------------


def log_probability(model, x, got):
    """Of what was generated, for each row."""
    logits = numpy(model({"token_ids": got["token_ids"], "padding_mask": got["padding_mask"]}))
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    steps = np.take_along_axis(logits[:, :-1], got["token_ids"][:, 1:, None], -1)[..., 0]
    new = got["padding_mask"][:, 1:].astype(bool)
    new &= np.arange(1, new.shape[1] + 1) >= x["padding_mask"].sum(1)[:, None]
    return (steps * new).sum(1)


@pytest.mark.slow
@pytest.mark.torch
def test_samplers(gpt):
    x = gpt.preprocessor.generate_preprocess(TEXTS)

    def generate(sampler):
        return gpt.generate(x, max_length=13, sampler=sampler, stop_token_ids=None)

    samplers = keras_hub.samplers
    greedy = generate("greedy")
    assert sequences(generate(samplers.BeamSampler(num_beams=1))) == sequences(greedy)
    beams = generate(samplers.BeamSampler(num_beams=4))
    gain = log_probability(gpt, x, beams) - log_probability(gpt, x, greedy)
    assert (gain > -1e-4).all() and gain.max() > 0.1
    drawn = [sequences(generate(samplers.TopKSampler(k=5, seed=seed))) for seed in (1, 1)]
    assert drawn[0] == drawn[1] != sequences(greedy)


@pytest.mark.parametrize("name", ["top_p", "random", "contrastive"])
def test_samplers_by_name_under_a_state(unilm, name):
    answers = unilm.generate(TEXTS, max_length=13, sampler=name, stop_token_ids=None)
    assert len(answers) == len(TEXTS)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    "family, name",
    [
        ("gpt", "beam"),
        once("gpt", "contrastive"),
        once("unilm", "beam"),
        ("unilm", "contrastive"),
        once("t5", "beam"),
        once("t5", "contrastive"),
    ],
)
def test_what_is_chosen_for_a_prompt_depends_on_no_other(family, name, request):
    """Rows alone and in batches, where they have padding before them and end at other columns."""
    model = request.getfixturevalue(family)
    stops = [5, 105, 205, 305] if name == "beam" else None
    settings = {"max_length": 13, "sampler": name, "stop_token_ids": stops, "strip_prompt": True}
    x = model.preprocessor.generate_preprocess({"prompts": TEXTS})

    def generate(which):
        return sequences(model.generate({key: ids[which] for key, ids in x.items()}, **settings))

    together = generate(slice(None))
    assert any(together)
    assert generate(slice(None, None, -1)) == together[::-1]
    assert generate(slice(1, 2)) == together[1:2]


# Streams and conversations ------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt", "unilm", once("t5")])
def test_a_stream_equals_generate(family, request):
    model = request.getfixturevalue(family)
    whole = model.generate({"prompts": "or not"}, max_length=16, stop_token_ids=None)
    pieces = list(model.stream({"prompts": "or not"}, max_length=16, stop_token_ids=None))
    assert "".join(pieces) == whole and len(pieces) > 1
    with pytest.raises(InputError, match="one string"):
        model.stream(["a", "b"])
    with pytest.raises(InputError, match="BeamSampler"):
        model.stream("a", sampler="beam")


def test_a_streams_characters_come_whole():
    text = "é€😀 a"
    tokenizer = ByteTokenizer()
    assert list(pieces(tokenizer, text.encode())) == ["é", "€", "😀", " ", "a"]
    broken = [*b"a\xff", *b"b", *"é".encode()[:1]]
    assert "".join(pieces(tokenizer, broken)) == "a\ufffdb\ufffd"
    assert list(pieces(tokenizer, [])) == []


@pytest.mark.torch
@pytest.mark.parametrize("family", ["gpt", once("unilm"), "t5"])
def test_a_conversation_goes_on_as_generate_would(family, request):
    model = request.getfixturevalue(family)
    talk = model.conversation(stop_token_ids=None)
    said, known = [], 0
    for text, size in [("a", 3), ("", 2), ("cd", 2)]:
        said += [*[SEP] * bool(said), *text.encode()]
        x = model.preprocessor.encoder.prompts([said], as_source=True)
        begun = x.get("decoder_token_ids", x.get("token_ids")).shape[1]
        given = {"max_length": begun + size, "stop_token_ids": None, "strip_prompt": True}
        (want,) = sequences(model.generate(x, **given))
        assert talk.say(text, max_length=size) == model.preprocessor.tokenizer.detokenize(want)
        said += [SEP, *want]
        assert talk.said == said
        # Nobody has to read the last token of a reply.
        assert talk.reused == (known if family == "gpt" else 0)
        assert talk.reused + talk.encoded == len(said) - len(want) + 1
        known = len(said)
    for text, max_length in [("x" * TIME, None), ("x", 0), (3, None)]:
        with pytest.raises(InputError, match="Received: "):
            talk.say(text, max_length)
    assert talk.said == said


def test_a_causal_conversation_changes_nothing_it_has_computed(gpt):
    talk = gpt.conversation(stop_token_ids=None)
    talk.say("to be", max_length=3)
    session = talk._session
    length = session.length
    before = [numpy(x)[:, :length] for x in keras.tree.flatten(session.cache["blocks"])]
    talk.say("or", max_length=3)
    assert talk.reused == length
    after = [numpy(x)[:, :length] for x in keras.tree.flatten(session.cache["blocks"])]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


# Wrong input --------------------------------------------------------------------------------

IDS = np.array([[BOS, 97, 98, PAD]], "int32")
MASK = (IDS != PAD).astype("int32")
WRONG = [
    ({"inputs": []}, "a string or a list"),
    ({"inputs": 3}, "strings, or lists of them"),
    ({"inputs": ["a", 3]}, "strings"),
    ({"inputs": {"prompts": []}}, "a string or a list"),
    ({"inputs": {"prompts": ["a"], "responses": ["b"]}}, "the keys"),
    ({"inputs": "x" * TIME}, f"at most {TIME - 1} tokens"),
    ({"inputs": "abc", "max_length": 4}, "at most 3 tokens"),
    ({"inputs": "a", "max_length": TIME + 1}, f"1 to {TIME}"),
    ({"inputs": "a", "max_length": 0}, f"1 to {TIME}"),
    ({"inputs": "a", "max_length": 2.5}, "integer"),
    ({"inputs": "a", "sampler": "gready"}, "did you mean 'greedy'"),
    ({"inputs": "a", "sampler": 3}, "keras_hub.samplers.Sampler"),
    ({"inputs": "a", "stop_token_ids": [VOCABULARY_SIZE]}, "stop_token_ids"),
    ({"inputs": "a", "stop_token_ids": []}, "stop_token_ids"),
    ({"inputs": "a", "stop_token_ids": "end"}, "stop_token_ids"),
    ({"inputs": "a", "stop_token_ids": True}, "stop_token_ids"),
    ({"inputs": "a", "stop_token_ids": [[1, 2], [3]]}, "each of which ends a sequence"),
    ({"inputs": {"token_ids": IDS}}, "padding_mask is missing"),
    ({"inputs": {"token_ids": IDS + 200, "padding_mask": MASK}}, "token ids are in"),
    ({"inputs": {"token_ids": IDS, "padding_mask": MASK[:, ::-1]}}, "must begin at column 0"),
    ({"inputs": {"token_ids": IDS, "padding_mask": 0 * MASK}}, "must begin at column 0"),
    ({"inputs": {"token_ids": IDS[:, :2], "padding_mask": MASK}}, "one shape"),
    ({"inputs": {"token_ids": IDS[:0], "padding_mask": MASK[:0]}}, "one shape"),
]


@pytest.mark.parametrize("arguments, message", WRONG)
def test_wrong_input(gpt, arguments, message):
    with pytest.raises(InputError, match="Received: ") as error:
        gpt.generate(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_models_that_generate_nothing(gpt, t5):
    with pytest.raises(InputError, match="masked LM"):
        presets.load("bert_nano", **SMALL).generate("a")
    with pytest.raises(InputError, match="did you mean 'beam'"):
        gpt.compile(sampler="beems")
    x = t5.preprocessor.generate_preprocess(["a", "b"])
    with pytest.raises(InputError, match="as many examples"):
        t5.generate({**x, "decoder_token_ids": IDS, "decoder_padding_mask": MASK})
    bare = type(gpt)(gpt.backbone)
    for method in (bare.generate, bare.stream):
        with pytest.raises(InputError, match="without a preprocessor"):
            method("a")
    with pytest.raises(InputError, match="needs a preprocessor"):
        bare.conversation()
    got = bare.generate({"token_ids": IDS, "padding_mask": MASK}, stop_token_ids=None)
    assert got["token_ids"].shape == (1, TIME) and got["token_ids"][0, :3].tolist() == [BOS, 97, 98]
