"""Columns of the wide table for the scores of other tasks, by context length, and their short names."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping

import pandas as pd

from longshort.errors import UserError
from longshort.results.lengths import is_bucket

RETRIEVAL, RECALL = "longshort_retrieval", "recall"
PREFIX = "effective_length:"
SHARE = 0.85  # of the score at the shortest length
ROUNDING = 1e-9  # in floating point, 0.85 × 0.7 exceeds 0.595


def column_of(task: str, metric: str, length: int | None) -> str:
    """The name of a measurement's column; a bucket of LongBench-E already has its lengths in the name of its metric."""
    return f"{task}:{metric}" + ("" if pd.isna(length) or is_bucket(metric) else f"@{length}")


def effective_length(curve: Mapping[int, float], threshold: float | None = None) -> float:
    """The largest context length at which the score of a task, of which more is better, is still good.

    Args:
        curve: score by length in tokens.
        threshold: the score that is good enough, in the units of the metric; by default 85 % of the score at the
            shortest length.

    Returns:
        One of the lengths, in tokens, so at the greatest of them it means "at least". 0 where no length is good enough,
        and by default where the score at the shortest length is 0. NaN without scores, by default with fewer than two.

    Source: NoLiMa (Modarressi et al., 2025) for the default; RULER (Hsieh et al., 2024) for a fixed score, 0.856.
    """
    if not curve or (threshold is None and len(curve) < 2):
        return math.nan
    base = curve[min(curve)]
    if threshold is None and base <= 0:
        return 0.0
    needed = SHARE * base if threshold is None else threshold
    return float(max((length for length, score in curve.items() if score >= needed * (1 - ROUNDING)), default=0))


def effective_length_columns(
    tidy: pd.DataFrame, lower_is_better: Collection[tuple[str, str]] = ()
) -> dict[tuple[str, str], str]:
    """Return the column of each task's effective length, by task and metric.

    It is ``effective_length:TASK``, and ``effective_length:TASK:METRIC`` where a task has several metrics by length.

    Args:
        tidy: the table of `longshort.results.read_results`.
        lower_is_better: tasks and metrics of which less is better. They have no effective length.
    """
    lengths = tidy[tidy["length"].notna() & ~tidy["metric"].map(is_bucket).astype(bool)]
    is_recall = (lengths["task"] == RETRIEVAL) & (lengths["metric"] == RECALL)
    scores = lengths[is_recall | ~lengths["task"].str.startswith("longshort_")]
    pairs = [tuple(map(str, pair)) for pair in scores[["task", "metric"]].drop_duplicates().to_numpy()]
    known = [(task, metric) for task, metric in pairs if (task, metric.partition(",")[0]) not in lower_is_better]
    tasks = [task for task, _ in known]
    return {(task, metric): PREFIX + (task if tasks.count(task) == 1 else f"{task}:{metric}") for task, metric in known}


def effective_lengths(
    results: pd.DataFrame, columns: Mapping[tuple[str, str], str], threshold: float | None = None
) -> dict[str, float]:
    """Return the effective length of every task by the name of its column.

    Args:
        results: those of one checkpoint, in the form of the tidy table.
        columns: of `effective_length_columns`.
        threshold: see `effective_length`.
    """
    if not columns:
        return {}
    curves: dict[tuple[str, str], dict[int, float]] = {key: {} for key in columns}
    for task, metric, length, value in results[["task", "metric", "length", "value"]].to_numpy():
        if (task, metric) in curves and not pd.isna(length):
            curves[task, metric][int(length)] = value
    return {columns[key]: effective_length(curve, threshold) for key, curve in curves.items()}


def with_short_names(wide: pd.DataFrame, names: Iterable[str], what: str) -> pd.DataFrame:
    """Return the wide table with a column for each short name among the names.

    ``TASK@L`` (and ``TASK:L``) stands for ``TASK:METRIC@L`` where the task has one metric at L tokens; ``TASK:METRIC``
    for ``TASK:METRIC@L`` where the metric was measured at one length.

    Args:
        wide: the wide table.
        names: other names are passed over.
        what: what they are, such as "outcome".

    Raises:
        UserError: a short name stands for several columns (kind ``usage``).
    """
    added: dict[str, pd.Series] = {}
    for name in names:
        full = _full_name(name, what, wide)
        if full != name:
            added[name] = wide[full]
            if f"{full}_stderr" in wide:  # RULER has none
                added[f"{name}_stderr"] = wide[f"{full}_stderr"]
    return pd.concat([wide, pd.DataFrame(added)], axis=1) if added else wide


def _full_name(name: str, what: str, wide: pd.DataFrame) -> str:
    if name in wide:
        return name
    if match := re.fullmatch(r"(.+)[@:](\d+)", name):
        pattern = rf"{re.escape(match[1])}:[^:]+@{match[2]}"
    else:
        pattern = rf"{re.escape(name)}@\d+"
    found = [column for column in map(str, wide) if ":" in column and re.fullmatch(pattern, column)]
    if len(found) > 1:
        raise UserError(f"{what} '{name}' may be one of {', '.join(found)}. Give one of them.", "usage", what)
    return found[0] if found else name


def label_of(name: str) -> str:
    """What a column of another task measures; the name itself where it is not of one context length."""
    if name.startswith(PREFIX):
        return f"effective length, {name.removeprefix(PREFIX)} (tokens)"
    match = re.fullmatch(r"(.+)@(\d+)", name)
    return f"{match[1]} at {match[2]} tokens" if match else name


def notes_on_effective_lengths(
    tidy: pd.DataFrame, columns: Mapping[tuple[str, str], str], chosen: Collection[str], threshold: float | None
) -> list[str]:
    """Return one line for each chosen effective length that does not compare well between the checkpoints."""
    notes = []
    for (task, metric), column in columns.items():
        of_task = tidy[(tidy["task"] == task) & (tidy["metric"] == metric) & tidy["length"].notna()]
        measured = of_task.groupby(["checkpoint", "revision"])["length"].agg(["min", "max"])
        if column not in chosen or measured.empty:
            continue
        for end in ("min", "max") if threshold is None else ("max",):
            found = sorted(measured[end].unique())
            if len(found) > 1:
                which = "shortest" if end == "min" else "largest"
                notes.append(
                    f"{column}: the {which} length of the checkpoints is {' or '.join(map(str, found))} tokens: their "
                    "effective lengths do not compare well."
                )
        if threshold is not None and threshold > of_task["value"].max():
            notes.append(
                f"{column}: no score reaches the threshold {threshold:g}, the largest is {of_task['value'].max():g}. "
                "Give it in the units of the metric."
            )
    return notes
