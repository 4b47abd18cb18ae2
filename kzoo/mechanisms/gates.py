"""Gates that several mechanisms make of a projection of the token: one for each head."""

import numpy as np

# Dao and Gu 2024 (Mamba-2), arXiv:2405.21060, and the authors' code, `state-spaces/mamba`
# (modules/mamba2.py: A_init_range, dt_min, dt_max): rates are drawn evenly from the first range,
# time steps evenly in their logarithms from the second.
RATES = (1.0, 16.0)
TIME_STEPS = (0.001, 0.1)


def softplus_variables(heads: int, rates: tuple[float, float] = RATES) -> dict[str, np.ndarray]:
    """The initial `A_log` and `dt_bias` of `softplus_gates`, one for each head.

    They are the quantiles of the distributions that the authors draw from, so that they are the
    same for every seed; time steps rise in another order than rates, so that no head has the least
    of both.

    Args:
        heads: number of heads.
        rates: the least and the most.
    """
    even = (np.arange(heads) + 0.5) / heads
    low, high = np.log(TIME_STEPS)
    steps = np.exp(low + (high - low) * even[np.argsort(np.argsort(_bits_reversed(heads)))])
    values = {
        "A_log": np.log(rates[0] + (rates[1] - rates[0]) * even),
        "dt_bias": steps + np.log(-np.expm1(-steps)),  # of which they are the softplus
    }
    return {name: x.astype("float32") for name, x in values.items()}


def softplus_gates(logits, variables):
    """-exp(A_log) · softplus(a + dt_bias), in float32.

    Args:
        logits: a, float32 [batch, time, heads].
        variables: `A_log` and `dt_bias`, floats [heads] each, by name.
    """
    from kzoo.load_keras import ops

    rate, bias = (ops.cast(variables[name], "float32") for name in ("A_log", "dt_bias"))
    return -ops.exp(rate) * ops.softplus(logits + bias)


def define_softplus_gates(logits, variables):
    """`softplus_gates` in NumPy and float64."""
    rate, bias = (np.asarray(variables[name], "float64") for name in ("A_log", "dt_bias"))
    return -np.exp(rate) * np.logaddexp(0, np.asarray(logits, "float64") + bias)


def _bits_reversed(count):
    """Each integer below `count` with its bits in reverse order, which spreads neighbours."""
    bits = max(1, (count - 1).bit_length())
    return [int(f"{i:0{bits}b}"[::-1], 2) for i in range(count)]
