"""Misalignment between all lengths as heat maps, one per checkpoint."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.analysis.figures.style import short_names, style
from longshort.analysis.floors import below_floors
from longshort.analysis.tables import of_corpus
from longshort.errors import UserError
from longshort.plotting import new_figure, save_figure
from longshort.results.floors import FLOORS, MARK

LABELS = {
    "sce_between": "SCE\nbetween two context lengths",
    "jeffreys_between": "Jeffreys divergence\nbetween two context lengths",
}
MAX_PANELS = 12
MAX_NUMBERED = 6  # lengths up to which the cells show numbers
COLUMNS = 4


def misalignment_matrix(
    tidy: pd.DataFrame, path: str | Path, metric: str = "sce_between", corpus: str | None = None
) -> Path:
    """Draw misalignment between all pairs of context lengths, a heat map per checkpoint, on one colour scale.

    The diagonal of ``sce_between`` is twice the entropy; a pair that was not measured stays blank. ‡ marks values
    below three times their numerical floor. Of more than 12 checkpoints 12 are drawn, taken from the families in turn,
    and the figure says so.

    Arguments and result are those of `longshort.analysis.perplexity_by_length`, but `metric` is ``sce_between`` or
    ``jeffreys_between``, in nats, which the table has as ``METRIC@L1-L2``.
    """
    pairs = tidy["metric"].str.extract(rf"^{metric}@(?P<one>\d+)-(?P<other>\d+)$").dropna().astype(int)
    if pairs.empty:
        raise UserError(f"The results have no {metric}@L1-L2, so there is nothing to draw.", "data")
    # These metrics name their lengths themselves, and have none of their own.
    flags = below_floors(tidy).loc[pairs.index]
    values = of_corpus(tidy.loc[pairs.index].assign(length=0, flag=flags), corpus).join(pairs)
    lengths = sorted({*values["one"], *values["other"]})
    checkpoints = [rows for _, rows in values.groupby(["family", "checkpoint", "revision"], dropna=False)]
    shown = _from_all_families(checkpoints)
    matrices = [_matrix(rows, lengths, "value") for rows in shown]
    flagged = [_matrix(rows, lengths, "flag") == 1 for rows in shown]
    low, high = np.nanmin(matrices), np.nanmax(matrices)
    numbered = len(lengths) <= MAX_NUMBERED
    digits = ".2f" if high >= 0.01 else ".0e"
    columns = min(COLUMNS, len(shown))
    rows_of_panels = ceil(len(shown) / columns)
    side = 0.5 * len(lengths) + 0.4 if numbered else 2.4
    with style():
        figure = new_figure(max(4.2, columns * side + 1.8), rows_of_panels * (side + 0.4) + 0.7)
        panels = figure.subplots(rows_of_panels, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(shown) :]:
            axes.remove()
        ticks = range(len(lengths)) if numbered else range(0, len(lengths), ceil(len(lengths) / MAX_NUMBERED))
        for axis in (panels[0].xaxis, panels[0].yaxis):  # which all panels share
            axis.set_ticks(ticks, [str(lengths[tick]) for tick in ticks])
        for index, (axes, rows, matrix, marked) in enumerate(zip(panels, shown, matrices, flagged, strict=False)):
            image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=high)
            axes.set_title(short_names(rows)[0], fontsize=8)
            axes.grid(False)
            axes.tick_params(labelsize=8, labelbottom=index + columns >= len(shown))
            axes.tick_params(axis="x", labelrotation=90)
            for (row, column), value in np.ndenumerate(matrix) if numbered or marked.any() else ():
                mark = MARK if marked[row, column] else ""
                if np.isfinite(value) and (numbered or mark):
                    text = f"{value:{digits}}{mark}" if numbered else mark
                    pale = value > (low + high) / 2
                    cell = axes.text(
                        column, row, text, ha="center", va="center", fontsize=7, color="k" if pale else "w"
                    )
                    cell.set_in_layout(False)  # it is inside its panel, and measuring it takes time
        figure.supxlabel("context (tokens)", fontsize=10)
        figure.supylabel("context (tokens)", fontsize=10)
        meaning = f"\n{MARK}: below {FLOORS} times its numerical floor" if np.any(flagged) else ""
        figure.colorbar(image, ax=panels[: len(shown)].tolist(), label=f"{LABELS[metric]} (nats){meaning}", aspect=30)
        if len(shown) < len(checkpoints):
            figure.suptitle(f"{len(shown)} of {len(checkpoints)} checkpoints", fontsize=10)
        return save_figure(figure, path)


def _matrix(rows: pd.DataFrame, lengths: list[int], column: str) -> NDArray[np.float64]:
    """One column's values between all lengths, symmetric: [M, M], NaN where there is none."""
    matrix = np.full((len(lengths), len(lengths)), np.nan)
    for one, other, value in rows[["one", "other", column]].itertuples(index=False):
        i, j = lengths.index(one), lengths.index(other)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _from_all_families(checkpoints: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Up to 12: the first of each family, then the second of each, and so on; in their old order."""
    families = pd.Series([rows["family"].iloc[0] for rows in checkpoints])
    turn = families.groupby(families).cumcount()
    first = turn.sort_values(kind="stable").index[:MAX_PANELS]
    return [checkpoints[index] for index in sorted(first)]
