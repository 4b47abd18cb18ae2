"""One sequence that grows: `Session`, which keeps a cache for it, and `Conversation`."""

from collections.abc import Iterator
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.models.compiled import compiled
from kzoo.models.prompts import Prompt, bucket
from kzoo.values import is_count


class Programs:
    """The functions that sessions of one model and sampler run, compiled once for each shape."""

    def __init__(self, model, sampler):
        def empty_cache(_, inputs):
            inputs = _tensors(inputs)
            return inputs["start"], model.empty_cache(inputs)

        def read(cache, inputs, index=None):
            inputs = _tensors(inputs)
            index = inputs["index"] if index is None else index
            tokens, end, segment_ids = inputs["tokens"], inputs["end"], inputs.get("segment_ids")
            hidden, cache = model.backbone.decode(tokens, cache, index, end, segment_ids)
            last = ops.slice(hidden, [0, end[0] - index - 1, 0], (1, 1, hidden.shape[2]))
            last = model.prediction_states(last, cache, end[0], inputs.get("next_segment"))
            probabilities = sampler.compute_probabilities(model.head(last)[:, 0])
            return sampler.get_next_token(probabilities), cache

        def read_first(cache, inputs):
            return read(cache, inputs, index=0)

        self.empty_cache, self.read, self.read_first = (
            compiled(function, model, sampler.variables)
            for function in (empty_cache, read, read_first)
        )


def _tensors(inputs):
    return {name: ops.convert_to_tensor(x) for name, x in inputs.items()}


class Session:
    """One sequence of tokens with the cache of those that the model has read.

    Args:
        model: a task that generates.
        sampler: a `keras_hub.samplers.Sampler` that chooses each token once, from one distribution.
        time: the most tokens of the sequence; by default the model's longest sequence.

    Attributes:
        length: how many tokens of the sequence the model has read.
    """

    def __init__(self, model, sampler, time=None):
        if type(sampler).__call__ is not keras_hub.samplers.Sampler.__call__:
            raise InputError(
                "a stream or conversation needs a sampler that chooses each token once: 'greedy', "
                "'top_k', 'top_p' or 'random'. "
                f"Received: {type(sampler).__name__}"
            )
        self.model, self.time = model, time or model.longest_sequence()
        self._programs = model.programs(sampler)

    def begin(self, prompt):
        """Start a new sequence with an empty cache, for a `kzoo.models.prompts.Prompt`."""
        self.length = 0
        inputs = {"tokens": [[0] * self.time], "start": [0], "source_end": [prompt.source]}
        inputs = {name: np.array(values, "int32") for name, values in inputs.items()}
        inputs |= self.model.encoder_inputs([prompt])
        _, self.cache = self._programs.empty_cache(None, inputs)
        self.segments = prompt.segments

    def read(self, tokens):
        """Let the model read the next tokens, a list of ids; choose the one after them, an int."""
        count = len(tokens)
        width = 1 if count == 1 else min(bucket(count), self.time - self.length)
        padded = np.zeros((1, width), "int32")
        padded[0, :count] = tokens
        inputs = {"tokens": padded, "end": np.array([self.length + count], "int32")}
        inputs["index"] = np.array(self.length, "int32")
        if self.segments is not None:
            column = np.minimum(self.length + np.arange(width), len(self.segments) - 1)
            inputs["segment_ids"] = self.segments[column][None].astype("int32")
            inputs["next_segment"] = self.segments[None, -1:].astype("int32")
        first = not self.length and count > 1
        program = self._programs.read_first if first else self._programs.read
        token, self.cache = program(self.cache, inputs)
        self.length += count
        return int(ops.convert_to_numpy(token)[0])

    def generate(self, ids, max_length, stops):
        """Generate tokens, and append each to the list `ids`.

        Args:
            ids: a list of ids, the whole sequence, of which the model has read the first
                `length`.
            max_length: the most tokens of the whole sequence.
            stops: ids that end the generation; they are not appended.

        Yields:
            The new ids.
        """
        while len(ids) < max_length:
            token = self.read(ids[self.length :])
            if token in stops:
                return
            ids.append(token)
            yield token


class Conversation:
    """A conversation in one sequence: BOS said SEP reply SEP said SEP reply …

    Under a causal mask the cache of earlier turns is reused, and only new tokens are computed.
    Under a prefix mask, or with an encoder, everything said so far is the source, whose tokens
    see each other; so each turn computes all of it again.

    Args:
        session: a `Session`.
        stops: ids that end a reply.

    Attributes:
        said: the tokens so far, a list of ids, without the BOS before and the SEP after them.
        reused, encoded: how many tokens of the last turn's prompt were in the cache already, and
            how many that turn computed.

    Example:
        >>> talk = model.conversation(sampler="greedy")
        >>> talk.say("Who are you?", max_length=20)
        >>> talk.say("And what is that?"), talk.reused
    """

    def __init__(self, session: Session, stops: Any) -> None:
        self._session, self._stops = session, stops
        self.said, self.reused, self.encoded = [], 0, 0

    def say(self, text: str, max_length: int | None = None) -> str:
        """The reply to `text`, a string; arguments and errors as in `tokens`."""
        return "".join(self.stream(text, max_length))

    def stream(self, text: str, max_length: int | None = None) -> Iterator[str]:
        """Yields the reply to `text` in pieces of text; arguments and errors as in `tokens`."""
        tokens = self.tokens(text, max_length)
        return pieces(self._session.model.preprocessor.tokenizer, tokens)

    def tokens(self, text: str, max_length: int | None = None) -> Iterator[int]:
        """Yields the ids of the reply to `text`.

        Args:
            text: a string.
            max_length: the most tokens of the reply; by default as many as the sequence has room
                for.

        Raises:
            InputError: if the sequence has no room for the text and one token of the reply, or
                `max_length` is no positive integer. The conversation is unchanged then.
        """
        session, model = self._session, self._session.model
        if max_length is not None and not is_count(max_length):
            raise InputError(f"max_length must be a positive integer. Received: {max_length!r}")
        said, prompt = self.prompt(text)
        if not self.said or model.recomputes_prompts:
            session.begin(prompt)
        session.segments = prompt.segments
        ids = prompt.ids.tolist()
        read = len(ids) if prompt.encoded is None else len(prompt.encoded)
        self.reused, self.encoded = session.length, read - session.length
        longest = session.time if max_length is None else len(ids) + max_length
        tokens = session.generate(ids, min(longest, session.time), self._stops)
        self.said = [*said, model.preprocessor.tokenizer.vocabulary.sep]
        return self._recorded(tokens)

    def prompt(self, text: str) -> tuple[list[int], Prompt]:
        """What the model reads to reply to `text`, which changes nothing.

        Returns:
            `said` with the tokens of `text`, and the `kzoo.models.prompts.Prompt` of it.

        Raises:
            InputError: as `tokens`.
        """
        model = self._session.model
        if not isinstance(text, str):
            raise InputError(f"text must be a string. Received: {type(text).__name__}")
        (new,) = model.preprocessor.tokens(text)
        sep = model.preprocessor.tokenizer.vocabulary.sep
        said = [*self.said, *[sep] * bool(self.said), *map(int, new)]
        x = model.preprocessor.encoder.prompts([said], as_source=True)
        (prompt,) = model._prompts(x, self._session.time)
        return said, prompt

    def _recorded(self, tokens):
        for token in tokens:
            self.said.append(token)
            yield token


def pieces(tokenizer, tokens):
    """Yields the text of tokens piece by piece, each of whole characters.

    Args:
        tokenizer: whose `detokenize` turns a list of ids into a string.
        tokens: an iterable of ids.
    """
    ids, sent, text = [], 0, ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.detokenize(ids)
        known = len(text.rstrip("\ufffd"))  # the end can be an incomplete character
        if known > sent:
            yield text[sent:known]
            sent = known
    if len(text) > sent:
        yield text[sent:]
