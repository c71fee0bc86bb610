import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longshort.analysis.intervals import delete_one, jackknife, jackknife_of_correlation, naive


def test_jackknife_by_pseudo_values():
    whole, without = 0.7, [0.6, 0.75, 0.72, 0.5, 0.71]
    pseudo = [5 * whole - 4 * value for value in without]
    mean = sum(pseudo) / 5
    stderr = math.sqrt(sum((value - mean) ** 2 for value in pseudo) / 4 / 5)
    low, high, p = jackknife(whole, np.array(without))
    assert (low, high) == pytest.approx((whole - 2.7764451 * stderr, whole + 2.7764451 * stderr))
    assert p == pytest.approx(2 * stats.t(4).sf(whole / stderr))


def test_the_jackknife_of_a_mean_is_the_t_test():
    values = np.random.default_rng(0).normal(0.4, 1, size=12)
    without = np.array([np.delete(values, index).mean() for index in range(12)])
    expected = stats.ttest_1samp(values, 0)
    low, high, p = jackknife(values.mean(), without)
    assert p == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


correlation = st.floats(-0.95, 0.95)


@settings(max_examples=100, deadline=None)
@given(whole=correlation, without=st.lists(correlation, min_size=4, max_size=9))
def test_interval_of_a_correlation(whole, without):
    low, high, p = jackknife_of_correlation(whole, np.array(without))
    if np.ptp(without) < 1e-9:
        return
    assert -1 <= low <= whole <= high <= 1
    z_low, z_high, _ = jackknife(np.arctanh(whole), np.arctanh(without))
    assert (low, high) == pytest.approx((np.tanh(z_low), np.tanh(z_high)))
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (low > 0 or high < 0)
    negated = jackknife_of_correlation(-whole, -np.array(without))
    assert negated == pytest.approx((-high, -low, p))


@pytest.mark.parametrize(
    ("whole", "without"),
    [
        (1.0, [0.9, 0.8, 0.7, 0.6]),
        (0.5, [0.4, -1.0, 0.5, 0.6]),
        (np.nan, [0.1, 0.2, 0.3, 0.4]),
        (0.5, [0.4, np.nan, 0.5, 0.6]),
        (0.5, [0.5] * 4),
    ],
)
def test_no_interval_where_it_means_nothing(whole, without):
    assert np.isnan(jackknife_of_correlation(whole, np.array(without))).all()


def test_every_family_is_deleted_once():
    assert delete_one(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_naive_is_that_of_scipy():
    x, y = np.random.default_rng(2).normal(size=(2, 15))
    test = stats.pearsonr(x, y)
    interval = test.confidence_interval(0.95)
    assert naive("pearson", test.statistic, 15) == pytest.approx((interval.low, interval.high, test.pvalue))
    rank = stats.spearmanr(x, y)
    assert naive("spearman", rank.statistic, 15)[2] == pytest.approx(rank.pvalue)


@pytest.mark.parametrize(
    ("name", "controls", "margin"),
    [
        ("pearson", 0, 1.959964 / math.sqrt(17)),
        ("partial", 2, 1.959964 / math.sqrt(15)),
        ("spearman", 0, 1.959964 * math.sqrt((1 + 0.18) / 17)),
        ("kendall", 0, 1.959964 * math.sqrt(0.437 / 16)),
    ],
)
def test_naive_margins(name, controls, margin):
    low, high, p = naive(name, 0.6, 20, controls)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(0.6) - margin), math.tanh(math.atanh(0.6) + margin)))
    t = 0.6 * math.sqrt((18 - controls) / (1 - 0.36))
    z = math.atanh(0.6) / margin * 1.959964
    assert p == pytest.approx(2 * (stats.norm.sf(z) if name == "kendall" else stats.t(18 - controls).sf(t)), rel=1e-5)


def test_naive_at_its_ends():
    assert np.isnan(naive("pearson", 1.0, 8)[:2]).all()
    assert naive("pearson", -1.0, 8)[2] == 0
    low, _, p = naive("partial", 0.5, 5, 2)  # one degree of freedom for t, none for the interval
    assert np.isnan(low)
    assert 0 < p < 1
    assert np.isnan(naive("partial", 0.5, 5, 3)).all()
    assert np.isnan(naive("partial", np.nan, 9, 1)).all()
