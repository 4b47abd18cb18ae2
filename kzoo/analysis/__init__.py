"""Analyses of models: spectra of attention, rank collapse, gradients, caches, leaks and masks.

`analyse` takes several of them of one model, along its training.
"""

import kzoo.load_keras  # noqa: F401
from kzoo.analysis.analyse import Analysis, analyse
from kzoo.analysis.collapse import collapse
from kzoo.analysis.gradients import gradient_norms
from kzoo.analysis.leaks import LayerLeaks, leaks
from kzoo.analysis.maps import attention_maps
from kzoo.analysis.pictures import draw_masks, terminal_masks
from kzoo.analysis.reuse import cache_reuse
from kzoo.analysis.spectrum import attention_spectrum, control_spectrum, spectrum

__all__ = [
    "Analysis",
    "LayerLeaks",
    "analyse",
    "attention_maps",
    "attention_spectrum",
    "cache_reuse",
    "collapse",
    "control_spectrum",
    "draw_masks",
    "gradient_norms",
    "leaks",
    "spectrum",
    "terminal_masks",
]
