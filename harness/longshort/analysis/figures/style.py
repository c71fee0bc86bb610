"""What the analysis' figures share: markers, axes, names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from longshort import plotting
from longshort.results.floors import FLOORS
from longshort.results.model_args import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINE_STYLES = ("-", "--", ":", "-.")
MAX_LEGEND = 24
HOLLOW = f"(hollow: below {FLOORS} times its numerical floor, half precision)"


def style() -> Any:
    """The context in which figures are drawn and saved."""
    padding = {f"figure.constrained_layout.{side}_pad": 0.1 for side in "wh"}
    return plotting.style({"legend.fontsize": 9, **padding})


def short_names(rows: pd.DataFrame) -> list[str]:
    """The last component of a checkpoint's name, and its revision if it is not the usual one; shortened."""
    return [
        shortened(short_name(checkpoint) + (f"@{revision}" if pd.notna(revision) and revision != "main" else ""))
        for checkpoint, revision in zip(rows["checkpoint"], rows["revision"], strict=True)
    ]


def shortened(name: str, width: int = 28) -> str:
    """A long name without its middle: the ends distinguish siblings, and the plot keeps its space."""
    return name if len(name) <= width else f"{name[: width // 2]}…{name[-(width // 2 - 1) :]}"


def length_axis(axes: Axes, which: Literal["x", "y"], lengths: Iterable[float]) -> None:
    """A base-2 axis with a tick at each length that was measured, written out."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(lengths)))
    axis.set_major_formatter(FuncFormatter(lambda length, _: f"{length:.0f}"))
    axis.set_minor_locator(NullLocator())
