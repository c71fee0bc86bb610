"""Which predictor orders checkpoints by an outcome best, and which of the differences between predictors hold up."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from longshort.analysis.adjustment import holm
from longshort.analysis.analysis import Analysis
from longshort.analysis.correlation import BELOW_FLOOR, MIN_FAMILIES, MIN_POINTS
from longshort.analysis.intervals import ONE
from longshort.analysis.labels import plain_name
from longshort.analysis.paper import SIGNIFICANT, interval, legend_of_beyond, legend_of_floors, number, short_label
from longshort.analysis.points import is_constant
from longshort.analysis.selection import main_outcomes
from longshort.errors import listed

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
            interval is ``naive``, because those p-values are too small. Where ρ is ±1, with all families or without
            one, there is no ``spearman_p``, and a bound is adjusted instead (`_p_value`).
        partial, partial_lo, partial_hi, controls: Pearson's r controlling for NLL and whatever else the analysis
            controls for; empty where NLL is the predictor or cannot be controlled for.
        better_than, worse_than: the predictors, joined by ``; ``, whose |ρ| is smaller or larger on the checkpoints
            that have both: the leave-one-family-out jackknife of the difference rejects 0 at 5 % after Holm's
            adjustment over all pairs of this outcome. Empty with fewer than 4 families.
        n_below_floor: as in the correlations, where they have it.

    Args:
        correlations: the table of `longshort.analysis.correlations`.
        comparisons: the table of `longshort.analysis.compare`, for the pairs of these predictors.

    Returns:
        A table with the columns `COLUMNS`: the outcomes in the order of the correlations, and for each the predictors
        by |ρ|, those without a coefficient last.
    """
    groups = [_of_outcome(rows) for _, rows in correlations.groupby("outcome", sort=False)]
    table: pd.DataFrame = pd.concat(groups) if groups else correlations.assign(rank=None, spearman_p_adjusted=None)
    below_floor = [BELOW_FLOOR] if BELOW_FLOOR in table else []
    table["rank"] = table["rank"].astype("Int64")
    without_baseline = ~table["controls"].str.split(", ").map(lambda names: BASELINE in names).astype(bool)
    table.loc[without_baseline, ["partial", "partial_lo", "partial_hi"]] = np.nan
    table.loc[without_baseline, "controls"] = ""
    better, worse = _established(comparisons)
    keys = list(zip(table["outcome"], table["predictor"], strict=True))
    table["better_than"] = ["; ".join(better.get(key, [])) for key in keys]
    table["worse_than"] = ["; ".join(worse.get(key, [])) for key in keys]
    ordered: pd.DataFrame = table[[*COLUMNS, *below_floor]].reset_index(drop=True)
    return ordered


def _of_outcome(rows: pd.DataFrame) -> pd.DataFrame:
    strength = rows["spearman"].abs().round(12)  # a predictor and its negative differ by rounding
    p_values = np.array([_p_value(row) for row in rows.itertuples()])
    ranked = rows.assign(rank=strength.rank(method="min", ascending=False), spearman_p_adjusted=holm(p_values))
    ordered: pd.DataFrame = ranked.loc[strength.sort_values(ascending=False, kind="stable").index]
    return ordered


def _p_value(row: Any) -> float:
    """The p-value of ρ with families as the unit; NaN where there is none.

    Where ρ is ±1 with all families or without one, Fisher's z is infinite and there is no p-value of the jackknife. A
    bound is used instead: the larger of 2/F!, the probability that one checkpoint of each of F unrelated families has
    the same or the reverse order in predictor and outcome, and the p-value of the jackknife of ρ itself with the
    largest standard error that the range of its leave-one-family-out values allows.
    """
    if row.interval != "jackknife":
        return np.nan
    extremes = np.abs([row.spearman, row.spearman_loo_lo, row.spearman_loo_hi])
    if np.isfinite(row.spearman_p) or not extremes.max() >= ONE:
        return float(row.spearman_p)
    count = row.n_families
    stderr = np.sqrt(count - 1) * (row.spearman_loo_hi - row.spearman_loo_lo) / 2
    of_jackknife = 2 * special.stdtr(count - 1, -abs(row.spearman) / stderr) if stderr > 0 else 0.0
    return float(max(of_jackknife, 2 / special.factorial(count)))


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
    """What the columns of a leaderboard mean; nothing if there is no coefficient."""
    table, settings = analysis.leaderboard, analysis.settings
    if table["spearman"].isna().all():
        return []
    controls = ", ".join(map(short_label, settings["controls"])) or "nothing"
    group = "" if settings["group_by"] == "family" else f" (by {settings['group_by']})"
    lines = [
        f"ρ: Spearman's, in the order of |ρ|. partial r: Pearson's, controlling for {controls}. n (F): n checkpoints "
        f"of F families{group}. Intervals: 95 %, leave-one-family-out jackknife."
    ]
    if beyond := legend_of_beyond(table):
        lines.append(beyond)
    if table["better_than"].any():
        lines.append(
            "better than: ranks of the predictors, also of those not shown, whose |ρ| is smaller on the checkpoints "
            f"that have both (p < {SIGNIFICANT}, Holm-adjusted over the pairs of an outcome); a leaderboard without "
            "this column has none."
        )
    elif analysis.comparisons["spearman_difference"].notna().any():
        lines.append("No difference of |ρ| between two predictors is established.")
    if "naive" in set(table["interval"]):
        lines.append(
            f"† Naive: fewer than {MIN_FAMILIES} families, checkpoints taken as independent; the intervals are too "
            "narrow."
        )
    if floors := legend_of_floors(analysis.correlations):
        lines.append(floors)
    return lines


def answer(analysis: Analysis, outcome: str) -> str:
    """Which predictor correlates most strongly with this outcome, in a sentence or two with their uncertainty.

    A predictor is shown to correlate if its Spearman correlation differs from 0 at 5 %, after Holm's adjustment over
    the predictors of this outcome.
    """
    ranked, _ = of_outcome(analysis, outcome)
    if not ranked:
        return _nothing_to_order(analysis.wide[outcome].to_numpy(np.float64, na_value=np.nan), outcome)
    first = ranked[0]
    shown = [row for row in ranked if row.spearman_p_adjusted < SIGNIFICANT]
    if not shown:
        return _nothing_shown(ranked)
    among = f"Of {len(ranked)} predictors, " if len(ranked) > 1 else ""
    best, name = shown[0], plain_name(outcome)
    if best.rank > first.rank:
        return (
            f"{among}{short_label(first.predictor)} has the largest coefficient with {name}, {_rho(first)} over "
            f"{_checkpoints(first)}, but it is not established. {short_label(best.predictor)} is the strongest that is "
            f"shown to correlate, over {_checkpoints(best)}: {_rho(best)}."
        )
    text = (
        f"{among}{short_label(best.predictor)} correlates {'most strongly ' if among else ''}with {name} over "
        f"{_checkpoints(best)}: {_rho(best)}."
    )
    return f"{text} {_lead(analysis, best, [row for row in ranked if row is not best])}".strip()


def _nothing_to_order(values: NDArray[np.float64], outcome: str) -> str:
    known, name = values[np.isfinite(values)], plain_name(outcome)
    if len(known) < MIN_POINTS:
        return f"{len(known)} of {len(values)} checkpoints have {name}: at least {MIN_POINTS} are needed to rank."
    if is_constant(known):
        what = _sentence(name, outcome)
        return f"{what} is {known[0]:.4g} for all {len(known)} checkpoints, so no predictor can be ranked."
    return f"No predictor of {name} varies over the {MIN_POINTS} or more checkpoints that a coefficient needs."


def _nothing_shown(ranked: list[Any]) -> str:
    first, several = ranked[0], len(ranked) > 1
    name, equal = short_label(first.predictor), [short_label(row.predictor) for row in ranked[1:] if row.rank == 1]
    with_it = f"correlate with {plain_name(first.outcome)} over {_checkpoints(first)}"
    tied = f" (tied with {listed(equal)})" if equal else ""
    has = f"The strongest of {len(ranked)} is {name}{tied}: {_rho(first)}" if several else f"It has {_rho(first)}"
    subject = "No predictor" if several else name
    if all(row.interval == "naive" for row in ranked):
        return (
            f"{subject} {'can' if several else 'cannot'} be shown to {with_it}, because at least {MIN_FAMILIES} "
            f"families are needed. {has}, if checkpoints of one family are taken as independent."
        )
    if np.isfinite(first.spearman_p_adjusted):
        p = f", Holm-adjusted p {_p(first.spearman_p_adjusted)}"
    else:
        few = f", over fewer than {MIN_FAMILIES} families, too few to establish it"
        p = few if first.interval == "naive" else ", for which the jackknife gives no interval"
    return f"{subject} is {'' if several else 'not '}shown to {with_it}. {has}{p}."


def _lead(analysis: Analysis, best: Any, others: list[Any]) -> str:
    """How far the best is ahead of the next, and how many others it is shown to be better than."""
    if not others:
        return _over_baseline(analysis, best)
    equal = [short_label(row.predictor) for row in others if row.rank == best.rank]
    text = f"{listed(equal)} {'has' if len(equal) == 1 else 'have'} the same |ρ|. " if equal else ""
    behind = [row for row in others if row.rank > best.rank]
    beaten = {*best.better_than.split("; ")} & {row.predictor for row in others}
    if not behind:
        return text
    following = short_label(behind[0].predictor)
    difference = _difference(analysis.comparisons, best, behind[0].predictor)
    if behind[0].predictor not in beaten:
        text += f"Its lead over the next, {following}, is not established ({difference})."
        return text + (f" It is shown to be better than {len(beaten)} of the other {len(others)}." if beaten else "")
    if len(beaten) == len(others):
        each = f"each of the other {len(others)}, the next of which is {following}" if len(others) > 1 else following
        return f"It is shown to be better than {each} ({difference})."
    return (
        f"{text}It is shown to be better than {len(beaten)} of the other {len(others)}, among them the next, "
        f"{following} ({difference})."
    )


def _over_baseline(analysis: Analysis, row: Any) -> str:
    """How the only predictor of the leaderboard compares with NLL, if it was compared with it."""
    if row.predictor == BASELINE or not (difference := _difference(analysis.comparisons, row, BASELINE)):
        return ""
    shown = "is shown to be" if BASELINE in row.better_than.split("; ") else "is not shown to be"
    return f"It {shown} better than {short_label(BASELINE)} ({difference})."


def _difference(comparisons: pd.DataFrame, one: Any, other: str) -> str:
    """Δ|ρ| of one predictor minus another with its interval, on which checkpoints, and the adjusted p-value."""
    pairs = comparisons[comparisons["outcome"] == one.outcome]
    sign = 1
    rows = pairs[(pairs["predictor"] == one.predictor) & (pairs["other"] == other)]
    if rows.empty:
        sign = -1
        rows = pairs[(pairs["predictor"] == other) & (pairs["other"] == one.predictor)]
    if rows.empty or not np.isfinite(rows["spearman_difference"].iloc[0]):
        return ""
    row = rows.iloc[0]
    low, high = sorted(sign * float(row[f"spearman_difference_jackknife_{end}"]) for end in ("lo", "hi"))
    text = f"Δ|ρ| = {number(sign * row['spearman_difference'])}"
    text += (
        f" [{number(low)}, {number(high)}]"
        if np.isfinite([low, high]).all()
        else ", for which the jackknife gives no interval"
    )
    if np.isfinite(row["spearman_difference_p_adjusted"]):
        text += f", Holm-adjusted p {_p(row['spearman_difference_p_adjusted'])}"
    return text + (f", on the {row['n']} checkpoints that have both" if row["n"] != one.n else "")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2f}" if value >= 0.1 else f"= {value:.2g}"


def _sentence(name: str, outcome: str) -> str:
    """The name of an outcome at the start of a sentence; that of another task keeps its letters."""
    is_of_task = re.match(rf"{re.escape(name.split()[0])}([:@]|$)", outcome)
    return name if is_of_task else name[:1].upper() + name[1:]


def _checkpoints(row: Any) -> str:
    return f"{row.n} checkpoints ({row.n_families} {'family' if row.n_families == 1 else 'families'})"


def _rho(row: Any) -> str:
    return f"ρ = {number(row.spearman)} {interval(row, 'spearman')}".strip()
