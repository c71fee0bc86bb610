"""Figures of the study from the tables of `longshort.synthetic.summary`, each one SVG file; lengths are in bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from longshort.plotting import new_figure, save_figure, style
from longshort.synthetic.model import ENCODINGS
from longshort.synthetic.tasks import TASKS, constant_half_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which can be distinguished with any colour vision; each with a line style of its own.
LOOKS: dict[str, dict[str, Any]] = {
    "none": {"label": "none", "color": "#000000", "linestyle": "-", "marker": "o"},
    "learned": {"label": "learned", "color": "#E69F00", "linestyle": "--", "marker": "s"},
    "sinusoidal": {"label": "sinusoidal", "color": "#009E73", "linestyle": "-.", "marker": "^"},
    "rope": {"label": "RoPE", "color": "#0072B2", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "D"},
    "alibi": {"label": "ALiBi", "color": "#CC79A7", "linestyle": ":", "marker": "v"},
}
REFERENCE = "#D55E00"  # the colour of what is not a model's
DPI = 90


def error_by_length(table: pd.DataFrame, train_length: int, task: str, path: Path) -> Path:
    """Draw squared error against length on a logarithmic axis, a line per position encoding, from `by_length`'s table.

    Lines are geometric means over seeds, bands 95 % t-intervals of the logarithm. The training range is shaded;
    the mean task has the error of the constant ½ as well.
    """
    part = table[table["task"] == task]
    with style():
        figure = new_figure(7.4, 4.4)
        axes = figure.subplots()
        _lines(axes, part, "error_geometric")
        if TASKS[task].of_mean:
            lengths = part["length"].unique()
            baseline = [constant_half_error(length) for length in lengths]
            axes.plot(lengths, baseline, color=REFERENCE, linewidth=2.5, label="constant ½: 0.25/l")
        else:
            label = f"(l − {train_length})²: stays at {train_length}"
            _square_beyond(axes, part, train_length, linewidth=2.5, label=label)
        axes.set_yscale("log")
        axes.set_ylabel("squared error of the length" if not TASKS[task].of_mean else "squared error of the mean")
        axes.set_title(f"Task: {TASKS[task].label}", loc="left")
        _finish(figure, axes, train_length)
        return save_figure(figure, path)


def all_tasks(table: pd.DataFrame, train_length: int, path: Path) -> Path:
    """Draw what `error_by_length` does, a panel per length task on one vertical axis: what OutRep changes."""
    tasks = [task for task in table["task"].unique() if not TASKS[task].of_mean]
    with style():
        figure = new_figure(3.2 * len(tasks) + 1.2, 3.8)
        panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
        for axes, task in zip(panels, tasks, strict=True):
            part = table[table["task"] == task]
            _lines(axes, part, "error_geometric")
            _square_beyond(axes, part, train_length, linewidth=2, label=f"(l − {train_length})²")
            axes.set_yscale("log")
            axes.set_title(TASKS[task].label, loc="left")
        panels[0].set_ylabel("squared error of the length")
        _finish(figure, panels[0], train_length, *panels[1:])
        return save_figure(figure, path)


def misalignment_by_length(table: pd.DataFrame, train_length: int, path: Path) -> Path:
    """Draw the output misalignment against length, a panel per task, with what a perfect model would show."""
    tasks = list(table["task"].unique())
    with style():
        figure = new_figure(3.0 * len(tasks) + 1.2, 3.6)
        panels = np.atleast_1d(figure.subplots(1, len(tasks)))
        for axes, task in zip(panels, tasks, strict=True):
            part = table[(table["task"] == task) & (table["length"] > 1)]
            _lines(axes, part, "misalignment")
            perfect = part.groupby("length")["target_misalignment"].mean()
            axes.plot(perfect.index, perfect, color=REFERENCE, linewidth=2, label="perfect model")
            axes.set_title(TASKS[task].label, loc="left")
        panels[0].set_ylabel("misalignment |g(x) − g(suffix of x)|")
        _finish(figure, panels[0], train_length, *panels[1:])
        return save_figure(figure, path)


def misalignment_against_error(models: pd.DataFrame, train_length: int, path: Path) -> Path:
    """Draw misalignment against the error beyond training, a point per model, a column per task.

    Above the misalignment at the training length, below its mean over longer lengths; from `one_row_per_model`'s table.
    """
    tasks = list(models["task"].unique())
    with style():
        figure = new_figure(3.0 * len(tasks) + 1.2, 6.6)
        panels = figure.subplots(2, len(tasks), sharey="col", squeeze=False)
        for row, (column, where) in enumerate(
            (("misalignment", f"at {train_length} bits"), ("misalignment_beyond", f"beyond {train_length} bits"))
        ):
            for axes, task in zip(panels[row], tasks, strict=True):
                for encoding, group in models[models["task"] == task].groupby("encoding", sort=False):
                    look = LOOKS[str(encoding)] | {"linestyle": ""}
                    axes.plot(group[column], group["error_beyond"], **look)
                axes.set(yscale="log", xlabel=f"misalignment {where}")
                axes.locator_params(axis="x", nbins=4)
                axes.margins(0.1)
            panels[row, 0].set_ylabel("mean squared error beyond")
        for axes, task in zip(panels[0], tasks, strict=True):
            axes.set_title(TASKS[task].label, loc="left")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", title="positions")
        return save_figure(figure, path)


def _lines(axes: Axes, part: pd.DataFrame, column: str) -> None:
    for encoding in [name for name in ENCODINGS if name in set(part["encoding"])]:
        line = part[part["encoding"] == encoding]
        look = LOOKS[encoding] | {"linewidth": 1.5, "markersize": 4}
        axes.plot(line["length"], line[column], markevery=(ENCODINGS.index(encoding), 10), **look)
        bounds = [line[f"{column}_{end}"].to_numpy(float) for end in ("lo", "hi")]
        axes.fill_between(line["length"], *bounds, color=look["color"], alpha=0.18, linewidth=0)


def _square_beyond(axes: Axes, part: pd.DataFrame, train_length: int, **look: Any) -> None:
    """The squared error of an output that stays at the training length."""
    lengths = part["length"].unique()
    beyond = lengths[lengths > train_length]
    axes.plot(beyond, (beyond - train_length) ** 2.0, color=REFERENCE, **look)


def _finish(figure: Figure, first: Axes, train_length: int, *others: Axes) -> None:
    for axes in (first, *others):
        axes.axvspan(1, train_length, color="#888888", alpha=0.2, linewidth=0, label="training lengths")
        axes.set_xlabel("length (bits)")
        axes.margins(x=0.01)
    figure.legend(*first.get_legend_handles_labels(), loc="outside right upper", title="positions")
