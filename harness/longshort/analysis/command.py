"""``longshort correlate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from longshort.analysis.analysis import Analysis

EPILOG = """Examples:

longshort correlate results

longshort correlate results --predictor sce --predictor jeffreys --outcome log_ppl@8192 -o analysis

longshort correlate results --outcome babilong_qa1:acc --where "params < 8e9 and family != 'llama'"

longshort correlate results --outcome ruler@8192 --outcome effective_length:ruler

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
            help="A column of checkpoints.csv; repeatable.  [default: misalignment at the training context length and "
            "beyond, longppl, context_gain, accuracy_tail, nll]"
        ),
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of checkpoints.csv, for other lm-eval tasks TASK:METRIC or TASK@LENGTH; repeatable.  "
            "[default: LongBench-E, retrieval and log-perplexity beyond the training context length, its rise, "
            "effective length]"
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Column to control for, in addition to nll, and to log_params if it varies; repeatable."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Keep only checkpoints that meet this condition, such as \"params < 8e9 and family == 'x'\"."
        ),
    ] = None,
    group_by: Annotated[str, typer.Option(help="Column that says which checkpoints belong together.")] = "family",
    adjust: Annotated[
        Literal["holm", "bh"],
        typer.Option(help="Correction of p_adjusted in correlations.csv for all pairs: Holm, or Benjamini-Hochberg."),
    ] = "holm",
    corpus: Annotated[
        str | None, typer.Option(help="Corpus whose results to use, if a task was measured on several.")
    ] = None,
    effective_threshold: Annotated[
        float | None,
        typer.Option(
            help="Minimum score of a length that counts for effective_length:TASK, such as 0.856 for RULER.  "
            "[default: 85 % of the score at the shortest length]"
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a damaged results file instead of skipping it.")
    ] = False,
) -> None:
    """Rank measurements by how well they predict long-context performance over checkpoints.

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
            effective_threshold=effective_threshold,
            strict=strict,
        )
        written = write_analysis(analysis, output)
    for note in analysis.notes:
        typer.echo(f"warning: {note}", err=True)
    show_leaderboards(analysis, Console())
    tables = [file.name for file in written if file.parent == output]
    typer.echo(f"{output}:")
    Console().print(f"{', '.join(tables)}, figures/ ({len(written) - len(tables)} files)", highlight=False)


def show_leaderboards(analysis: Analysis, console: Console) -> None:
    """Print the answer and the leaderboard of each headline outcome, within 80 columns; say where the rest is."""
    from rich.text import Text

    from longshort.analysis.leaderboard import answer, headline_outcomes, legend

    if analysis.correlations.empty:
        say = "No correlation: the results have no pair of predictor and outcome. The tables hold what was measured."
        console.print(say, markup=False, highlight=False)
        return
    for outcome in headline_outcomes(analysis):
        console.print(Text(answer(analysis, outcome)))
        if grid := _grid(analysis, outcome):
            console.print()
            console.print(grid)
        console.print()
    for line in [*legend(analysis), f"leaderboard.csv has all {len(analysis.leaderboard)} rows."]:
        console.print(Text(line))


def _grid(analysis: Analysis, outcome: str) -> Table | None:
    """The leaderboard of an outcome; None if no predictor has a coefficient."""
    from rich.table import Table
    from rich.text import Text

    from longshort.analysis.leaderboard import of_outcome, ranks
    from longshort.analysis.paper import checkpoints, families, interval, number, short_label

    ranked, shown = of_outcome(analysis, outcome)
    if not ranked:
        return None
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("", justify="right")
    grid.add_column("predictor")
    for name in ("ρ [95 %]", "partial r [95 %]", "n (F)"):
        grid.add_column(name, justify="right", no_wrap=True)
    better = [ranks(row, ranked) for row in shown]
    if any(better):
        grid.add_column("better\nthan")
    for row, places in zip(shown, better, strict=True):
        coefficients = (f"{number(getattr(row, name))} {interval(row, name)}" for name in ("spearman", "partial"))
        grid.add_row(
            str(row.rank),
            Text(short_label(row.predictor)),
            *(Text(text) for text in coefficients),
            f"{checkpoints(row)} ({families(row)})",
            *([places] if any(better) else []),
        )
    return grid
