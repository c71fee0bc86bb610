"""The correlations as tables for a paper: Markdown, and LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from longshort.analysis.analysis import Analysis
from longshort.analysis.labels import axis_label
from longshort.results.floors import FLOORS, MARK

SHORT = {
    "sce": "SCE",
    "sce_last": "SCE-last",
    "sce_overlap": "SCE-overlap",
    "entropy": "Entropy",
    "jeffreys": "Jeffreys",
    "js": "JS",
    "agreement": "Top-1 agreement",
    "jeffreys_excess": "Jeffreys − floor",
    "js_excess": "JS − floor",
    "longppl": "LongPPL",
    "longppl_self": "LongPPL (self-evaluated)",
    "context_gain": "Context gain",
    "accuracy_tail": "Top-1 accuracy",
    "nll": "NLL",
    "log_params": "log parameters",
}
BEYOND = "(beyond): at the next length beyond the training context length."
SIGNIFICANT = 0.05
ADJUSTED = {"holm": "Holm", "bh": "Benjamini–Hochberg"}
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "ρ": r"$\rho$", "τ": r"$\tau$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "\n": " ",
}  # fmt: skip


def short_label(name: str) -> str:
    """A predictor's name for a narrow column; `BEYOND` says what ``(beyond)`` means."""
    metric = name.removesuffix("_beyond")
    return SHORT[metric] + (" (beyond)" if name != metric else "") if metric in SHORT else name


def number(value: float) -> str:
    """Two decimals, with a minus sign; a dash for what is missing."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def interval(row: Any, name: str) -> str:
    """The interval of a coefficient in brackets; nothing where there is none."""
    low, high = (getattr(row, f"{name}_{end}") for end in ("lo", "hi"))
    return f"[{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else ""


def families(row: Any) -> str:
    """The number of families; † where the interval takes checkpoints for independent."""
    return f"{row.n_families}{'†' if row.interval == 'naive' else ''}"


def checkpoints(row: Any) -> str:
    """The number of checkpoints, with ‡ where some have values below three times their numerical floor."""
    return f"{row.n}{MARK if getattr(row, 'n_below_floor', 0) else ''}"


def legend_of_beyond(table: pd.DataFrame) -> str:
    """The meaning of ``(beyond)``, if a predictor of the table is called so."""
    return BEYOND if any(short_label(name).endswith("(beyond)") for name in table["predictor"].unique()) else ""


def legend_of_floors(table: pd.DataFrame) -> str:
    """The meaning of ‡, if a row of the correlations has it."""
    if "n_below_floor" not in table or not table["n_below_floor"].any():
        return ""
    return (
        f"{MARK} Includes values below {FLOORS} times their numerical floor, which rounding in half precision may "
        "explain; the notes of correlations.csv count them."
    )


def p_value(p: float) -> str:
    """Three decimals; * below 0.05."""
    if not np.isfinite(p):
        return "–"
    return ("<0.001" if p < 0.001 else f"{p:.3f}") + ("*" if p < SIGNIFICANT else "")


def legend(analysis: Analysis) -> str:
    """What the columns are."""
    settings = analysis.settings
    fixed = f" controlling for {', '.join(map(short_label, settings['controls']))}" if settings["controls"] else ""
    adjusted = f"p of r, {ADJUSTED[settings['adjust']]}-adjusted over all {len(analysis.correlations)} pairs"
    return (
        f"n checkpoints of F families ({settings['group_by']}); Pearson's r, Spearman's ρ and partial r{fixed}, each "
        f"with its 95 % interval (leave-one-family-out jackknife); Kendall's τ-b; {adjusted}, * below {SIGNIFICANT}. "
        "† Naive interval and p: fewer than 4 families, checkpoints taken as independent, which is too narrow. "
        f"{legend_of_beyond(analysis.correlations)} {legend_of_floors(analysis.correlations)}"
    ).strip()


def markdown(analysis: Analysis) -> str:
    """One table per outcome, a row per predictor."""
    parts = ["# Correlations\n", f"{legend(analysis)}\n"]
    for outcome, rows in _by_outcome(analysis.correlations):
        parts.append(f"## {_plain(outcome)}\n\n{_one_line(axis_label(outcome))}\n")
        lines = ["| predictor | n | F | Pearson r | Spearman ρ | Kendall τ | partial r | adjusted p |"]
        lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
        for row in rows:
            cells = [_plain(short_label(row.predictor)), checkpoints(row), families(row)]
            cells += [_with_interval(row, "pearson"), _with_interval(row, "spearman"), number(row.kendall)]
            cells += [_with_interval(row, "partial"), p_value(row.p_adjusted).replace("<", "&lt;").replace("*", r"\*")]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
        parts += [f"{_plain(problem)}.\n" for problem in _without_coefficient(rows)]
    return "\n".join(parts)


def latex(analysis: Analysis) -> str:
    """One ``table`` per outcome, two lines per predictor: the coefficients, and beneath them their intervals."""
    parts = ["% Made by longshort correlate; the preamble needs \\usepackage{booktabs}.\n"]
    head = ["predictor", "$n$ ($F$)", "Pearson $r$", "Spearman $\\rho$", "Kendall $\\tau$", "partial $r$", "adj. $p$"]
    for index, (outcome, rows) in enumerate(_by_outcome(analysis.correlations), start=1):
        caption = f"Correlation with {axis_label(outcome)}: {legend(analysis)}"
        problems = "".join(f" {problem}." for problem in _without_coefficient(rows))
        parts += [
            "\\begin{table}\n\\centering\n\\footnotesize\n\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{escape(caption + problems)}}}\n\\label{{tab:correlations-{index}}}\n\\medskip",
            "\\begin{tabular}{@{}lrrrrrr@{}}\n\\toprule",
            f"{' & '.join(head)} \\\\\n\\midrule",
        ]
        for row in rows:
            upper = [short_label(row.predictor), checkpoints(row)]
            upper += [number(getattr(row, name)) for name in ("pearson", "spearman", "kendall", "partial")]
            lower = ["", f"({families(row)})", *(interval(row, name) for name in ("pearson", "spearman"))]
            lower += ["", interval(row, "partial"), ""]
            parts += [_line([*upper, p_value(row.p_adjusted)]), f"{_line(lower)}[2pt]"]
        parts += ["\\bottomrule\n\\end{tabular}\n\\end{table}\n"]
    return "\n".join(parts)


def escape(text: str) -> str:
    """Text that LaTeX sets as it is; what it has no letter for becomes a question mark."""
    return "".join(LATEX.get(letter, letter if letter.isascii() and letter.isprintable() else "?") for letter in text)


def _line(cells: list[str]) -> str:
    return f"{' & '.join(map(escape, cells))} \\\\"


def _by_outcome(correlations: pd.DataFrame) -> Iterator[tuple[str, list[Any]]]:
    for outcome, rows in correlations.groupby("outcome", sort=False):
        yield str(outcome), list(rows.itertuples())


def _with_interval(row: Any, name: str) -> str:
    return f"{number(getattr(row, name))} {interval(row, name)}".strip()


def _without_coefficient(rows: list[Any]) -> list[str]:
    return [f"{short_label(row.predictor)}: {row.note}" for row in rows if not np.isfinite(row.pearson)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
