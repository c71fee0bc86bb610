"""`longshort score-longbench`: scores a folder of LongBench-E predictions, and prints the scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longshort.longbench.scores import CodeRatio

if TYPE_CHECKING:
    from longshort.longbench.official import Summary


def score_longbench_command(
    folder: Annotated[Path, typer.Argument(help="Folder of DATASET.jsonl predictions, or of lm-eval samples.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for result.json and summary.json.  [default: FOLDER]")
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option(help="Also write the predictions of lm-eval samples as official files to this folder."),
    ] = None,
    code_ratio: Annotated[
        CodeRatio,
        typer.Option(
            help="Ratio of the code datasets: the official scorer takes that of python-Levenshtein where it is "
            "installed, and otherwise that of difflib."
        ),
    ] = "difflib",
) -> None:
    """Score LongBench-E predictions exactly as the official scorer does, with means by category and overall.

    Examples:

    `longshort score-longbench pred_e/llama2-7b-chat-4k`

    `longshort score-longbench results/my-checkpoint --convert pred_e/my-checkpoint`

    `longshort score-longbench pred_e/my-checkpoint --code-ratio levenshtein`
    """
    from longshort.longbench.official import score_folder
    from longshort.longbench.predictions import write_official_predictions

    summary = score_folder(folder, output, code_ratio)
    print_tables(summary)
    for note in summary.notes:
        typer.echo(note, err=True)
    problems = list(summary.problems)
    if summary.missing:
        problems.append(f"{folder}: no scores of {', '.join(summary.missing)}; means are over the others.")
    for problem in problems:
        typer.echo(f"longshort: {problem}", err=True)
    if convert:
        write_official_predictions(folder, convert)
    if problems:
        raise typer.Exit(1)


def print_tables(summary: Summary) -> None:
    """Print scores by dataset, by category and overall, in percent."""
    from rich.console import Console
    from rich.table import Table

    from longshort.longbench.official import COLUMNS, table_rows

    console = Console()
    for section, rows in table_rows(summary).items():
        table = Table(pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(section, no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("percent ±standard error over rows")
    console.print("* fewer than 30 rows, † rows or datasets are missing, – no rows")
    console.print(f"ratio of lcc and repobench-p: {summary.code_ratio}")
