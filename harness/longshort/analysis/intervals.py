"""95 % intervals and p-values of a correlation whose points come in families, and the naive ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

CONFIDENCE = 0.95
ONE = 1 - 1e-12  # from here on a correlation is 1 but for rounding, and Fisher's z means nothing
UNKNOWN = float("nan")


def delete_one(families: int) -> Array:
    """Weights [F, F] of the samples without one family each, see `longshort.analysis.coefficients`."""
    return 1 - np.eye(families)


def jackknife(whole: float, without: Array) -> tuple[float, float, float]:
    """Leave-one-family-out jackknife: interval and p-value of an estimate, from what it is without each of F families.

    The estimate ± t · s with t of F − 1 degrees of freedom and s² = (F−1)/F · Σ (without_f − their mean)²
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11). It allows for any dependence
    within families.

    Args:
        whole: the estimate from all families.
        without: [F] the same without one.

    Returns:
        Lower and upper end and the two-sided p of a true value of 0; NaN where the estimate is not defined, with
        all families or without one, or does not vary.
    """
    count = len(without)
    stderr = float(np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2)))
    if not np.isfinite(whole + stderr) or stderr <= 1 - ONE:
        return UNKNOWN, UNKNOWN, UNKNOWN
    margin = stderr * float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    return whole - margin, whole + margin, _p_value(whole / stderr, count - 1)


def jackknife_of_correlation(whole: float, without: Array) -> tuple[float, float, float]:
    """`jackknife` on Fisher's z = artanh r, its ends carried back by tanh; NaN also where a correlation is ±1.

    Arguments and result as there: the estimate, and [F] the same without one.
    """
    if not (np.abs([whole, *without]) < ONE).all():
        return UNKNOWN, UNKNOWN, UNKNOWN
    low, high, p = jackknife(float(np.arctanh(whole)), np.arctanh(without))
    return float(np.tanh(low)), float(np.tanh(high)), p


def naive(name: str, r: float, n: int, controls: int = 0) -> tuple[float, float, float]:
    """Interval and p-value of a correlation of n independent points; `name` is that of the coefficient.

    The interval is Fisher's z ± 1.96 · s, where s² is 1 / (n − 3 − k) for Pearson's r given k controls,
    (1 + r²/2) / (n − 3) for Spearman's and 0.437 / (n − 4) for Kendall's (Bonett and Wright, Psychometrika
    2000). The p is that of t = r · sqrt(d / (1 − r²)) with d = n − 2 − k degrees of freedom, as in SciPy; for
    Kendall's, that of z / s.

    Returns:
        Lower and upper end, NaN at r = ±1; and p. All are NaN for too few points.
    """
    variance, used = {"spearman": (1 + r**2 / 2, 3), "kendall": (0.437, 4)}.get(name, (1.0, 3 + controls))
    degrees = n - 2 - controls
    if np.isnan(r) or degrees < 1:
        return UNKNOWN, UNKNOWN, UNKNOWN
    if abs(r) >= ONE:
        return UNKNOWN, UNKNOWN, 0.0
    p = _p_value(r * np.sqrt(degrees / (1 - r**2)), degrees)
    if n <= used:
        return UNKNOWN, UNKNOWN, p
    z, stderr = np.arctanh(r), np.sqrt(variance / (n - used))
    if name == "kendall":
        p = float(2 * special.ndtr(-abs(z) / stderr))
    margin = float(special.ndtri((1 + CONFIDENCE) / 2)) * stderr
    return float(np.tanh(z - margin)), float(np.tanh(z + margin)), p


def _p_value(t: float, degrees: int) -> float:
    """Two-sided, of Student's t."""
    return float(2 * special.stdtr(degrees, -abs(t)))
