"""How a model reads a context and what follows it: as one text, or as a source and a target."""

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np

from kzoo import objectives
from kzoo.encoder import Encoder
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

_LEAST_WIDTH = 64  # tokens of the narrowest sequences that are computed


def check_next_token(objective, prediction_site):
    """`InputError` for a model that predicts hidden tokens.

    Args:
        objective: its `Objective`.
        prediction_site: of its config, `"next"` or `"mask"`.
    """
    if not objective.next_token or prediction_site == "mask":
        raise InputError(
            "log p(answer | question) and written answers are made of next tokens, and this model "
            "predicts hidden ones, or labels; models of the families gpt, unilm and t5 predict the "
            "next, model.score gives a masked LM's pseudo-log-likelihood, and a classifier has "
            "the metric acc. "
            f"Received: objective={objective.get_config()!r}, prediction_site={prediction_site!r}"
        )


class Request(NamedTuple):
    """What log p is asked of, as tokens.

    Attributes:
        source: a token array that stands before the separator; None where one text runs on.
        target: a token array.
        given: how many tokens of the target belong to the context, and are not scored.
    """

    source: Any
    target: Any
    given: int = 0


@dataclasses.dataclass(frozen=True)
class Reader:
    """Contexts and continuations as inputs of one model.

    Attributes:
        encoder: an `Encoder`; of a source and a target where `separated`, else of running text.
        length: the most tokens of a sequence.
        separated: whether a separator stands between context and continuation.
    """

    encoder: Encoder
    length: int
    separated: bool

    @classmethod
    def of(cls, model: Any, separated: bool | None = None) -> "Reader":
        """The reader of a model.

        Args:
            model: a `CausalLM` or `Seq2SeqLM` with a tokenizer.
            separated: whether contexts are sources, as the prompts of pairs are in `fit`; None:
                where the objective has a source, as in `generate`.

        Raises:
            InputError: for a model that has no tokenizer or predicts hidden tokens, and for False
                where the objective has a source.
        """
        if getattr(model, "preprocessor", None) is None:
            raise InputError(
                "what is evaluated is a model with its tokenizer, as kzoo.presets.load makes it. "
                f"Received: {type(model).__name__}"
            )
        encoder = model.preprocessor.encoder
        objective = encoder.objective
        check_next_token(objective, getattr(model, "prediction_site", "next"))
        if separated is False and objective.has_source:
            raise InputError(
                "separated is True or None for an objective that has a source, whose models have "
                "never seen a context run on into what follows. Received: separated=False with "
                f"objective={objective.get_config()!r}"
            )
        separated = objective.has_source if separated is None else bool(separated)
        if separated:  # whatever it was trained on: log p(target | source), as in `score`
            encoder = dataclasses.replace(encoder, objective=objectives.get("prefix_lm"))
        return cls(encoder, model.preprocessor.sequence_length, separated)

    def requests(self, pairs: list[tuple[str, str]]) -> list[Request]:
        """Pairs (context, continuation) of strings as tokens.

        Where the text runs on, the tokens of a continuation are those of the whole without the
        first ones, as many as the context alone has; white space at the end of the context counts
        as the continuation's, whose first word it begins (as `TemplateLM` of
        lm-evaluation-harness has it). A source and a target are two texts.
        """
        contexts, wholes = [], []
        for context, continuation in pairs:
            if not self.separated:
                cut = len(context.rstrip())
                context, continuation = context[:cut], context + continuation
            contexts.append(context)
            wholes.append(continuation)
        before, after = self.encoder.tokens(contexts), self.encoder.tokens(wholes)
        requests = [
            self.request(one, two, 0) if self.separated else self.request(None, two, len(one))
            for one, two in zip(before, after, strict=True)
        ]
        for request, (_, continuation) in zip(requests, pairs, strict=True):
            if len(request.target) <= request.given:
                raise InputError(
                    "a continuation has at least one token of its own. "
                    f"Received: {continuation!r:.80}"
                )
        return requests

    def request(self, source: Any, target: Any, given: int) -> Request:
        """A `Request`. A text with neither BOS nor a context begins with EOS, so that its first
        token is predicted from something."""
        if source is None and self.encoder.vocabulary.bos is None and not given:
            end = np.zeros_like(target[:1])
            end[..., :1] = self.encoder.vocabulary.eos
            return Request(None, np.concatenate([end, target]), 1)
        return Request(source, target, given)

    def needed(self, request: Request) -> int:
        """How many tokens of a sequence a request takes."""
        return self.encoder.example_length(request.source, request.target, False)

    def fitted(self, requests: list[Request]) -> tuple[list[Request], int]:
        """Requests whose contexts have lost what does not fit, from their beginning.

        Returns:
            `(requests, cut)`: the second says how many contexts were cut.

        Raises:
            InputError: for a continuation that does not fit itself.
        """
        fitted = [self._fitted(request) for request in requests]
        cut = sum(one is not other for one, other in zip(fitted, requests, strict=True))
        if cut:
            log.warning(
                "%d of %d contexts do not fit in %d tokens with what follows and lose their "
                "beginning",
                *(cut, len(requests), self.length),
            )
        return fitted, cut

    def _fitted(self, request):
        excess = self.needed(request) - self.length
        if excess <= 0:
            return request
        source, target, given = request
        kept = int(self.encoder.vocabulary.bos is None and source is None)
        if excess > (given - kept if source is None else len(source)):
            raise InputError(
                f"a continuation fits in {self.length} tokens. "
                f"Received: one of {len(target) - given}"
            )
        if source is not None:
            return Request(source[excess:], target, given)
        return Request(None, target[excess:], given - excess)

    def width(self, request: Request) -> int:
        """The tokens of the sequence in which a request is computed: a power of two, so that few
        programs are compiled, and no more than a sequence has. It depends on nothing else, so that
        a result does not depend on what else is asked for."""
        width = _LEAST_WIDTH
        while width < self.needed(request):
            width *= 2
        return min(width, self.length)

    def batch(self, requests: list[Request], width: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """Requests as `(x, y, scored)`: the model's inputs, the labels and which of them are
        scored, bool [batch, width]."""
        sources = [request.source for request in requests] if self.separated else None
        targets = [request.target for request in requests]
        x, y, weight = self.encoder.batch(
            sources, targets, width, None, complete=False, held_out=True
        )
        kept = int(self.encoder.vocabulary.bos is None and not self.separated)
        given = np.array([request.given - kept for request in requests])
        return x, y, (weight > 0) & (np.cumsum(weight > 0, axis=1) > given[:, None])
