"""NLL by position within the window, a panel per length."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from longshort.analysis.figures.style import LINE_STYLES, MAX_LEGEND, short_names, shortened, style
from longshort.errors import UserError
from longshort.plotting import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MAX_PANELS = 9
COLUMNS = 3
FEW = 8  # bins up to which each has a marker
MAX_BANDS = 6  # checkpoints up to which intervals are drawn


def nll_by_position(positions: pd.DataFrame, path: str | Path) -> Path:
    """Draw NLL over the position within the window, a panel per length and a line per checkpoint.

    The bands are 95 % intervals over documents; with more than 6 checkpoints they are not drawn. A vertical line marks
    each training context length that is shorter than the window. Of more than 9 lengths the longest 9 are drawn.

    Args:
        positions: the table of `longshort.analysis.positions.nll_by_position`.
        path: the figure's file; SVG, or PNG where its suffix is ``.png``.

    Returns:
        The file written.

    Raises:
        UserError: there is nothing to draw, or the file cannot be written.
    """
    if positions.empty:
        raise UserError("The results have no per-token values, so there is nothing to draw.", "data")
    lengths = sorted(positions["length"].unique())[-MAX_PANELS:]
    checkpoints = positions.drop_duplicates(["family", "checkpoint", "revision"]).sort_values(
        ["family", "checkpoint", "revision"]
    )
    families = list(dict.fromkeys(checkpoints["family"]))
    columns = min(COLUMNS, len(lengths))
    count = ceil(len(lengths) / columns)
    in_legend: list[tuple[Line2D, str]] = []
    with style():
        figure = new_figure(max(7.5, 2.9 * columns), 2.6 * count + 0.6)
        panels = figure.subplots(count, columns, squeeze=False, sharey=True).ravel()
        for axes in panels[len(lengths) :]:
            axes.remove()
        members = dict.fromkeys(families, 0)
        for name, (_, checkpoint) in zip(short_names(checkpoints), checkpoints.iterrows(), strict=True):
            family = checkpoint["family"]
            own = positions[
                (positions["checkpoint"] == checkpoint["checkpoint"])
                & (positions["revision"] == checkpoint["revision"])
            ]
            colour = COLOURS[families.index(family) % len(COLOURS)]
            lines = [
                _line(axes, own[own["length"] == length], colour, members[family], len(checkpoints) <= MAX_BANDS)
                for axes, length in zip(panels, lengths, strict=False)
            ]
            if len(checkpoints) <= MAX_LEGEND:
                in_legend.append((lines[0], name))
            elif members[family] == 0:
                in_legend.append((lines[0], shortened(family)))
            members[family] += 1
        for axes, length in zip(panels, lengths, strict=False):
            _dress(axes, int(length), positions)
        figure.supxlabel("position within the window (tokens of context)", fontsize=10)
        figure.supylabel("NLL (nats per token)", fontsize=10)
        if len(in_legend) <= MAX_LEGEND:
            figure.legend(*zip(*in_legend, strict=True), loc="outside right upper")
        return save_figure(figure, path)


def _line(axes: Axes, rows: pd.DataFrame, colour: str, member: int, band: bool) -> Line2D:
    """A checkpoint's line in one panel; a bin is drawn at the geometric mean of its ends."""
    rows = rows.sort_values("first")
    place = np.sqrt(rows["first"].to_numpy(float) * rows["last"].to_numpy(float))
    low, high = (rows[name].to_numpy(float) for name in ("nll_lo", "nll_hi"))
    if band:
        axes.fill_between(place, low, high, color=colour, alpha=0.18, linewidth=0)
    look: dict[str, Any] = {"color": colour, "linestyle": LINE_STYLES[member % len(LINE_STYLES)], "linewidth": 1.3}
    return axes.plot(place, rows["nll"].to_numpy(float), marker="." if len(rows) <= FEW else "", **look)[0]


def _dress(axes: Axes, length: int, positions: pd.DataFrame) -> None:
    """Add the title, the logarithmic axis and the training context lengths."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_title(f"window of {length} tokens", fontsize=9)
    axes.set_xscale("log", base=2)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6) if high / low > 8 else LogLocator(base=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    for trained in sorted(positions.loc[positions["length"] == length, "train_length"].dropna().unique()):
        if low < trained < length:
            axes.axvline(trained, color="#777777", linewidth=1.2, linestyle="--", zorder=1)
