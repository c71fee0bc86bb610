"""Figures: the style they share, labels next to points, and the one function that saves them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshort.results import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Okabe and Ito's colours, which can be distinguished with any colour vision; without the yellow, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a checkpoint's name is a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "longshort",  # the same figure gives the same file
}
CREATOR = "longshort"  # in the metadata of every SVG
# Where things are, in points: two decimals are enough, and make the drawing of many lines a third smaller.
PLACES = re.compile(rb' (?:d|x|y)="[^"]*"')
DECIMALS = re.compile(rb"(\.\d\d)\d+")

# Of a label, in typographic points.
DISTANCES = (7, 16, 28, 42)  # from its point; beyond the first a thin line joins them
MARKER = 5  # half of the size of a marker
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))


@contextmanager
def style(more: dict[Any, Any] | None = None) -> Iterator[None]:
    """A context with the shared style, and `more` matplotlib parameters, in which figures are drawn and saved."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE | (more or {})), warnings.catch_warnings():
        # Text stays text in an SVG: whatever shows it has the characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def new_figure(width: float = 7.5, height: float = 4.8) -> Figure:
    """An empty figure, in inches."""
    # Not through pyplot, which looks for a display and keeps every figure open.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Save a figure as one file: SVG, or PNG where the path's suffix is ``.png``.

    Args:
        figure: with the layout engine it was made with.
        path: without one of these two suffixes, ``.svg`` is appended.
        dpi: of a PNG.

    Returns:
        The file written.

    Raises:
        UserError: the folder is not writable, or the disk is full (kind ``unwritable``).
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        path = path.with_name(f"{path.name}.svg")
    _lay_out(figure, dpi)
    buffer = io.BytesIO()
    if path.suffix == ".png":
        # A lower compression level than the usual 6 takes half of the time for 7 % larger files.
        figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": 3})
        write_atomically(path, buffer.getvalue())
    else:
        figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None, "Creator": CREATOR})
        short = PLACES.sub(lambda place: DECIMALS.sub(rb"\1", place[0]), buffer.getvalue())
        write_atomically(path, short)
    return path


def _lay_out(figure: Figure, dpi: int) -> None:
    """Do the layout once: `Figure.savefig` would draw a figure with a layout engine twice for each file."""
    engine = figure.get_layout_engine()
    if engine is not None:
        before, figure.dpi = figure.dpi, dpi
        engine.execute(figure)
        figure.dpi = before
        figure.set_layout_engine(None)


def label_points(
    figure: Figure, axes: Axes, points: Array, bars: Array, names: Sequence[str], colours: Sequence[str]
) -> None:
    """Write each name at the nearest free place next to its point; a name without a free place is skipped.

    Not adjustText: it lets names cover error bars, and its result depends on how much time it has.

    Args:
        figure: with everything else drawn.
        axes: of the points.
        points: [n, 2] in data coordinates.
        bars: [n, 2] half lengths of the error bars in data coordinates, 0 where there is none.
        names: n of them.
        colours: n of them, so that in a crowd one sees which point a name belongs to.
    """
    import numpy as np
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # positions in pixels are known only afterwards
    pixels = figure.dpi / 72
    size = MARKER * pixels
    occupied = _markers_and_bars(axes, points, bars, size)  # in pixels, as the next two
    texts: list[Bbox] = []
    lines: list[Bbox] = []
    for index in np.argsort(-points[:, 0]):  # from the right, where there is the least room for a name
        point = points[index]
        for distance, (right, up) in product(DISTANCES, DIRECTIONS):
            joined = distance > DISTANCES[0]
            text = axes.annotate(
                names[index],
                (point[0], point[1]),
                xytext=(right * distance, up * distance),
                textcoords="offset points",
                ha=("center", "left", "right")[right],
                va=("center", "bottom", "top")[up],
                fontsize=8,
                color=colours[index],
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6} if joined else None,
            )
            text.set_in_layout(False)  # or the axes would shrink, and the places found be wrong
            text.get_window_extent()  # moves the text to its offset
            box = Text.get_window_extent(text)  # of the text alone, without the line
            start = axes.transData.transform(point)
            steps = np.outer(np.arange(size, distance * pixels, 3), (right, up)) if joined else ()
            line = [Bbox([start + step, start + step + 1]) for step in steps]
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            crossed = any(other.overlaps(piece) for other in texts for piece in line)
            if inside and not crossed and not any(box.overlaps(other) for other in occupied + texts + lines):
                texts.append(box)
                lines.extend(line)
                break
            text.remove()


def _markers_and_bars(axes: Axes, points: Array, bars: Array, size: float) -> list[Bbox]:
    """What points and their error bars cover, in pixels."""
    from matplotlib.transforms import Bbox

    boxes = []
    for point, bar in zip(points, bars, strict=True):
        (left, bottom), (x, y), (right, top) = axes.transData.transform([point - bar, point, point + bar])
        boxes.append(Bbox([[x - size, y - size], [x + size, y + size]]))
        boxes.append(Bbox([[left, y - 1], [right, y + 1]]))
        boxes.append(Bbox([[x - 1, bottom], [x + 1, top]]))
    return boxes
