"""Answers that a model writes, greedily."""

from typing import Any

import numpy as np

from kzoo.encoder import ids
from kzoo.errors import InputError
from kzoo.evaluation.reading import Reader, log
from kzoo.values import check_batch_size, is_count


def answers(
    model: Any,
    prompts: list[str],
    *,
    max_tokens: int | None = None,
    until: tuple[str, ...] = (),
    room: list[int] | None = None,
    batch_size: int = 32,
    separated: bool | None = None,
) -> list[str]:
    """What a model writes after each prompt: the likeliest token at each step, up to its end token.

    Args:
        model: a `CausalLM` or `Seq2SeqLM`.
        prompts: list of strings. Prompts that leave no room for an answer lose their beginning,
            with a warning that counts.
        max_tokens: the most tokens of an answer; by default half of a sequence.
        until: strings, at the first of which an answer ends; it is left out.
        room: the tokens for which each prompt must leave room; by default `max_tokens`.
        batch_size: prompts that are continued at once.
        separated: as in `loglikelihood`.

    Returns:
        A list of strings, without the prompts.

    Raises:
        InputError: for a model that predicts hidden tokens, or more tokens than a sequence has.

    Example:
        >>> len(answers(model, ["Call me", "Who are you?"], max_tokens=4))
        2
    """
    check_batch_size(batch_size)
    reader = Reader.of(model, separated)
    longest = model.longest_sequence()
    max_tokens = longest // 2 if max_tokens is None else max_tokens
    if not is_count(max_tokens) or max_tokens >= longest:
        raise InputError(
            f"an answer has at least 1 token and fewer than a sequence, {longest}. "
            f"Received: max_tokens={max_tokens!r}"
        )
    room = [max_tokens] * len(prompts) if room is None else [min(max_tokens, each) for each in room]
    texts = _fitted(reader, list(map(ids, reader.encoder.tokens(prompts))), room, longest)
    # Prompts of one length stand together, so that few shapes are compiled and none waits.
    order, written = np.argsort([len(text) for text in texts], kind="stable"), {}
    for start in range(0, len(order), batch_size):
        here = order[start : start + batch_size]
        filled = np.resize(here, batch_size)
        found = _batch(model, reader, [texts[i] for i in filled], max_tokens)
        written.update(zip(here.tolist(), found, strict=False))
    return [_before(written[i], until) for i in range(len(prompts))]


def _fitted(reader, texts, room, longest):
    """Prompts, arrays of ids, which leave room for answers where both stand in one sequence."""
    vocabulary = reader.encoder.vocabulary
    own = (vocabulary.bos is not None) + reader.separated  # reserved tokens of a prompt
    if not own:  # something stands before the first token, as in `Reader`
        texts = [text if len(text) else np.array([vocabulary.eos], "int32") for text in texts]
    if reader.encoder.layout.name == "single":
        most = [max(1, longest - own - each) for each in room]
    else:
        most = [longest - own] * len(texts)
    cut = sum(len(text) > fits for text, fits in zip(texts, most, strict=True))
    if cut:
        log.warning(
            "%d of %d prompts leave no room for answers in %d tokens and lose their beginning",
            *(cut, len(texts), longest),
        )
    return [text[max(0, len(text) - fits) :] for text, fits in zip(texts, most, strict=True)]


def _batch(model, reader, prompts, max_tokens):
    inputs = reader.encoder.prompts(prompts, reader.separated)
    own = "decoder_padding_mask" if "decoder_padding_mask" in inputs else "padding_mask"
    longest = int(inputs[own].sum(1).max()) + max_tokens
    found = model.generate(
        inputs,
        max_length=min(longest, model.longest_sequence()),
        sampler="greedy",
        strip_prompt=True,
    )
    tokens = [
        row[mask != 0][:max_tokens]
        for row, mask in zip(found["token_ids"], found["padding_mask"], strict=True)
    ]
    return model.preprocessor.generate_postprocess(tokens)


def _before(text, until):
    """A text up to the first of some strings."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
