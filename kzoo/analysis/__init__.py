"""Analyses of models: the spectrum of attention, rank collapse, leaks, pictures of masks."""

import kzoo.load_keras  # noqa: F401
from kzoo.analysis.collapse import collapse
from kzoo.analysis.leaks import LayerLeaks, leaks
from kzoo.analysis.pictures import draw_masks, terminal_masks
from kzoo.analysis.spectrum import attention_spectrum, spectrum

__all__ = [
    "LayerLeaks",
    "attention_spectrum",
    "collapse",
    "draw_masks",
    "leaks",
    "spectrum",
    "terminal_masks",
]
