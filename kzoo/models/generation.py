"""Text generation: one pass over the prompts of a batch fills a cache, then each step computes
one token.

`kzoo.models.prompts` says how the prompts of a batch are aligned, `Backbone.init_cache` what a
cache holds. keras-hub's samplers and `kzoo.models.BeamSampler` choose the tokens.
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
ONE_BY_ONE = ("greedy", *DRAWING)  # samplers that choose each token once, from one distribution
SAMPLERS = (*ONE_BY_ONE, "beam", "contrastive")


def get_sampler(spec, seed=None):
    """The sampler with a name; a sampler is returned as it is.

    Args:
        spec: a name of `SAMPLERS`, or a `keras_hub.samplers.Sampler`. keras-hub's `BeamSampler`
            becomes a `kzoo.models.BeamSampler` with a length penalty of 0, which searches the
            same way, except that its beams end at a stop token.
        seed: an integer, for a name of `DRAWING` (the samplers that draw at random).

    Raises:
        InputError: for an unknown name, another type, or a seed for a sampler that draws nothing.
    """
    if isinstance(spec, str):
        if spec not in SAMPLERS:
            raise unknown("sampler", spec, SAMPLERS)
        if seed is not None and spec not in DRAWING:
            raise InputError(
                f"seed must be None for the sampler {spec!r}, which draws nothing at random. "
                f"Received: seed={seed!r}"
            )
        config = {} if seed is None else {"seed": seed}
        if spec == "beam":
            return BeamSampler()
        return keras_hub.samplers.get({"class_name": spec, "config": config})
    if not isinstance(spec, keras_hub.samplers.Sampler):
        raise InputError(
            f"sampler must be a name or a keras_hub.samplers.Sampler. Received: {spec!r}"
        )
    if type(spec) is keras_hub.samplers.BeamSampler:
        ours = BeamSampler(length_penalty=0.0, **spec.get_config())
        logger.info(
            "keras-hub's BeamSampler continues beams after stop tokens; used instead: %r", ours
        )
        return ours
    if isinstance(spec, keras_hub.samplers.BeamSampler):
        raise InputError(
            "keras-hub continues beams after stop tokens; use a kzoo.models.BeamSampler. "
            f"Received: {type(spec).__name__}, a subclass of keras_hub.samplers.BeamSampler"
        )
    return spec


class Generates:
    """A mixin for tasks that predict the next token: `generate`, `stream`, `conversation`."""

    def compile(self, *args: Any, sampler: Any = "top_k", **kwargs: Any) -> None:
        """As every task's `compile`, with the sampler that `generate` uses by default.

        Args:
            sampler: a name (`"greedy"`, `"top_k"`, `"top_p"`, `"random"`, `"beam"`,
                `"contrastive"`) or a `keras_hub.samplers.Sampler`.
        """
        if not isinstance(sampler, str):
            sampler = get_sampler(sampler)
        elif sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        # Compiled programs by sampler. A namespace, since Keras would wrap a dict.
        self._generators = types.SimpleNamespace(
            sampler=None, named={}, programs={}, of_sessions={}
        )
        super().compile(*args, sampler=None, **kwargs)
        self.sampler = sampler

    @property
    def sampler(self) -> Any:
        """The sampler given to `compile`. One given by name is made when `generate` first needs it,
        and is None before: a sampler that draws takes its seed from Python's random generator,
        whose state should not change because a model is made or saved."""
        spec = (
            self._generators.sampler
        )  # None during keras-hub's `compile`, where TensorFlow reads it
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
            inputs: a string or a list of strings; `{"prompts": ...}`, strings that are sources,
                which the model answers; or a dict of the model's inputs, integers [batch, time],
                in which each example begins with its prompt. If the objective has a source, plain
                strings are sources too.
            max_length: the most tokens of a sequence, its prompt and reserved tokens included
                (of the decoder's sequence, in an encoder–decoder). The default, and the largest
                value, is the preprocessor's sequence length, or the backbone's without a
                preprocessor.
            sampler: a name or a `keras_hub.samplers.Sampler`, such as a
                `kzoo.models.BeamSampler`; by default the one given to `compile`. What is generated
                for a prompt does not depend on the other prompts, unless the sampler draws at
                random: a sampler with a seed draws for the whole batch and continues its
                sequence of draws from call to call, so that they depend on the index in the
                batch and on earlier calls.
            stop_token_ids: token ids, each of which ends a sequence; None for none; "auto" is the
                tokenizer's end token.
            strip_prompt: return only the generated part.

        Returns:
            Strings, without the stop token: the prompt with its continuation. For a source only
            the generated target is returned. For token inputs a dict of int32 arrays
            [batch, tokens], `token_ids` and `padding_mask`. With
            `BeamSampler(return_all_beams=True)` there are `num_beams` of each, the best first:
            `{"texts", "scores"}`, a list of strings for each prompt and float32
            [batch, num_beams]; or arrays [batch, num_beams, tokens], and `scores`.

        Raises:
            InputError: if a prompt leaves no room for a token, the list is empty, token ids or
                lengths are out of range, the sampler is unknown, or inputs are of another type.

        Example:
            >>> model.generate("Call me", max_length=32, sampler="greedy")
            >>> model.generate({"prompts": ["Who are you?", "Where?"]})
        """
        sampler, stops = self._sampler(sampler), self._stops(stop_token_ids)
        max_length = self._max_length(max_length)
        as_text = not (isinstance(inputs, dict) and "prompts" not in inputs)
        prompts = self._prompts(self._preprocess(inputs) if as_text else inputs, max_length)
        sequences, scores = self._continue(prompts, max_length, sampler, stops)
        beams = len(sequences) // len(prompts)
        if not as_text:
            if not strip_prompt:
                before = np.repeat(np.arange(len(prompts)), beams)
                pairs = zip(before, sequences, strict=True)
                sequences = [np.concatenate([prompts[i].ids, new]) for i, new in pairs]
            pad = 0 if self.preprocessor is None else self.preprocessor.tokenizer.pad_token_id
            ids, mask = aligned_left(sequences, pad=pad)
            if scores is None:
                return {"token_ids": ids, "padding_mask": mask}
            shape = (len(prompts), beams, -1)
            ids, mask = ids.reshape(shape), mask.reshape(shape)
            return {"token_ids": ids, "padding_mask": mask, "scores": scores}
        texts = self.preprocessor.generate_postprocess(sequences)
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
        """Continue one prompt, and yield the new text in pieces as it is generated.

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
            raise InputError(f"stream continues one string. Received: {type(prompt).__name__}")
        stops, max_length = self._stops(stop_token_ids), self._max_length(max_length)
        (prompt,) = self._prompts(self._preprocess(prompt), max_length)
        session = Session(self, self._sampler(sampler))
        session.begin(prompt)
        tokens = session.generate(prompt.ids.tolist(), max_length, stops)
        return pieces(self.preprocessor.tokenizer, tokens)

    def conversation(
        self, sampler: Any = None, stop_token_ids: str | Sequence[int] | None = "auto"
    ) -> Conversation:
        """A new `kzoo.models.conversation.Conversation` with this model.

        Args:
            sampler, stop_token_ids: as in `stream`.
        """
        if self.preprocessor is None:
            raise InputError("a conversation needs a preprocessor. Received: preprocessor=None")
        session = Session(self, self._sampler(sampler))
        return Conversation(session, self._stops(stop_token_ids))

    # One batch ------------------------------------------------------------------------------

    def generate_step(self, inputs: Any, stop_token_ids: Any = None) -> Any:
        """Generate for one batch, compiled: one pass over the prompts, then one step per token.

        Args:
            inputs: int32 tensors by name, from `kzoo.models.prompts.aligned_right` and
                `encoder_inputs`.
            stop_token_ids: a sequence of ids, or None.

        Returns:
            What the sampler returns: int32 [batch, time], all columns with the generated tokens; a
            `BeamSampler` can return several for each prompt, and their scores.
        """
        inputs = {name: ops.convert_to_tensor(x, "int32") for name, x in inputs.items()}
        prompt, tokens, index = (inputs[name] for name in ("prompt", "tokens", "index"))
        batch, time = ops.shape(tokens)[0], tokens.shape[1]
        end = ops.zeros_like(inputs["start"]) + index
        hidden, cache = self.backbone.decode(
            prompt, self.empty_cache(inputs), 0, end, inputs.get("segment_ids")
        )

        def step(tokens, cache, index):
            token = ops.slice(tokens, [0, index - 1], (ops.shape(tokens)[0], 1))
            hidden, cache = self.backbone.decode(token, cache, index - 1)
            hidden = self.prediction_states(hidden, cache, index)
            return self.head(hidden)[:, 0], hidden[:, 0], cache

        # The contrastive sampler compares a candidate with all hidden states before its column
        # and takes the maximum, which a copy of the prompt's last state in the padding does not
        # change.
        column = ops.arange(time, dtype="int32")[None]
        given, width = column < index, hidden.shape[2]
        last = ops.slice(hidden, [0, index - 1, 0], (batch, 1, width))
        rest = ops.zeros((batch, time - prompt.shape[1], width), hidden.dtype)
        hidden = ops.concatenate([hidden, rest], axis=1)
        real = ops.logical_and(given, column >= inputs["start"][:, None])
        return self.sampler(
            next=step,
            prompt=tokens,
            cache=cache,
            index=index,
            mask=ops.not_equal(tokens, FREE),
            stop_token_ids=stop_token_ids,
            hidden_states=ops.where(real[..., None], hidden, last),
            model=self,
        )

    def prediction_states(
        self, hidden: Tensor, cache: Any, column: Tensor, segment_ids: Tensor | None = None
    ) -> Tensor:
        """The hidden states from which the token at a column is predicted: [batch, 1, hidden_dim].

        If `prediction_site` is "next", they are those of the token before it. If it is "mask", a
        mask token is fed at the column, and they are its states (Dong et al. 2019,
        arXiv:1905.03197, section 2.5); it is not kept in the cache.

        Args:
            hidden: floats [batch, 1, hidden_dim], the states of the token before.
            cache: holds the columns before.
            column: int32 scalar.
            segment_ids: integers [batch, 1], the segment of the column.
        """
        if self.prediction_site == "next":
            return hidden
        mask = self.preprocessor.tokenizer.vocabulary.mask
        masks = ops.zeros_like(cache["length"])[:, None] + mask
        return self.backbone.decode(masks, cache, column, segment_ids=segment_ids)[0]

    def empty_cache(self, inputs: Any) -> Any:
        """The cache before any token is computed; inputs as in `generate_step`."""
        time = inputs["tokens"].shape[1]
        return self.backbone.init_cache(
            inputs["start"], inputs["source_end"], time, inputs.get("segments")
        )

    def encoder_inputs(self, prompts: Any) -> Any:
        """The encoder's inputs for a list of prompts, int32 arrays by name; {} without one."""
        return {}

    def _continue(self, prompts, max_length, sampler, stops):
        """The generated tokens, without the stop token.

        Returns:
            A list of arrays, one for each prompt (with all beams `num_beams` for each, prompt by
            prompt), and the beams' scores, float32 [batch, num_beams], or None.
        """
        inputs = aligned_right(prompts, max_length)
        index = int(inputs["index"])
        inputs |= self.encoder_inputs(prompts)
        with self._choosing(sampler):
            found = self.make_generate_function()(inputs, stop_token_ids=stops or None)
        found, scores = found if isinstance(found, tuple) else (found, None)
        new = ops.convert_to_numpy(found)[..., index:]
        new = new.reshape(len(prompts), -1, new.shape[-1])
        sequences = [
            until(tokens[: max_length - len(prompt.ids)], stops)
            for prompt, of_prompt in zip(prompts, new, strict=True)
            for tokens in of_prompt
        ]
        return sequences, None if scores is None else ops.convert_to_numpy(scores)

    def programs(self, sampler: Any) -> Any:
        """The `kzoo.models.conversation.Programs` of a sampler, compiled once."""
        known = self._generators.of_sessions
        if sampler not in known:
            known[sampler] = Programs(self, sampler)
        return known[sampler]

    @contextlib.contextmanager
    def _choosing(self, sampler):
        """A context in which `make_generate_function` returns the program of `sampler`."""
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
            # The same sampler in every call, so that its program is compiled once.
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
                    "without a preprocessor no end token is known; pass token ids or None. "
                    "Received: stop_token_ids='auto'"
                )
            return (self.preprocessor.tokenizer.end_token_id,)
        ids = (ids,) if is_integer(ids) else ids
        size = self.backbone.vocabulary_size
        known = isinstance(ids, list | tuple) and all(is_integer(i) and 0 <= i < size for i in ids)
        if not known or not ids:
            raise InputError(
                f"stop_token_ids must be 'auto', None, or token ids from 0 to {size - 1}, each of "
                f"which ends a sequence. Received: {ids!r:.120}"
            )
        return tuple(map(int, ids))

    def _max_length(self, given):
        longest = self.longest_sequence()
        if given is None:
            return longest
        if not is_integer(given):
            raise InputError(f"max_length must be an integer. Received: {given!r}")
        if not 1 <= given <= longest:
            raise InputError(
                f"max_length, the tokens of a whole sequence, must be from 1 to {longest}. "
                f"Received: {given}"
            )
        return int(given)

    def longest_sequence(self) -> int:
        """The most tokens that a sequence can have, the prompt included."""
        longest = self.backbone.max_sequence_length
        if self.preprocessor is None:
            return longest
        length = self.preprocessor.sequence_length
        return min(length, longest) if self.backbone.positions == "learned" else length

    def _preprocess(self, prompts):
        if self.preprocessor is None:
            raise InputError(
                "a model without a preprocessor takes token_ids, a dict of integer arrays. "
                f"Received: {type(prompts).__name__}"
            )
        return self.preprocessor.generate_preprocess(prompts)

    def _prompts(self, x, max_length):
        """Inputs of the model as a list of `Prompt`, checked."""
        prompts = self._unpadded(x, "token_ids", "padding_mask", max_length - 1)
        sources, segments = np.zeros(len(prompts), int), [None] * len(prompts)
        if "source_mask" in self.input:
            source = self._same_shape(x, "source_mask")
            sources = np.cumprod((source != 0) & (np.asarray(x["padding_mask"]) != 0), 1).sum(1)
        if "segment_ids" in self.input:
            given = self._same_shape(x, "segment_ids")
            segments = [
                np.append(of[: len(ids)], self._next_segment(ids[-1], of[len(ids) - 1]))
                for of, ids in zip(given, prompts, strict=True)
            ]
        return [Prompt(*parts) for parts in zip(prompts, sources, segments, strict=True)]

    def _next_segment(self, token, segment):
        """The segment of what follows a token: the target's after the separator, else the same."""
        preprocessor = self.preprocessor
        if preprocessor is not None and token == preprocessor.tokenizer.vocabulary.sep:
            return preprocessor.segments[1]
        return segment

    def _same_shape(self, x, name):
        array, shape = np.asarray(x[name]), np.shape(x["token_ids"])
        if array.shape != shape:
            raise InputError(
                f"{name} must have the shape {list(shape)}. Received: {list(array.shape)}"
            )
        return array

    def _unpadded(self, x, ids_name, mask_name, longest):
        """A batch of padded token ids, checked, as a list of int32 arrays without the padding."""
        x = {name: np.asarray(array) for name, array in x.items()}
        self._check_tokens(x)
        ids, mask = x[ids_name], x[mask_name]
        if ids.ndim != 2 or ids.shape != mask.shape or not ids.size:
            raise InputError(
                f"{ids_name} and {mask_name} must have one shape [batch, time], of an example at "
                "least. "
                f"Received: {list(ids.shape)} and {list(mask.shape)}"
            )
        real = mask != 0
        lengths = real.sum(1)
        if not lengths.all() or (real != (np.arange(ids.shape[1]) < lengths[:, None])).any():
            raise InputError(
                "each prompt must begin at column 0 and be one document of at least one token. "
                f"Received: {mask_name} {mask.tolist()!r:.120}"
            )
        if lengths.max() > longest:
            raise InputError(
                f"a prompt must have at most {longest} tokens here, the reserved ones included. "
                f"Received: one of {lengths.max()}"
            )
        return [x[:length].astype("int32") for x, length in zip(ids, lengths, strict=True)]


class GeneratesFromEncoder(Generates):
    """`Generates` where an encoder reads the prompt, and the decoder begins with BOS."""

    def empty_cache(self, inputs: Any) -> Any:
        padding_mask = inputs["encoder_padding_mask"]
        return self.backbone.init_cache(
            inputs["start"],
            inputs["source_end"],
            inputs["tokens"].shape[1],
            encoded=self.backbone.encode(inputs["encoder_token_ids"], padding_mask),
            encoder_padding_mask=padding_mask,
        )

    def encoder_inputs(self, prompts: Any) -> Any:
        encoded = [prompt.encoded for prompt in prompts]
        width = min(bucket(max(map(len, encoded))), self.longest_sequence())
        names = ("encoder_token_ids", "encoder_padding_mask")
        return dict(zip(names, aligned_left(encoded, width), strict=True))

    def _prompts(self, x, max_length):
        names = ("encoder_token_ids", "encoder_padding_mask")
        encoded = self._unpadded(x, *names, self.longest_sequence())
        names = ("decoder_token_ids", "decoder_padding_mask")
        decoded = self._unpadded(x, *names, max_length - 1)
        if len(decoded) != len(encoded):
            raise InputError(
                "encoder_token_ids and decoder_token_ids must have as many examples. "
                f"Received: {len(encoded)} and {len(decoded)}"
            )
        pairs = zip(decoded, encoded, strict=True)
        return [Prompt(ids, encoded=source) for ids, source in pairs]
