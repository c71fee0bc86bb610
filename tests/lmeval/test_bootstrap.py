"""The bootstrap of a perplexity against every resample written out, the delta method and lm-eval's own."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path
from statistics import pstdev

import numpy as np
import pytest
from lm_eval.api import metrics

from longshort.lmeval.bootstrap import perplexity_stderr
from tests.lmeval.conftest import run, values

LOG_LIKELIHOODS = [-3.1, -2.2, -4.0, -2.9, -3.3, -2.5, -3.9]


def exact(log_likelihoods: list[float]) -> float:
    """Over all N^N resamples, each as likely as the others."""
    resamples = itertools.product(log_likelihoods, repeat=len(log_likelihoods))
    return pstdev(math.exp(-math.fsum(resample) / len(resample)) for resample in resamples)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_equals_the_enumeration_of_all_resamples(count: int) -> None:
    some = LOG_LIKELIHOODS[:count]
    assert perplexity_stderr(some, 100_000) == pytest.approx(exact(some), rel=0.01)


def test_equals_lm_evals_own_within_monte_carlo_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    own = metrics.bootstrap_stderr(metrics.perplexity, LOG_LIKELIHOODS, 20_000)
    assert perplexity_stderr(LOG_LIKELIHOODS, 20_000) == pytest.approx(own, rel=0.03)  # 0.7 % each, and skew


def test_equals_the_delta_method_for_many_documents() -> None:
    some = np.random.default_rng(1).normal(-3, 0.3, 2000)
    expected = math.exp(-some.mean()) * some.std() / math.sqrt(len(some))
    assert perplexity_stderr(some.tolist(), 20_000) == pytest.approx(expected, rel=0.02)


def test_equal_values_have_equal_standard_errors() -> None:
    first = perplexity_stderr(LOG_LIKELIHOODS, 1000)
    np.random.default_rng().random(5)
    assert perplexity_stderr(LOG_LIKELIHOODS, 1000) == first
    assert perplexity_stderr([-3.0] * 5, 1000) == pytest.approx(0, abs=1e-12)


def test_great_perplexities_do_not_overflow() -> None:
    # The resamples give e^650 (1/4), e^400 and e^150: the standard deviation is sqrt(3)/4 of the greatest.
    assert perplexity_stderr([-150.0, -650.0], 100_000) == pytest.approx(math.sqrt(3) / 4 * math.exp(650), rel=0.01)


def test_memory_does_not_grow_with_resamples_times_documents() -> None:
    some = np.linspace(-4, -3, 10_000).tolist()
    tracemalloc.start()
    perplexity_stderr(some, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20  # all draws at once take 160 MB


def test_the_number_of_resamples_is_the_callers(llama: Path, corpus: Path) -> None:
    settings = {"corpus": str(corpus), "lengths": [16, 32], "num_docs": 3}
    task = "longshort_perplexity"
    found = {}
    for iters in (0, 50, 5000):
        results = run(llama, [task], settings, bootstrap_iters=iters)
        found[iters] = [results["results"][task][f"{name}_stderr,none"] for name in values(results, task)]
        rows = run(llama, [task], settings, bootstrap_iters=iters, log_samples=True)["samples"][task]
        if iters:
            first = results["results"][task]["ppl@16_stderr,none"]
            assert first == pytest.approx(perplexity_stderr([row["ppl@16"] for row in rows], iters))
    assert set(found[0]) == {"N/A"}
    assert found[50] != found[5000]
