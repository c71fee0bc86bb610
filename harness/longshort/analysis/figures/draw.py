"""Every figure of an analysis for which there is something to draw."""

from __future__ import annotations

from pathlib import Path

from longshort.analysis.analysis import Analysis
from longshort.analysis.figures.forest_plot import forest
from longshort.analysis.figures.lengths import misalignment_curve, perplexity_by_length
from longshort.analysis.figures.matrix import misalignment_matrix
from longshort.analysis.figures.points import scatter
from longshort.analysis.figures.positions import nll_by_position
from longshort.analysis.figures.retrieval import heat_maps
from longshort.analysis.leaderboard import headline_outcomes


def draw_figures(analysis: Analysis, folder: Path) -> list[Path]:
    """Draw the leaderboard, the best predictor against the first outcome, and curves and matrices over lengths.

    The report has the leaderboard of every outcome and the scatter plot of every pair.

    Args:
        analysis: what was found.
        folder: where to.

    Returns:
        The files written, SVG.

    Raises:
        UserError: a file cannot be written.
    """
    tidy, metrics = analysis.tidy, set(analysis.tidy["metric"])
    drawn = _leaderboard(analysis, folder)
    if "ppl" in metrics:
        drawn.append(perplexity_by_length(tidy, folder / "perplexity_by_length"))
    drawn += [
        misalignment_curve(tidy, folder / f"misalignment_curve_{metric}", metric=metric)
        for metric in ("sce", "jeffreys")
        if metric in metrics
    ]
    # Of SCE only where there is no Jeffreys divergence: the two differ by the entropy, which has no second length.
    for metric in ("jeffreys", "sce"):
        if any(name.startswith(f"{metric}_between@") for name in metrics):
            path = folder / f"misalignment_matrix_{metric}"
            drawn.append(misalignment_matrix(tidy, path, metric=f"{metric}_between"))
            break
    if len(analysis.retrieval):
        drawn.append(heat_maps(analysis.retrieval, folder / "retrieval"))
    if len(analysis.positions):
        drawn.append(nll_by_position(analysis.positions, folder / "nll_by_position"))
    return drawn


def _leaderboard(analysis: Analysis, folder: Path) -> list[Path]:
    """The leaderboards of the main outcomes, and the scatter plot of the first row."""
    ranking = analysis.leaderboard
    if ranking.empty:
        return []
    outcomes = headline_outcomes(analysis)
    order = [ranking[ranking["outcome"] == outcome] for outcome in outcomes]
    rows = analysis.correlations.set_index(["predictor", "outcome"])
    places = [pair for block in order for pair in zip(block["predictor"], block["outcome"], strict=True)]
    rows = rows.loc[places].reset_index()
    if rows["spearman"].isna().all():
        return []
    first = rows.loc[rows["spearman"].notna()].iloc[0]
    return [
        forest(rows, folder / "leaderboard", "spearman"),
        scatter(analysis.wide, first["predictor"], first["outcome"], folder / "scatter"),
    ]
