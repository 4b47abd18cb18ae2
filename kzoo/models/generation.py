"""Text from models: one pass over the prompts of a batch fills a cache, then tokens come.

How rows are laid out stands in `kzoo.models.prompts`; what a cache is, at `Backbone.init_cache`.
Tokens are chosen by keras-hub's samplers, and by `kzoo.models.BeamSampler`.
"""

import contextlib
import logging
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras_hub
import numpy as np
from keras import ops

from kzoo.errors import InputError, unknown
from kzoo.models.beams import BeamSampler
from kzoo.models.conversation import Conversation, Programs, Session, pieces
from kzoo.models.prompts import FREE, Prompt, aligned_right, bucket, until
from kzoo.objectives.layouts import aligned_left
from kzoo.typing import Tensor
from kzoo.values import is_integer

logger = logging.getLogger(__name__)

DRAWING = ("top_k", "top_p", "random")
ONE_BY_ONE = ("greedy", *DRAWING)  # choose a token for good, given one distribution
SAMPLERS = (*ONE_BY_ONE, "beam", "contrastive")


def get_sampler(spec, seed=None):
    """The sampler of a name, or `spec` if it is one.

    Args:
        spec: a name of `SAMPLERS`, or a `keras_hub.samplers.Sampler`. keras-hub's `BeamSampler`
            becomes a `kzoo.models.BeamSampler` with a length penalty of 0: the same search, but
            that its beams end at a stop token.
        seed: an integer, for a name of `DRAWING`.

    Raises:
        InputError: for an unknown name, anything else, or a seed of what draws nothing.
    """
    if isinstance(spec, str):
        if spec not in SAMPLERS:
            raise unknown("sampler", spec, SAMPLERS)
        if seed is not None and spec not in DRAWING:
            raise InputError(f"the sampler {spec!r} draws nothing at random. Received: seed {seed}")
        config = {} if seed is None else {"seed": seed}
        if spec == "beam":
            return BeamSampler()
        return keras_hub.samplers.get({"class_name": spec, "config": config})
    if not isinstance(spec, keras_hub.samplers.Sampler):
        raise InputError(f"a sampler is a name or a keras_hub.samplers.Sampler. Received: {spec!r}")
    if type(spec) is keras_hub.samplers.BeamSampler:
        ours = BeamSampler(length_penalty=0.0, **spec.get_config())
        logger.info("keras-hub's BeamSampler goes on after stop tokens; taken for it: %r", ours)
        return ours
    if isinstance(spec, keras_hub.samplers.BeamSampler):
        raise InputError(
            "beams of keras-hub go on after stop tokens; use a kzoo.models.BeamSampler. "
            f"Received: {type(spec).__name__}, a subclass of keras_hub.samplers.BeamSampler"
        )
    return spec


class Generates:
    """A mixin for tasks of next tokens: `generate`, `stream`, `conversation`."""

    def compile(self, *args: Any, sampler: Any = "top_k", **kwargs: Any) -> None:
        """As every task's `compile`; and `sampler`, a name (`"greedy"`, `"top_k"`, `"top_p"`,
        `"random"`, `"beam"`, `"contrastive"`) or a `keras_hub.samplers.Sampler`, by which
        `generate` chooses tokens unless it is given another."""
        if not isinstance(sampler, str):
            sampler = get_sampler(sampler)
        elif sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        # Programs of each sampler; not in a dict, which Keras would wrap.
        self._generators = types.SimpleNamespace(
            sampler=None, named={}, programs={}, of_sessions={}
        )
        super().compile(*args, sampler=None, **kwargs)
        self.sampler = sampler

    @property
    def sampler(self) -> Any:
        """The compiled one. That of a name is made when `generate` first needs it, and is None
        before: one that draws takes its seed from Python's generator, which no model should move
        by being made or saved."""
        spec = self._generators.sampler  # None while keras-hub compiles: TensorFlow reads it then
        return self._generators.named.get(spec) if isinstance(spec, str) else spec

    @sampler.setter
    def sampler(self, spec: Any) -> Any:
        self._generators.sampler = spec

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        sampler: Any = None,
        stop_token_ids: str | Sequence[int] | None = "auto",
        strip_prompt: bool = False,
    ) -> Any:
        """Continue prompts, all in one batch.

        Args:
            inputs: a string or a list of strings; `{"prompts": ...}`, strings that are sources;
                or a dict of integers [batch, time], the model's inputs, each row beginning with
                its prompt. Under an objective that has a source plain strings are sources too.
            max_length: tokens of a whole row, the reserved ones included (of the decoder's, where
                there is one); at most and by default the preprocessor's sequence length, without
                one the backbone's.
            sampler: a name or a `keras_hub.samplers.Sampler`, a `kzoo.models.BeamSampler` say;
                by default the compiled one. What is chosen for a prompt depends on no other
                prompt of the batch, unless it is drawn at random: a sampler with a seed draws
                for a whole batch, and on from call to call, so that its draws depend on the
                place in the batch and on the calls before.
            stop_token_ids: token ids, each of which ends a row; None for none; "auto" is the end
                token.
            strip_prompt: return what is new alone.

        Returns:
            Strings, without the stop token: prompt and continuation, as one text. What
            continues a source is a text of its own, and always comes alone. For token inputs
            a dict of int32 arrays [batch, tokens], `token_ids` and `padding_mask`. With
            `BeamSampler(return_all_beams=True)` there are `num_beams` of each, the best first:
            `{"texts", "scores"}`, a list of strings for each prompt and float32
            [batch, num_beams]; or arrays [batch, num_beams, tokens], and `scores`.

        Raises:
            InputError: for prompts that leave no room, an empty list, token ids or lengths
                out of range, an unknown sampler, or inputs of another kind.

        Example:
            >>> model.generate("Call me", max_length=32, sampler="greedy")
            >>> model.generate({"prompts": ["Who are you?", "Where?"]})
        """
        sampler, stops = self._sampler(sampler), self._stops(stop_token_ids)
        max_length = self._max_length(max_length)
        as_text = not (isinstance(inputs, dict) and "prompts" not in inputs)
        prompts = self._prompts(self._preprocess(inputs) if as_text else inputs, max_length)
        rows, scores = self._continue(prompts, max_length, sampler, stops)
        beams = len(rows) // len(prompts)
        if not as_text:
            if not strip_prompt:
                before = np.repeat(np.arange(len(prompts)), beams)
                pairs = zip(before, rows, strict=True)
                rows = [np.concatenate([prompts[i].ids, row]) for i, row in pairs]
            pad = 0 if self.preprocessor is None else self.preprocessor.tokenizer.pad_token_id
            ids, mask = aligned_left(rows, pad=pad)
            if scores is None:
                return {"token_ids": ids, "padding_mask": mask}
            shape = (len(prompts), beams, -1)
            ids, mask = ids.reshape(shape), mask.reshape(shape)
            return {"token_ids": ids, "padding_mask": mask, "scores": scores}
        texts = self.preprocessor.generate_postprocess(rows)
        given = inputs["prompts"] if isinstance(inputs, dict) else inputs
        if isinstance(inputs, str | list | tuple) and not self.objective.has_source:
            if not strip_prompt:
                given_texts = [inputs] if isinstance(inputs, str) else inputs
                texts = [given_texts[i // beams] + text for i, text in enumerate(texts)]
        if scores is not None:
            texts = [texts[i : i + beams] for i in range(0, len(texts), beams)]
        if isinstance(given, str):
            texts, scores = texts[0], None if scores is None else scores[0]
        return texts if scores is None else {"texts": texts, "scores": scores}

    def stream(
        self,
        prompt: Any,
        max_length: int | None = None,
        sampler: Any = None,
        stop_token_ids: str | Sequence[int] | None = "auto",
    ) -> Iterator[str]:
        """Continue one prompt, and yield the new text in pieces as it is drawn.

        Args:
            prompt: a string, or `{"prompts": string}`.
            max_length, sampler, stop_token_ids: as in `generate`; the sampler is one of
                `"greedy"`, `"top_k"`, `"top_p"` and `"random"`.

        Raises:
            InputError: as `generate`.

        Example:
            >>> for piece in model.stream("Call me"):
            ...     print(piece, end="", flush=True)
        """
        if not isinstance(prompt["prompts"] if isinstance(prompt, dict) else prompt, str):
            raise InputError(f"a stream continues one string. Received: {type(prompt).__name__}")
        stops, max_length = self._stops(stop_token_ids), self._max_length(max_length)
        (prompt,) = self._prompts(self._preprocess(prompt), max_length)
        session = Session(self, self._sampler(sampler))
        session.begin(prompt)
        tokens = session.go_on(prompt.ids.tolist(), max_length, stops)
        return pieces(self.preprocessor.tokenizer, tokens)

    def conversation(
        self, sampler: Any = None, stop_token_ids: str | Sequence[int] | None = "auto"
    ) -> Conversation:
        """A `kzoo.models.conversation.Conversation` with this model, empty at first.

        Args:
            sampler, stop_token_ids: as in `stream`.
        """
        if self.preprocessor is None:
            raise InputError("a conversation needs a preprocessor. Received: preprocessor=None")
        session = Session(self, self._sampler(sampler))
        return Conversation(session, self._stops(stop_token_ids))

    # One batch ------------------------------------------------------------------------------

    def generate_step(self, inputs: Any, stop_token_ids: Any = None) -> Any:
        """What a compiled program does for one batch: one pass over prompts, then tokens.

        Args:
            inputs: int32 tensors by name, from `kzoo.models.prompts.aligned_right`, and what an
                encoder reads.
            stop_token_ids: a sequence of ids, or None.

        Returns:
            What the sampler returns: int32 [batch, time], the rows filled, say.
        """
        inputs = {name: ops.convert_to_tensor(x, "int32") for name, x in inputs.items()}
        prompt, row, index = (inputs[name] for name in ("prompt", "row", "index"))
        batch, time = ops.shape(row)[0], row.shape[1]
        end = ops.zeros_like(inputs["start"]) + index
        hidden, cache = self.backbone.decode(
            prompt, self.begin(inputs), 0, end, inputs.get("segment_ids")
        )

        def step(row, cache, index):
            token = ops.slice(row, [0, index - 1], (ops.shape(row)[0], 1))
            hidden, cache = self.backbone.decode(token, cache, index - 1)
            hidden = self.prediction_states(hidden, cache, index)
            return self.head(hidden)[:, 0], hidden[:, 0], cache

        # The contrastive sampler compares with all hidden states before a column: padding
        # shows it the prompt's last one again, which changes no maximum.
        column = ops.arange(time, dtype="int32")[None]
        given, width = column < index, hidden.shape[2]
        last = ops.slice(hidden, [0, index - 1, 0], (batch, 1, width))
        rest = ops.zeros((batch, time - prompt.shape[1], width), hidden.dtype)
        hidden = ops.concatenate([hidden, rest], axis=1)
        real = ops.logical_and(given, column >= inputs["start"][:, None])
        return self.sampler(
            next=step,
            prompt=row,
            cache=cache,
            index=index,
            mask=ops.not_equal(row, FREE),
            stop_token_ids=stop_token_ids,
            hidden_states=ops.where(real[..., None], hidden, last),
            model=self,
        )

    def prediction_states(
        self, hidden: Tensor, cache: Any, column: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """The states that tell the token at a column: [batch, 1, hidden_dim].

        Args:
            hidden: those of the token before it, which tell it where `prediction_site` is "next".
                Where it is "mask", those of a mask token at the column do (Dong et al. 2019,
                arXiv:1905.03197, section 2.5), and the cache forgets that token.
            cache: that holds the columns before.
            column: int32 scalar.
            segment_ids: integers [batch, 1], those of the column.
        """
        if self.prediction_site == "next":
            return hidden
        mask = self.preprocessor.tokenizer.vocabulary.mask
        masks = ops.zeros_like(cache["length"])[:, None] + mask
        return self.backbone.decode(masks, cache, column, segment_ids=segment_ids)[0]

    def begin(self, inputs: Any) -> Any:
        """The cache of rows of which nothing is computed yet; inputs as in `generate_step`."""
        rows = (inputs["start"], inputs["source_end"], inputs["row"].shape[1])
        return self.backbone.init_cache(*rows, inputs.get("segments"))

    def encoder_inputs(self, prompts: Any) -> Any:
        """What `begin` takes of prompts besides their rows: int32 arrays by name."""
        return {}

    def _continue(self, prompts, max_length, sampler, stops):
        """The new tokens of each row, without the stop token: a list of arrays, and None. With
        all beams, those of one prompt after those of another, and float32 [batch, beams]."""
        inputs = aligned_right(prompts, max_length)
        index = int(inputs["index"])
        inputs |= self.encoder_inputs(prompts)
        with self._choosing(sampler):
            found = self.make_generate_function()(inputs, stop_token_ids=stops or None)
        found, scores = found if isinstance(found, tuple) else (found, None)
        new = ops.convert_to_numpy(found)[..., index:]
        new = new.reshape(len(prompts), -1, new.shape[-1])
        rows = [
            until(row[: max_length - len(prompt.ids)], stops)
            for prompt, of_prompt in zip(prompts, new, strict=True)
            for row in of_prompt
        ]
        return rows, None if scores is None else ops.convert_to_numpy(scores)

    def programs(self, sampler: Any) -> Any:
        """The `kzoo.models.conversation.Programs` of a sampler."""
        known = self._generators.of_sessions
        if sampler not in known:
            known[sampler] = Programs(self, sampler)
        return known[sampler]

    @contextlib.contextmanager
    def _choosing(self, sampler):
        """Inside it `make_generate_function` gives the program of `sampler`."""
        compiled = self._generators.sampler, self.generate_function
        self.sampler = sampler
        self.generate_function = self._generators.programs.get(sampler)
        try:
            yield
            self._generators.programs[sampler] = self.generate_function
        finally:
            self.sampler, self.generate_function = compiled

    # Arguments ------------------------------------------------------------------------------

    def _sampler(self, spec):
        spec = self._generators.sampler if spec is None else spec
        if isinstance(spec, str | keras_hub.samplers.BeamSampler):
            # The same one in every call, with one compiled program.
            if spec not in self._generators.named:
                self._generators.named[spec] = get_sampler(spec)
            return self._generators.named[spec]
        return get_sampler(spec)

    def _stops(self, ids):
        if ids is None:
            return ()
        if isinstance(ids, str) and ids == "auto":
            if self.preprocessor is None:
                raise InputError(
                    "without a preprocessor no token is known to end a row; give ids or None. "
                    "Received: stop_token_ids='auto'"
                )
            return (self.preprocessor.tokenizer.end_token_id,)
        ids = (ids,) if is_integer(ids) else ids
        size = self.backbone.vocabulary_size
        known = isinstance(ids, list | tuple) and all(is_integer(i) and 0 <= i < size for i in ids)
        if not known or not ids:
            raise InputError(
                f"stop_token_ids are 'auto', None, or ids in [0, {size}), of which each ends a "
                f"row. Received: {ids!r:.120}"
            )
        return tuple(map(int, ids))

    def _max_length(self, given):
        longest = self.longest_sequence()
        if given is None:
            return longest
        if not is_integer(given):
            raise InputError(f"max_length is an integer. Received: {given!r}")
        if not 1 <= given <= longest:
            raise InputError(
                f"max_length counts all tokens of a row, 1 to {longest}. Received: {given}"
            )
        return int(given)

    def longest_sequence(self) -> int:
        """The most tokens of a row."""
        longest = self.backbone.max_sequence_length
        if self.preprocessor is None:
            return longest
        length = self.preprocessor.sequence_length
        return min(length, longest) if self.backbone.positions == "learned" else length

    def _preprocess(self, prompts):
        if self.preprocessor is None:
            raise InputError(
                "a model without a preprocessor continues token_ids. "
                f"Received: {type(prompts).__name__}"
            )
        return self.preprocessor.generate_preprocess(prompts)

    def _prompts(self, x, max_length):
        """Inputs of the model, checked, as a list of `Prompt`."""
        rows = self._beginnings(x, "token_ids", "padding_mask", max_length - 1)
        sources, segments = np.zeros(len(rows), int), [None] * len(rows)
        if "source_mask" in self.input:
            source = self._beside(x, "source_mask")
            sources = np.cumprod((source != 0) & (np.asarray(x["padding_mask"]) != 0), 1).sum(1)
        if "segment_ids" in self.input:
            given = self._beside(x, "segment_ids")
            segments = [
                np.append(ids[: len(row)], self._next_segment(row[-1], ids[len(row) - 1]))
                for ids, row in zip(given, rows, strict=True)
            ]
        return [Prompt(*parts) for parts in zip(rows, sources, segments, strict=True)]

    def _next_segment(self, token, segment):
        """That of what follows a token: after a source's separator comes a target."""
        preprocessor = self.preprocessor
        if preprocessor is not None and token == preprocessor.tokenizer.vocabulary.sep:
            return preprocessor.segments[1]
        return segment

    def _beside(self, x, name):
        array, shape = np.asarray(x[name]), np.shape(x["token_ids"])
        if array.shape != shape:
            raise InputError(f"{name} has the shape {list(shape)}. Received: {list(array.shape)}")
        return array

    def _beginnings(self, x, ids_name, mask_name, longest):
        """What a batch of token ids begins with, checked: a list of int32 arrays."""
        x = {name: np.asarray(array) for name, array in x.items()}
        self._check_tokens(x)
        ids, mask = x[ids_name], x[mask_name]
        if ids.ndim != 2 or ids.shape != mask.shape or not ids.size:
            raise InputError(
                f"{ids_name} and {mask_name} have one shape [batch, time], with a row at least. "
                f"Received: {list(ids.shape)} and {list(mask.shape)}"
            )
        real = mask != 0
        lengths = real.sum(1)
        if not lengths.all() or (real != (np.arange(ids.shape[1]) < lengths[:, None])).any():
            raise InputError(
                "a prompt is one document of a token at least, which begins its row. "
                f"Received: {mask_name} {mask.tolist()!r:.120}"
            )
        if lengths.max() > longest:
            raise InputError(
                f"a prompt has at most {longest} tokens here, the reserved ones included. "
                f"Received: one of {lengths.max()}"
            )
        return [row[:length].astype("int32") for row, length in zip(ids, lengths, strict=True)]


class GeneratesFromEncoder(Generates):
    """`Generates` where the prompt is what an encoder reads, once; a decoder begins with BOS."""

    def begin(self, inputs: Any) -> Any:
        padding_mask = inputs["encoder_padding_mask"]
        encoded = self.backbone.encode(inputs["encoder_token_ids"], padding_mask)
        rows = (inputs["start"], inputs["source_end"], inputs["row"].shape[1])
        look = {"encoded": encoded, "encoder_padding_mask": padding_mask}
        return self.backbone.init_cache(*rows, **look)

    def encoder_inputs(self, prompts: Any) -> Any:
        rows = [prompt.encoded for prompt in prompts]
        width = min(bucket(max(map(len, rows))), self.longest_sequence())
        names = ("encoder_token_ids", "encoder_padding_mask")
        return dict(zip(names, aligned_left(rows, width), strict=True))

    def _prompts(self, x, max_length):
        names = ("encoder_token_ids", "encoder_padding_mask")
        encoded = self._beginnings(x, *names, self.longest_sequence())
        names = ("decoder_token_ids", "decoder_padding_mask")
        rows = self._beginnings(x, *names, max_length - 1)
        if len(rows) != len(encoded):
            raise InputError(
                "the encoder and the decoder have as many rows. "
                f"Received: {len(encoded)} and {len(rows)}"
            )
        pairs = zip(rows, encoded, strict=True)
        return [Prompt(row, encoded=source) for row, source in pairs]
