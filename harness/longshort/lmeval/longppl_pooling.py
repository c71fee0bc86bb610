"""LongPPL over documents, pooled by their numbers of key tokens, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Of each document: mean log-likelihood of its key tokens in nats, and their number.
Pooled = Sequence[tuple[float, float]]


def pooled_perplexity(documents: Pooled) -> float:
    """Return exp of the mean NLL over the key tokens of all documents, as LongPPL pools them."""
    log_likelihoods, counts = np.array(documents, dtype=np.float64).T
    return math.exp(-float(np.average(log_likelihoods, weights=counts)))


def pooled_perplexity_stderr(documents: Pooled) -> float:
    """Return the standard error of `pooled_perplexity`, clustered by document.

    The mean NLL is a ratio r of two sums over N documents: of their NLLs s and of their numbers of key tokens n. Its
    variance by the delta method is N / (N - 1) · Σ (s - r·n)² / (Σ n)², and that of its exponential exp(2r) times this.

    Args:
        documents: at least 2.

    Source: Cochran, "Sampling Techniques", 3rd edition, 1977, equation 2.46, without the correction for a finite
    population.
    """
    log_likelihoods, counts = np.array(documents, dtype=np.float64).T
    total, size = counts.sum(), len(counts)
    mean = -float(np.average(log_likelihoods, weights=counts))
    residuals = counts * (-log_likelihoods - mean)
    return math.exp(mean) * math.sqrt(size / (size - 1) * float((residuals**2).sum())) / float(total)
