"""Beam search: the likeliest continuations of a prompt, each up to its stop token."""

import math
import typing
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.typing import Model, Tensor

NEVER = -math.inf  # the score of what cannot be chosen


class Beams(typing.NamedTuple):
    """Sequences, ordered by prompt, then by score.

    Attributes:
        ids: int32 [batch * beams, time].
        scores: float32 [batch, beams], the best first.
    """

    ids: object
    scores: object


@keras.saving.register_keras_serializable(package="kzoo")
class BeamSampler(keras_hub.samplers.Sampler):
    """Beam search by the rules of `transformers.GenerationMixin.generate(num_beams=...)`.

    At each step the continuations of a prompt's running beams by one token are ranked by the
    sum of their log-probabilities. Of the `num_beams` best, those that end (at a stop token, or
    where the sequence is full) are finished; the `num_beams` best that do not end keep running.
    A finished beam of n new tokens, its stop token included, has the score (Σ log p) /
    n**length_penalty (Wu et al. 2016, arXiv:1609.08144, section 7, in the form of
    transformers); the best ones are kept. A prompt's beams depend on nothing else in the batch.

    Args:
        num_beams: how many beams run, and how many finished ones are kept, for each prompt. The
            cache is `num_beams` times as large.
        length_penalty: above 0 favours long continuations, below 0 short ones.
        min_new_tokens: a beam with fewer new tokens does not end at a stop token.
        early_stopping: when the search for a prompt ends. True: once `num_beams` beams are
            finished. False: once none of the running beams, if it ended at its present length,
            would be better than the worst of them. "never": once none can become better.
        return_all_beams: `generate` returns all finished beams, the best first, and their scores.
        temperature: logits are divided by it.

    Raises:
        InputError: for a value out of range.

    Example:
        >>> model.generate("Call me", sampler=BeamSampler(num_beams=4, length_penalty=0.6))
    """

    def __init__(
        self,
        num_beams: int = 5,
        length_penalty: float = 1.0,
        min_new_tokens: int = 0,
        early_stopping: bool | str = False,
        return_all_beams: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(temperature=temperature)
        self.num_beams = _integer("num_beams", num_beams, 1)
        self.min_new_tokens = _integer("min_new_tokens", min_new_tokens, 0)
        if not isinstance(early_stopping, bool) and early_stopping != "never":
            raise InputError(
                f"early_stopping must be True, False or 'never'. Received: {early_stopping!r}"
            )
        for name, value in (("length_penalty", length_penalty), ("temperature", temperature)):
            known = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not known or not math.isfinite(value):
                raise InputError(f"{name} must be a finite number. Received: {value!r}")
        if temperature <= 0:
            raise InputError(f"temperature must be above 0. Received: {temperature}")
        self.length_penalty = float(length_penalty)
        self.early_stopping = early_stopping
        self.return_all_beams = return_all_beams

    def __call__(
        self,
        next: Callable[..., Any],
        prompt: Tensor,
        cache: Any = None,
        index: Tensor = 0,
        mask: Tensor | None = None,
        stop_token_ids: Any = None,
        hidden_states: Tensor | None = None,
        model: Model | None = None,
    ) -> Tensor:
        """As every keras-hub sampler. Without `mask` a sequence is full after its last column.

        Returns:
            int32 [batch, time], columns after the stop token as in `prompt`; or, with
            `return_all_beams`, [batch, num_beams, time] and the scores, [batch, num_beams].
        """
        index = ops.cast(index, "int32")
        free = ops.ones_like(prompt, "bool") if mask is None else ops.logical_not(mask)
        free = ops.logical_and(free, ops.arange(prompt.shape[1])[None] >= index)
        search = _Search(self, prompt, free, stop_token_ids)
        has_cache = cache is not None
        cache = keras.tree.map_structure(search.repeated, cache) if has_cache else ()

        def cond(running, finished, open, cache, index):
            return ops.any(open)

        def body(running, finished, open, cache, index):
            logits, _, cache = next(running.ids, cache if has_cache else None, index)
            log_probs = ops.log_softmax(ops.cast(logits, "float32") / self.temperature)
            state = search.step(log_probs, running, finished, open, index)
            running, finished, open, parents = state
            if has_cache:
                cache = keras.tree.map_structure(lambda x: ops.take(x, parents, axis=0), cache)
            return running, finished, open, cache if has_cache else (), index + 1

        _, finished, *_ = self.run_loop(
            cond,
            body,
            loop_vars=(*search.start(), cache, index),
            maximum_iterations=prompt.shape[1] - index,
            model=model,
        )
        ids = ops.reshape(finished.ids, (-1, self.num_beams, prompt.shape[1]))
        return (ids, finished.scores) if self.return_all_beams else ids[:, 0]

    def get_config(self) -> dict[str, Any]:
        names = ("num_beams", "length_penalty", "min_new_tokens", "early_stopping")
        config = {name: getattr(self, name) for name in (*names, "return_all_beams")}
        return {**super().get_config(), **config}

    # Samplers with equal configs share one compiled program.
    def __eq__(self, other):
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self):
        return hash(tuple(self.get_config().items()))


class _Search:
    """The beam search of one batch: all that a step does after the model's logits.

    Args:
        rules: the `BeamSampler`.
        prompt: int32 [batch, time].
        free: booleans [batch, time], the columns to be generated.
        stops: ids that end a sequence, or None.
    """

    def __init__(self, rules, prompt, free, stops):
        self.rules, self.free = rules, free
        self.prompt = ops.cast(prompt, "int32")
        self.beams, self.stops = rules.num_beams, tuple(stops or ())
        self.batch = ops.shape(prompt)[0]
        self.column = ops.arange(prompt.shape[1], dtype="int32")
        self.end = ops.max(ops.where(free, self.column + 1, 0), axis=1)

    def start(self):
        """Running beams, finished ones, and whether the search goes on, booleans [batch]."""
        ids = self.repeated(self.prompt)
        none = ops.full((self.batch, self.beams), NEVER, "float32")
        only_first = ops.where(ops.arange(self.beams) == 0, 0.0, none)  # the others are the same
        return Beams(ids, only_first), Beams(ids, none), self.end > 0

    def repeated(self, x):
        """[batch, ..] as [batch * num_beams, ..]."""
        return ops.repeat(x, self.beams, axis=0)

    def step(self, log_probs, running, finished, open, index):
        """The beams with the column `index`.

        Args:
            log_probs: float32 [batch * num_beams, vocabulary], of the tokens there.
            running, finished: `Beams`.
            open: booleans [batch].
            index: int32 scalar.

        Returns:
            `running`, `finished` and `open` after the step, and int32 [batch * num_beams], the
            index of the beam that each running beam continues.
        """
        length = self.length(index)
        candidates, tokens, parents = self._candidates(log_probs, running, index, length)
        ended = ops.logical_or(self._stop(tokens), (index + 1 >= self.end)[:, None])
        ended = ops.logical_and(ended, self._at(self.free, index)[:, None])
        scores, kept = self._best(ops.where(ended, NEVER, candidates.scores), self.beams)
        kept = self._flat(kept, tokens.shape[1])
        running = Beams(ops.take(candidates.ids, kept, axis=0), scores)
        finished = self._finish(finished, candidates, ended, open, length)
        open = self._goes_on(running, finished, open, index, length)
        return running, finished, open, ops.take(parents, kept, axis=0)

    def length(self, index):
        """The number of new tokens up to a column, inclusive: int32 [batch]."""
        new = ops.logical_and(self.free, self.column <= index)
        return ops.sum(ops.cast(new, "int32"), axis=1)

    def _candidates(self, log_probs, running, index, length):
        """The best continuations: `Beams`, their last tokens [batch, candidates], and which
        running beams they continue [batch * candidates]."""
        vocabulary = log_probs.shape[-1]
        if self.beams + len(self.stops) > vocabulary:
            raise InputError(
                f"num_beams must be at most {vocabulary - len(self.stops)}, the number of tokens "
                f"that do not end a sequence. Received: {self.beams}"
            )
        token = ops.arange(vocabulary, dtype="int32")[None]
        early = self.repeated(length <= self.rules.min_new_tokens)[:, None]
        log_probs = ops.where(ops.logical_and(early, self._stop(token)), NEVER, log_probs)
        given = ops.equal(token, self.repeated(self._at(self.prompt, index))[:, None])
        free = self.repeated(self._at(self.free, index))[:, None]
        log_probs = ops.where(free, log_probs, ops.where(given, 0.0, NEVER))
        scores = ops.reshape(log_probs, (self.batch, self.beams, vocabulary))
        scores = ops.reshape(scores + running.scores[..., None], (self.batch, -1))
        # So many candidates that at least `num_beams` of them do not end.
        count = max(2, 1 + len(self.stops)) * self.beams
        scores, chosen = self._best(scores, min(count, self.beams * vocabulary))
        parents, tokens = self._flat(chosen // vocabulary, self.beams), chosen % vocabulary
        ids = ops.take(running.ids, parents, axis=0)
        ids = ops.slice_update(ids, [0, index], ops.reshape(tokens, (-1, 1)))
        return Beams(ids, scores), tokens, parents

    def _finish(self, finished, candidates, ended, open, length):
        """The best of the finished beams and the first `num_beams` candidates, if those end."""
        count = ended.shape[1]
        admitted = ops.logical_and(ended, ops.arange(count)[None] < self.beams)
        admitted = ops.logical_and(admitted, open[:, None])
        scores = ops.where(admitted, self._score(candidates.scores, length), NEVER)
        scores, chosen = self._best(ops.concatenate([finished.scores, scores], 1), self.beams)
        ids = [
            ops.reshape(beams.ids, (self.batch, size, self.prompt.shape[1]))
            for beams, size in ((finished, self.beams), (candidates, count))
        ]
        ids = ops.reshape(ops.concatenate(ids, axis=1), (-1, self.prompt.shape[1]))
        return Beams(ops.take(ids, self._flat(chosen, self.beams + count), axis=0), scores)

    def _goes_on(self, running, finished, open, index, length):
        """Booleans [batch]: whether a running beam can still be among the best finished ones."""
        favourable = self.rules.early_stopping == "never" and self.rules.length_penalty > 0
        at = self.length(self.prompt.shape[1] - 1) if favourable else length
        worst = finished.scores[:, -1]  # NEVER, until there are `num_beams`
        better = self._score(running.scores[:, :1], at)[:, 0] > worst
        if self.rules.early_stopping is True:
            better = ops.logical_and(better, ops.equal(worst, NEVER))
        return ops.logical_and(open, ops.logical_and(better, index + 1 < self.end))

    def _score(self, scores, length):
        length = ops.cast(ops.maximum(length, 1), "float32")
        return scores / ops.power(length, self.rules.length_penalty)[:, None]

    def _stop(self, tokens):
        """Booleans of the shape of `tokens`: whether each is a stop token."""
        stops = ops.convert_to_tensor([-1, *self.stops], "int32")  # -1 is no token
        return ops.any(ops.equal(tokens[..., None], stops), axis=-1)

    def _at(self, x, index):
        """The column of [batch, time]: [batch]."""
        return ops.take(x, index, axis=1)

    def _best(self, scores, count):
        """The highest scores of each prompt, sorted, and their indices: [batch, count]."""
        scores, indices = ops.top_k(scores, k=count)
        shape = (self.batch, count)  # TensorFlow loses the static shape
        return ops.reshape(scores, shape), ops.cast(ops.reshape(indices, shape), "int32")

    def _flat(self, indices, count):
        """Indices [batch, ..] within a prompt's `count` beams as ones within all: [batch * ..]."""
        first = ops.arange(self.batch, dtype="int32")[:, None] * count
        return ops.reshape(indices + first, (-1,))


def _integer(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be an integer, {least} or more. Received: {value!r}")
    return int(value)
