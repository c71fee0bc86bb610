"""Everything that was found, as files: tables, figures, the report."""

from __future__ import annotations

import re
from pathlib import Path

from longshort.analysis.analysis import Analysis
from longshort.analysis.floors import with_floors
from longshort.analysis.paper import latex, markdown
from longshort.analysis.tables import PREDICTORS
from longshort.plotting import CREATOR
from longshort.results import remove_left_over, write_atomically

PRECISIONS = "precisions.csv"  # where a checkpoint was measured in float32 and in half precision
RETRIEVAL = "retrieval.csv"  # where recall by length and depth was measured
POSITIONS = "positions.csv"  # where per-token values were saved
# Names of figures of this and of earlier versions; a figure of any other name is the user's.
FIGURES = re.compile(
    "(leaderboard|scatter|forest|perplexity_by_length|nll_by_position|retrieval|misalignment_(curve|matrix)_(sce|jeffreys)"
    rf"|scatter_({'|'.join(PREDICTORS)})(_beyond)?_.+)\.(png|svg)"
)
MADE_BY = (CREATOR.encode(), b"Matplotlib")  # earlier versions left the name of the library
BEGINNING = 2000  # bytes of a figure, among which is the name of the program that made it


def write_analysis(analysis: Analysis, folder: str | Path) -> list[Path]:
    """Write tables, figures and ``report.html``; equal analyses give equal files.

    Figures of an earlier analysis in the same folder are removed; files of other programs or names stay.

    Args:
        analysis: what was found.
        folder: where to.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written to.
    """
    from longshort.analysis.figures import draw_figures
    from longshort.analysis.report import write_report

    folder = Path(folder)
    for place in (folder, folder / "figures"):
        remove_left_over(place)
    content = {
        "correlations.csv": analysis.correlations.to_csv(index=False),
        "leaderboard.csv": analysis.leaderboard.to_csv(index=False),
        "correlations.md": markdown(analysis),
        "correlations.tex": latex(analysis),
        "comparisons.csv": analysis.comparisons.to_csv(index=False),
        "measurements.csv": with_floors(analysis.tidy).to_csv(index=False),
        "checkpoints.csv": analysis.wide.to_csv(index=False),
    }
    optional = {PRECISIONS: analysis.precisions, POSITIONS: analysis.positions, RETRIEVAL: analysis.retrieval}
    content |= {name: table.to_csv(index=False) for name, table in optional.items() if len(table)}
    for name, text in content.items():
        write_atomically(folder / name, text)
    for name in optional.keys() - content.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier analysis
    figures = draw_figures(analysis, folder / "figures")
    for file in (folder / "figures").glob("*.*"):
        if file not in figures and _is_ours(file):
            file.unlink()
    return [*(folder / name for name in content), *figures, write_report(analysis, folder / "report.html", figures)]


def _is_ours(figure: Path) -> bool:
    """Whether a version of `write_analysis` wrote this file, by its name and the program that the file names."""
    if not FIGURES.fullmatch(figure.name) or not figure.is_file():
        return False
    with figure.open("rb") as file:
        beginning = file.read(BEGINNING)
    return any(name in beginning for name in MADE_BY)
