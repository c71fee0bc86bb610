import time
import warnings

import numpy as np
import pandas as pd
import pingouin
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from longshort.analysis import correlations, outcomes, predictors, wide_table
from longshort.analysis.correlation import COLUMNS
from longshort.analysis.intervals import jackknife_of_correlation
from tests.errors import assert_facts, assert_one, user_error

NAMES = ("pearson", "spearman", "kendall", "partial")
CONTRACT = [
    *("predictor", "outcome", "n", "n_families", "pearson", "pearson_lo", "pearson_hi", "pearson_p"),
    *("spearman", "spearman_lo", "spearman_hi", "spearman_p", "kendall", "kendall_p", "partial", "partial_p"),
    *("controls", "p_adjusted"),
]


def table_of(n=20, families=5, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return pd.DataFrame(
        {
            "family": [f"family{index % families}" for index in range(n)],
            "x": x,
            "y": 0.7 * x + generator.normal(size=n),
            "nll": 0.5 * x + generator.normal(size=n),
        }
    )


def row_of(wide, predictor="x", outcome="y", **options):
    (row,) = correlations(wide, [predictor], [outcome], **options).to_dict("records")
    return row


def residuals(values, controls):
    design = np.column_stack([np.ones(len(values)), controls])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def slow(wide, name, controls=("nll",)):
    """One coefficient of a table, by SciPy."""
    x, y = wide["x"], wide["y"]
    if name == "partial":
        x, y = (residuals(side.to_numpy(), wide[list(controls)].to_numpy()) for side in (x, y))
    test = {"spearman": stats.spearmanr, "kendall": stats.kendalltau}.get(name, stats.pearsonr)
    return test(x, y).statistic


def with_ties(seed=0):
    wide = table_of(24, 6, seed)
    return wide.assign(y=wide["y"].round(0))


@pytest.mark.parametrize("name", NAMES)
def test_coefficients_are_those_of_scipy(name):
    wide = with_ties()
    row = row_of(wide)
    assert row[name] == pytest.approx(slow(wide, name))
    assert (row["n"], row["n_families"], row["interval"], row["controls"]) == (24, 6, "jackknife", "nll")
    assert row["note"] == "ties in y: mean ranks (Spearman), τ-b (Kendall)"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wide", [with_ties(), table_of(12, 4, 1), table_of(9, 9, 2)], ids=["ties", "four", "singles"])
def test_jackknife_and_range_are_those_of_a_slow_loop(name, wide):
    row = row_of(wide)
    left = np.array([slow(wide[wide["family"] != family], name) for family in sorted(set(wide["family"]))])
    low, high, p = jackknife_of_correlation(slow(wide, name), left)
    assert (row[f"{name}_lo"], row[f"{name}_hi"], row[f"{name}_p"]) == pytest.approx((low, high, p), abs=1e-9)
    assert (row[f"{name}_loo_lo"], row[f"{name}_loo_hi"]) == pytest.approx((left.min(), left.max()))
    assert 0 < p < 1


def test_the_partial_correlation_is_that_of_pingouin():
    wide = table_of(20, 3).assign(log_params=np.random.default_rng(3).normal(size=20))
    row = row_of(wide, controls=["nll", "log_params"])
    expected = pingouin.partial_corr(wide, "x", "y", ["nll", "log_params"]).iloc[0]
    p = expected.filter(regex=r"^p.?val$").iloc[0]
    assert (row["partial"], row["partial_p"]) == pytest.approx((expected["r"], p))
    low, high = expected.filter(regex="^CI95").iloc[0]
    assert (row["partial_lo"], row["partial_hi"]) == pytest.approx((low, high), abs=0.006)  # it rounds to two digits
    assert (row["controls"], row["interval"]) == ("nll, log_params", "naive")


def test_below_four_families_the_naive_analysis_marked_as_such():
    wide = table_of(12, 3).round(1)
    row = row_of(wide)
    for name, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        assert row[f"{name}_p"] == pytest.approx(test(wide["x"], wide["y"]).pvalue)
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"]
    interval = stats.pearsonr(wide["x"], wide["y"]).confidence_interval(0.95)
    assert (row["pearson_lo"], row["pearson_hi"]) == pytest.approx((interval.low, interval.high))
    assert row["interval"] == "naive"
    assert_facts(row["note"], "4 families")
    assert row_of(table_of(12, 4))["interval"] == "jackknife"


def test_one_family_has_no_range():
    row = row_of(table_of(8, 1))
    assert row["interval"] == "naive"
    assert np.isnan([row["pearson_loo_lo"], row["kendall_loo_hi"]]).all()
    assert np.isfinite([row[f"{name}_hi"] for name in NAMES]).all()


def test_another_column_can_group():
    wide = table_of()
    expected = correlations(wide, ["x"], ["y"])
    regrouped = wide.assign(run=wide["family"], family="one")
    pd.testing.assert_frame_equal(correlations(regrouped, ["x"], ["y"], group="run"), expected)
    unknown = wide.assign(family=wide["family"].where(wide["family"] != "family0"))  # those without one are one
    pd.testing.assert_frame_equal(correlations(unknown, ["x"], ["y"]), expected)


@pytest.mark.parametrize(("adjust", "method"), [("holm", "holm"), ("bh", "fdr_bh")])
def test_adjusted_over_all_rows(adjust, method):
    wide = table_of().assign(flat=1.0)
    table = correlations(wide, ["x", "flat", "nll"], ["y"], adjust=adjust)
    p = table["pearson_p"].dropna()
    assert len(p) == 2
    adjusted = pingouin.multicomp(p.tolist(), method=method)[1]
    assert table["p_adjusted"][p.index].tolist() == pytest.approx(list(adjusted))
    assert np.isnan(table["p_adjusted"][1])


@pytest.mark.parametrize(
    ("change", "controls", "used", "facts"),
    [
        ({"size": 9.0}, ["nll", "size"], "nll", ("size", "vary")),
        ({"size": np.nan}, ["nll", "size"], "nll", ("size", "value")),
        ({}, ["x", "nll"], "nll", ("control x", "predictor")),
        ({}, ["y"], "", ("control y", "outcome")),
        ({"size": lambda wide: 3 - 2 * wide["x"]}, ["nll", "size"], "nll", ("size", "linear", "predictor")),
        ({"size": lambda wide: wide["y"]}, ["size"], "", ("size", "linear", "outcome")),
    ],
)
def test_controls_that_cannot_be_held_fixed_are_left_out_and_told(change, controls, used, facts):
    wide = table_of()
    row = row_of(wide.assign(**change), controls=controls)
    assert row["controls"] == used
    assert_facts(row["note"], *facts)
    expected = slow(wide, "partial") if used else np.nan
    assert row["partial"] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(row["partial_lo"]) == (not used)


def test_where_the_controls_explain_all_there_is_no_partial_correlation():
    wide = table_of().assign(size=lambda wide: wide["y"] - wide["nll"])
    row = row_of(wide, controls=["nll", "size"])
    assert np.isnan([row["partial"], row["partial_lo"], row["partial_p"]]).all()
    assert_facts(row["note"], "partial", "controls")


def test_partial_with_too_few_families_or_points_that_have_the_controls():
    wide = table_of()
    few = wide.assign(nll=wide["nll"].where(wide["family"].isin(["family0", "family1"])))
    row = row_of(few)
    assert row["partial"] == pytest.approx(slow(few.dropna(), "partial"))
    assert np.isnan([row["partial_lo"], row["partial_p"]]).all()
    assert_facts(row["note"], "partial", "8 checkpoints", "interval", "4 families")
    row = row_of(wide.assign(nll=[1.0, 2.0, 5.0, 3.0] + [np.nan] * 16))
    assert np.isnan(row["partial"])
    assert_facts(row["note"], "partial", "5 checkpoints", "controls")


def test_missing_and_infinite_values_are_left_out_of_that_pair_only_and_counted():
    wide = table_of()
    wide.loc[:3, "y"] = np.nan
    wide.loc[4, "x"] = np.inf
    wide.loc[5:7, "nll"] = np.nan
    row = row_of(wide)
    assert row["n"] == 15
    assert row["pearson"] == pytest.approx(stats.pearsonr(wide["x"][5:], wide["y"][5:]).statistic)
    assert row["partial"] == pytest.approx(slow(wide[8:], "partial"))
    notes = row["note"].split("; ")
    assert len(notes) == 3
    assert_one(notes, "4 of 20")
    assert_one(notes, "1 of 20", "infinite")
    assert_one(notes, "partial", "12 checkpoints")
    assert row_of(wide, "x", "nll")["n"] == 16


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"y": [1.0] * 4 + [np.nan] * 16}, ("5 checkpoints",)),
        ({"y": [1.0, 5, 3, 2, np.inf] + [np.nan] * 15}, ("5 checkpoints",)),
        ({"y": 0.1 + 0.2}, ("y", "vary")),
        ({"x": 1.0, "y": 0.0}, ("x", "y", "vary")),
    ],
)
def test_no_coefficient_and_the_reason_why(change, facts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = row_of(table_of().assign(**change))
    assert_facts(row["note"], "coefficient", *facts)
    numbers = [name for name in COLUMNS if name not in ("predictor", "outcome", "n", "n_families", "controls")]
    assert np.isnan([row[name] for name in numbers if name not in ("interval", "note")]).all()
    assert row["interval"] == ""


def test_five_points_are_enough():
    wide = table_of().assign(y=[1.0, 5, 3, 2, 6] + [np.nan] * 15)
    row = row_of(wide, controls=())
    assert row["pearson"] == pytest.approx(stats.pearsonr(wide["x"][:5], wide["y"][:5]).statistic)


def test_a_perfect_correlation_has_no_interval():
    wide = table_of(8, 8)
    wide["y"] = 2 * wide["x"] + 1
    row = row_of(wide)
    assert row["pearson"] == pytest.approx(1)
    for name in ("pearson", "spearman", "kendall"):
        assert np.isnan([row[f"{name}_{end}"] for end in ("lo", "hi", "p")]).all()
        assert_one(row["note"].split("; "), "interval", name, "±1")


def test_attenuation():
    wide = table_of(40, 10).assign(x_stderr=0.3, y_stderr=np.linspace(0.2, 0.4, 40))
    row = row_of(wide)
    expected = [1 - (wide[f"{name}_stderr"] ** 2).mean() / wide[name].var() for name in "xy"]
    assert [row["reliability_predictor"], row["reliability_outcome"]] == pytest.approx(expected)
    assert row["pearson_corrected"] == pytest.approx(row["pearson"] / np.sqrt(expected[0] * expected[1]))
    assert row["note"] == ""
    row = row_of(wide.drop(columns="y_stderr"))
    assert np.isnan([row["reliability_outcome"], row["pearson_corrected"]]).all()
    assert np.isfinite(row["reliability_predictor"])
    row = row_of(wide.assign(x_stderr=5.0))
    assert row["reliability_predictor"] < 0
    assert np.isnan(row["pearson_corrected"])
    assert_facts(row["note"], "x", "standard errors", "corrected")
    row = row_of(wide.assign(x_stderr=0.95 * wide["x"].std()))
    assert row["pearson_corrected"] > 1
    assert_facts(row["note"], "corrected", 1)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"predictor": "z"}, ["'z'", "family, x, y, nll"]),
        ({"outcome": "family"}, ["'family'", "numbers"]),
        ({"controls": ["size"]}, ["'size'"]),
        ({"group": "run"}, ["'run'"]),
        ({"adjust": "bonferroni"}, ["'bonferroni'", "holm", "bh"]),
    ],
)
def test_mistakes_are_reported_on_one_line(options, facts):
    with user_error("setting", *facts, field="adjust" if "adjust" in options else None):
        row_of(table_of(), **options)


def test_the_whole_table(tidy):
    wide = wide_table(tidy)
    table = correlations(wide, predictors(wide), outcomes(wide))
    assert list(table.columns) == COLUMNS
    assert COLUMNS[: len(CONTRACT)] == CONTRACT
    assert len(table) == len(predictors(wide)) * len(outcomes(wide))
    assert (table["p_adjusted"].dropna() >= table["pearson_p"].dropna()).all()
    # Given the NLL at the train length, log-perplexity and its rise from there are the same thing.
    partial = table.pivot_table(index="predictor", columns="outcome", values="partial")
    assert partial["log_ppl@8192"].to_numpy() == pytest.approx(partial["log_ppl_increase@8192"].to_numpy())


def test_no_pairs_are_an_empty_table():
    assert list(correlations(table_of(), [], ["y"]).columns) == COLUMNS


numbers = st.floats(-100, 100).map(lambda value: round(value, 2))
many_points = st.lists(st.tuples(numbers, numbers, numbers), min_size=8, max_size=15, unique=True)


def frame_of(points, families=5):
    wide = pd.DataFrame(points, columns=["x", "y", "nll"])
    wide["family"] = [str(index % families) for index in range(len(wide))]
    assume(min(wide[name].std() for name in ("x", "y", "nll")) > 1)
    return wide


def values(row, *kinds):
    return [row[f"{name}{kind}"] for name in NAMES for kind in kinds]


ALL = ("", "_lo", "_hi", "_p", "_loo_lo", "_loo_hi")


@settings(max_examples=20, deadline=None)
@given(points=many_points, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_positive_affine_maps_change_nothing(points, scale, shift):
    wide = frame_of(points)
    moved = wide.assign(x=wide["x"] * scale + shift)
    assume((moved["x"].rank() == wide["x"].rank()).all())  # not lost to rounding
    one, other = row_of(wide), row_of(moved)
    assert values(other, *ALL) == pytest.approx(values(one, *ALL), abs=1e-6, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(points=many_points, order=st.randoms())
def test_the_order_of_rows_changes_nothing(points, order):
    wide = frame_of(points)
    rows = list(range(len(wide)))
    order.shuffle(rows)
    one, other = row_of(wide), row_of(wide.iloc[rows])
    assert values(other, *ALL) == pytest.approx(values(one, *ALL), abs=1e-6, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(points=many_points)
def test_exchanging_the_sides_changes_nothing(points):
    wide = frame_of(points)
    one, other = row_of(wide, "x", "y"), row_of(wide, "y", "x")
    assert values(other, *ALL) == pytest.approx(values(one, *ALL), abs=1e-6, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(points=many_points, families=st.sampled_from([3, 5]))
def test_negation_flips_signs_and_bounds(points, families):
    wide = frame_of(points, families)
    one, other = row_of(wide), row_of(wide.assign(x=-wide["x"]))
    expected = [-value for value in values(one, "", "_hi", "_lo", "_loo_hi", "_loo_lo")]
    assert values(other, "", "_lo", "_hi", "_loo_lo", "_loo_hi") == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert values(other, "_p") == pytest.approx(values(one, "_p"), abs=1e-6, nan_ok=True)


@settings(max_examples=20, deadline=None)
@given(points=many_points)
def test_intervals_hold_their_coefficient(points):
    row = row_of(frame_of(points))
    for name in NAMES:
        low, high, value = row[f"{name}_lo"], row[f"{name}_hi"], row[name]
        assert np.isnan(low) or -1 <= low <= value + 1e-9 <= high + 2e-9 <= 1 + 2e-9


def test_a_thousand_checkpoints_and_fifty_pairs_take_seconds():
    generator = np.random.default_rng(0)
    wide = pd.DataFrame(generator.normal(size=(1000, 6)), columns=list("abcdey")).assign(
        nll=generator.normal(size=1000)
    )
    wide["family"] = [f"family{index % 200}" for index in range(1000)]
    start = time.process_time()
    correlations(wide, list("abcde"), ["y"])
    assert time.process_time() - start < 3  # for a tenth of the pairs
