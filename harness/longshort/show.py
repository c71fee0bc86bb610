"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from longshort.longbench.official import COLUMNS, Summary, table_rows
from longshort.longbench.scores import LONGBENCH, LONGBENCH_PREFIX


def results_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a result of lm-eval: per task a row per metric and a column per length; LongBench-E in one table."""
    console = console or Console()
    longbench: dict[str, dict[str, str]] = {}
    for task, values in results["results"].items():
        cells: dict[str, dict[str, str]] = {}
        for key, value in values.items():
            name, comma, filter_name = key.partition(",")
            if not comma or name.endswith("_stderr") or "_between@" in name or not isinstance(value, int | float):
                continue
            metric, _, column = name.partition("@")
            cells.setdefault(metric, {})[column] = _cell(value, values.get(f"{name}_stderr,{filter_name}"))
        if task == LONGBENCH:
            names = {"score": "mean of categories", "score_datasets": "mean of datasets"}
            longbench |= {names[metric]: row for metric, row in cells.items()}
        elif task.startswith(LONGBENCH_PREFIX):
            longbench[values.get("alias", task).removeprefix(LONGBENCH_PREFIX)] = cells.get("score", {})
        elif cells:
            _print_table(console, task, "metric @ length", cells)
    if longbench:
        _print_table(console, "LongBench-E, percent", "", longbench)


def _print_table(console: Console, title: str, first: str, cells: Mapping[str, Mapping[str, str]]) -> None:
    console.print(f"{title}, value ±standard error", highlight=False)
    table = Table(pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    columns = sorted({column for row in cells.values() for column in row}, key=_numeric)
    for column in columns:
        table.add_column(column or "all", justify="right")
    for name, row in cells.items():
        table.add_row(name, *(row.get(column, "–") for column in columns))
    console.print(table)


def _cell(value: float, stderr: Any) -> str:
    if not isinstance(stderr, int | float):
        return f"{value:.4g}"
    return f"{value:.4g} ±{stderr:.2g}"


def _numeric(column: str) -> tuple[float, str]:
    number = re.match(r"\d+", column)
    return (float(number[0]) if number else -1.0, column)


def longbench_tables(summary: Summary, console: Console | None = None) -> None:
    """Print LongBench-E scores by dataset, by category and overall, in percent."""
    console = console or Console()
    for section, rows in table_rows(summary).items():
        table = Table(pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(section, no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("percent ±standard error over rows; * fewer than 30 rows, † lacks datasets, – no rows")
