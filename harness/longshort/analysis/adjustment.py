"""p-values adjusted for how many they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def holm(p_values: Array) -> Array:
    """Adjust p-values by Holm's step-down method (1979), [m] → [m]; NaN stays NaN and does not count."""
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: int(np.isfinite(p_values).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted


def benjamini_hochberg(p_values: Array) -> Array:
    """Adjust p-values for the false discovery rate (Benjamini and Hochberg, 1995); NaN as in `holm`.  [m] → [m]."""
    from scipy import stats  # half a second, which most analyses need not wait

    adjusted = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p_values[known])
    return adjusted
