"""Recall by context length and depth as heat maps, one per checkpoint."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd

from longshort.analysis.figures.style import short_names, style
from longshort.errors import UserError
from longshort.plotting import new_figure, save_figure

MAX_PANELS = 12
COLUMNS = 3
MAX_NUMBERED = 8  # lengths up to which the cells show numbers


def heat_maps(cells: pd.DataFrame, path: str | Path) -> Path:
    """Draw the share of values that each checkpoint recalls, by context length and depth, on one colour scale.

    A cell that was not measured stays blank. Of more than 12 checkpoints the first 12 are drawn, and the figure says
    so.

    Args:
        cells: of `longshort.analysis.retrieval.cells`: columns ``checkpoint``, ``revision``, ``length`` (tokens),
            ``depth`` (0 at the start of the haystack, 1 at its end), ``recall`` and ``n`` (probes).
        path: as of `longshort.plotting.save_figure`.

    Returns:
        The file written.

    Raises:
        UserError: there are no cells ("data"), or the file cannot be written ("unwritable").
    """
    if cells.empty:
        raise UserError("The results have no recall by length and depth, so there is nothing to draw.", "data")
    lengths, depths = sorted(cells["length"].unique()), sorted(cells["depth"].unique())
    checkpoints = [rows for _, rows in cells.groupby(["checkpoint", "revision"], dropna=False)]
    shown = checkpoints[:MAX_PANELS]
    columns = min(COLUMNS, len(shown))
    rows_of_panels = ceil(len(shown) / columns)
    width, height = max(2.2, 0.5 * len(lengths) + 0.4), max(1.3, 0.32 * len(depths) + 0.4)
    with style():
        figure = new_figure(max(4.2, columns * width + 1.8), rows_of_panels * (height + 0.5) + 0.9)
        panels = figure.subplots(rows_of_panels, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in panels[len(shown) :]:
            axes.remove()
        step = ceil(len(lengths) / MAX_NUMBERED)
        panels[0].set_xticks(range(0, len(lengths), step), [str(length) for length in lengths[::step]])
        panels[0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        for index, (axes, rows) in enumerate(zip(panels, shown, strict=False)):
            recall = rows.pivot_table("recall", "depth", "length").reindex(index=depths, columns=lengths)
            matrix = recall.to_numpy(float)  # [depths, lengths]
            image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
            axes.set_title(short_names(rows)[0], fontsize=9)
            axes.grid(False)
            axes.tick_params(labelsize=8, labelbottom=index + columns >= len(shown))
            for (row, column), value in np.ndenumerate(matrix) if len(lengths) <= MAX_NUMBERED else ():
                if np.isfinite(value):
                    colour = "k" if value > 0.5 else "w"
                    cell = axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
                    cell.set_in_layout(False)  # it is inside its panel, and measuring it takes time
        figure.supxlabel("context length (tokens)", fontsize=10)
        figure.supylabel("depth of the value asked for", fontsize=10)
        figure.colorbar(image, ax=panels[: len(shown)].tolist(), label=f"recall\n({_probes(cells)})", aspect=20)
        if len(shown) < len(checkpoints):
            figure.suptitle(f"{len(shown)} of {len(checkpoints)} checkpoints", fontsize=10)
        return save_figure(figure, path)


def _probes(cells: pd.DataFrame) -> str:
    """How many probes a cell has."""
    fewest, most = int(cells["n"].min()), int(cells["n"].max())
    return f"{most} probes per cell" if fewest == most else f"{fewest} to {most} probes per cell"
