"""Feature maps φ of linear attention: the weight of (query, key) is φ(q)·φ(k), normalised.

Each maps [..., dim] to non-negative [..., features] in the dtype that it receives.
"""

from keras import ops

from kzoo.errors import unknown


def elu1(x):
    """elu(x) + 1 (Katharopoulos et al. 2020, arXiv:2006.16236, equation 7)."""
    return ops.where(x > 0, x + 1, ops.exp(ops.minimum(x, 0)))


def relu(x):
    """max(x, 0) (Performer-ReLU, Choromanski et al. 2021, arXiv:2009.14794).

    A query without a positive entry, or without a visible key that shares one, attends to
    nothing and gives 0.
    """
    return ops.relu(x)


def exp(x):
    """exp(x), entry by entry (the feature-wise exponential of arXiv:2402.04347, section 3)."""
    return ops.exp(x)


_MAPS = {"elu1": elu1, "relu": relu, "exp": exp}
NAMES = tuple(_MAPS)


def get(name):
    """The feature map of that name; `InputError` for an unknown one."""
    if name not in NAMES:
        raise unknown("feature map", name, NAMES)
    return _MAPS[name]
