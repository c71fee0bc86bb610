"""The leaderboard against SciPy and plain loops over families."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.analysis import compare, correlations
from longshort.analysis.analysis import Analysis
from longshort.analysis.leaderboard import COLUMNS, answer, headline_outcomes, leaderboard, ranks
from tests.errors import contains

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


def analysis_of(wide, outcomes=("y",), predictors=PREDICTORS):
    table, compared = (
        correlations(wide, predictors, outcomes),
        compare(wide, list(combinations(predictors, 2)), outcomes),
    )
    settings = {"controls": ["nll"], "group_by": "family"}
    return Analysis(wide, wide, table, compared, settings, [], leaderboard(table, compared))


def test_the_partial_correlation_is_given_only_where_it_controls_for_nll():
    wide = table_of().assign(size=lambda wide: wide["z"] ** 2)
    table = correlations(wide, PREDICTORS, ["y"], ["nll", "size"])
    board = leaderboard(table, compare(wide, [], [])).set_index("predictor")
    row = table.set_index("predictor").loc["sce"]
    assert board.loc["sce", ["partial", "partial_lo", "partial_hi"]].tolist() == (
        row[["partial", "partial_lo", "partial_hi"]].tolist()
    )
    assert np.isfinite(table.set_index("predictor").loc["nll", "partial"])  # controlling for size alone
    assert np.isnan(board.loc["nll", "partial"])
    assert board["controls"].tolist() == ["" if name == "nll" else "nll, size" for name in board.index]


def test_outcomes_keep_their_order_and_predictors_without_a_coefficient_come_last():
    wide = table_of().assign(js=1.0)
    board = made(wide, outcomes=("z", "y"))
    assert board["outcome"].drop_duplicates().tolist() == ["z", "y"]
    for _, rows in board.groupby("outcome"):
        assert rows["rank"].tolist() == [1, 2, 3, pd.NA]
        assert rows["predictor"].iloc[-1] == "js"
        assert contains(rows["note"].iloc[-1], "js", "vary")
        assert np.isnan(rows["spearman_p_adjusted"].iloc[-1])


def test_equal_predictors_share_a_rank_and_neither_is_better():
    wide = table_of().assign(js=lambda wide: 1 - 3 * wide["jeffreys"])
    board = made(wide).set_index("predictor")
    assert board["rank"].to_dict() == {"jeffreys": 1, "js": 1, "nll": 3, "sce": 4}
    assert "js" not in board.loc["jeffreys", "better_than"]
    assert "jeffreys" not in board.loc["js", "worse_than"]
    text = answer(analysis_of(wide), "y")
    assert text.startswith("Of 4 predictors, Jeffreys correlates most strongly with y over 32 checkpoints (8 families)")
    assert contains(text, "JS has the same", "better than 2 of the other 3")


def test_coefficients_that_differ_by_rounding_share_a_rank():
    wide = table_of()
    table = correlations(wide, PREDICTORS, ["y"]).assign(spearman=[0.1 + 0.2, -0.3, 0.2, 0.5])
    board = leaderboard(table, compare(wide, [], [])).set_index("predictor")
    assert board["rank"].to_dict() == {"nll": 1, "sce": 2, "jeffreys": 2, "js": 4}


def test_below_four_families_nothing_is_established():
    wide = table_of(families=3, members=12)
    board = made(wide)
    assert set(board["interval"]) == {"naive"}
    assert board["spearman_p_adjusted"].isna().all()
    assert not board[["better_than", "worse_than"]].to_numpy().any()
    compared = compare(wide, list(combinations(PREDICTORS, 2)), ["y"])
    assert compared["spearman_difference_p"].notna().all()
    assert compared["spearman_difference_p_adjusted"].isna().all()
    text = answer(analysis_of(wide), "y")
    assert contains(text, "can be shown", "4 families", "strongest of 4 is Jeffreys")


def test_a_predictor_of_few_families_that_comes_first_is_not_taken_for_the_answer():
    wide = table_of()
    wide["sce"] = wide["y"].where(wide["family"].isin(["family00", "family01"]))
    text = answer(analysis_of(wide), "y")
    assert contains(text, "SCE has the largest coefficient", "8 checkpoints (2 families)", "not established")
    assert contains(text, "Jeffreys is the strongest that is shown to correlate, over 32 checkpoints (8 families)")


def test_where_several_outcomes_are_compared_each_is_adjusted_alone():
    wide = table_of()
    both = compare(wide, list(combinations(PREDICTORS, 2)), ["y", "z"])
    for outcome in ("y", "z"):
        rows = both[both["outcome"] == outcome]
        for p in ("difference_p", "spearman_difference_p"):
            assert rows[f"{p}_adjusted"].tolist() == pytest.approx(slow_holm(rows[p].to_numpy()).tolist())


def test_the_lead_is_that_of_the_comparison_whichever_comes_first():
    wide = table_of()
    forward, backward = (
        answer(analysis_of(wide, predictors=names), "y") for names in (PREDICTORS, list(reversed(PREDICTORS)))
    )
    assert forward == backward
    row = compare(wide, [("jeffreys", "js")], ["y"]).iloc[0]
    numbers = [f"{row[f'spearman_difference{end}']:.2f}" for end in ("", "_jackknife_lo", "_jackknife_hi")]
    assert "Δ|ρ| = {} [{}, {}]".format(*numbers) in forward


def test_one_predictor_is_compared_with_nll():
    wide = table_of()
    table, compared = correlations(wide, ["jeffreys"], ["y"]), compare(wide, [("jeffreys", "nll")], ["y"])
    made = Analysis(wide, wide, table, compared, {}, [], leaderboard(table, compared))
    text = answer(made, "y")
    assert text.startswith("Jeffreys correlates with y over 32 checkpoints (8 families): ρ = ")
    assert contains(text, "shown to be better than NLL")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"y": 0.0}, ("y is 0 for all 32 checkpoints",)),
        ({"y": [1.0, 2.0, 3.0] + [np.nan] * 29}, ("3 of 32 checkpoints", "at least 5")),
        (dict.fromkeys(PREDICTORS, 2.0), ("No predictor of y varies",)),
    ],
)
def test_an_outcome_that_cannot_be_predicted_says_why(change, facts):
    made = analysis_of(table_of().assign(**change), outcomes=("y", "z"))
    assert contains(answer(made, "y"), *facts)
    assert headline_outcomes(made) == (["z", "y"] if "y" in change else ["y", "z"])


@pytest.mark.parametrize(
    ("outcome", "start"),
    [
        ("ruler@8192", "ruler at 8192 tokens is 1 "),
        ("ruler_vt:exact_match", "ruler_vt:exact_match is 1 "),
        ("recall@8192", "Retrieval recall at 8192 tokens is 1 "),
        ("effective_length:ruler", "Effective length, ruler is 1 "),
    ],
)
def test_names_of_other_tasks_keep_their_letters(outcome, start):
    made = analysis_of(table_of().assign(**{outcome: 1.0}), outcomes=(outcome,))
    assert answer(made, outcome).startswith(start)


def test_no_pairs_no_rows():
    board = leaderboard(correlations(table_of(), [], ["y"]), compare(table_of(), [], []))
    assert list(board) == COLUMNS
    assert board.empty


@pytest.mark.parametrize(("families", "p"), [(5, 2 / 120), (8, 2 / 40_320)])
def test_a_predictor_in_perfect_order_is_established_by_the_number_of_families(families, p):
    """2/F!: the share of orders of F families that are as good. There is no interval."""
    wide = table_of(families).assign(jeffreys=lambda wide: wide["y"] ** 3, y=lambda wide: wide["y"])
    assert [np.isnan(row) for row in correlations(wide, ["jeffreys"], ["y"])["spearman_p"]] == [True]
    orders = [abs(stats.spearmanr(order, range(5)).statistic) for order in permutations(range(5))]
    assert np.mean(np.isclose(orders, 1)) == pytest.approx(2 / 120)
    board = made(wide, predictors=["jeffreys"])
    assert board["spearman_p_adjusted"].tolist() == [pytest.approx(p)]
    text = answer(analysis_of(wide), "y")
    if families == 8:
        assert contains(text, "Jeffreys correlates most strongly with y over 32 checkpoints", "ρ = 1.00")
    else:  # 4 predictors, 2/120 each
        assert contains(text, "No predictor is shown", "ρ = 1.00, Holm-adjusted p = 0.067")


def test_an_order_that_is_perfect_without_one_family_is_bounded_by_the_jackknife():
    """One family of 8 is out of order: without it ρ is 1, and Fisher's z has no jackknife."""
    wide = table_of(8, 4).assign(y=np.arange(32.0), jeffreys=np.arange(32.0))
    wide.loc[0, "jeffreys"] = 9.5
    row = correlations(wide, ["jeffreys"], ["y"]).iloc[0]
    assert (row["spearman_loo_hi"], np.isnan(row["spearman_p"])) == (pytest.approx(1), True)
    (p,) = made(wide, predictors=["jeffreys"])["spearman_p_adjusted"]
    *_, slow = slow_jackknife(rho("jeffreys"), wide)
    assert max(slow, 2 / 40_320) <= p < 0.001


def test_what_varies_in_one_family_alone_is_not_established():
    wide = table_of(8, 4).assign(y=0.0)
    wide.loc[wide["family"] == "family00", "y"] = [1.0, 2.0, 3.0, 4.0]
    wide["jeffreys"] = wide["y"] + 0.001 * wide["z"]
    (p,) = made(wide, predictors=["jeffreys"])["spearman_p_adjusted"]
    assert np.isnan(p)
    assert contains(
        answer(analysis_of(wide, predictors=["jeffreys", "sce"]), "y"), "No predictor is shown", "no interval"
    )


def test_ranks_are_of_the_predictors_named_and_not_of_parts_of_their_names():
    names = ["sce_beyond", "sce", "nll", "js", "js_beyond"]
    ranked = list(pd.DataFrame({"predictor": names, "rank": range(1, 6), "better_than": ""}).itertuples())
    row = pd.Series({"better_than": "sce_beyond; nll; js; js_beyond"})
    assert ranks(row, ranked) == "1, 3–5"
    assert ranks(pd.Series({"better_than": ""}), ranked) == ""
