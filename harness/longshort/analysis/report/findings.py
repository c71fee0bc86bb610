"""What an analysis found, in plain sentences with their intervals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.selection import main_outcomes, main_predictors
from longshort.analysis.tables import LONGBENCH_OUTCOMES, axis_label
from longshort.results.floors import FLOORS

FEW_FAMILIES = 10


@dataclass(frozen=True)
class Finding:
    """Sentences about one outcome."""

    outcome: str
    sentences: list[str]


def findings(analysis: Analysis) -> list[Finding]:
    """One sentence or two per main predictor and comparison, for each main outcome."""
    table, comparisons = analysis.correlations, analysis.comparisons
    predictors = main_predictors(list(dict.fromkeys(table["predictor"])))
    found = []
    for outcome in headline_outcomes(analysis):
        rows = table[(table["outcome"] == outcome) & table["predictor"].isin(predictors)]
        sentences = [_about_pair(row) for _, row in rows.iterrows()]
        if len(comparisons):
            chosen = (comparisons["outcome"] == outcome) & comparisons["predictor"].isin(predictors)
            sentences += [_about_comparison(row) for _, row in comparisons[chosen].iterrows()]
        found.append(Finding(_sentence(plain_name(outcome)), [_sentence(text) for text in sentences]))
    return found


def headline_outcomes(analysis: Analysis) -> list[str]:
    """LongBench-E overall and the furthest log-perplexity; without these the first of the table."""
    names = main_outcomes(list(dict.fromkeys(analysis.correlations["outcome"])), analysis.wide)
    furthest = [name for name in names if re.fullmatch(r"log_ppl@\d+", name)][-1:]
    return [*({LONGBENCH_OUTCOMES[0]} & set(names)), *furthest] or names[:2]


def caution(analysis: Analysis) -> str:
    """What so few checkpoints or families cannot show; empty where there are enough."""
    table = analysis.correlations
    if table.empty or table["n"].max() < 5:
        return "Fewer than 5 checkpoints have both a predictor and an outcome: no coefficient is given."
    families = int(table["n_families"].max())
    if families < 4:
        return (
            f"Only {families} {'family' if families == 1 else 'families'}: the intervals take checkpoints for "
            "independent, which those of one family are not, and are too narrow. Nothing here is evidence yet. "
            "Add checkpoints of other families."
        )
    if families < FEW_FAMILIES:
        return f"Only {families} families: the intervals allow for that, but lean on few. Add other families."
    return ""


def plain_name(name: str) -> str:
    """What a column measures, without its unit, to stand in a sentence."""
    return re.sub(r"\s*\([^()]*\)$", "", axis_label(name).replace("\n", " "))


def coefficient(value: Any, low: Any = None, high: Any = None) -> str:
    """``−0.42 [−0.80, 0.10]``: two decimals, the interval where there is one, a dash for a missing value."""
    if pd.isna(value):
        return "–"
    text = f"{value:.2f}" + ("" if pd.isna(low) or pd.isna(high) else f" [{low:.2f}, {high:.2f}]")
    return text.replace("-", "−")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _about_pair(row: pd.Series[Any]) -> str:
    predictor, outcome = plain_name(row["predictor"]), plain_name(row["outcome"])
    counts = f"n = {row['n']}, F = {row['n_families']} {'family' if row['n_families'] == 1 else 'families'}"
    value, low, high = (row.get(name) for name in ("pearson", "pearson_lo", "pearson_hi"))
    if pd.isna(value):
        return f"{predictor}: no coefficient ({counts}): {row.get('note') or 'not defined'}."
    naive = row.get("interval") == "naive"
    text = f"{predictor}: r = {coefficient(value, low, high)}, {counts}{', naive interval' if naive else ''}. "
    if affected := row.get("n_below_floor", 0):
        text += f"{affected} of the {row['n']} values are below {FLOORS} times their numerical floor. "
    if pd.isna(low) or pd.isna(high):
        text += "No interval could be computed, so nothing is shown."
    elif low <= 0 <= high:
        text += f"The interval holds 0: no correlation with {outcome} is shown."
    else:
        text += f"The higher it is, the {'higher' if value > 0 else 'lower'} the {outcome}"
        text += ", if checkpoints of a family may count as independent." if naive else "."
    return text + _about_partial(row, naive)


def _about_partial(row: pd.Series[Any], naive: bool) -> str:
    value, low, high = (row.get(name) for name in ("partial", "partial_lo", "partial_hi"))
    if pd.isna(value):
        return ""
    controls = " and ".join(plain_name(name) for name in str(row["controls"]).split(", "))
    text = f" Holding {controls} fixed: partial r = {coefficient(value, low, high)}"
    if pd.isna(low) or pd.isna(high):
        return f"{text}."
    if low <= 0 <= high:
        return f"{text}; beyond that, nothing is shown."
    return f"{text}; it says something that {controls} does not{', with the same reserve' if naive else ''}."


def _about_comparison(row: pd.Series[Any]) -> str:
    one, other = plain_name(row["predictor"]), plain_name(row["other"])
    difference, low, high = (row[f"difference{end}"] for end in ("", "_jackknife_lo", "_jackknife_hi"))
    text = (
        f"{one} against {other}: |r| = {coefficient(row['abs_pearson'])} and "
        f"{coefficient(row['abs_pearson_other'])}, difference {coefficient(difference, low, high)}, "
        f"n = {row['n']}, F = {row['n_families']}{', naive interval' if row.get('interval') == 'naive' else ''}. "
    )
    if pd.isna(difference) or pd.isna(low) or pd.isna(high):
        return text + "Which one predicts better cannot be said."
    if low <= 0 <= high:
        return text + "The interval holds 0: neither is shown to predict better."
    return text + f"{one if difference > 0 else other} predicts better."
