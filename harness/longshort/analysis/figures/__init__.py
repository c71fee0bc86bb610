"""Figures of the analysis, each one SVG file, legible in print and with any colour vision."""

from longshort.analysis.figures.draw import draw_figures
from longshort.analysis.figures.forest_plot import forest
from longshort.analysis.figures.lengths import misalignment_curve, perplexity_by_length
from longshort.analysis.figures.matrix import misalignment_matrix
from longshort.analysis.figures.points import scatter
from longshort.analysis.figures.positions import MAX_BANDS, nll_by_position
from longshort.analysis.figures.retrieval import heat_maps

__all__ = [
    "MAX_BANDS",
    "draw_figures",
    "forest",
    "heat_maps",
    "misalignment_curve",
    "misalignment_matrix",
    "nll_by_position",
    "perplexity_by_length",
    "scatter",
]
