"""The figures of the report: the files that were written, embedded with their captions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.figures import MAX_BANDS
from longshort.analysis.floors import below_floors
from longshort.results.floors import FLOORS

# By the stem of the file; the leaderboard and the scatter plots are the page's own.
CAPTIONS = {
    "perplexity_by_length": "Perplexity by length",
    "misalignment_curve_sce": "Misalignment (SCE) by length",
    "misalignment_curve_jeffreys": "Misalignment without its entropy part (Jeffreys divergence) by length",
    "misalignment_matrix_sce": "Misalignment (SCE) between all lengths",
    "misalignment_matrix_jeffreys": "Misalignment (Jeffreys divergence) between all lengths",
    "nll_by_position": "NLL by position within the window",
    "retrieval": "Recall of values hidden in long texts, by context length and depth",
}
WIDTH = re.compile(r'<svg [^>]*?width="([\d.]+)pt"')
WIDE = 600  # points; a wider figure, of many panels, is shown across the whole page
NUMBERS = {"nll_by_position": "positions.csv", "retrieval": "retrieval.csv"}  # files of their own


def embedded_figures(analysis: Analysis, files: Iterable[Path]) -> list[dict[str, str]]:
    """Caption, data URL and where the numbers are, for each file that the report shows."""
    shown = []
    for file in files:
        name = file.stem
        if name in CAPTIONS:
            drawing = file.read_text("utf-8")
            seen = _seen(analysis.positions) if name == "nll_by_position" else _hollow(name, analysis.tidy)
            shown.append(
                {
                    "caption": CAPTIONS[name] + seen,
                    "wide": "wide" if (width := WIDTH.search(drawing)) and float(width[1]) > WIDE else "",
                    # Percent-encoded: a tenth longer than the file, where base64 would make it a third longer.
                    "source": f"data:image/svg+xml,{quote(drawing, safe=' =:;/,.')}",
                    "numbers": NUMBERS.get(name, "the tables of this report"),
                }
            )
    return shown


def _hollow(figure: str, tidy: pd.DataFrame) -> str:
    """The meaning of hollow points in the figure of a metric over length, if it has any."""
    metric = figure.removeprefix("misalignment_curve_")
    if metric == figure or not below_floors(tidy)[tidy["metric"] == metric].any():
        return ""
    return (
        f"; hollow points are below {FLOORS} times their numerical floor: rounding in half precision may explain them"
    )


def _seen(positions: pd.DataFrame) -> str:
    """What the figure of NLL by position shows, of how many checkpoints and documents."""
    fewest, most = positions["n"].min(), positions["n"].max()
    checkpoints = len(positions.drop_duplicates(["checkpoint", "revision"]))
    bands = ", with 95 % intervals over documents" if checkpoints <= MAX_BANDS else ""
    return (
        f": means over n = {fewest if fewest == most else f'{fewest} to {most}'} documents{bands}, of {checkpoints} "
        f"{'checkpoint' if checkpoints == 1 else 'checkpoints'} with saved per-token values. A line falls where more "
        "context helps and rises where it hurts, as beyond the training context length (dashed) of a model that does "
        "not extrapolate. Windows shorter than the longest are scored at their last positions only."
    )
