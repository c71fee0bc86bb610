"""A predictor against an outcome, a point per checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.analysis.figures.style import HOLLOW, MARKERS, MAX_LEGEND, length_axis, short_names, shortened, style
from longshort.analysis.labels import axis_label
from longshort.errors import UserError
from longshort.plotting import COLOURS, label_points, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

MAX_LABELS = 15  # points with their names beside them


def scatter(wide: pd.DataFrame, predictor: str, outcome: str, path: str | Path) -> Path:
    """Draw a predictor against an outcome, a point per checkpoint, a colour and marker per family.

    Bars are ± one standard error over documents, where the table has it. Up to 15 points are named. A hollow point has
    a value below three times its numerical floor, where the table says so.

    Args:
        wide: one row per checkpoint, as from `longshort.analysis.wide_table`.
        predictor, outcome: columns of the horizontal and of the vertical axis.
        path: the figure's file; SVG, or PNG where its suffix is ``.png``.

    Returns:
        The file written.

    Raises:
        UserError: no checkpoint has both values, or the file cannot be written.
    """
    points = wide[np.isfinite(wide[[predictor, outcome]].astype("float64")).all(axis=1)]
    if points.empty:
        raise UserError(f"No checkpoint has both {predictor} and {outcome}, so there is nothing to draw.", "data")
    families = sorted(points["family"].unique())
    hollow = _below_floor(points, predictor, outcome)
    with style():
        figure = new_figure()
        axes = figure.subplots()
        lines: list[Line2D] = []
        for index, family in enumerate(families):
            of_family = points["family"] == family
            colour = COLOURS[index % len(COLOURS)]
            for is_hollow in (False, True) if hollow.any() else (False,):
                group = points[of_family & (hollow == is_hollow)]
                if group.empty:
                    continue
                drawn = axes.errorbar(
                    group[predictor].to_numpy(float),
                    group[outcome].to_numpy(float),
                    xerr=_stderr(group, predictor),
                    yerr=_stderr(group, outcome),
                    linestyle="none",
                    color=colour,
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=7,
                    markerfacecolor="white" if is_hollow else colour,
                    markeredgecolor=colour if is_hollow else "white",
                    elinewidth=1,
                )
                if len(lines) == index:  # the legend shows the family's filled points, if it has any
                    lines.append(drawn.lines[0])
        for set_label, name in ((axes.set_xlabel, predictor), (axes.set_ylabel, outcome)):
            set_label(f"{axis_label(name)}\n{HOLLOW}" if _below_floor(points, name).any() else axis_label(name))
        axes.margins(0.15)
        if outcome.startswith("effective_length"):
            length_axis(axes, "y", sorted(points[outcome].unique()))
        if 1 < len(families) <= MAX_LEGEND:
            figure.legend(lines, [shortened(family) for family in families], title="family", loc="outside right upper")
        if len(points) <= MAX_LABELS:
            bars = [np.nan_to_num(_stderr(points, name)) for name in (predictor, outcome)]
            colours = [COLOURS[families.index(family) % len(COLOURS)] for family in points["family"]]
            places = points[[predictor, outcome]].to_numpy(float)
            label_points(figure, axes, places, np.stack(bars, 1), short_names(points), colours)
        return save_figure(figure, path)


def _below_floor(rows: pd.DataFrame, *names: str) -> pd.Series[bool]:
    """Whether one of these columns is below three times its numerical floor."""
    flags: pd.Series[bool] = rows[[f"{name}_below_floor" for name in names if f"{name}_below_floor" in rows]].any(
        axis=1
    )
    return flags


def _stderr(rows: pd.DataFrame, name: str) -> NDArray[np.float64]:
    column = f"{name}_stderr"
    return rows[column].to_numpy(float) if column in rows else np.full(len(rows), np.nan)
