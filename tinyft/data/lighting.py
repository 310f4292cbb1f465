"""Brightness and contrast, as fastai has them: on the logit of a pixel."""

from __future__ import annotations

import numpy as np

# fastai 2.8.12 clamps pixels to this distance from 0 and 1 before it takes their logit.
LOGIT_MARGIN = 1e-7


def light(pixels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Brightness adds to the logit of a pixel, contrast multiplies it; 0 and 1 stay in reach.

    Shapes:  pixels any shape, 0..1; out the same
    """
    inside = np.clip(pixels, LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    lit = (np.log(inside / (1 - inside)) + np.log(brightness / (1 - brightness))) * contrast
    return 1 / (1 + np.exp(-lit))
