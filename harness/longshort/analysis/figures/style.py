"""The look that all figures share: colours, markers, axes, names; and their files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from longshort import plotting as look
from longshort.results import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINE_STYLES = ("-", "--", ":", "-.")
MAX_LEGEND = 24
KINDS = ("png", "svg")

STYLE = look.STYLE | {
    "legend.fontsize": 9,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
}


def style() -> Any:
    """A context in which figures take this look; files are written within it too."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


def new_figure(width: float = 7.5, height: float = 4.8) -> Figure:
    """An empty figure, in inches."""
    # Not through pyplot: no display is looked for, and nothing stays open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PNG and as SVG, or as the one that the path's suffix names; returns the paths.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    files = [path] if path.suffix in (".png", ".svg") else [path.with_name(f"{path.name}.{kind}") for kind in KINDS]
    for file in files:
        kind = file.suffix[1:]
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        figure.set_layout_engine("none")  # all is in its place: finding it again takes as long as drawing
        write_atomically(file, buffer.getvalue())
    return files


def short_names(rows: pd.DataFrame) -> list[str]:
    """The last component of a checkpoint's name, and its revision if it is not the usual one; shortened."""
    return [
        shortened(Path(checkpoint).name + (f"@{revision}" if pd.notna(revision) and revision != "main" else ""))
        for checkpoint, revision in zip(rows["checkpoint"], rows["revision"], strict=True)
    ]


def shortened(name: str, width: int = 28) -> str:
    """A long name without its middle: the ends tell siblings apart, and the plot keeps its place."""
    return name if len(name) <= width else f"{name[: width // 2]}…{name[-(width // 2 - 1) :]}"


def length_axis(axes: Axes, which: Literal["x", "y"], lengths: Iterable[float]) -> None:
    """A base-2 axis with a tick at each length that was measured, written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(lengths)))
    axis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:.0f}"))
    axis.set_minor_locator(NullLocator())
