"""One self-contained HTML file of an analysis: the leaderboard, interactive plots, figures, tables, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.figures import draw_figures
from longshort.analysis.labels import plain_name
from longshort.analysis.paper import legend_of_beyond
from longshort.analysis.precisions import summary
from longshort.analysis.report.embedded import embedded, group_of
from longshort.analysis.report.figures import embedded_figures
from longshort.analysis.report.findings import caution, findings
from longshort.analysis.report.reported import ABLATIONS, BABILONG, METHODS_TABLE, SOURCE, beside_reported
from longshort.pages import render_page
from longshort.results import write_atomically
from longshort.results.floors import FLOORS, MARK

PART = re.compile(r"[^_@:]+[_@:]*|[_@:]+")  # a long name may be broken after each
# What an option means where it was not given.
NOT_GIVEN = {
    "where": "all checkpoints",
    "corpus": "the only one of each task",
    "effective_threshold": "85 % of the score at the shortest length",
}
SCRIPTS = ("elements.js", "tables.js", "leaderboard.js", "scatter.js", "page.js")


def write_report(analysis: Analysis, path: str | Path, figures: Iterable[Path] | None = None) -> Path:
    """Write the report of an analysis.

    The file makes no network request and runs no script but its own.

    Args:
        analysis: what was found.
        path: the file to write, usually ``report.html``.
        figures: SVG files of this analysis, as `longshort.analysis.figures.draw_figures` returns them, to embed;
            None: they are drawn for the report alone.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    if figures is None:
        with TemporaryDirectory() as folder:
            return write_report(analysis, path, draw_figures(analysis, Path(folder)))
    data = embedded(analysis)
    outcomes: list[str] = data["outcomes"]
    page = render_page(
        __name__,
        data,
        SCRIPTS,
        answer=data["answers"].get(data["start"][1], "No pair of predictor and outcome was measured."),
        caution=caution(analysis),
        families=analysis.wide[group_of(analysis)].nunique(),
        group=group_of(analysis),
        naive=(analysis.leaderboard.get("interval", pd.Series(dtype=str)) == "naive").any(),
        outcomes=[{"parts": PART.findall(outcome), "title": plain_name(outcome)} for outcome in outcomes],
        beyond=legend_of_beyond(analysis.leaderboard) if len(analysis.leaderboard) else "",
        findings=findings(analysis, outcomes),
        pairs=len(analysis.correlations),
        flagged=analysis.wide.filter(like="_below_floor").any(axis=None),
        floors=FLOORS,
        mark=MARK,
        precisions=summary(analysis.precisions) if len(analysis.precisions) else "",
        intervals=sorted({*analysis.correlations.get("interval", pd.Series(dtype=str)).dropna()} - {""}),
        figures=embedded_figures(analysis, figures),
        beside=beside_reported(analysis),
        ablations=ABLATIONS,
        babilong=BABILONG,
        reported=METHODS_TABLE,
        source=SOURCE,
        settings={
            key: _setting(value) if value is not None else NOT_GIVEN.get(key, "none")
            for key, value in analysis.settings.items()
        },
        notes=analysis.notes,
    )
    write_atomically(path, page)
    return path


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in value):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return "none" if value == "" else str(value)
