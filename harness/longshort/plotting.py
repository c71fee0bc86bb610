"""The look that all pictures share."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours, told apart with any colour vision; the yellow, too pale for lines, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# For matplotlib's rc_context, in which figures are also written.
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
