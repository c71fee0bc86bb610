"""Everything that one analysis found: what tables, figures and the report are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Analysis:
    """Measurements, statistics and how they were made.

    Attributes:
        tidy: one row per checkpoint × task × metric × length, of `longshort.results.read_results`.
        wide: one row per checkpoint, of `longshort.analysis.wide_table`.
        correlations: one row per predictor × outcome, of `longshort.analysis.correlations`.
        comparisons: one row per pair of predictors × outcome, of `longshort.analysis.compare`.
        settings: the arguments and the provenance: predictors, outcomes, controls, selection, adjustment, results
            files with their hashes, corpora with theirs, versions.
        notes: what was skipped or corrected, one line each.
    """

    tidy: pd.DataFrame
    wide: pd.DataFrame
    correlations: pd.DataFrame
    comparisons: pd.DataFrame
    settings: dict[str, Any]
    notes: list[str]
