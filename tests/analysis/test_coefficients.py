"""Weighted coefficients are those of SciPy on the points written out as often as they are taken."""

import warnings

import numpy as np
import pandas as pd
import pingouin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longshort.analysis.coefficients import kendall, partial, pearson, spearman

REFERENCE = {pearson: stats.pearsonr, spearman: stats.spearmanr, kendall: stats.kendalltau}


def points(n, seed, families=5, decimals=None):
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, n))
    y = 0.6 * x + 0.4 * z + generator.normal(size=n)
    if decimals is not None:
        x, y = x.round(decimals), y.round(decimals)
    return x, y, z, np.concatenate([np.arange(families), generator.integers(families, size=n - families)])


def residuals(values, controls):
    design = np.column_stack([np.ones(len(values)), controls])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.parametrize("decimals", [None, 0], ids=["distinct", "ties"])
@pytest.mark.parametrize("coefficient", REFERENCE)
@pytest.mark.parametrize("n", [6, 40, 700])
def test_coefficients_are_those_of_scipy(coefficient, decimals, n):
    x, y, _, families = points(n, seed=n, decimals=decimals)
    (value,) = coefficient(x, y, families, np.ones((1, 5)))
    assert value == pytest.approx(REFERENCE[coefficient](x, y).statistic, abs=1e-12)


small = st.integers(-3, 3).map(float)  # many ties


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.tuples(small, small, st.integers(0, 3)), min_size=4, max_size=14),
    counts=st.lists(st.tuples(*[st.integers(0, 3)] * 4), min_size=1, max_size=4),
)
def test_weights_take_each_family_so_many_times(data, counts):
    x, y, families = (np.array(column) for column in zip(*data, strict=True))
    _, families = np.unique(families, return_inverse=True)
    weights = np.array(counts, dtype=float)[:, : families.max() + 1]
    weights[weights.sum(axis=1) == 0] = 1
    for coefficient, reference in REFERENCE.items():
        values = coefficient(x, y, families, weights) if np.ptp(x) and np.ptp(y) else []
        for value, weight in zip(values, weights, strict=False):
            taken = np.repeat(np.arange(len(x)), weight[families].astype(int))
            a, b = x[taken], y[taken]
            if len(taken) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(reference(a, b).statistic, abs=1e-10)


@pytest.mark.parametrize("controls", [1, 3])
def test_partial_is_that_of_residuals_in_every_resample(controls):
    x, y, z, families = points(30, seed=2)
    given = np.column_stack([z * 100 + 1e4, np.random.default_rng(3).normal(size=(30, 2))])[:, :controls]
    weights = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 0, 3, 1, 0.0]])
    for value, weight in zip(partial(x, y, given, families, weights), weights, strict=True):
        taken = np.repeat(np.arange(30), weight[families].astype(int))
        left = [residuals(side[taken], given[taken]) for side in (x, y)]
        assert value == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-9)


@pytest.mark.parametrize("controls", [["a"], ["a", "b"]])
def test_partial_is_that_of_pingouin(controls):
    generator = np.random.default_rng(4)
    frame = pd.DataFrame(generator.normal(size=(25, 4)) @ generator.normal(size=(4, 4)), columns=["x", "y", "a", "b"])
    expected = pingouin.partial_corr(frame, "x", "y", controls)["r"].iloc[0]
    x, y, given = frame["x"].to_numpy(), frame["y"].to_numpy(), frame[controls].to_numpy()
    families = np.arange(25) % 6
    assert partial(x, y, given, families, np.ones((1, 6)))[0] == pytest.approx(expected, abs=1e-9)


def test_partial_with_one_control_twice_is_that_with_it_once():
    x, y, z, families = points(20, seed=5)
    once = partial(x, y, z[:, None], families, np.ones((1, 5)))
    twice = partial(x, y, np.column_stack([z, 2 * z + 1]), families, np.ones((1, 5)))
    assert twice == pytest.approx(once, abs=1e-9)


def test_where_the_controls_leave_nothing_there_is_no_partial_correlation():
    x, y, z, families = points(20, seed=6)
    assert np.isnan(partial(x, 3 * z - 1, z[:, None], families, np.ones((1, 5))))
    assert np.isnan(partial(2 * z, y, z[:, None], families, np.ones((1, 5))))
    x = np.arange(5.0)  # as many free numbers as points
    many = np.column_stack([x**3, x**4, np.sin(x)])
    assert np.isnan(partial(x, x**2, many, np.arange(5), np.ones((1, 5))))


def test_a_family_far_off_does_not_cost_the_others_their_digits():
    x, y, _, families = points(20, seed=7)
    far = np.where(families == 0, 1e7, 0.0)
    weights = np.array([[0.0, 1, 1, 1, 1]])
    rest = families > 0
    expected = stats.pearsonr(x[rest], y[rest]).statistic
    assert pearson(x + far, y - far, families, weights)[0] == pytest.approx(expected, abs=1e-6)


def test_a_constant_side_in_a_resample_is_not_defined_and_does_not_warn():
    x = np.array([0.1 + 0.2, 0.3, 0.3, 1.0, 2.0])  # 0.1 + 0.2 is 0.3 but for rounding
    y = np.array([1.0, 2, 3, 4, 5])
    families = np.array([0, 0, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = [f(x, y, families, np.array([[1.0, 0], [1, 1]])) for f in (pearson, kendall)]
    assert np.isnan(values[0][0])
    assert np.isfinite([value[1] for value in values]).all()


def test_many_resamples_in_blocks_are_those_one_by_one():
    x, y, _, families = points(600, seed=8, families=50)
    weights = np.random.default_rng(9).integers(0, 3, size=(1000, 50)).astype(float)
    assert 1000 * 600 > 1 << 18  # more than a block
    some = [0, 1, 436, 437, 438, 998, 999]
    for coefficient in REFERENCE:
        singly = np.concatenate([coefficient(x, y, families, weights[[row]]) for row in some])
        assert coefficient(x, y, families, weights)[some] == pytest.approx(singly, abs=1e-12)
