"""The Markdown and LaTeX tables: every number once more from the data frame, and a LaTeX that compiles."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from longshort.analysis.analysis import Analysis
from longshort.analysis.correlation import COLUMNS
from longshort.analysis.paper import BEYOND, escape, latex, legend_of_beyond, markdown, number, p_value, short_label

EVIL = "50%_of|<b>$x$ & {y}#^~\\`*[1]*\n−é中"


def rows():
    full = dict.fromkeys(COLUMNS, np.nan) | {"controls": "nll", "interval": "jackknife", "note": ""}
    full |= {"n": 40, "n_families": 8, "outcome": "log_ppl@8192", "kendall": 0.5}
    return [
        full
        | {"predictor": "sce", "pearson": -0.8512, "pearson_lo": -0.956, "pearson_hi": -0.6, "spearman": 0.7}
        | {"spearman_lo": 0.1, "spearman_hi": 0.9, "partial": -0.004, "partial_lo": -0.3, "partial_hi": 0.29}
        | {"p_adjusted": 0.0004},
        full
        | {"predictor": "js_beyond", "pearson": 0.25, "spearman": 0.125, "p_adjusted": 0.0496, "interval": "naive"},
        full | {"predictor": "nll", "outcome": EVIL, "kendall": np.nan, "n": 4, "note": "no coefficient: fewer than 5"},
    ]


@pytest.fixture
def analysis():
    settings = {"group_by": "family", "adjust": "holm", "controls": ["nll", EVIL]}
    empty = pd.DataFrame()
    return Analysis(empty, empty, pd.DataFrame(rows(), columns=COLUMNS), empty, settings, [])


def test_numbers():
    assert [number(value) for value in (0.126, -0.5, -0.001, 1.0, np.nan, np.inf)] == [
        *("0.13", "−0.50", "0.00", "1.00", "–", "–")
    ]
    assert [p_value(p) for p in (0.0004, 0.0496, 0.05, 1.0, np.nan)] == ["<0.001*", "0.050*", "0.050", "1.000", "–"]
    assert [short_label(name) for name in ("sce_overlap_beyond", "nll", "babilong:acc")] == [
        *("SCE-overlap (beyond)", "NLL", "babilong:acc")
    ]


def test_markdown_has_a_table_per_outcome(analysis):
    text = markdown(analysis)
    assert (
        "| SCE | 40 | 8 | −0.85 [−0.96, −0.60] | 0.70 [0.10, 0.90] | 0.50 | 0.00 [−0.30, 0.29] | &lt;0.001\\* |" in text
    )
    assert "| JS (beyond) | 40 | 8† | 0.25 | 0.12 | 0.50 | – | 0.050\\* |" in text
    assert "| NLL | 4 | 8 | – | – | – | – | – |" in text
    assert "NLL: no coefficient: fewer than 5." in text
    assert "## log\\_ppl@8192\n\nlog-perplexity at 8192 tokens (nats per token)" in text
    assert "leave-one-family-out jackknife" in text
    assert "Holm-adjusted over all 3 pairs" in text
    other = replace(analysis, settings=analysis.settings | {"adjust": "bh", "controls": []})
    assert "Benjamini–Hochberg-adjusted" in markdown(other)
    assert "controlling for" not in markdown(other)


def test_every_row_of_a_markdown_table_has_as_many_cells(analysis):
    lines = [line for line in markdown(analysis).splitlines() if line.startswith("|")]
    assert len(lines) == 2 * 2 + 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}


def test_markdown_shows_names_as_they_are(analysis):
    heading = next(line for line in markdown(analysis).splitlines() if line.startswith("## 50"))
    assert heading == "## 50%\\_of\\|\\<b\\>$x$ & \\{y\\}\\#^~\\\\\\`\\*\\[1\\]\\* −é中"


def test_latex_structure(analysis):
    text = latex(analysis)
    assert "SCE & 40 & $-$0.85 & 0.70 & 0.50 & 0.00 & \\textless{}0.001* \\\\" in text
    assert " & (8) & [$-$0.96, $-$0.60] & [0.10, 0.90] &  & [$-$0.30, 0.29] &  \\\\[2pt]" in text
    assert "JS (beyond) & 40 & 0.25 & 0.12 & 0.50 & -- & 0.050* \\\\\n & (8$^\\dagger$) & " in text
    assert "NLL: no coefficient: fewer than 5." in text
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 2
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 2
    assert "|" not in text.replace("@{}lrrrrrr@{}", "")
    assert text.isascii()
    for line in text.splitlines():
        if line.endswith(("\\\\", "\\\\[2pt]")):
            assert len(re.findall(r"(?<!\\)&", line)) == 6
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_escape_leaves_nothing_that_latex_reads_as_a_command():
    assert escape("a_b 5% & #1 {x} $y$") == r"a\_b 5\% \& \#1 \{x\} \$y\$"
    assert escape("\\input~^<>|") == (
        r"\textbackslash{}input\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
    )
    assert escape("ρ − 1–2 é 中\n†\x07") == r"$\rho$ $-$ 1--2 ? ? $^\dagger$?"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here; the structure is tested in any case")
def test_latex_compiles(analysis, tmp_path):
    table = analysis.correlations
    evil = table.assign(predictor=["[2pt]", "*" + EVIL, EVIL])
    both = replace(analysis, correlations=pd.concat([table, evil.assign(outcome=[EVIL, "&", "\\end{table}"])]))
    (tmp_path / "correlations.tex").write_text(latex(both), "utf-8")
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{correlations}\\end{document}"
    (tmp_path / "document.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "document.pdf").read_bytes().startswith(b"%PDF")


def test_beyond_is_explained_where_a_predictor_is_called_so():
    table = pd.DataFrame({"predictor": ["sce", "js_beyond"]})
    assert legend_of_beyond(table) == BEYOND
    assert legend_of_beyond(table[:1]) == ""
