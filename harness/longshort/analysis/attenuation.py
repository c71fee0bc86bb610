"""What measurement error takes from a correlation.

Spearman (1904): with errors that are independent of the values and of one another, r = ρ · sqrt(reliability of x ·
reliability of y). Two things to know here. Standard errors over documents count what differs between documents;
checkpoints scored on the same documents share most of that, so reliability comes out too low and the correction too
strong: the corrected coefficient is where the truth ends at most. And errors of predictor and outcome that go
together, as on the same documents they may, add to r what the correction does not take away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def reliability(values: Array, stderrs: Array) -> float:
    """Share of the variance between checkpoints that is no measurement error: 1 − mean(stderr²) / variance.

    Args:
        values: [n] one per checkpoint.
        stderrs: [n] their standard errors.

    Returns:
        At most 1; 0 or less where the errors are as great as the differences; NaN where an error is not known.
    """
    return float(1 - np.mean(stderrs**2) / np.var(values, ddof=1))


def corrected(r: float, reliability_x: float, reliability_y: float) -> float:
    """r / sqrt(reliability of x · reliability of y); NaN unless both are positive.

    It is an estimate without an interval, and may be greater than 1.
    """
    if not (reliability_x > 0 and reliability_y > 0):
        return float("nan")
    return float(r / np.sqrt(reliability_x * reliability_y))
