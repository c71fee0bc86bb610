"""All coefficients with their intervals, one under the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from longshort.analysis.figures.style import style
from longshort.analysis.labels import axis_label
from longshort.analysis.paper import checkpoints, legend_of_beyond, short_label
from longshort.errors import UserError
from longshort.plotting import COLOURS, new_figure, save_figure
from longshort.results.floors import FLOORS, MARK

LABELS = {"pearson": "Pearson's r", "spearman": "Spearman's ρ", "kendall": "Kendall's τ", "partial": "partial r"}


def forest(correlations: pd.DataFrame, path: str | Path, coefficient: str = "pearson") -> Path:
    """Draw each predictor's coefficient with its 95 % interval, outcome by outcome (a forest plot).

    A hollow point has a naive interval: it takes checkpoints for independent and is too narrow. n counts
    checkpoints, F families; ‡ marks the n of a pair with values below three times their numerical floor. A pair
    without a coefficient keeps its row, empty.

    Args:
        correlations: the table of `longshort.analysis.correlations`.
        path: the figure's file; SVG, or PNG where its suffix is ``.png``.
        coefficient: ``pearson``, ``spearman``, ``kendall`` or ``partial``.

    Returns:
        The file written.

    Raises:
        UserError: no pair has a coefficient, or the file cannot be written.
    """
    if correlations[coefficient].notna().sum() == 0:
        raise UserError(f"No pair has a coefficient ({coefficient}), so there is nothing to draw.", "data")
    ends = [f"{coefficient}_{end}" for end in ("lo", "hi")]
    table = correlations.reindex(columns=[*correlations.columns, *(set(ends) - set(correlations.columns))])
    naive = (table["interval"] == "naive") if "interval" in table else pd.Series(False, index=table.index)
    left: list[str] = []
    right: list[str] = []
    headings: list[int] = []
    places: list[int] = []
    import matplotlib as mpl

    with style():
        blocks = list(table.groupby("outcome", sort=False))
        figure = new_figure(7.5, 0.24 * (len(table) + 1.6 * len(blocks)) + 1.2)
        axes = figure.subplots()
        for outcome, block in blocks:
            headings.append(len(left))
            left.append(axis_label(str(outcome)).replace("\n", " "))
            right.append("")
            for row in block.itertuples():
                places.append(len(left))
                left.append(short_label(str(row.predictor)))
                found = np.isfinite(getattr(row, coefficient))
                right.append(f"n = {checkpoints(row)}, F = {row.n_families}" + ("" if found else ", none"))
        table = pd.concat([block for _, block in blocks]).assign(place=places)
        for is_naive, points in table.groupby(naive.loc[table.index]):
            value, low, high = (points[name].to_numpy(float) for name in (coefficient, *ends))
            axes.errorbar(
                value,
                points["place"],
                xerr=[value - low, high - value],
                marker="o",
                markersize=5.5,
                color=COLOURS[0],
                markerfacecolor="white" if is_naive else COLOURS[0],
                linestyle="none",
                elinewidth=1.4,
                capsize=2.5,
            )
        axes.axvline(0, color="#555555", linewidth=1)
        axes.set_xlim(-1.03, 1.03)
        axes.set_ylim(len(left) - 0.4, -0.6)
        axes.set_yticks([row for row in range(len(left)) if row not in headings])
        axes.set_yticklabels([name for row, name in enumerate(left) if row not in headings])
        for row in headings:
            axes.text(-1.02, row, left[row], fontweight="bold", fontsize=9, va="center", backgroundcolor="white")
        axes.tick_params(axis="y", length=0)
        # Texts, and not a second axis: a tick takes ten times as long to draw as its label.
        place, up, across = axes.get_yaxis_text2_transform(mpl.rcParams["ytick.major.pad"])
        for row, text in enumerate(right):
            axes.text(1, row, text, fontsize=8, transform=place, verticalalignment=up, horizontalalignment=across)
        axes.grid(axis="y", visible=False)
        kinds = " (hollow: naive interval, too narrow)" if naive.any() else ""
        if beyond := legend_of_beyond(table):
            kinds += f"\n{beyond.removesuffix('.')}"
        if any(MARK in text for text in right):
            kinds += f"\n{MARK}: with values below {FLOORS} times their numerical floor (half precision)"
        axes.set_xlabel(f"{LABELS[coefficient]}, 95 % interval{kinds}")
        return save_figure(figure, path)
