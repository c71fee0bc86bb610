import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longshort.analysis import compare
from longshort.analysis.comparison import COLUMNS
from longshort.analysis.intervals import jackknife
from tests.errors import assert_facts, user_error

TESTS = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
PREFIX = {"pearson": "", "spearman": "spearman_"}


def table_of(n=24, families=6, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.normal(size=n)
    return pd.DataFrame(
        {
            "family": [f"family{index % families}" for index in range(n)],
            "a": -y + 0.5 * generator.normal(size=n),
            "b": y + 1.5 * generator.normal(size=n),
            "y": y.round(1),
        }
    )


def row_of(wide, predictor="a", other="b"):
    (row,) = compare(wide, [(predictor, other)], ["y"]).to_dict("records")
    return row


def slow(wide, name):
    one, two = (abs(TESTS[name](wide[side], wide["y"]).statistic) for side in "ab")
    return one, two, one - two


@pytest.mark.parametrize("name", TESTS)
def test_all_is_that_of_a_slow_loop(name):
    wide = table_of()
    row = row_of(wide)
    one, two, difference = slow(wide, name)
    prefix = PREFIX[name]
    assert (row[f"abs_{name}"], row[f"abs_{name}_other"]) == pytest.approx((one, two))
    assert row[f"{prefix}difference"] == pytest.approx(difference)

    left = np.array([slow(wide[wide["family"] != family], name)[2] for family in sorted(set(wide["family"]))])
    ends = [row[f"{prefix}difference_{end}"] for end in ("jackknife_lo", "jackknife_hi", "p")]
    assert ends == pytest.approx(list(jackknife(difference, left)))
    assert (row["n"], row["n_families"], row["interval"], row["note"]) == (24, 6, "families", "")


def test_only_checkpoints_that_have_all_three():
    wide = table_of()
    wide.loc[:2, "a"] = np.nan
    wide.loc[3, "b"] = np.inf
    wide.loc[4, "y"] = np.nan
    row = row_of(wide)
    assert (row["n"], row["abs_pearson_other"]) == (19, pytest.approx(slow(wide[5:], "pearson")[1]))


def test_below_four_families_checkpoints_are_deleted():
    wide = table_of(families=3)
    row = row_of(wide)
    alone = row_of(wide.assign(family=[f"{index:02}" for index in range(24)]))
    assert (row["interval"], row["n_families"], alone["interval"]) == ("naive", 3, "families")
    assert_facts(row["note"], "4 families")
    for name in ("difference_jackknife_lo", "difference_jackknife_hi", "spearman_difference_p"):
        assert row[name] == alone[name]


def test_a_predictor_against_itself():
    wide = table_of().assign(c=lambda wide: 3 - 2 * wide["a"])
    row = row_of(wide, "a", "c")
    assert row["difference"] == pytest.approx(0)
    assert np.isnan(row["difference_p"])
    assert_facts(row["note"], "jackknife", "pearson")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"b": [1.0, 2, 3, 4] + [np.nan] * 20}, ("coefficient", "5 checkpoints")),
        ({"b": 1.0}, ("coefficient", "b", "vary")),
    ],
)
def test_no_comparison_and_the_reason_why(change, facts):
    row = row_of(table_of().assign(**change))
    assert_facts(row["note"], *facts)
    assert np.isnan([row["abs_pearson"], row["difference_jackknife_hi"], row["spearman_difference_p"]]).all()
    assert row["interval"] == ""


def test_a_row_for_each_pair_and_outcome():
    wide = table_of().assign(z=lambda wide: wide["y"] ** 2)
    table = compare(wide, [("a", "b"), ("b", "a")], ["y", "z"])
    assert list(table.columns) == COLUMNS
    named = table[["predictor", "other", "outcome"]].to_numpy().tolist()
    assert named == [["a", "b", "y"], ["a", "b", "z"], ["b", "a", "y"], ["b", "a", "z"]]


def test_pairs_that_share_predictors_are_those_of_each_pair_alone():
    """On the checkpoints of each pair: a coefficient is computed once where these are the same."""
    wide = table_of().assign(
        c=lambda wide: wide["a"] ** 2, z=lambda wide: wide["b"] - wide["y"], w=lambda wide: wide["y"] ** 2
    )
    wide.loc[:3, "b"] = np.nan
    wide.loc[20:, "z"] = np.nan
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    adjusted = ["difference_p_adjusted", "spearman_difference_p_adjusted"]
    together = compare(wide, pairs, ["y", "z", "w"]).drop(columns=adjusted)
    alone = [compare(wide, [pair], [outcome]).drop(columns=adjusted) for pair in pairs for outcome in "yzw"]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), check_exact=True)


def test_a_column_that_is_not_there():
    with user_error("setting", "'c'"):
        row_of(table_of(), "a", "c")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), families=st.sampled_from([3, 6]))
def test_exchanging_the_predictors_turns_the_difference_round(seed, families):
    wide = table_of(seed=seed, families=families)
    one, other = row_of(wide, "a", "b"), row_of(wide, "b", "a")
    for prefix in PREFIX.values():
        for low, high in (("", ""), ("_jackknife_lo", "_jackknife_hi")):
            difference = f"{prefix}difference"
            assert other[difference + low] == pytest.approx(-one[difference + high], abs=1e-9)
        assert other[f"{prefix}difference_p"] == pytest.approx(one[f"{prefix}difference_p"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_signs_scales_and_the_order_of_rows_change_nothing(seed, scale):
    wide = table_of(seed=seed)
    moved = wide.assign(a=-scale * wide["a"] + 1, y=-wide["y"]).sample(frac=1, random_state=seed)
    one, other = row_of(wide), row_of(moved)
    numbers = [name for name in COLUMNS if isinstance(one[name], float)]
    assert [other[name] for name in numbers] == pytest.approx([one[name] for name in numbers], abs=1e-7)


def test_a_difference_that_is_there_is_found():
    generator = np.random.default_rng(0)
    family = np.repeat(np.arange(40), 5)
    effects = generator.normal(size=(40, 2))[family]
    y = effects[:, 0] + 0.3 * generator.normal(size=200)
    a, b = y + 0.4 * generator.normal(size=200), 0.5 * y + effects[:, 1]
    row = row_of(pd.DataFrame({"family": family, "a": a, "b": b, "y": y}))
    assert row["difference_jackknife_lo"] > 0
    assert row["difference_p"] < 0.01
