"""Gated linear attention on a TPU: the kernel of linear attention, with weights that decay."""

from kzoo.ops.kernels.pallas import linear

NAME, MECHANISM = linear.NAME, "gated_linear"
ANY_DIRECTION, RAW, ONE_ORDER = linear.ANY_DIRECTION, linear.RAW, linear.ONE_ORDER
preferred, run = linear.preferred, linear.run


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention, in words for its user, or None if it can."""
    if spec.normalize:
        return "the pallas kernel of gated linear attention has no denominator"
    return linear.unsupported_reason(spec)
