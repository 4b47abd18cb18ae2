"""Whether an analysis fits into memory, before it begins."""

import math
import os
from pathlib import Path

import keras
import numpy as np

from kzoo.analysis.activations import inputs_of
from kzoo.errors import InputError

COPIES = 8  # of a layer's weights that exist at once: scores, masks, powers, and those of the SVD
_FLOAT64 = 8  # bytes


def check_fits(model, batch):
    """`InputError`, with the number of tokens that would fit, unless the dense weights of one
    example and the hidden states of the batch do."""
    backbone, x = inputs_of(model, batch)
    heads, width = backbone.num_heads, backbone.hidden_dim
    padding_masks = [np.asarray(x[name]) for name in x if name.endswith("padding_mask")]
    time = max(mask.shape[1] for mask in padding_masks)
    states = sum(len(mask) for mask in padding_masks) * (backbone.num_layers + 1) * width * 4
    squares = COPIES * heads * _FLOAT64
    free = available()
    needed = squares * time**2 + states * time
    if free is None or needed <= free:
        return
    fitting = int((math.sqrt(states**2 + 4 * squares * free) - states) / (2 * squares))
    raise InputError(
        f"the weights of {heads} heads between {time} tokens take about {_gigabytes(needed)} at "
        f"once, and {_gigabytes(free)} are free: {fitting} tokens fit. "
        f"Received: {time} tokens"
    )


def available():
    """Bytes that are free where the backend computes, or None where nothing tells."""
    if keras.backend.backend() == "jax":
        import jax

        told = jax.local_devices()[0].memory_stats()  # None on a CPU
        if told and "bytes_limit" in told:
            return told["bytes_limit"] - told.get("bytes_in_use", 0)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _gigabytes(count):
    return f"{count / 1e9:.3g} GB"
