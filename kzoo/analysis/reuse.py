"""What of a conversation's cache the next turn can go on from, and what a turn takes to begin."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kzoo.analysis.activations import activations
from kzoo.analysis.float64 import numpy
from kzoo.errors import InputError
from kzoo.typing import Model
from kzoo.values import is_count


def cache_reuse(model: Model, turns: Sequence[str], *, repeats: int = 3) -> list[dict[str, Any]]:
    """Whether the keys and values of a conversation's earlier turns stay when a turn is appended.

    Under a causal mask they do, and a turn computes its own tokens alone. Under a prefix mask, and
    of an encoder that looks ahead, the tokens of earlier turns see the new one: their keys and
    values change, no cache of them is right, and all is computed again.

    Each turn's prompt is what `model.conversation` reads, with a reply of one token, greedy, to
    each turn. Keys and values are compared at the tokens that two prompts begin with, before they
    are rotated, which depends on positions alone; both prompts are padded to one length, so that
    sums run in the same order.

    Args:
        model: a task that generates, with a preprocessor.
        turns: strings, at least two.
        repeats: conversations that are timed, after one that compiles.

    Returns:
        A list of dicts, one per turn: `turn` (from 1); `tokens` of its prompt; `shared`, how many
        of them the prompt of the turn before begins with; `reused` and `encoded`, how many tokens
        `kzoo.models.conversation` had in its cache and how many it computed; `key_change` and
        `value_change`, the largest change of an entry, over all layers, at the shared tokens
        (None for the first turn; of an encoder and a decoder those of the encoder and of the
        cross-attention); and `seconds` to the first token, the median of the repeats.

    Raises:
        InputError: for a model that generates no text, fewer than two turns, or turns that are
            too long for the model together.

    Example:
        >>> [turn["key_change"] for turn in cache_reuse(model, ["Who are you?", "And I?"])]
        [None, 0.0]
    """
    if isinstance(turns, str) or len(turns) < 2:
        raise InputError(f"a conversation has two turns or more. Received: {turns!r:.100}")
    if not is_count(repeats):
        raise InputError(f"repeats is a positive integer. Received: {repeats!r}")
    prompts, _ = _converse(model, turns)
    timed = [_converse(model, turns)[1] for _ in range(repeats)]
    seconds = np.median([[turn["seconds"] for turn in turns] for turns in timed], axis=0)
    states = _keys_and_values(model, prompts)
    found = []
    for i, turn in enumerate(timed[-1]):
        figures: dict[str, Any] = {"shared": 0, **dict.fromkeys(_NAMES)}
        if i:
            shared = figures["shared"] = _shared(*(_read(p) for p in prompts[i - 1 : i + 1]))
            for name, before, after in zip(_NAMES, states[i - 1], states[i], strict=True):
                figures[name] = max(
                    float(np.abs(x[:shared] - y[:shared]).max(initial=0))
                    for x, y in zip(before, after, strict=True)
                )
        found.append({"turn": i + 1, **turn, **figures, "seconds": float(seconds[i])})
    return found


_NAMES = ("key_change", "value_change")


def _converse(model, turns):
    """The prompt of each turn of a new conversation, and what each turn took."""
    talk = model.conversation(sampler="greedy", stop_token_ids=None)
    prompts, took = [], []
    for text in turns:
        prompt = talk.prompt(text)[1]
        prompts.append(prompt)
        start = time.perf_counter()
        list(talk.tokens(text, max_length=1))
        seconds = time.perf_counter() - start
        counts = {"tokens": len(_read(prompt)), "reused": talk.reused, "encoded": talk.encoded}
        took.append({**counts, "seconds": seconds})
    return prompts, took


def _read(prompt):
    """The tokens of a prompt that grow with the conversation."""
    return prompt.ids if prompt.encoded is None else prompt.encoded


def _shared(before, after):
    """How many tokens two sequences begin with alike."""
    count = min(len(before), len(after))
    differ = np.flatnonzero(before[:count] != after[:count])
    return int(differ[0]) if len(differ) else count


def _keys_and_values(model, prompts):
    """For each prompt (keys, values), each a list of float64 arrays [time, size], one per
    attention over the tokens that grow."""
    times = [max(len(ids) for ids in each) for each in zip(*map(_sequences, prompts), strict=True)]
    return [_of_prompt(model, prompt, times) for prompt in prompts]


def _sequences(prompt):
    return [prompt.ids] if prompt.encoded is None else [prompt.encoded, prompt.ids]


def _of_prompt(model, prompt, times):
    names = [""] if prompt.encoded is None else ["encoder_", "decoder_"]
    x = {}
    for prefix, ids, time_ in zip(names, _sequences(prompt), times, strict=True):
        x[f"{prefix}token_ids"] = _padded(ids, time_)
        x[f"{prefix}padding_mask"] = _padded(np.ones(len(ids)), time_)
    if prompt.encoded is None:
        x["source_mask"] = _padded(np.ones(prompt.source), times[0])
        if prompt.segments is not None:
            x["segment_ids"] = _padded(prompt.segments[:-1], times[0])
    stacks = activations(model, x)
    pairs = [
        (block.attention, block.attention_inputs(ops.convert_to_tensor(state)))
        for block, state in zip(stacks[0].blocks, stacks[0].states[:-1], strict=True)
    ]
    if len(stacks) > 1:
        norm = model.backbone.stacks["encoder"].final_norm
        encoded = ops.convert_to_tensor(stacks[0].states[-1])
        encoded = encoded if norm is None else norm(encoded)
        pairs += [(block.cross_attention, encoded) for block in stacks[1].blocks]
    project = [(attention.key(x), attention.value(x)) for attention, x in pairs]
    return [[numpy(each[i])[0] for each in project] for i in range(2)]


def _padded(values, time_):
    return np.pad(np.asarray(values, "int32"), (0, time_ - len(values)))[None]
