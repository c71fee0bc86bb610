"""Figure of a training run: its losses, the two parts of its misalignment, and held-out perplexity, by step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshort.plotting import COLOURS, new_figure, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_figure(rows: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of the training log and of the evaluation log as a PNG."""
    from matplotlib.ticker import LogFormatter

    lines = {"L_train": ["L_train"], "misalignment": ["entropy", "jeffreys"], "learning rate": ["lr"]}
    if rows[0]["misalign"] is None:
        del lines["misalignment"]
    perplexities = [name for name in (evaluations[0] if evaluations else {}) if name.startswith("ppl@")]
    with style():
        panels = len(lines) + bool(perplexities)
        figure = new_figure(3.4 * panels, 3.0)
        axes: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
        for panel, (title, names) in zip(axes, lines.items(), strict=False):
            _draw(panel, title if title == "learning rate" else f"{title} (nats)", rows, names)
        if "misalignment" in lines and evaluations:
            for colour, name in zip(COLOURS, ("entropy", "jeffreys"), strict=False):
                _points(axes[1], evaluations, name, colour, label=f"{name}, held out")
            axes[1].legend(fontsize=8)
        if perplexities:
            _draw(axes[-1], "held-out perplexity", evaluations, perplexities, marker="o")
            axes[-1].set_yscale("log")
            for formatted in (axes[-1].yaxis.set_major_formatter, axes[-1].yaxis.set_minor_formatter):
                formatted(LogFormatter(minor_thresholds=(2, 0.5)))
        save_figure(figure, path)


def _draw(
    axes: Axes, title: str, rows: Sequence[dict[str, Any]], names: Sequence[str], marker: str | None = None
) -> None:
    for colour, name in zip(cycle(COLOURS), names, strict=False):
        _points(axes, rows, name, colour, label=name, linestyle="-", marker=marker)
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    if len(names) > 1:
        axes.legend(fontsize=8)


def _points(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    name: str,
    colour: str,
    *,
    label: str,
    linestyle: str = "none",
    marker: str | None = "o",
) -> None:
    known = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = zip(*known, strict=True)
    axes.plot(steps, values, linestyle=linestyle, color=colour, marker=marker, markersize=4, label=label)
