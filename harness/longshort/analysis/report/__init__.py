"""One self-contained HTML file of an analysis: what was found, interactive plots, tables, methods, settings."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from longshort.analysis import figures
from longshort.analysis.analysis import Analysis
from longshort.analysis.floors import below_floors
from longshort.analysis.precisions import summary
from longshort.analysis.report.findings import caution, findings, headline_outcomes
from longshort.analysis.report.reported import METHODS_TABLE, SOURCE, beside_reported, measured_checkpoints
from longshort.analysis.selection import main_predictors
from longshort.analysis.tables import axis_label, outcomes, predictors
from longshort.errors import UserError
from longshort.pages import render_page
from longshort.results import write_atomically
from longshort.results.floors import FLOORS, MARK

MAX_FOREST = 60  # rows of the forest plot
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
CAPTIONS = {
    "forest": "The correlations with their 95 % intervals",
    "perplexity_by_length": "Perplexity by length",
    "misalignment_curve_sce": "Misalignment (SCE) by length",
    "misalignment_curve_jeffreys": "Misalignment without its entropy part (Jeffreys divergence) by length",
    "misalignment_matrix_sce": "Misalignment between all lengths",
    "nll_by_position": "NLL by position within the window",
}
# What has room on paper; of a table that has none of these, the first columns.
PRINTED = {"predictor", "outcome", "n", "n_families", "pearson", "spearman", "partial", "p_adjusted", "n_below_floor"}
MAX_PRINTED = 9


def write_report(analysis: Analysis, path: str | Path, drawn: Iterable[Path] = ()) -> Path:
    """Write the report of an analysis.

    The file asks for nothing over the network and runs no script but its own. Figures that cannot be drawn from
    what was measured are left out and named among the notes.

    Args:
        analysis: what was found.
        path: the file to write, usually ``report.html``.
        drawn: figures of this analysis, named as `longshort.analysis.write_analysis` does; others are drawn here.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    shown, missing = _figures(analysis, drawn)
    page = render_page(
        __name__,
        _data(analysis),
        checkpoints=len(analysis.wide),
        families=analysis.wide[_group(analysis)].nunique(),
        caution=caution(analysis),
        findings=findings(analysis),
        pairs=len(analysis.correlations),
        flagged=analysis.wide.filter(like="_below_floor").any(axis=None),
        floors=FLOORS,
        mark=MARK,
        precisions=summary(analysis.precisions) if len(analysis.precisions) else "",
        intervals=sorted({*analysis.correlations.get("interval", pd.Series(dtype=str)).dropna()} - {""}),
        figures=shown,
        beside=beside_reported(analysis),
        reported=METHODS_TABLE,
        measured=measured_checkpoints(analysis.wide),
        source=SOURCE,
        settings={key: _setting(value) for key, value in analysis.settings.items()},
        notes=[*analysis.notes, *missing],
    )
    write_atomically(path, page)
    return path


def _data(analysis: Analysis) -> dict[str, Any]:
    """What the script works with: each table's columns and values, and what may be plotted."""
    wide, table = analysis.wide, analysis.correlations
    axes = {
        "predictors": list(dict.fromkeys(table["predictor"])) or predictors(wide),
        "outcomes": list(dict.fromkeys(table["outcome"])) or outcomes(wide),
    }
    names = [*wide, *axes["predictors"], *axes["outcomes"]]
    return {
        **axes,
        "start": [main_predictors(axes["predictors"])[:1], headline_outcomes(analysis)[:1] or axes["outcomes"][:1]],
        "group": _group(analysis),
        "labels": {name: axis_label(name).replace("\n", " ") for name in names},
        "tables": {
            name: {"columns": _columns(frame), "values": {key: _values(frame[key]) for key in frame}}
            for name, frame in (
                ("correlations", table),
                ("comparisons", analysis.comparisons),
                ("checkpoints", wide),
                ("precisions", analysis.precisions.drop(columns=["task", "corpus"], errors="ignore")),
            )
            if name != "precisions" or len(frame)
        },
        "mark": MARK,
    }


def _group(analysis: Analysis) -> str:
    """The column whose values were taken for families."""
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
    if "checkpoint" in frame:  # as in the CSV file; what it means is told beside
        return key
    return f"p of {LABELS.get(key[:-2], key[:-2])}" if key.endswith("_p") else LABELS.get(key, key.replace("_", " "))


def _kind(frame: pd.DataFrame, key: str) -> str:
    if not pd.api.types.is_numeric_dtype(frame[key]):
        return "text"
    if key.endswith("_p") or key == "p_adjusted":
        return "p"
    return "coefficient" if "checkpoint" not in frame and pd.api.types.is_float_dtype(frame[key]) else "value"


def _values(column: pd.Series[Any]) -> list[Any]:
    """Plain values, None for what is missing; JSON has no infinity, and a plot no place for it."""
    return [
        None if pd.isna(value) or (isinstance(value, float) and math.isinf(value)) else value
        for value in column.astype(object).tolist()
    ]


def _setting(value: Any) -> str:
    if isinstance(value, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in value):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return "none" if value is None or value == "" else str(value)


def _figures(analysis: Analysis, drawn: Iterable[Path]) -> tuple[list[dict[str, str]], list[str]]:
    """The figures that can be drawn, as SVG in data URLs, and why the others cannot."""
    known = {file.stem: file for file in drawn if file.suffix == ".svg"}
    table = analysis.correlations
    main = table[table["outcome"].isin(headline_outcomes(analysis))].head(MAX_FOREST)
    measured: dict[str, Any] = {"tidy": analysis.tidy, "corpus": analysis.settings.get("corpus")}
    drawings: dict[str, Callable[..., list[Path]]] = {
        "forest" if len(main) == len(table) else "forest_main": partial(figures.forest, main),
        "perplexity_by_length": partial(figures.perplexity_by_length, **measured),
        "misalignment_curve_sce": partial(figures.misalignment_curve, **measured),
        "misalignment_curve_jeffreys": partial(figures.misalignment_curve, metric="jeffreys", **measured),
        "misalignment_matrix_sce": partial(figures.misalignment_matrix, **measured),
    }
    if len(analysis.positions):
        drawings["nll_by_position"] = partial(figures.nll_by_position, analysis.positions)
    shown, missing = [], []
    with TemporaryDirectory() as folder:
        for name, draw in drawings.items():
            caption = CAPTIONS[name.removesuffix("_main")]
            try:
                file = known[name] if name in known else draw(path=Path(folder) / f"{name}.svg")[0]
            except UserError as error:
                missing.append(f"Figure “{caption}”: {error}")
            else:
                source = f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"
                where = "positions.csv" if name == "nll_by_position" else "the tables of this report"
                seen = _seen(analysis.positions) if name == "nll_by_position" else _hollow(name, analysis.tidy)
                shown.append({"caption": caption + seen, "source": source, "numbers": where})
    return shown, missing


def _hollow(figure: str, tidy: pd.DataFrame) -> str:
    """The meaning of hollow points in the figure of a metric over length, if it has any."""
    metric = figure.removeprefix("misalignment_curve_")
    if metric == figure or not below_floors(tidy)[tidy["metric"] == metric].any():
        return ""
    return (
        f"; hollow points are below {FLOORS} times their numerical floor: rounding in half precision may explain them"
    )


def _seen(positions: pd.DataFrame) -> str:
    """What the figure of NLL by position shows, of how many checkpoints and documents."""
    fewest, most = positions["n"].min(), positions["n"].max()
    checkpoints = len(positions.drop_duplicates(["checkpoint", "revision"]))
    bands = ", with 95 % intervals over documents" if checkpoints <= figures.MAX_BANDS else ""
    return (
        f": means over n = {fewest if fewest == most else f'{fewest} to {most}'} documents{bands}, of {checkpoints} "
        f"{'checkpoint' if checkpoints == 1 else 'checkpoints'} with saved per-token values. A line falls where more "
        "context helps and rises where it hurts, as beyond the training context length (dashed) of a model that does "
        "not extrapolate. Windows shorter than the longest are scored at their last positions only."
    )
