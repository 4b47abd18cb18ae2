"""Short convolutions over time, of each entry alone, which follow a mask."""

import numpy as np
from keras import ops

from kzoo.ops.tensors import hide


def short_convolution(x, kernel, ways, segment=None):
    """Σ_s kernel_s · x_(t+d(s)) over a token's neighbours at the distances d, entry by entry.

    The distances are -s under `"before"`, s under `"behind"`, its mirror, and s - size // 2 under
    `"centred"`, s = 0, 1, …, size - 1. A neighbour counts if it and all tokens up to it are of the
    token's document: the convolution stops at documents and at padding.

    Args:
        x: floats [batch, time, heads · dim].
        kernel: floats [size, heads · dim].
        ways: `"before"`, `"behind"` or `"centred"`, of each head, a tuple.
        segment: integers [batch or 1, time], 0 for padding, k for the k-th document; None for one
            document.

    Returns:
        The shape and dtype of x, computed in float32 at least; 0 at padding.

    Example:
        >>> short_convolution(np.ones((1, 3, 1)), np.ones((2, 1)), ("before",))[0, :, 0].tolist()
        [1.0, 2.0, 2.0]
    """
    x = ops.convert_to_tensor(x)
    dtype = x.dtype
    x = x if "float64" in str(dtype) else ops.cast(x, "float32")
    kernel = ops.cast(kernel, x.dtype)
    if segment is not None:
        segment = ops.convert_to_tensor(segment)
        x = hide(x, segment[:, :, None] != 0)
    out = ops.zeros_like(x)
    for sign in (-1, 1):
        connected = None if segment is None else segment != 0
        for step in range(kernel.shape[0]):
            distance = sign * step
            if step and segment is not None:
                ahead = _moved(segment, distance) == _moved(segment, distance - sign)
                connected = ops.logical_and(connected, ahead)
            weights = _weights(kernel, ways, distance)
            if weights is None or (sign > 0 and step == 0):
                continue
            moved = _moved(x, distance)
            moved = moved if connected is None else hide(moved, connected[:, :, None])
            out = out + weights * moved
    return ops.cast(out, dtype)


def _weights(kernel, ways, distance):
    """The kernel's rows that stand for a distance, [heads · dim]; None where no head has one."""
    size, dim = kernel.shape[0], kernel.shape[1] // len(ways)
    taps = {"before": -distance, "behind": distance, "centred": distance + size // 2}
    rows = [taps[way] for way in ways]
    used = [0 <= row < size for row in rows]
    if not any(used):
        return None
    weights = 0.0
    for row in sorted({row for row, use in zip(rows, used, strict=True) if use}):
        of = np.repeat([row == own for own in rows], dim).astype("float32")
        weights = weights + kernel[row] * ops.cast(of, kernel.dtype)
    return weights


def _moved(x, distance):
    """What stands `distance` later in time than each token, 0 where nothing does."""
    if distance == 0:
        return x
    time, rest = ops.shape(x)[1], [[0, 0]] * (len(x.shape) - 2)
    if distance > 0:
        return ops.pad(x, [[0, 0], [0, distance], *rest])[:, distance:]
    return ops.pad(x, [[0, 0], [-distance, 0], *rest])[:, :time]
