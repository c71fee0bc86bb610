"""Everything that one analysis found: what tables, figures and the report are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Analysis:
    """Measurements, statistics and how they were made."""

    tidy: pd.DataFrame  # one row per checkpoint × task × metric × length, of `longshort.results.read_results`
    wide: pd.DataFrame  # one row per checkpoint, of `longshort.analysis.wide_table`
    correlations: pd.DataFrame  # one row per predictor × outcome, of `longshort.analysis.correlations`
    comparisons: pd.DataFrame  # one row per pair of predictors × outcome, of `longshort.analysis.compare`
    # the arguments and the provenance: predictors, outcomes, controls, selection, adjustment, results files with their
    # hashes, corpora with theirs, versions
    settings: dict[str, Any]
    notes: list[str]  # what was skipped or corrected, one line each
    # one row per outcome × predictor, for each outcome by |ρ|, of `longshort.analysis.leaderboard.leaderboard`
    leaderboard: pd.DataFrame = field(default_factory=pd.DataFrame)
    # half precision next to float32, from `longshort.analysis.precisions.precision_table`; no rows if no checkpoint
    # was measured in both
    precisions: pd.DataFrame = field(default_factory=pd.DataFrame)
    # NLL by position within the window, from `longshort.analysis.positions.nll_by_position`; no rows if no per-token
    # values were saved
    positions: pd.DataFrame = field(default_factory=pd.DataFrame)
    # recall by context length and depth, from `longshort.analysis.retrieval.cells`; no rows if it was not measured
    retrieval: pd.DataFrame = field(default_factory=pd.DataFrame)
