"""The standard error of a perplexity by bootstrap, in milliseconds.

lm-eval draws 100,000 resamples in loops of Python, in a new pool of processes for each metric; a task with
perplexities at many lengths waits seconds for them. Here the same estimator is drawn with numpy. lm-eval chooses a
standard error by the aggregating function and keeps the choice in a fixed list, so our perplexities aggregate with a
function of our own and lm-eval is taught its standard error; it computes everyone else's as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lm_eval.api.metrics
import lm_eval.evaluator_utils
import numpy as np
from lm_eval.api.metrics import stderr_for_metric as stderr_of_lm_eval

DRAWS = 2**15  # at once: indices and values stay in the processor's cache
SEED = 0

Statistic = Callable[[Sequence[float]], float]


def perplexity(log_likelihoods: Sequence[float]) -> float:
    """lm-eval's `perplexity`, exp(-mean), as a function that tells our metrics from those of other tasks."""
    return float(lm_eval.api.metrics.perplexity(log_likelihoods))


def perplexity_stderr(log_likelihoods: Sequence[float], iters: int) -> float:
    """Bootstrap estimate of the standard error of `perplexity`, as lm-eval's `bootstrap_stderr`.

    The sample standard deviation of exp(-mean) over `iters` resamples of the documents with replacement. The seed
    is fixed: equal values have equal standard errors.

    Args:
        log_likelihoods: mean per token of each document, nats; [N].
        iters: resamples, at least 2.
    """
    values = np.asarray(log_likelihoods, dtype=np.float64)
    generator = np.random.default_rng(SEED)
    means = np.empty(iters)
    rows = max(1, DRAWS // len(values))
    for start in range(0, iters, rows):
        draws = generator.integers(len(values), size=(min(rows, iters - start), len(values)))  # [rows, N]
        means[start : start + len(draws)] = values[draws].mean(axis=1)
    least = means.min()  # its exponential is taken out: squares of the greatest would overflow
    return float(np.exp(least - means).std(ddof=1) * np.exp(-least))


def stderr_for_metric(metric: Statistic, bootstrap_iters: int) -> Statistic | None:
    """As lm-eval's function of this name, which also knows our `perplexity`."""
    if metric is not perplexity:
        return stderr_of_lm_eval(metric, bootstrap_iters)  # type: ignore[no-any-return]  # lm-eval has no types here
    if bootstrap_iters < 2:
        return None
    return lambda values: perplexity_stderr(values, bootstrap_iters)


def register() -> None:
    """Let lm-eval ask `stderr_for_metric` here: where it is defined, and where it has been imported already."""
    for module in (lm_eval.api.metrics, lm_eval.evaluator_utils):
        module.stderr_for_metric = stderr_for_metric
