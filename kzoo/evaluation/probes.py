"""Linear probes: what can be read off hidden states by a linear classifier."""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from kzoo.encoder import ids
from kzoo.errors import InputError
from kzoo.evaluation.base import METRICS, Metric
from kzoo.evaluation.examples import Example, labelled
from kzoo.evaluation.reading import log
from kzoo.values import is_integer, is_number

FOLDS = 5


@METRICS.register
class LinearProbe(Metric):
    """How often a linear classifier of hidden states finds the right label (Alain & Bengio 2016,
    arXiv:1610.01644): logistic regression on the mean of a text's states, trained on four fifths of
    the examples for each fifth in turn. The model itself is not trained. A T5's states are its
    encoder's.

    Attributes:
        layer: after how many blocks the states are taken: 0 is the embedding; −1 the last.
        penalty: half of it times the squared norm of the weights is added to the summed loss, of
            states that have mean 0 and variance 1.
    """

    layer: int = -1
    penalty: float = 1.0

    name = "linear_probe"
    next_token = False

    def __post_init__(self):
        if not is_integer(self.layer):
            raise InputError(f"layer of linear_probe is an integer. Received: {self.layer!r:.60}")
        if not is_number(self.penalty) or self.penalty <= 0:
            raise InputError(
                f"penalty of linear_probe is a number above 0. Received: {self.penalty!r:.60}"
            )

    def check(self, examples: list[Example]) -> None:
        _folds(_gold(labelled(examples)))

    def values(self, evaluation: Any) -> np.ndarray:
        given = labelled(evaluation.examples)
        gold = _gold(given)
        texts = [example.question for example in given]
        states = hidden_states(evaluation.model, texts, self.layer, evaluation.batch_size)
        return held_out_predictions(states, gold, self.penalty) == gold


def hidden_states(
    model: Any, texts: list[str], layer: int = -1, batch_size: int = 32
) -> np.ndarray:
    """The mean hidden state of each text, over its tokens.

    Args:
        model: a task with a tokenizer, of any objective.
        texts: list of strings. One that is longer than a sequence loses its end, with a warning
            that counts.
        layer: as in `LinearProbe`.
        batch_size: texts that the model sees at once.

    Returns:
        float64 [texts, hidden_dim].

    Raises:
        InputError: for a layer that the model does not have.

    Example:
        >>> hidden_states(model, ["Call me", "Ishmael"], layer=0).shape
        (2, 16)
    """
    from kzoo.analysis.activations import activations

    if getattr(model, "preprocessor", None) is None:
        raise InputError(
            "hidden states of texts are those of a model with its tokenizer. "
            f"Received: {type(model).__name__}"
        )
    encoder = model.preprocessor.encoder
    tokens, found = _shortened(encoder, texts, model.preprocessor.sequence_length), []
    # All of one width, so that a state does not depend on the other texts of its batch.
    for start in range(0, len(tokens), batch_size):
        here = np.resize(np.arange(start, min(start + batch_size, len(tokens))), batch_size)
        x = encoder.prompts([tokens[i] for i in here], encoder.objective.has_source)
        stack = activations(model, _widened(x, max(map(len, tokens)) + 2))[0]
        if not -len(stack.states) <= layer < len(stack.states):
            raise InputError(
                f"layer is from 0, the embedding, to {len(stack.states) - 1}, or negative from "
                f"the last. Received: {layer}"
            )
        states = np.asarray(stack.states[layer], "float64")
        real = (stack.masks["padding_mask"] != 0)[..., None]
        means = (states * real).sum(1) / real.sum(1)
        found.append(means[: len(tokens) - start])
    return np.concatenate(found)


def _shortened(encoder, texts, length):
    tokens = [np.asarray(ids(text), "int32") for text in encoder.tokens(texts)]
    if encoder.vocabulary.bos is None and not encoder.objective.has_source:  # as in `Reader`
        end = np.array([encoder.vocabulary.eos], "int32")
        tokens = [text if len(text) else end for text in tokens]
    room = length - 2  # BOS, and a separator behind a source
    cut = sum(len(text) > room for text in tokens)
    if cut:
        log.warning(
            "%d of %d texts do not fit in %d tokens and lose their end", cut, len(tokens), length
        )
    return [text[:room] for text in tokens]


def _widened(x, width):
    return {
        name: np.pad(array, ((0, 0), (0, max(0, width - array.shape[1]))))
        for name, array in x.items()
    }


def held_out_predictions(states: np.ndarray, gold: np.ndarray, penalty: float) -> np.ndarray:
    """The labels that a classifier finds which was trained on the other folds.

    Args:
        states: float64 [examples, features].
        gold: integers [examples], the labels.
        penalty: as in `LinearProbe`.

    Returns:
        Integers [examples]. Every label is spread evenly over the folds.

    Raises:
        InputError: for a label that fewer than two examples have.

    Example:
        >>> held_out_predictions(np.eye(2).repeat(4, 0), np.array([0] * 4 + [1] * 4), 1.0)
        array([0, 0, 0, 0, 1, 1, 1, 1])
    """
    fold, labels = _folds(gold), gold.max() + 1
    found = np.empty_like(gold)
    for each in np.unique(fold):
        train, test = fold != each, fold == each
        mean, spread = states[train].mean(0), states[train].std(0)
        scaled = (states - mean) / np.where(spread > 0, spread, 1)
        weights = fit(scaled[train], gold[train], labels, penalty)
        found[test] = (_with_ones(scaled[test]) @ weights).argmax(-1)
    return found


def _gold(given):
    return np.array([example.gold for example in given])


def _folds(gold):
    """The fold of each example: every label is spread evenly over them."""
    _, counts = np.unique(gold, return_counts=True)
    if len(counts) < 2 or counts.min() < 2:
        raise InputError(
            "a probe needs two labels, and two examples or more of each, to train on one and to "
            f"test on the other. Received: {counts.tolist()} examples by label"
        )
    fold = np.empty(len(gold), int)
    for label in np.unique(gold):
        here = np.flatnonzero(gold == label)
        fold[here] = np.arange(len(here)) % FOLDS
    return fold


def fit(states: np.ndarray, gold: np.ndarray, labels: int, penalty: float) -> np.ndarray:
    """Multinomial logistic regression with a quadratic penalty, by L-BFGS.

    Args:
        states: float64 [examples, features].
        gold: integers [examples], below `labels`.
        labels: their number.
        penalty: as in `LinearProbe`; the biases, the last row, are free of it.

    Returns:
        float64 [features + 1, labels].

    Example:
        >>> fit(np.eye(2), np.array([0, 1]), 2, penalty=1.0).shape
        (3, 2)
    """
    inputs, shape = _with_ones(states), (states.shape[1] + 1, labels)
    targets = np.eye(labels)[gold]
    penalised = np.ones((shape[0], 1))
    penalised[-1] = 0

    def loss(flat):
        weights = flat.reshape(shape)
        logits = inputs @ weights
        log_p = logits - logsumexp(logits, axis=-1, keepdims=True)
        own = penalty * penalised * weights
        value = -(targets * log_p).sum() + (own * weights).sum() / 2
        return value, (inputs.T @ (np.exp(log_p) - targets) + own).ravel()

    return minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)


def _with_ones(states):
    return np.concatenate([states, np.ones((len(states), 1))], axis=1)
