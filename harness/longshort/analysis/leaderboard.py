"""Which predictor orders checkpoints by an outcome best, and which of the differences between predictors hold up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from longshort.analysis.adjustment import holm
from longshort.analysis.analysis import Analysis
from longshort.analysis.correlation import MIN_FAMILIES, MIN_POINTS
from longshort.analysis.paper import SIGNIFICANT, interval, legend_of_floors, number, short_label
from longshort.analysis.points import is_constant
from longshort.analysis.selection import main_outcomes
from longshort.analysis.tables import plain_name

COLUMNS = [
    "outcome", "rank", "predictor", "n", "n_families",
    "spearman", "spearman_lo", "spearman_hi", "spearman_p", "spearman_p_adjusted",
    "partial", "partial_lo", "partial_hi", "controls", "interval", "better_than", "worse_than", "note",
]  # fmt: skip
MAX_SHOWN = 10
BASELINE = "nll"  # what the partial correlations of a leaderboard control for


def leaderboard(correlations: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Order the predictors of each outcome by |ρ|, the absolute value of Spearman's coefficient.

    Columns, next to those of the correlations:
        rank: 1 for the largest |ρ| of an outcome; equal ones share the lower rank; empty without a coefficient.
        spearman_p_adjusted: ``spearman_p`` by Holm's method over the predictors of this outcome; empty where the
            interval is ``naive``, because those p-values are too small.
        partial, partial_lo, partial_hi, controls: Pearson's r controlling for NLL and whatever else the analysis
            controls for; empty where NLL is the predictor or cannot be controlled for.
        better_than, worse_than: the predictors, joined by ``; ``, whose |ρ| is smaller or larger on the checkpoints
            that have both: the leave-one-family-out jackknife of the difference rejects 0 at 5 % after Holm's
            adjustment over all pairs of this outcome. Empty with fewer than 4 families.

    Args:
        correlations: the table of `longshort.analysis.correlations`.
        comparisons: the table of `longshort.analysis.compare`, for the pairs of these predictors.

    Returns:
        A table with the columns `COLUMNS`: the outcomes in the order of the correlations, and for each the predictors
        by |ρ|, those without a coefficient last.
    """
    groups = [_of_outcome(rows) for _, rows in correlations.groupby("outcome", sort=False)]
    table: pd.DataFrame = pd.concat(groups) if groups else correlations.assign(rank=None, spearman_p_adjusted=None)
    table["rank"] = table["rank"].astype("Int64")
    without_baseline = ~table["controls"].str.split(", ").map(lambda names: BASELINE in names).astype(bool)
    table.loc[without_baseline, ["partial", "partial_lo", "partial_hi"]] = np.nan
    table.loc[without_baseline, "controls"] = ""
    better, worse = _established(comparisons)
    keys = list(zip(table["outcome"], table["predictor"], strict=True))
    table["better_than"] = ["; ".join(better.get(key, [])) for key in keys]
    table["worse_than"] = ["; ".join(worse.get(key, [])) for key in keys]
    ordered: pd.DataFrame = table[COLUMNS].reset_index(drop=True)
    return ordered


def _of_outcome(rows: pd.DataFrame) -> pd.DataFrame:
    strength = rows["spearman"].abs()
    p_values = rows["spearman_p"].where(rows["interval"] == "jackknife").to_numpy(np.float64)
    ranked = rows.assign(rank=strength.rank(method="min", ascending=False), spearman_p_adjusted=holm(p_values))
    ordered: pd.DataFrame = ranked.loc[strength.sort_values(ascending=False, kind="stable").index]
    return ordered


Names = dict[tuple[str, str], list[str]]  # predictors by outcome and predictor


def _established(comparisons: pd.DataFrame) -> tuple[Names, Names]:
    """Which predictors each one is shown to be better than, and worse than, in the order of the comparisons."""
    better: Names = {}
    worse: Names = {}
    for row in comparisons[comparisons["spearman_difference_p_adjusted"] < SIGNIFICANT].itertuples():
        pair = (row.predictor, row.other) if row.spearman_difference > 0 else (row.other, row.predictor)
        better.setdefault((row.outcome, pair[0]), []).append(pair[1])
        worse.setdefault((row.outcome, pair[1]), []).append(pair[0])
    return better, worse


def headline_outcomes(analysis: Analysis) -> list[str]:
    """The outcomes to show first; those for which no predictor has a coefficient come last."""
    names = main_outcomes(list(dict.fromkeys(analysis.correlations["outcome"])), analysis.wide)
    known = set(analysis.correlations.loc[analysis.correlations["spearman"].notna(), "outcome"])
    return sorted(names, key=lambda name: name not in known)


def of_outcome(analysis: Analysis, outcome: str) -> tuple[list[Any], list[Any]]:
    """The rows of an outcome that have a coefficient, by rank; and those to show where there is room for few.

    Shown are the first `MAX_SHOWN`, and NLL.
    """
    table = analysis.leaderboard
    ranked = list(table[(table["outcome"] == outcome) & table["spearman"].notna()].itertuples())
    return ranked, [row for place, row in enumerate(ranked) if place < MAX_SHOWN or row.predictor == BASELINE]


def ranks(row: Any, ranked: list[Any]) -> str:
    """The ranks of the predictors that a row is better than, as in ``2, 5–9``."""
    places = [place for place, other in enumerate(ranked) if other.predictor in row.better_than.split("; ")]
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if places else []
    ends = [(ranked[run[0]].rank, ranked[run[-1]].rank) for run in runs]
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in ends)


def legend(analysis: Analysis) -> list[str]:
    """What the columns of a leaderboard mean, and what it does not show."""
    table, settings = analysis.leaderboard, analysis.settings
    controls = ", ".join(settings["controls"]) or "nothing"
    lines = [
        f"ρ: Spearman's. partial r: Pearson's, controlling for {controls}. n checkpoints of F families (by "
        f"{settings['group_by']}). Intervals: leave-one-family-out jackknife. better than: ranks whose |ρ| is smaller "
        "on the checkpoints that have both (jackknife of the difference, Holm-adjusted over the pairs of an outcome, "
        f"p < {SIGNIFICANT})."
    ]
    if "naive" in set(table["interval"]):
        lines.append(
            f"† Naive: fewer than {MIN_FAMILIES} families, checkpoints taken as independent; the intervals are too "
            "narrow."
        )
    if floors := legend_of_floors(analysis.correlations):
        lines.append(floors)
    lines.append(
        f"leaderboard.csv has all {table['predictor'].nunique()} predictors and {table['outcome'].nunique()} outcomes."
    )
    return lines


def answer(analysis: Analysis, outcome: str) -> str:
    """Which predictor orders the checkpoints by this outcome best, in a sentence or two with their uncertainty.

    A predictor is shown to order the checkpoints if its Spearman correlation differs from 0 at 5 %, after Holm's
    adjustment over the predictors of this outcome.
    """
    rows = list(analysis.leaderboard[analysis.leaderboard["outcome"] == outcome].itertuples())
    ranked = [row for row in rows if np.isfinite(row.spearman)]
    if not ranked:
        return _nothing_to_order(analysis.wide[outcome].to_numpy(np.float64, na_value=np.nan), outcome)
    first, *others = ranked
    shown = [row for row in ranked if row.spearman_p_adjusted < SIGNIFICANT]
    if not shown:
        return _nothing_shown(first, len(ranked))
    best, by = shown[0], f"{_checkpoints(shown[0])} by {plain_name(outcome)}"
    among = f"Of {len(ranked)} predictors, " if others else ""
    if best is not first:
        return (
            f"{among}{short_label(first.predictor)} has the largest coefficient, {_rho(first)} over "
            f"{_checkpoints(first)}, but it is not established. {short_label(best.predictor)} is the strongest that is "
            f"shown to order the {by}: {_rho(best)}."
        )
    text = f"{among}{short_label(first.predictor)} orders the {by}{' best' if others else ''}: {_rho(first)}."
    return f"{text} {_lead(analysis, first, others)}" if others else text


def _nothing_to_order(values: np.ndarray[Any, np.dtype[np.float64]], outcome: str) -> str:
    known, name = values[np.isfinite(values)], plain_name(outcome)
    if len(known) < MIN_POINTS:
        return f"{len(known)} of {len(values)} checkpoints have {name}: at least {MIN_POINTS} are needed to rank."
    if is_constant(known):
        return f"{name} is {known[0]:.3g} for all {len(known)} checkpoints, so no predictor can be ranked."
    return f"No predictor of {name} varies over the {MIN_POINTS} checkpoints or more that a coefficient needs."


def _nothing_shown(first: Any, count: int) -> str:
    strongest = f"the strongest of {count}, {short_label(first.predictor)}," if count > 1 else "it"
    subject = "No predictor" if count > 1 else short_label(first.predictor)
    by = f"order the {_checkpoints(first)} by {plain_name(first.outcome)}"
    if first.interval == "naive":
        return (
            f"{subject} {'can' if count > 1 else 'cannot'} be shown to {by}, because at least {MIN_FAMILIES} families "
            f"are needed: {strongest} has {_rho(first)} if checkpoints of one family are taken as independent."
        )
    p = f" (Holm-adjusted p = {first.spearman_p_adjusted:.2f})" if np.isfinite(first.spearman_p_adjusted) else ""
    if not p:
        p = ", for which no interval can be computed"
    return f"{subject} is {'' if count > 1 else 'not '}shown to {by}: {strongest} has {_rho(first)}{p}."


def _lead(analysis: Analysis, first: Any, others: list[Any]) -> str:
    """How far the first is ahead of the next, and which others it is shown to be better than."""
    following, names = others[0], [row.predictor for row in others]
    beaten = [name for name in first.better_than.split("; ") if name in names]
    difference, adjusted = _difference(analysis.comparisons, first, following)
    next_one = short_label(following.predictor)
    if len(beaten) == len(others):
        each = f"each of the other {len(others)}; the next is {next_one}" if len(others) > 1 else next_one
        return f"It is shown to be better than {each} ({difference})."
    if following.predictor in beaten:
        rest = [short_label(name) for name in names if name not in beaten]
        return (
            f"It is shown to be better than the next, {next_one} ({difference}), but not than "
            f"{rest[0] if len(rest) == 1 else f'{len(rest)} others'}."
        )
    text = f"Its lead over the next, {next_one}, is not established ({difference}{adjusted})."
    if first.worse_than:
        text += f" Where both are measured, {short_label(first.worse_than.split('; ')[0])} is better."
    return text + (f" It is shown to be better than {len(beaten)} of the other {len(others)}." if beaten else "")


def _difference(comparisons: pd.DataFrame, first: Any, other: Any) -> tuple[str, str]:
    """Δ|ρ| of the first less the other with its interval, and the adjusted p-value, as text."""
    of_outcome = comparisons[comparisons["outcome"] == first.outcome]
    ends = ["spearman_difference", "spearman_difference_jackknife_lo", "spearman_difference_jackknife_hi"]
    for one, two, sign in ((first, other, 1), (other, first, -1)):
        rows = of_outcome[(of_outcome["predictor"] == one.predictor) & (of_outcome["other"] == two.predictor)]
        if len(rows):
            row = rows.iloc[0]
            value, low, high = (sign * float(row[name]) for name in (ends[0], *ends[1:][::sign]))
            text = f"Δ|ρ| = {number(value)}" + (f" [{number(low)}, {number(high)}]" if np.isfinite(low) else "")
            text += f" on the {row['n']} checkpoints that have both" if row["n"] != first.n else ""
            p = row["spearman_difference_p_adjusted"]
            return text, f", Holm-adjusted p = {p:.2f}" if np.isfinite(p) else ""
    return "no comparison", ""


def _checkpoints(row: Any) -> str:
    return f"{row.n} checkpoints ({row.n_families} {'family' if row.n_families == 1 else 'families'})"


def _rho(row: Any) -> str:
    return f"ρ = {number(row.spearman)} {interval(row, 'spearman')}".strip()
