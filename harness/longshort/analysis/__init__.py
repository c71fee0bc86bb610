"""Tidy table to statistics to figures; needs no torch, so a results folder is enough to make it all again.

From a folder of lm-eval's results to tables, figures and a report, as ``longshort correlate`` does it:
``write_analysis(analyze("results"), "analysis")``. The parts of it take and return data frames:

    >>> import pandas as pd
    >>> from longshort.analysis import compare, correlations, wide_table
    >>> from longshort.results import COLUMNS
    >>> about = {"revision": "main", "train_length": 64, "corpus": "builtin", "stderr": 0.01, "n": 8}
    >>> tidy = pd.DataFrame(
    ...     [
    ...         about | {"checkpoint": f"{family}{run}", "family": family, "task": task, "metric": metric}
    ...         | {"length": length, "value": value}
    ...         for index, family in enumerate("abcde")
    ...         for run in range(2)
    ...         for task, metric, length, value in [
    ...             ("longshort_misalignment", "sce", 64, 4 + index + 0.5 * run),
    ...             ("longshort_perplexity", "ppl", 64, 20 + index * (4 - index) + run),
    ...             ("longshort_perplexity", "ppl", 128, 30 + 2 * index + 3 * run),
    ...         ]
    ...     ],
    ...     columns=list(COLUMNS),
    ... ).astype(COLUMNS)
    >>> wide = wide_table(tidy)
    >>> wide.loc[:1, ["checkpoint", "sce", "nll", "log_ppl@128", "effective_length"]].round(3)
      checkpoint  sce    nll  log_ppl@128  effective_length
    0         a0  4.0  2.996        3.401              64.0
    1         a1  4.5  3.045        3.497              64.0
    >>> table = correlations(wide, ["sce", "nll"], ["log_ppl@128"])
    >>> table[["predictor", "n", "n_families", "pearson", "pearson_lo", "pearson_hi", "partial"]].round(2)
      predictor   n  n_families  pearson  pearson_lo  pearson_hi  partial
    0       sce  10           5     0.95        0.84        0.99     0.96
    1       nll  10           5     0.16       -0.99        0.99      NaN
    >>> compare(wide, [("sce", "nll")], ["log_ppl@128"])[["abs_pearson", "abs_pearson_other", "difference"]].round(2)
       abs_pearson  abs_pearson_other  difference
    0         0.95               0.16        0.79

The names below load on first use: the command line shows its help without waiting for pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longshort.analysis.analysis import Analysis
    from longshort.analysis.comparison import compare
    from longshort.analysis.correlation import correlations
    from longshort.analysis.figures import (
        forest,
        misalignment_curve,
        misalignment_matrix,
        perplexity_by_length,
        scatter,
    )
    from longshort.analysis.pipeline import analyze
    from longshort.analysis.report import write_report
    from longshort.analysis.tables import outcomes, predictors, wide_table
    from longshort.analysis.write import write_analysis

_NAMES = {
    "analysis": ("Analysis",),
    "comparison": ("compare",),
    "correlation": ("correlations",),
    "figures": ("forest", "misalignment_curve", "misalignment_matrix", "perplexity_by_length", "scatter"),
    "pipeline": ("analyze",),
    "report": ("write_report",),
    "tables": ("outcomes", "predictors", "wide_table"),
    "write": ("write_analysis",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Analysis",
    "analyze",
    "compare",
    "correlations",
    "forest",
    "misalignment_curve",
    "misalignment_matrix",
    "outcomes",
    "perplexity_by_length",
    "predictors",
    "scatter",
    "wide_table",
    "write_analysis",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
