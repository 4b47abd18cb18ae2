"""One row that grows: a session with its cache, and a conversation in it."""

from collections.abc import Iterator
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.models.compiled import compiled
from kzoo.models.prompts import bucket
from kzoo.values import is_count


class Programs:
    """What sessions of one model and sampler run, compiled once for each shape."""

    def __init__(self, model, sampler):
        def begin(_, inputs):
            inputs = _tensors(inputs)
            return inputs["start"], model.begin(inputs)

        def read(cache, inputs, index=None):
            inputs = _tensors(inputs)
            index = inputs["index"] if index is None else index
            row, end, segment_ids = inputs["row"], inputs["end"], inputs.get("segment_ids")
            hidden, cache = model.backbone.decode(row, cache, index, end, segment_ids)
            last = ops.slice(hidden, [0, end[0] - index - 1, 0], (1, 1, hidden.shape[2]))
            last = model.prediction_states(last, cache, end[0], inputs.get("next_segment"))
            probabilities = sampler.compute_probabilities(model.head(last)[:, 0])
            return sampler.get_next_token(probabilities), cache

        def read_first(cache, inputs):
            return read(cache, inputs, index=0)

        self.begin, self.read, self.read_first = (
            compiled(function, model, sampler.variables) for function in (begin, read, read_first)
        )


def _tensors(inputs):
    return {name: ops.convert_to_tensor(x) for name, x in inputs.items()}


class Session:
    """One row of tokens, and what a model has computed of it.

    Args:
        model: a task that generates.
        sampler: a `keras_hub.samplers.Sampler` that draws one token from one distribution.
        time: the most tokens that the row can have; by default the model's longest row.

    Attributes:
        length: how many tokens of the row are computed.
    """

    def __init__(self, model, sampler, time=None):
        if type(sampler).__call__ is not keras_hub.samplers.Sampler.__call__:
            raise InputError(
                "token by token go 'greedy', 'top_k', 'top_p' and 'random'. "
                f"Received: {type(sampler).__name__}"
            )
        self.model, self.time = model, time or model.longest_sequence()
        self._programs = model.programs(sampler)

    def begin(self, prompt):
        """Forget everything, for a row that begins with a `kzoo.models.prompts.Prompt`."""
        self.length = 0
        rows = {"row": [[0] * self.time], "start": [0], "source_end": [prompt.source]}
        inputs = {name: np.array(values, "int32") for name, values in rows.items()}
        inputs |= self.model.encoder_inputs([prompt])
        _, self.cache = self._programs.begin(None, inputs)
        self.segments = prompt.segments

    def read(self, tokens):
        """Compute the row's next tokens, a sequence of ids, and draw the one after them: an int."""
        count = len(tokens)
        width = 1 if count == 1 else min(bucket(count), self.time - self.length)
        row = np.zeros((1, width), "int32")
        row[0, :count] = tokens
        inputs = {"row": row, "end": np.array([self.length + count], "int32")}
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

    def go_on(self, row, max_length, stops):
        """Draw tokens, and append each to the list `row`.

        Args:
            row: a list of ids, of which the first `length` are computed.
            max_length: where it ends at the latest, in tokens.
            stops: ids that end it and do not join it.

        Yields:
            The new ids.
        """
        while len(row) < max_length:
            token = self.read(row[self.length :])
            if token in stops:
                return
            row.append(token)
            yield token


class Conversation:
    """Turns of a conversation in one row: BOS said SEP reply SEP said SEP reply …

    A causal model reads what is new, and keeps what it computed. Under a prefix mask, or with an
    encoder, everything said so far is the source, whose tokens see each other: each turn reads
    all of it again.

    Args:
        session: a `Session`.
        stops: ids that end a reply.

    Attributes:
        said: the tokens so far, a list of ids, without the BOS before and the SEP after them.
        reused, encoded: how many tokens of the last turn's prompt were computed before, and how
            many that turn computed.

    Example:
        >>> talk = model.conversation(sampler="greedy")
        >>> talk.say("Who are you?", max_length=20)
        >>> talk.say("And what is that?"), talk.reused
    """

    def __init__(self, session: Session, stops: Any) -> None:
        self._session, self._stops = session, stops
        self.said, self.reused, self.encoded = [], 0, 0

    def say(self, text: str, max_length: int | None = None) -> str:
        """The reply to `text`, a string: what `stream` yields, joined."""
        return "".join(self.stream(text, max_length))

    def stream(self, text: str, max_length: int | None = None) -> Iterator[str]:
        """Yields the reply to `text` in pieces of text; arguments and errors as in `tokens`."""
        tokens = self.tokens(text, max_length)
        return pieces(self._session.model.preprocessor.tokenizer, tokens)

    def tokens(self, text: str, max_length: int | None = None) -> Iterator[int]:
        """Yields the ids of the reply to `text`.

        Args:
            text: a string.
            max_length: the most tokens of the reply; by default what there is room for.

        Raises:
            InputError: if there is no room for the text and a token of reply, or `max_length` is
                no positive integer. Then nothing was said.
        """
        session, model = self._session, self._session.model
        if not isinstance(text, str):
            raise InputError(f"what is said is a string. Received: {type(text).__name__}")
        if max_length is not None and not is_count(max_length):
            raise InputError(f"max_length is a positive integer. Received: {max_length!r}")
        (ids,) = model.preprocessor.tokens(text)
        sep = model.preprocessor.tokenizer.vocabulary.sep
        said = [*self.said, *[sep] * bool(self.said), *map(int, ids)]
        x = model.preprocessor.encoder.prompts([said], as_source=True)
        (prompt,) = model._prompts(x, session.time)
        if not self.said or model.rereads:
            session.begin(prompt)
        session.segments = prompt.segments
        row = prompt.ids.tolist()
        read = len(row) if prompt.encoded is None else len(prompt.encoded)
        self.reused, self.encoded = session.length, read - session.length
        longest = session.time if max_length is None else len(row) + max_length
        tokens = session.go_on(row, min(longest, session.time), self._stops)
        self.said = [*said, sep]
        return self._noting(tokens)

    def _noting(self, tokens):
        for token in tokens:
            self.said.append(token)
            yield token


def pieces(tokenizer, tokens):
    """Yields the text of tokens as it becomes known: characters come whole.

    Args:
        tokenizer: whose `detokenize` turns a list of ids into a string.
        tokens: an iterable of ids.
    """
    ids, sent, text = [], 0, ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.detokenize(ids)
        known = len(text.rstrip("\ufffd"))  # which may be the beginning of a character
        if known > sent:
            yield text[sent:known]
            sent = known
    if len(text) > sent:
        yield text[sent:]
