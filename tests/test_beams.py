"""Beam search: the beams of transformers, each prompt's alone."""

import itertools

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

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
            parameter += 0.3 * torch.randn(parameter.shape)
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
    (1.0, False, 0, (1,)),
    (0.0, False, 0, (1, 2, 3)),
    (2.0, "never", 3, (1, 2)),
    (0.6, True, 0, (1, 2)),
    (-1.0, False, 4, (1, 2, 3)),
]


@pytest.mark.parametrize("penalty, early, least, stops", RULES)
def test_beams_are_those_of_transformers(pair, penalty, early, least, stops):
    """Of eight prompts in one batch; transformers searches for each alone."""
    theirs, ours = pair
    sampler = BeamSampler(4, penalty, least, early, return_all_beams=True)
    x = inputs(ours, PROMPTS)
    settings = {"max_length": LONGEST, "stop_token_ids": stops, "strip_prompt": True}
    got = ours.generate(x, sampler=sampler, **settings)
    lengths = set()
    for prompt, rows, scores in zip(PROMPTS, beams(got), got["scores"], strict=True):
        want, their_scores = their_beams(theirs, prompt, sampler, stops)
        assert rows == want
        np.testing.assert_allclose(scores, their_scores, rtol=1e-4)
        lengths |= set(map(len, rows))
    assert len(lengths) > 2  # else it would show little of what ends a beam
