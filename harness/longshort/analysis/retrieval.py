"""Recall by context length and depth, as the results of `longshort_retrieval` record it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from longshort.analysis.tables import IDENTITY, RETRIEVAL
from longshort.results import Reading, read

COLUMNS = {
    "checkpoint": "string",
    "revision": "string",
    "corpus": "string",
    "length": "Int64",  # tokens
    "depth": "float64",  # of the value asked for: 0 at the start of the haystack, 1 at its end
    "recall": "float64",  # share of probes
    "recall_nll": "float64",  # nats per token of the value
    "n": "Int64",  # probes
}
KEYS = ["checkpoint", "revision", "corpus", "length"]


def cells(source: Reading | Iterable[str | Path]) -> pd.DataFrame:
    """Return what each checkpoint recalls, one row per length and depth; of several results at a length the newest.

    Args:
        source: what was read, or results files.

    Returns:
        A table with the columns `COLUMNS`; without rows if no results have depths.
    """
    reading = source if isinstance(source, Reading) else read(source)
    newest: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for found in sorted(reading.depths, key=lambda found: found.row.date):
        about = {name: found.row.columns[name] for name in ("checkpoint", "revision", "corpus")}
        # By length, not by depth: an earlier result may have had other depths, and other numbers of needles.
        rows: dict[tuple[object, ...], list[dict[str, object]]] = {}
        for cell in found.cells:
            row = about | cell
            rows.setdefault(tuple(row[name] for name in KEYS), []).append(row)
        newest |= rows
    cells_of_all = [row for rows in newest.values() for row in rows]
    table = pd.DataFrame(cells_of_all).reindex(columns=list(COLUMNS)).astype(COLUMNS)
    sorted_table: pd.DataFrame = table.sort_values([*KEYS, "depth"], ignore_index=True)
    return sorted_table


def of_checkpoints(table: pd.DataFrame, tidy: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of the checkpoints and the corpus whose retrieval is in a tidy table."""
    names = [*IDENTITY, "corpus"]
    kept: pd.DataFrame = table.merge(tidy.loc[tidy["task"] == RETRIEVAL, names].drop_duplicates(), on=names)
    return kept
