import numpy as np
import pingouin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.analysis.adjustment import benjamini_hochberg, holm


def test_holm():
    assert holm(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_benjamini_hochberg():
    expected = [0.03, 0.04, np.nan, 0.04]
    assert benjamini_hochberg(np.array([0.01, 0.04, np.nan, 0.03])) == pytest.approx(expected, nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_both_are_those_of_pingouin(p_values):
    for adjust, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        assert adjust(np.array(p_values)) == pytest.approx(pingouin.multicomp(p_values, method=method)[1])


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_nothing_to_adjust(adjust):
    assert adjust(np.array([])).tolist() == []
    assert np.isnan(adjust(np.array([np.nan]))).tolist() == [True]
