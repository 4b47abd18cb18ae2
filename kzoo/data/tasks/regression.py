"""In-context linear regression: a linear function from a few of its values."""

import random

import numpy as np

from kzoo.data.tasks.base import SYMBOLS, Task, check_count, register
from kzoo.encoder import PartlyScored
from kzoo.errors import InputError

# The numbers that the symbols stand for: from -3 to 3, at even distances.
LEVELS = np.linspace(-3.0, 3.0, len(SYMBOLS))
STEP = LEVELS[1] - LEVELS[0]


@register
class LinearRegression(Task):
    """A new linear function in each example, of which some values are shown: the next values.

    Source: Garg et al. 2022, arXiv:2208.01066, section 3: f(x) = w·x, with w and all x drawn from
    N(0, I), no noise. The paper's models read vectors of real numbers and answer with one; models
    here read and predict symbols, so numbers are rounded to 32 levels from -3 to 3, each a symbol.
    A coordinate is the level itself, so that x is known exactly; the answer is w·x / √d, which has
    the variance 1, rounded to a level. An x with a coordinate or an answer beyond the levels is
    drawn again. An example is `"abcA defB ..."` in a source, `shots` points and their answers, and
    `"ghiC jklD ..."` in its target: `queries` further points, each followed by its answer. The
    answers of the target alone are scored; the k-th is given k + shots - 1 earlier points.

    The paper's measure, (ŷ - y)² / d for y = w·x, is (ŷ - y)² here. The study metric
    `squared_error` is that of a model; `least_squares` answers as the paper's baseline does.

    Attributes:
        count: pairs of source and target, distinct ones.
        dimensions: d, the coordinates of a point. The paper's d is 20, with 40 points shown.
        shots: points of the source.
        queries: points of the target.

    Example:
        >>> source, target = LinearRegression(count=1, dimensions=2, shots=2, queries=1).pairs()[0]
        >>> source, target, target.scored
        ('mrm kpm', 'qlu', (2,))
    """

    count: int = 20000
    dimensions: int = 3
    shots: int = 3
    queries: int = 4

    name = "linear_regression"

    def __post_init__(self):
        check_count(self, "count", "dimensions", "shots", "queries")
        # Of the points that are near enough to be drawn there are about 20 to a coordinate.
        most = 20 ** (self.dimensions * self.shots)
        if self.count > most // 2:
            raise InputError(
                f"the task {self.name!r} has about {most} sources of that size, of which half can "
                f"be asked for. Received: count={self.count}, dimensions={self.dimensions}, "
                f"shots={self.shots}"
            )

    def draw(self, rng: random.Random) -> tuple[str, str]:
        weights = [rng.gauss(0, 1) for _ in range(self.dimensions)]
        points = [self._point(weights, rng) for _ in range(self.shots + self.queries)]
        target = " ".join(points[self.shots :])
        width = self.dimensions + 2  # with its answer and the space behind it
        scored = range(self.dimensions, len(target), width)
        return " ".join(points[: self.shots]), PartlyScored(target, scored)

    def _point(self, weights, rng):
        """The symbols of a point and of its answer."""
        while True:
            x = [_level(rng.gauss(0, 1)) for _ in weights]
            if None in x:
                continue
            y = sum(w * LEVELS[i] for w, i in zip(weights, x, strict=True)) / len(weights) ** 0.5
            if (answer := _level(y)) is not None:
                return "".join(SYMBOLS[i] for i in [*x, answer])

    def least_squares(self, source: str, target: str) -> np.ndarray:
        """What least squares answers, of smallest norm where the points do not decide it.

        Args:
            source, target: an example of the task.

        Returns:
            float64 [queries]: the answer of each query, from the points before it, as they are
            written.

        Example:
            >>> task = LinearRegression(count=1, dimensions=2, shots=4, queries=1)
            >>> source, target = task.pairs()[0]
            >>> numbers(target[2]).round(2), task.least_squares(source, target).round(2)
            (array([1.45]), array([1.31]))
        """
        points = np.array([numbers(point) for point in f"{source} {target}".split(" ")])
        x, y = points[:, :-1], points[:, -1]
        known = range(self.shots, len(points))
        return np.array([x[k] @ np.linalg.lstsq(x[:k], y[:k], rcond=None)[0] for k in known])


def squared_errors(logits: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The paper's measure of a model, (ŷ - y)² / d for the w·x of the paper, at each scored answer.

    ŷ is the mean of the levels under the model's probabilities, which of all answers has the
    smallest expected error.

    Args:
        logits: float [batch, time, vocabulary_size], a model's for a batch of the task.
        y, weight: the batch's labels and weights, [batch, time]; the ids below 256 are bytes.

    Returns:
        float64 [examples, queries], without examples that have no scored token.

    Raises:
        InputError: a scored label stands for no number, as in another task.

    Example:
        >>> logits = np.full((1, 1, 384), -np.inf)
        >>> logits[0, 0, [ord("a"), ord("5")]] = 0.0  # -3 or 3, as likely
        >>> squared_errors(logits, np.array([[ord("5")]]), np.ones((1, 1)))
        array([[9.]])
    """
    ids = np.frombuffer(SYMBOLS.encode(), np.uint8)
    scored, examples = weight > 0, (weight > 0).any(-1).sum()
    if not np.isin(y[scored], ids).all():
        raise InputError(
            "the squared error is that of numbers, on the source 'synthetic:linear_regression' "
            "under the objective 'prefix_lm'. "
            f"Received: the label {y[scored][~np.isin(y[scored], ids)][0]}"
        )
    chances = np.asarray(logits, np.float64)[scored][:, ids]
    chances = np.exp(chances - chances.max(-1, keepdims=True))
    answers = chances @ LEVELS / chances.sum(-1)
    return np.square(answers - numbers(bytes(y[scored].tolist()).decode())).reshape(examples, -1)


def numbers(symbols: str) -> np.ndarray:
    """The numbers that symbols stand for: float64 [symbols].

    Example:
        >>> numbers("a5")
        array([-3.,  3.])
    """
    return LEVELS[[SYMBOLS.index(symbol) for symbol in symbols]]


def _level(number):
    """The index of the level of a number, or None beyond the levels."""
    level = round((number - LEVELS[0]) / STEP)
    return level if 0 <= level < len(LEVELS) else None
