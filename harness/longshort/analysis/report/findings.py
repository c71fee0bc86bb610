"""What an analysis found, for the report: every coefficient in one table, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.labels import plain_name
from longshort.analysis.paper import number, short_label
from longshort.results.floors import MARK

FEW_FAMILIES = 10
SHADES = 5  # steps of |ρ| between 0 and 1


@dataclass(frozen=True)
class Cell:
    """One predictor's ρ with one outcome, as text; without a coefficient `note` says why."""

    outcome: str
    value: str = ""
    interval: str = ""
    shade: str = ""  # CSS classes: sign and size of ρ, and whether its interval excludes 0
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One predictor's row: a cell for each outcome."""

    predictor: str
    label: str
    title: str
    cells: list[Cell]


def findings(analysis: Analysis, outcomes: list[str]) -> list[Finding]:
    """Spearman's ρ of every predictor with these outcomes, ordered as in the leaderboard of the first of them."""
    if not outcomes:
        return []
    table = analysis.leaderboard
    cells = {(row.predictor, row.outcome): _cell(row) for row in table.itertuples()}
    flagged = analysis.correlations.reindex(columns=["predictor", "outcome", "n_below_floor"]).fillna(0)
    marks = {(row.predictor, row.outcome) for row in flagged.itertuples() if row.n_below_floor}
    return [
        Finding(
            predictor,
            short_label(predictor) + (f" {MARK}" if any((predictor, outcome) in marks for outcome in outcomes) else ""),
            plain_name(predictor),
            [cells.get((predictor, outcome), Cell(outcome, note="not measured")) for outcome in outcomes],
        )
        for predictor in table.loc[table["outcome"] == outcomes[0], "predictor"]
    ]


def _cell(row: Any) -> Cell:
    if pd.isna(row.spearman):
        return Cell(row.outcome, note=str(row.note or "not defined"))
    low, high = row.spearman_lo, row.spearman_hi
    known = pd.notna(low) and pd.notna(high)
    sign = "positive" if row.spearman > 0 else "negative"
    shade = f"{sign} s{min(int(abs(row.spearman) * SHADES), SHADES - 1)}"
    certain = " certain" if known and (low > 0 or high < 0) else ""
    interval = f"[{number(low)}, {number(high)}]" if known else ""
    return Cell(row.outcome, number(row.spearman) + ("†" if row.interval == "naive" else ""), interval, shade + certain)


def caution(analysis: Analysis) -> str:
    """What so few checkpoints or families cannot show; empty where there are enough."""
    table = analysis.correlations
    if table.empty or table["n"].max() < 5:
        return "Fewer than 5 checkpoints have both a predictor and an outcome: no coefficient is given."
    families = int(table["n_families"].max())
    if families < 4:
        return (
            f"Only {families} {'family' if families == 1 else 'families'}: the intervals assume independent "
            "checkpoints, which those of one family are not, and are too narrow. Nothing here is evidence yet. "
            "Add checkpoints of other families."
        )
    if families < FEW_FAMILIES:
        return f"Only {families} families: the intervals account for that, but are wide. Add other families."
    return ""


def coefficient(value: Any, low: Any = None, high: Any = None) -> str:
    """``−0.42 [−0.80, 0.10]``: two decimals, the interval where there is one, a dash for a missing value."""
    if pd.isna(value):
        return "–"
    text = f"{value:.2f}" + ("" if pd.isna(low) or pd.isna(high) else f" [{low:.2f}, {high:.2f}]")
    return text.replace("-", "−")
