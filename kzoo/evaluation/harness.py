"""lm-evaluation-harness on kzoo's models; needs `pip install 'kzoo[harness]'`.

    import lm_eval
    from kzoo.evaluation.harness import KzooLM

    lm_eval.simple_evaluate(KzooLM("runs/book"), tasks=["my_task"], task_manager=...)

Once this module is imported, `model="kzoo", model_args="pretrained=runs/book"` works too.
"""

from typing import Any

from kzoo.errors import InputError, missing_package
from kzoo.evaluation import generation, likelihood
from kzoo.evaluation.reading import Reader, Request

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise missing_package("lm_eval", "kzoo.evaluation.harness") from error

_BATCH_SIZE = 32
_MOST_TOKENS = 256  # of an answer where a task says nothing, as in the harness


@register_model("kzoo")
class KzooLM(LM):
    """A kzoo model as lm-evaluation-harness asks for it.

    A model whose objective has a source (UniLM, T5) reads the context as the source; the
    separator stands for the white space between the context and what follows.

    Args:
        pretrained: a `CausalLM` or `Seq2SeqLM`; or a preset, folder or handle, as
            `kzoo.presets.load` takes it.
        batch_size: sequences that the model sees at once; None and "auto" are 32.
        separated: as in `kzoo.evaluation.loglikelihood`.
        device, max_batch_size: not used: kzoo computes where its backend does, and does not try
            larger and larger batches.

    Raises:
        InputError: for a model that predicts hidden tokens.

    Example:
        >>> KzooLM(model).max_length
        64
    """

    def __init__(
        self,
        pretrained: Any,
        batch_size: int | str | None = None,
        separated: bool | None = None,
        device: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            from kzoo import presets

            pretrained = presets.load(pretrained)
        self.model, self.separated = pretrained, separated
        automatic = batch_size is None or str(batch_size).startswith("auto")
        self.batch_size = _BATCH_SIZE if automatic else int(str(batch_size))
        self.reader = Reader.of(pretrained, separated)

    @property
    def max_length(self) -> int:
        """Tokens of a sequence."""
        return self.reader.length

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether greedy decoding writes it) of each request."""
        pairs = [self._pair(*request.args) for request in requests]
        found = likelihood.loglikelihood(
            self.model, pairs, batch_size=self.batch_size, separated=self.separated
        )
        answers = zip(found["loglikelihood"].tolist(), found["is_greedy"].tolist(), strict=True)
        return self._kept("loglikelihood", requests, list(answers))

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        """log p of each text: of windows that overlap as the harness has them, each begun with the
        model's first token."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            self.reader.encoder.tokenizer.say_loss(list(request.args))
            (tokens,) = self.reader.encoder.tokens(request.args)
            for window in self._windows(tokens):
                windows.append(window)
                owners.append(owner)
        totals = [0.0] * len(requests)
        if windows:
            found = likelihood.of_tokens(self.model, self.reader, windows, self.batch_size)
            for owner, nats in zip(owners, found["loglikelihood"].tolist(), strict=True):
                totals[owner] += nats
        return self._kept("loglikelihood_rolling", requests, totals)

    def generate_until(self, requests: Any) -> list[str]:
        """What greedy decoding writes after each context, up to one of the strings of `until`."""
        written: dict[int, str] = {}
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(i)
        for (until, max_tokens), members in groups.items():
            found = generation.answers(
                self.model,
                [self._source(requests[i].args[0]) for i in members],
                max_tokens=max_tokens,
                until=until,
                batch_size=self.batch_size,
                separated=self.separated,
            )
            written.update(zip(members, found, strict=True))
        return self._kept("generate_until", requests, [written[i] for i in range(len(requests))])

    def _pair(self, context, continuation):
        if self.reader.separated:
            return self._source(context), continuation.lstrip() or continuation
        return context, continuation

    def _source(self, context):
        return context.rstrip() if self.reader.separated else context

    def _windows(self, tokens):
        """Requests that score each token once."""
        if not len(tokens):
            return
        source = tokens[:0] if self.reader.separated else None
        whole = self.reader.request(source, tokens, 0)
        if self.reader.needed(whole) <= self.reader.length:
            yield whole
            return
        room = self.reader.length - self.reader.needed(Request(source, tokens[:0]))
        # Positions instead of tokens: the harness hands out parts of a list.
        parts = get_rolling_token_windows(list(range(len(tokens))), -1, room - 1, context_len=1)
        for before, scored in map(make_disjoint_window, parts):
            first = scored[0] if before == [-1] else before[0]
            part = tokens[first : scored[-1] + 1]
            yield self.reader.request(source, part, scored[0] - first)

    def _settings(self, given):
        """(until, max_tokens) of a request's settings."""
        given = dict(given)
        until = given.get("until") or []
        until = (until,) if isinstance(until, str) else tuple(until)
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        asked = [given[name] for name in names if given.get(name) is not None]
        if given.get("do_sample") and given.get("temperature", 1.0) != 0:
            raise InputError(
                "kzoo answers the harness greedily: do_sample is false, or temperature is 0. "
                f"Received: {given!r:.120}"
            )
        return until, asked[0] if asked else min(_MOST_TOKENS, self.max_length // 2)

    def _kept(self, kind, requests, answers):
        """The answers, handed to the harness's cache too."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers
