"""What the paper reports, to stand beside what was measured, and never mixed with it."""

from __future__ import annotations

from dataclasses import dataclass

from longshort.analysis.analysis import Analysis
from longshort.analysis.labels import plain_name
from longshort.analysis.leaderboard import headline_outcomes
from longshort.analysis.report.findings import coefficient

SOURCE = "reported by Du et al., ICML 2025, not measured here"
# |correlation| with long-context performance; which kind of correlation and which models is not known.
CORRELATIONS = (("misalignment (L_misalign)", 0.85, "sce"), ("training loss", 0.62, "nll"))
# After 200 steps: training data and method, α, LongBench-E, perplexity.
METHODS_TABLE = (
    ("RedPajama-Book, CLEX, 4k", "0", 24.7, 6.12),
    ("RedPajama-Book, CLEX, 4k", "0.1", 26.6, 5.88),
    ("RedPajama-Book, CLEX, 4k", "0.5", 24.7, 6.54),
    ("PG19, CLEX, 4k", "0", 22.5, 7.45),
    ("PG19, CLEX, 4k", "0.1", 25.3, 7.35),
    ("LongQLoRA, 8k", "0", 23.4, 5.82),
    ("LongQLoRA, 8k", "0.1", 25.8, 5.77),
    ("EABF, 8k", "0", 23.6, 6.01),
    ("EABF, 8k", "0.1", 24.8, 5.91),
)
# Further numbers, known from summaries of the paper: what was varied, LongBench-E, perplexity (None: not known).
ABLATIONS = (
    ("α = 0.3", 27.1, None),
    ("α = 1.0", 19.9, 12.92),
    ("l_extra up to half of l_train", 25.8, None),
    ("l_extra up to l_train (its set-up is unclear)", 19.1, None),
)
# BABILong at 4k, 8k and 16k tokens, by α.
BABILONG = (("0", 48.2, 42.4, 37.9), ("0.1", 49.1, 44.4, 40.1))


@dataclass(frozen=True)
class Beside:
    """One reported |correlation| and the measured ones next to it, each with its outcome."""

    predictor: str
    reported: float
    measured: list[str]


def beside_reported(analysis: Analysis) -> list[Beside]:
    """The paper's two correlations and ours with the main outcomes."""
    table = analysis.correlations
    found = []
    for label, value, predictor in CORRELATIONS:
        rows = table[(table["predictor"] == predictor) & table["outcome"].isin(headline_outcomes(analysis))]
        measured = [
            f"{coefficient(row['pearson'], row.get('pearson_lo'), row.get('pearson_hi'))} "
            f"with {plain_name(row['outcome'])}, n = {row['n']}, F = {row['n_families']}"
            for _, row in rows.iterrows()
        ]
        found.append(Beside(label, value, measured))
    return found
