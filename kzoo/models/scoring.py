"""How likely texts are: `score`."""

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from kzoo import objectives
from kzoo.errors import InputError
from kzoo.models.reading import read
from kzoo.values import check_batch_size
from kzoo.vocabulary import NUM_BYTES


class ScoresTexts:
    """A mixin of tasks: `score`."""

    def score(
        self, x: Any, batch_size: int = 32, *, end_token: bool = True
    ) -> dict[str, np.ndarray]:
        """How well the model predicts each text, or each response given its prompt.

        Of a text a causal LM scores every token; under an objective that has a source, such as
        `prefix_lm`, a text is the target of an empty source. Of a pair every model scores the
        response alone: log p(response | prompt). A masked LM scores each token with that token
        alone hidden (pseudo-log-likelihood, Salazar et al. 2020, arXiv:1910.14659). Texts longer
        than the model's sequences are scored in consecutive windows.

        Args:
            x: strings, or pairs: `{"prompts": [...], "responses": [...]}` or a list of them.
            batch_size: sequences that the model sees at once.
            end_token: whether that the text ends there counts too. By default it does, since
                `fit` and `evaluate` of the same strings count it: then these agree, and the
                probabilities of all texts sum to one. A model of running text (a book, in
                `kzoo.data.load`) has never been shown an end: False leaves it out, and the bits
                compare with those of running text. A masked LM, which hides tokens of text only,
                never counts it.

        Returns:
            A dict of arrays [texts]: `"nats"` (float64), the negative log-likelihood; `"tokens"`
            (int64), how many were scored; `"bytes"` (int64), of the text or response as it was
            given, in UTF-8, which these tokens stand for (all, but those of the first token
            where the vocabulary has no BOS before it); and `"bits_per_byte"` (float64),
            nats / (ln 2 · bytes).

            The `loglikelihood` of lm-evaluation-harness is -nats with `end_token=False`: of pairs
            where a separator stands between prompt and response, as `fit` shows pairs. Where the
            context runs on into the continuation as one text, it is the nats of the context less
            those of both together.

        Raises:
            InputError: for an empty text, a pair that does not fit in a sequence, or a batch of
                no example.

        Example:
            >>> model.score(["Call me Ishmael."], end_token=False)["bits_per_byte"]
        """
        self._check_predicts_next()
        check_batch_size(batch_size)
        sources, targets = self._reader().tokenized(*read(x))
        if not all(len(target) for target in targets):
            raise InputError("a text to score has at least one token. Received: an empty text")
        owners, sequences = [], []
        for i, target in enumerate(targets):
            source = None if sources is None else sources[i]
            for sequence in self._sequences(source, target, end_token):
                owners.append(i)
                sequences.append(sequence)
        nats = np.zeros(len(targets))
        np.add.at(nats, owners, self._sequence_nats(sequences, batch_size))
        tokens, sizes = np.zeros((2, len(targets)), int)
        np.add.at(tokens, owners, [int(weight.sum()) for _, _, weight in sequences])
        np.add.at(sizes, owners, [_scored_bytes(*sequence) for sequence in sequences])
        with np.errstate(divide="ignore", invalid="ignore"):  # where no byte is scored
            bits = nats / (math.log(2) * sizes)
        return {"nats": nats, "tokens": tokens, "bytes": sizes, "bits_per_byte": bits}

    def _sequences(self, source, target, end_token):
        """The sequences (x, y, sample_weight), arrays [time], that score one text."""
        encoder, length = self._reader().encoder, self.preprocessor.sequence_length
        end_token = end_token or not encoder.objective.next_token  # a masked LM sees it
        if source is None and encoder.objective.has_source:
            source = target[:0]
        if source is not None and encoder.objective.next_token:
            # Whatever the model was trained on: log p(response | prompt).
            encoder = dataclasses.replace(encoder, objective=objectives.get("prefix_lm"))
        room = length - encoder.example_length(source, target[:0], end_token)
        if len(target) > room and source is not None and len(source):
            raise InputError(
                f"a pair to score fits in {length} tokens. Received: one that needs "
                f"{encoder.example_length(source, target, end_token)}"
            )
        for start in range(0, len(target), room):
            part = target[start : start + room]
            ends = end_token and start + room >= len(target)
            sources = None if source is None else [source]
            yield from self._score_sequences(encoder, sources, part, ends)

    def _score_sequences(self, encoder, sources, target, complete):
        rng = np.random.default_rng(0)  # a scored sequence has nothing to draw
        length = self.preprocessor.sequence_length
        batch = encoder.batch(sources, [target], length, rng, complete=complete, held_out=True)
        x, y, weight = batch
        yield {name: array[0] for name, array in x.items()}, y[0], weight[0]

    def _sequence_nats(self, sequences, batch_size):
        """Σ w·nll of each sequence, float64."""
        nats = []
        for start in range(0, len(sequences), batch_size):
            batch = sequences[start : start + batch_size]
            filled = batch + [batch[-1]] * (batch_size - len(batch))  # one shape, one program
            x = {name: np.stack([sequence[0][name] for sequence in filled]) for name in self.input}
            y, weight = (np.stack([sequence[i] for sequence in filled]) for i in (1, 2))
            nats.append(self._token_nats(x, y, weight).sum(-1)[: len(batch)])
        return np.concatenate(nats)

    def _token_nats(self, x, y, weight):
        """w·nll of each token, float64 [batch, time]."""
        if self.loss_tokens:
            self._check_tokens(x)
            hidden = self._decoded(self.backbone.predict_on_batch(x))
            _, nats = self._cross_entropy(hidden, y, weight)
            return ops.convert_to_numpy(nats).astype("float64")
        logits = np.asarray(self.predict_on_batch(x)).astype("float64")
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
        return weight * (np.log(np.exp(logits).sum(-1)) - chosen)


def _scored_bytes(x, y, weight):
    """How many bytes of text the scored tokens of a sequence stand for."""
    sizes = x["label_bytes"] if "label_bytes" in x else y < NUM_BYTES
    return int(sizes[weight > 0].sum())
