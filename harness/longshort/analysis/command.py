"""``longshort correlate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from longshort.analysis.analysis import Analysis

EPILOG = """Examples:

longshort correlate results

longshort correlate results --predictor sce --predictor jeffreys --outcome log_ppl@8192 -o analysis

longshort correlate results --outcome babilong_qa1:acc --where "params < 8e9 and family != 'llama'"

longshort correlate results --group-by train_length --adjust bh
"""


def correlate_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of lm-eval's results, searched at any depth.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for tables, figures, report.  [default: DIR/analysis]")
    ] = None,
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of checkpoints.csv; repeatable.  [default: misalignment at the train length and beyond, nll]"
        ),
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of checkpoints.csv, TASK:METRIC for other lm-eval tasks; repeatable.  "
            "[default: LongBench-E, log-perplexity beyond the train length, its rise, effective length]"
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Control for this column, besides nll, and log_params if it varies; repeatable."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Keep only checkpoints that meet this condition, as \"params < 8e9 and family == 'x'\"."),
    ] = None,
    group_by: Annotated[str, typer.Option(help="Column that says which checkpoints belong together.")] = "family",
    adjust: Annotated[
        Literal["holm", "bh"],
        typer.Option(help="Correction of p-values for multiple comparisons: Holm, or Benjamini-Hochberg."),
    ] = "holm",
    corpus: Annotated[
        str | None, typer.Option(help="Corpus of the perplexities and misalignments, if the results have several.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a damaged results file instead of skipping it.")
    ] = False,
) -> None:
    """Correlate misalignment with long-context performance over checkpoints.

    Writes tables (CSV, Markdown, LaTeX), figures (SVG) and report.html.
    """
    from rich.console import Console

    from longshort.analysis.pipeline import analyze
    from longshort.analysis.write import write_analysis

    output = output or (folder.parent if folder.is_file() else folder) / "analysis"
    with Console(stderr=True).status(f"correlating what is in {folder}"):
        analysis = analyze(
            folder,
            predictors=predictor,
            outcomes=outcome,
            controls=control or (),
            where=where,
            group_by=group_by,
            adjust=adjust,
            corpus=corpus,
            strict=strict,
        )
        written = write_analysis(analysis, output)
    for note in analysis.notes:
        typer.echo(f"warning: {note}", err=True)
    show_headline(analysis, Console())
    tables = [file.name for file in written if file.parent == output]
    typer.echo(f"{output}:")
    Console().print(f"{', '.join(tables)}, figures/ ({len(written) - len(tables)} files)", highlight=False)


def show_headline(analysis: Analysis, console: Console) -> None:
    """Print the main correlations, a table per outcome, within 80 columns; say where the others are."""
    from rich.table import Table
    from rich.text import Text

    from longshort.analysis.paper import (
        ADJUSTED,
        SIGNIFICANT,
        checkpoints,
        families,
        interval,
        legend_of_floors,
        number,
        short_label,
    )
    from longshort.analysis.tables import axis_label
    from longshort.analysis.write import main_pairs

    pairs, settings, table = main_pairs(analysis), analysis.settings, analysis.correlations

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    for outcome in dict.fromkeys(outcome for _, outcome in pairs):
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        grid.add_column("predictor")
        for name in ("Pearson r [95 %]", "ρ", "partial r [95 %]", "n (F)"):
            grid.add_column(name, justify="right", no_wrap=True)
        for row in table[table["outcome"] == outcome].itertuples():
            if (row.predictor, outcome) in pairs:
                star = "*" if row.p_adjusted < SIGNIFICANT else " "
                grid.add_row(
                    Text(short_label(str(row.predictor))),
                    Text(f"{number(row.pearson)}{star} {interval(row, 'pearson')}"),
                    number(row.spearman),
                    Text(f"{number(row.partial)} {interval(row, 'partial')}"),
                    f"{checkpoints(row)} ({families(row)})",
                )
        say(f"Correlation with {' '.join(axis_label(outcome).split())}")
        console.print(grid)
        console.print()
    if table.empty:
        say("No correlation: the results have no pair of predictor and outcome. The tables hold what was measured.")
        return
    for note, rows in table[table["pearson"].isna()].groupby("note", sort=False):
        say(f"{len(rows)} of {len(table)} pairs: {note}.")
    say(
        f"ρ: Spearman's; partial: r with {', '.join(settings['controls']) or 'nothing'} held fixed; n checkpoints of F "
        f"families (by {settings['group_by']}); * {ADJUSTED[settings['adjust']]}-adjusted p of r below {SIGNIFICANT}, "
        f"over all {len(table)} pairs; figures are of {len(pairs)}, report.html shows all."
    )
    if floors := legend_of_floors(table):
        say(floors)
    if "naive" in set(table["interval"]):
        say("† Naive: fewer than 4 families, checkpoints taken for independent; the intervals are too narrow.")
