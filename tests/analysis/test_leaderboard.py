"""The leaderboard against SciPy and plain loops over families."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.analysis import compare, correlations
from longshort.analysis.leaderboard import COLUMNS, leaderboard

PREDICTORS = ["sce", "jeffreys", "js", "nll"]


def table_of(families=8, members=4, seed=0):
    """`jeffreys` follows the outcome, `js` follows it less, `sce` and `nll` do not."""
    generator = np.random.default_rng(seed)
    family = np.repeat([f"family{index:02}" for index in range(families)], members)
    y = generator.normal(size=families * members)
    noise = {"sce": 40.0, "jeffreys": 0.15, "js": 1.2, "nll": 30.0}
    columns = {name: scale * generator.normal(size=len(y)) - y for name, scale in noise.items()}
    return pd.DataFrame({"family": family, **columns, "y": y.round(1), "z": generator.normal(size=len(y))})


def made(wide, outcomes=("y",), predictors=PREDICTORS):
    compared = compare(wide, list(combinations(predictors, 2)), outcomes)
    return leaderboard(correlations(wide, predictors, outcomes), compared)


def slow_jackknife(statistic, wide):
    """Estimate, interval and p-value of a statistic of the table by a plain loop over families."""
    left = [statistic(wide[wide["family"] != family]) for family in sorted(set(wide["family"]))]
    count = len(left)
    stderr = np.sqrt((count - 1) / count * sum((value - np.mean(left)) ** 2 for value in left))
    whole = statistic(wide)
    margin = stats.t.ppf(0.975, count - 1) * stderr
    return whole, whole - margin, whole + margin, 2 * stats.t.sf(abs(whole / stderr), count - 1)


def slow_holm(p_values):
    adjusted = np.empty(len(p_values))
    worst = 0.0
    for place, index in enumerate(np.argsort(p_values)):
        worst = adjusted[index] = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
    return adjusted


def rho(predictor):
    return lambda wide: stats.spearmanr(wide[predictor], wide["y"]).statistic


def test_order_intervals_and_p_values_are_those_of_scipy_and_a_plain_loop():
    wide = table_of()
    table = made(wide)
    assert list(table.columns) == COLUMNS
    values = {name: rho(name)(wide) for name in PREDICTORS}
    assert table["predictor"].tolist() == sorted(PREDICTORS, key=lambda name: -abs(values[name]))
    assert table["rank"].tolist() == [1, 2, 3, 4]
    p_values = []
    for row in table.itertuples():
        whole, low, high, p = slow_jackknife(lambda part, name=row.predictor: np.arctanh(rho(name)(part)), wide)
        expected = (*np.tanh([whole, low, high]), p)
        assert (row.spearman, row.spearman_lo, row.spearman_hi, row.spearman_p) == pytest.approx(expected)
        p_values.append(p)
    assert table["spearman_p_adjusted"].tolist() == pytest.approx(slow_holm(p_values).tolist())


def test_the_differences_that_hold_up_are_those_of_a_plain_loop():
    wide = table_of()
    table = made(wide).set_index("predictor")
    pairs = list(combinations(PREDICTORS, 2))
    found = [slow_jackknife(lambda part, a=a, b=b: abs(rho(a)(part)) - abs(rho(b)(part)), wide) for a, b in pairs]
    adjusted = slow_holm([p for *_, p in found])
    better = {name: set() for name in PREDICTORS}
    worse = {name: set() for name in PREDICTORS}
    for (a, b), (difference, *_), p in zip(pairs, found, adjusted, strict=True):
        if p < 0.05:
            one, other = (a, b) if difference > 0 else (b, a)
            better[one].add(other)
            worse[other].add(one)
    assert better["jeffreys"] == {"sce", "js", "nll"}  # the planted order
    for name in PREDICTORS:
        assert set(filter(None, table.loc[name, "better_than"].split("; "))) == better[name]
        assert set(filter(None, table.loc[name, "worse_than"].split("; "))) == worse[name]
