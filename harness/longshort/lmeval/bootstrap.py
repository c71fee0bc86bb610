"""The standard error of a perplexity by bootstrap, with numpy in milliseconds.

lm-eval draws 100,000 resamples in Python loops, in a new pool of processes for each metric, which takes seconds for
perplexities at many lengths. `compat.install` makes lm-eval use this estimator for longshort's metrics alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import lm_eval.api.metrics
import numpy as np

DRAWS_AT_ONCE = 2**15  # indices and values stay in the processor's cache
SEED = 0


def perplexity(log_likelihoods: Sequence[float]) -> float:
    """Return lm-eval's `perplexity`, exp(-mean); a function of our own marks longshort's metrics."""
    return float(lm_eval.api.metrics.perplexity(log_likelihoods))


def perplexity_stderr(log_likelihoods: Sequence[float], iters: int) -> float:
    """Return the bootstrap estimate of the standard error of `perplexity`, as lm-eval's `bootstrap_stderr`.

    It is the sample standard deviation of exp(-mean) over `iters` resamples of the documents with replacement. The
    seed is fixed, so that equal values have equal standard errors.

    Args:
        log_likelihoods: mean per token of each document, nats; [N].
        iters: number of resamples, at least 2.
    """
    values = np.asarray(log_likelihoods, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    means = np.empty(iters)
    rows = max(1, DRAWS_AT_ONCE // len(values))
    for start in range(0, iters, rows):
        indices = generator.integers(len(values), size=(min(rows, iters - start), len(values)))  # [rows, N]
        means[start : start + len(indices)] = values[indices].mean(axis=1)
    smallest = means.min()  # its exponential is factored out: squares of the largest would overflow
    return float(np.exp(smallest - means).std(ddof=1) * np.exp(-smallest))
