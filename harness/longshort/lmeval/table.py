"""Prints a result of lm-eval on the terminal: a row per metric and a column per length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from longshort.results.floors import FLOOR_METRICS, FLOORS, MARK, floor_of, limit
from longshort.results.lengths import BARE, NOT_ASKED, is_bare
from longshort.results.metrics import is_self_evaluated

Rows = dict[str, dict[str, str]]  # row → column → text
SELF_EVALUATED = "self-evaluated: the model found the key tokens itself, so the values show little"
FLAGGED = f"{MARK} Below {FLOORS} times its numerical floor: rounding in half precision may explain it."


@dataclass(frozen=True)
class GroupLabels:
    """How a group is shown."""

    title: str  # of its table
    rows: Mapping[str, str]  # names of its own rows, by metric
    prefix: str = ""  # removed from its members' names


_labels: dict[str, GroupLabels] = {}  # of what is printed, by group; no result depends on it


def label_group(group: str, labels: GroupLabels) -> None:
    """Show a group under these labels; without them, under lm-eval's names."""
    _labels[group] = labels


def results_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a result of lm-eval: a table per task, and one for a group with all its members.

    A divergence below three times its numerical floor is marked with ‡, which a line below the table explains.

    Args:
        results: ``results``, ``configs`` and, where there are groups, ``group_subtasks`` of lm-eval's results.
    """
    console = console or Console()
    groups = results.get("group_subtasks") or {}
    inner = {member for members in groups.values() for member in members}
    outermost = [group for group in groups if group not in inner]
    of_group = {member: group for group in outermost for member in _members(group, groups)}
    tables: dict[str, Rows] = {}
    for task, values in results["results"].items():
        cells = _cells(values)
        if task not in of_group:
            tables[task] = cells
        else:
            tables.setdefault(of_group[task], {}).update(_rows_in_group(task, of_group[task], values, cells))
    for name in sorted(tables, key=lambda name: name in groups):  # groups last
        if any(tables[name].values()):
            title = _labels[name].title if name in _labels else name
            title += _key_tokens_by(name, results)
            _print_table(console, title, "" if name in groups else "metric @ length", tables[name])


def _key_tokens_by(task: str, results: Mapping[str, Any]) -> str:
    """Whose key tokens LongPPL is of."""
    metadata = ((results.get("configs") or {}).get(task) or {}).get("metadata") or {}
    spans = (metadata.get("scored") or {}).get("key_spans")
    if not spans:
        return ""
    if is_self_evaluated(task, metadata):
        return f" ({SELF_EVALUATED})"
    return f" (key tokens by {(spans.get('evaluator') or {}).get('pretrained')})"


def _members(name: str, groups: Mapping[str, list[str]]) -> list[str]:
    """A group and everything below it."""
    return [name, *(member for child in groups.get(name, ()) for member in _members(child, groups))]


def _cells(values: Mapping[str, Any]) -> Rows:
    """A task's values, by metric and length or bucket; without the matrices between lengths."""
    cells: Rows = {}
    for key, value in values.items():
        name, comma, filter_name = key.partition(",")
        if not comma or name.endswith("_stderr") or "_between@" in name or not isinstance(value, int | float):
            continue
        if is_bare(key) and value == NOT_ASKED:
            continue
        metric, _, column = (BARE, "", name) if is_bare(key) else name.partition("@")
        stderr, floor = (values.get(f"{other},{filter_name}") for other in (f"{name}_stderr", floor_of(name)))
        error = f" ±{stderr:.2g}" if isinstance(stderr, int | float) else ""
        mark = MARK if isinstance(floor, int | float) and value < limit(floor) else ""
        text = f"{value:.2g}" if metric in FLOOR_METRICS else f"{value:.4g}{mark}{error}"
        cells.setdefault(metric, {})[column] = text
    return _with_floors_below(cells)


def _with_floors_below(cells: Rows) -> Rows:
    """The rows in their order, with that of a floor below that of its metric."""
    order = list(cells)
    for floor, metric in FLOOR_METRICS.items():
        if {floor, metric} <= cells.keys():
            order.remove(floor)
            order.insert(order.index(metric) + 1, floor)
    return {metric: cells[metric] for metric in order}


def _rows_in_group(task: str, group: str, values: Mapping[str, Any], cells: Rows) -> Rows:
    """One member's rows: under its own name where it has one metric, else with the name of each metric."""
    labels = _labels.get(group, GroupLabels(group, {}))
    if task == group:
        return {labels.rows.get(metric, f"{task} {metric}"): row for metric, row in cells.items()}
    name = str(values.get("alias", task)).removeprefix(labels.prefix)
    if len(cells) > 1:
        return {f"{name} {metric}": row for metric, row in cells.items()}
    return {name: next(iter(cells.values()), {})}


def _print_table(console: Console, title: str, first: str, rows: Rows) -> None:
    console.print(f"{title}, value ±standard error", highlight=False)
    table = Table(pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    columns = sorted({column for row in rows.values() for column in row}, key=_numeric)
    for column in columns:
        table.add_column(column or "all", justify="right")
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "–") for column in columns))
    console.print(table)
    if any(MARK in text for row in rows.values() for text in row.values()):
        console.print(FLAGGED, highlight=False)


def _numeric(column: str) -> tuple[float, str]:
    number = re.match(r"\d+", column)
    return (float(number[0]) if number else -1.0, column)
