"""What the report's scripts work with: each table's columns and values, and what the page shows first."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.labels import axis_label
from longshort.analysis.leaderboard import answer, headline_outcomes, of_outcome, ranks
from longshort.analysis.paper import short_label
from longshort.results.floors import FLOORS, MARK

DIGITS = 6  # significant; the page shows four, the CSV files have all
LABELS = {
    "n_families": "families",
    "pearson": "Pearson’s r",
    "spearman": "Spearman’s ρ",
    "kendall": "Kendall’s τ",
    "partial": "partial r",
    "p_adjusted": "adjusted p",
    "reliability_predictor": "reliability of the predictor",
    "reliability_outcome": "reliability of the outcome",
    "pearson_corrected": "r, corrected for attenuation",
    "abs_pearson": "|r|",
    "abs_pearson_other": "|r| of the other",
    "abs_spearman": "|ρ|",
    "abs_spearman_other": "|ρ| of the other",
    "difference": "difference of |r|",
    "n_below_floor": f"of n, below {FLOORS} × floor",
    "spearman_difference": "difference of |ρ|",
}
RANGES = {"_loo": "{} without one family", "_jackknife": "{}, jackknife"}  # no value of their own, two ends
P_VALUES = {"_p": "p of {}", "_p_adjusted": "adjusted p of {}"}
# What the panel of the chosen pair adds to the leaderboard's row.
PAIR = ("spearman_loo", "pearson", "kendall", "p_adjusted", "pearson_corrected", "note")
# What has room on paper; of a table that has none of these, the first columns.
PRINTED = {"predictor", "outcome", "n", "n_families", "pearson", "spearman", "partial", "p_adjusted", "n_below_floor"}
MAX_PRINTED = 9


def embedded(analysis: Analysis) -> dict[str, Any]:
    """What the report's scripts read: JSON without NaN and infinity."""
    ranking, precisions = analysis.leaderboard, analysis.precisions.drop(columns=["task", "corpus"], errors="ignore")
    headline = headline_outcomes(analysis)
    outcomes = list(dict.fromkeys([*headline, *ranking.get("outcome", ())]))
    predictors = list(dict.fromkeys(ranking.get("predictor", ())))
    first = ranking.loc[ranking["outcome"] == outcomes[0], "predictor"].iloc[0] if len(ranking) else None
    frames = {
        "leaderboard": ranking,
        "correlations": analysis.correlations,
        "comparisons": analysis.comparisons,
        "checkpoints": analysis.wide,
    } | ({"precisions": precisions} if len(precisions) else {})
    return {
        "start": [first, outcomes[0] if outcomes else None],
        "headline": headline,
        "outcomes": outcomes,
        "better": {outcome: _better(analysis, outcome) for outcome in outcomes},
        "answers": {outcome: answer(analysis, outcome) for outcome in outcomes},
        "group": group_of(analysis),
        "labels": {name: axis_label(name).replace("\n", " ") for name in [*analysis.wide, *predictors, *outcomes]},
        "names": {name: short_label(name) for name in [*predictors, *analysis.settings.get("controls", ())]},
        "pair_columns": PAIR,
        "tables": {
            name: {"columns": _columns(frame), "values": {key: _values(frame[key]) for key in frame}}
            for name, frame in frames.items()
        },
        "mark": MARK,
    }


def _better(analysis: Analysis, outcome: str) -> dict[str, str]:
    """The ranks of the predictors that each one is shown to be better than, by predictor."""
    ranked, _ = of_outcome(analysis, outcome)
    return {row.predictor: ranks(row, ranked) for row in ranked}


def group_of(analysis: Analysis) -> str:
    """The column that says which checkpoints belong together."""
    group = analysis.settings.get("group_by", "family")
    return group if group in analysis.wide else "family"


def _columns(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The table's columns as shown: a value, its interval, its standard error or its floor in one."""
    columns: list[dict[str, Any]] = []
    companions = ("stderr", "floor") if "checkpoint" in frame else ("lo", "hi")
    for key in map(str, frame):
        base, _, end = key.replace("_below_floor", "_floor").rpartition("_")
        kind = next((kind for kind in RANGES if base.endswith(kind)), None) if end in companions else None
        if end in companions and base in frame:
            continue
        if kind is None:
            columns.append({"key": key, "kind": _kind(frame, key), "label": _label(frame, key)})
        elif end == "lo":
            label = RANGES[kind].format(_label(frame, base.removesuffix(kind)))
            columns.append({"key": base, "kind": "range", "label": label})
    printed = PRINTED if "pearson" in frame else {column["key"] for column in columns[:MAX_PRINTED]}
    return [column | {"print": column["key"] in printed} for column in columns]


def _label(frame: pd.DataFrame, key: str) -> str:
    if "checkpoint" in frame:  # as in the CSV file; the column's title says what it means
        return key
    for end, form in P_VALUES.items():
        if key.endswith(end) and key != end[1:]:
            return form.format(_label(frame, key.removesuffix(end)))
    return LABELS.get(key, key.replace("_", " "))


def _kind(frame: pd.DataFrame, key: str) -> str:
    if not pd.api.types.is_numeric_dtype(frame[key]):
        return "text"
    if key.endswith(tuple(P_VALUES)) or key == "p_adjusted":
        return "p"
    return "coefficient" if "checkpoint" not in frame and pd.api.types.is_float_dtype(frame[key]) else "value"


def _values(column: pd.Series[Any]) -> list[Any]:
    """Plain values, None for missing and infinite ones; floats to 6 significant digits, a third of the bytes."""
    if pd.api.types.is_float_dtype(column.dtype):
        numbers = column.to_numpy(dtype=float, na_value=math.nan).tolist()
        return [float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None for number in numbers]
    return [None if pd.isna(value) else value for value in column.astype(object).tolist()]
