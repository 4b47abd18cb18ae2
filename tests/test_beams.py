"""Beam search: the beams of transformers, each prompt's alone."""

import itertools

import keras
import keras_hub
import numpy as np
import pytest

from kzoo import presets
from kzoo.errors import InputError
from kzoo.models import BeamSampler

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, LONGEST = 31, 14
BOTH = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": LONGEST, **BOTH}
T5 = {"num_layers": 2, "d_model": 16, "d_kv": 6, "num_heads": 2, "d_ff": 24, **BOTH}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10}


def make(name):
    """A model whose tokens vary, and whose end tokens come now and then."""
    torch.manual_seed(1)
    if name == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    else:
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += {"gpt2": 0.1, "t5": 0.3}[name] * torch.randn(parameter.shape)
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def pair(request, tmp_path_factory):
    theirs, folder = make(request.param), tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, presets.load(folder)


PROMPTS = [
    np.random.default_rng(i).integers(2, VOCABULARY, size=size)
    for i, size in enumerate([5, 2, 7, 1, 4, 3, 6, 2])
]


def inputs(model, prompts):
    """Prompts as the inputs of a model: of a decoder that begins with the id 0, what is read."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), "int32")
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    mask = (np.arange(ids.shape[1]) < [[len(prompt)] for prompt in prompts]).astype("int32")
    if "token_ids" in model.input:
        return {"token_ids": ids, "padding_mask": mask}
    begun = {"decoder_token_ids": ids[:, :1] * 0, "decoder_padding_mask": mask[:, :1]}
    return {"encoder_token_ids": ids, "encoder_padding_mask": mask, **begun}


def beams(got):
    """The new tokens of every beam, lists of lists."""
    pairs = zip(got["token_ids"], got["padding_mask"], strict=True)
    return [
        [row[mask != 0].tolist() for row, mask in zip(rows, masks, strict=True)]
        for rows, masks in pairs
    ]


def their_beams(model, prompt, sampler, stops):
    """What transformers finds for a prompt alone: the new tokens of beams, and their scores."""
    ids = torch.tensor(prompt[None])
    begun = 1 if model.config.is_encoder_decoder else len(prompt)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=sampler.num_beams,
        num_return_sequences=sampler.num_beams,
        length_penalty=sampler.length_penalty,
        early_stopping=sampler.early_stopping,
        min_new_tokens=sampler.min_new_tokens or None,
        max_new_tokens=LONGEST - begun,
        eos_token_id=list(stops),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = [
        list(itertools.takewhile(lambda token: token not in stops, row))
        for row in found.sequences[:, begun:].tolist()
    ]
    return rows, found.sequences_scores.numpy()


RULES = [  # length penalty, early stopping, least new tokens, stop tokens
    (1.0, False, 0, (1, 2, 3)),
    (0.6, "never", 3, (1, 2)),
    (2.0, True, 0, (1,)),
    (-1.0, False, 4, (1, 2, 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("penalty, early, least, stops", RULES)
def test_beams_are_those_of_transformers(pair, penalty, early, least, stops):
    """Of eight prompts in one batch; transformers searches for each alone."""
    theirs, ours = pair
    sampler = BeamSampler(4, penalty, least, early, return_all_beams=True)
    settings = {"max_length": LONGEST, "stop_token_ids": stops, "strip_prompt": True}
    got = ours.generate(inputs(ours, PROMPTS), sampler=sampler, **settings)
    assert got["token_ids"].shape[:2] == got["scores"].shape == (len(PROMPTS), 4)
    for prompt, rows, scores in zip(PROMPTS, beams(got), got["scores"], strict=True):
        want, their_scores = their_beams(theirs, prompt, sampler, stops)
        assert rows == want
        np.testing.assert_allclose(scores, their_scores, rtol=1e-4)
    turned = ours.generate(inputs(ours, PROMPTS[::-1]), sampler=sampler, **settings)
    assert beams(turned) == beams(got)[::-1]


# Ours in keras-hub, and keras-hub's here -----------------------------------------------------


def test_keras_hubs_tasks_take_our_beams():
    """Their prompts begin at one column and end at several."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=LONGEST,
    )
    rng = np.random.default_rng(0)
    for variable in backbone.weights:
        variable.assign(rng.normal(size=variable.shape))
    task = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    task.compile(sampler=BeamSampler(3, early_stopping=True))
    ids = np.zeros((3, LONGEST), "int32")
    for row, prompt in zip(ids, PROMPTS, strict=False):
        row[: len(prompt)] = prompt
    mask = (ids != 0).astype("int32")

    def generate(rows):
        x = {"token_ids": ids[rows], "padding_mask": mask[rows]}
        got = task.generate(x, stop_token_ids=(1, 2, 3))
        return np.where(got["padding_mask"], got["token_ids"], -1)

    together = generate([0, 1, 2])
    assert (together[mask != 0] == ids[mask != 0]).all() and (together == -1).any()
    for i in range(3):
        np.testing.assert_array_equal(generate([i, i, i])[0], together[i])


SMALL = {"num_layers": 1, "hidden_dim": 8, "num_heads": 1, "intermediate_dim": 8}


@pytest.fixture(scope="module")
def gpt():
    model = presets.load("gpt_nano", max_sequence_length=12, **SMALL)
    model.compile(sampler="beam", run_eagerly=keras.backend.backend() == "tensorflow")
    return model


@pytest.mark.slow
@pytest.mark.torch
def test_all_beams_of_texts(gpt):
    sampler = BeamSampler(3, return_all_beams=True)
    got = gpt.generate(["a", "bcd"], sampler=sampler, strip_prompt=True)
    assert got["scores"].shape == (2, 3) and (np.diff(got["scores"]) <= 0).all()
    assert [len(texts) for texts in got["texts"]] == [3, 3]
    best = gpt.generate(["a", "bcd"], sampler=BeamSampler(3))
    assert best == [text + more[0] for text, more in zip(["a", "bcd"], got["texts"], strict=True)]
    one = gpt.generate("bcd", sampler=sampler, strip_prompt=True)
    assert one["texts"] == got["texts"][1]
    np.testing.assert_allclose(one["scores"], got["scores"][1], rtol=1e-5)


def test_equal_samplers_share_a_program(gpt, monkeypatch):
    traced, step = [], gpt.generate_step
    monkeypatch.setattr(gpt, "generate_step", lambda *x: traced.append(1) or step(*x))
    for prompts in (["a", "b"], ["abc", "d"]):
        gpt.generate(prompts, sampler=BeamSampler(2, length_penalty=0.3))
    assert len(traced) == 1


@pytest.mark.torch
def test_keras_hubs_beams_are_taken_as_ours(gpt):
    theirs = keras_hub.samplers.BeamSampler(num_beams=3, temperature=0.5)
    settings = {"max_length": 10, "stop_token_ids": None}
    want = gpt.generate(["a", "bc"], sampler=BeamSampler(3, 0.0, temperature=0.5), **settings)
    assert gpt.generate(["a", "bc"], sampler=theirs, **settings) == want

    class Other(keras_hub.samplers.BeamSampler):
        pass

    with pytest.raises(InputError, match="kzoo.models.BeamSampler"):
        gpt.generate("a", sampler=Other())


def test_a_sampler_is_told_by_its_config():
    sampler = BeamSampler(3, 0.5, 2, "never", True, 0.7)
    config = keras.saving.serialize_keras_object(sampler)
    again = keras.saving.deserialize_keras_object(config)
    assert again == sampler and hash(again) == hash(sampler) and again != BeamSampler(3)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 0},
        {"num_beams": 2.0},
        {"num_beams": True},
        {"min_new_tokens": -1},
        {"early_stopping": "always"},
        {"early_stopping": 1},
        {"length_penalty": float("nan")},
        {"length_penalty": "1"},
        {"temperature": 0},
    ],
    ids=str,
)
def test_rules_that_there_are_not(settings):
    with pytest.raises(InputError, match="Received: "):
        BeamSampler(**settings)


def test_more_beams_than_tokens(gpt):
    with pytest.raises(InputError, match="num_beams must be at most 383"):
        gpt.generate("a", sampler=BeamSampler(384))
