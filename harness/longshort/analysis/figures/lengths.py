"""Perplexity and misalignment over length, a line per checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.analysis.figures.style import (
    HOLLOW,
    LINE_STYLES,
    MARKERS,
    MAX_LEGEND,
    length_axis,
    short_names,
    shortened,
    style,
)
from longshort.analysis.floors import below_floors
from longshort.analysis.tables import MISALIGNMENT_METRICS, of_corpus
from longshort.errors import UserError
from longshort.plotting import COLOURS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

CROWD_WIDTH, CROWD_ALPHA = 0.8, 0.4
CROWD = 60  # from here on lines alone: markers and bars would hide them, and fill megabytes


def perplexity_by_length(tidy: pd.DataFrame, path: str | Path, metric: str = "ppl", corpus: str | None = None) -> Path:
    """Draw perplexity over length on logarithmic axes, a line per checkpoint, a colour per family.

    Bars are ± one standard error over documents. A vertical line marks each training context length.

    Args:
        tidy: the table of `longshort.results.read_results`.
        path: the figure's file; SVG, or PNG where its suffix is ``.png``.
        metric: ``ppl``, or ``ppl_tail`` for the fixed-target view.
        corpus: which corpus's measurements to draw; needed where there are several.

    Returns:
        The file written.

    Raises:
        UserError: no such values, several corpora, or the file cannot be written.
    """
    across = "length (tokens)" if metric == "ppl" else "context before the fixed targets (tokens)"
    return _by_length(tidy, path, metric, corpus, across, "perplexity per token", _perplexity_axis)


def misalignment_curve(tidy: pd.DataFrame, path: str | Path, metric: str = "sce", corpus: str | None = None) -> Path:
    """Draw misalignment over length, within the training context length and where the model extrapolates.

    Lines, arguments and result are those of `perplexity_by_length`, but `metric` is one of
    `longshort.analysis.tables.MISALIGNMENT_METRICS`. A hollow point is below three times its numerical
    floor.
    """
    up = f"{MISALIGNMENT_METRICS[metric]} ({'share' if metric == 'agreement' else 'nats'})"
    return _by_length(tidy, path, metric, corpus, "length L of the longer context (tokens)", up, lambda axes: None)


def _by_length(
    tidy: pd.DataFrame,
    path: str | Path,
    metric: str,
    corpus: str | None,
    across: str,
    up: str,
    scale: Callable[[Axes], None],
) -> Path:
    """Draw one metric over length; `scale` sets the vertical axis once the lines are there."""
    tidy = of_corpus(tidy.assign(below_floor=below_floors(tidy)), corpus)
    values = tidy[tidy["metric"] == metric].sort_values("length")
    if values.empty:
        raise UserError(f"The results have no {metric}@L, so there is nothing to draw.", "data")
    families = sorted(values["family"].unique())
    members = dict.fromkeys(families, 0)
    checkpoints = list(values.groupby(["family", "checkpoint", "revision"], dropna=False))
    crowded = len(checkpoints) > CROWD
    in_legend: list[tuple[Line2D, str]] = []
    with style():
        figure = new_figure()
        axes = figure.subplots()
        for (family, *_), line in checkpoints:
            member = members[family]
            members[family] += 1
            colour, look = _look_in_crowd(families, family)
            drawn = _in_crowd(colour, look) if crowded else _line(axes, line, colour, member)
            if len(checkpoints) <= MAX_LEGEND:
                in_legend.append((drawn, short_names(line)[0]))
            elif member == 0:
                in_legend.append((drawn, shortened(family)))
        if crowded:
            looks = [_look_in_crowd(families, family) for (family, *_), _ in checkpoints]
            _crowd(axes, [line for _, line in checkpoints], looks)
            _hollow(axes, values, "#444444", "o", 3)
        length_axis(axes, "x", sorted(values["length"].unique()))
        scale(axes)
        axes.set_xlabel(f"{across}\n{HOLLOW}" if values["below_floor"].any() else across)
        axes.set_ylabel(up)
        for trained in sorted(values["train_length"].dropna().unique()):
            axes.axvline(trained, color="#777777", linewidth=1.2, linestyle="--", zorder=1)
            axes.annotate(
                f" trained at {trained}",
                (trained, 1),
                xycoords=("data", "axes fraction"),
                va="bottom",
                ha="center",
                color="#555555",
                fontsize=9,
            )
        if len(in_legend) <= MAX_LEGEND:
            figure.legend(*zip(*in_legend, strict=True), loc="outside right upper")
        return save_figure(figure, path)


def _line(axes: Axes, line: pd.DataFrame, colour: str, member: int) -> Line2D:
    """A checkpoint's line, with markers and error bars."""
    drawn = axes.errorbar(
        line["length"].to_numpy(float),
        line["value"].to_numpy(float),
        yerr=_bars_above_zero(line),
        color=colour,
        marker=MARKERS[member % len(MARKERS)],
        linestyle=LINE_STYLES[member % len(LINE_STYLES)],
        markersize=5,
        elinewidth=1,
        capsize=2,
    )
    _hollow(axes, line, colour, MARKERS[member % len(MARKERS)], 5)
    return drawn.lines[0]


def _hollow(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, size: float) -> None:
    """White markers over the values below three times their numerical floor."""
    flagged = rows[rows["below_floor"]]
    if len(flagged):
        places = flagged[["length", "value"]].to_numpy(float).T
        edge: dict[str, Any] = {"markeredgecolor": colour, "markersize": size, "zorder": 3}
        axes.plot(*places, linestyle="none", marker=marker, markerfacecolor="white", **edge)


def _look_in_crowd(families: list[str], family: str) -> tuple[str, Any]:
    """Colour and line style of a family: those after the last colour have the next style."""
    turn, index = divmod(families.index(family), len(COLOURS))
    return COLOURS[index], LINE_STYLES[turn % len(LINE_STYLES)]


def _in_crowd(colour: str, look: Any) -> Line2D:
    """What the legend shows of a line in a crowd: thicker and opaque, or its colour could not be recognized."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=look, linewidth=2 * CROWD_WIDTH)


def _crowd(axes: Axes, lines: Sequence[pd.DataFrame], looks: Sequence[tuple[str, Any]]) -> None:
    """The lines of many checkpoints, as one artist: hundreds would take seconds."""
    from matplotlib.collections import LineCollection

    points = [line[["length", "value"]].to_numpy(float) for line in lines]
    style: dict[str, Any] = {"capstyle": "projecting", "joinstyle": "round", "zorder": 2}  # as of single lines
    colours, line_styles = zip(*looks, strict=True)
    style |= {"linewidths": CROWD_WIDTH, "linestyles": line_styles, "alpha": CROWD_ALPHA}
    axes.add_collection(LineCollection(points, colors=colours, **style))
    axes.autoscale_view()


def _bars_above_zero(line: pd.DataFrame) -> NDArray[np.float64]:
    """± the standard error, cut below where it would reach 0: a logarithmic axis has no place for that."""
    value, stderr = line["value"].to_numpy(float), line["stderr"].to_numpy(float)
    return np.stack([np.minimum(stderr, 0.99 * value), stderr])


def _perplexity_axis(axes: Axes) -> None:
    """Logarithmic, with numbers as they are and not as powers of ten, and enough of them for a small span."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high / low < 1000 else (1,)
    axes.yaxis.set_major_locator(MaxNLocator(6) if high / low < 10 else LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
