import numpy as np
import pytest

from longshort.analysis.attenuation import corrected, reliability


def test_known_errors_are_taken_back():
    generator = np.random.default_rng(0)
    truth = generator.multivariate_normal([3, 5], [[1, 0.6], [0.6, 1]], size=20_000)
    errors = np.column_stack([generator.uniform(0.2, 1.0, size=20_000), np.full(20_000, 0.5)])
    x, y = (truth + errors * generator.normal(size=(20_000, 2))).T
    r = np.corrcoef(x, y)[0, 1]
    reliabilities = reliability(x, errors[:, 0]), reliability(y, errors[:, 1])
    assert reliabilities == pytest.approx((1 / (1 + np.mean(errors[:, 0] ** 2)), 1 / 1.25), abs=0.01)
    assert r < 0.5
    assert corrected(r, *reliabilities) == pytest.approx(0.6, abs=0.02)


def test_by_hand():
    assert reliability(np.array([1.0, 2, 3]), np.array([0.5, 0.5, 0.5])) == 0.75
    assert corrected(-0.6, 0.75, 0.48) == pytest.approx(-1.0)
    assert corrected(0.9, 0.5, 0.5) == pytest.approx(1.8)  # may be greater than 1


@pytest.mark.parametrize("reliabilities", [(0.0, 0.9), (-0.2, -0.3), (np.nan, 0.9), (0.9, np.nan)])
def test_no_correction_without_reliability(reliabilities):
    assert np.isnan(corrected(0.5, *reliabilities))


def test_an_error_that_is_not_known():
    assert np.isnan(reliability(np.array([1.0, 2, 3]), np.array([0.5, np.nan, 0.5])))
