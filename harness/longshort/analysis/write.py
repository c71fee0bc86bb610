"""Everything that was found, as files: tables, figures, the report."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from longshort.analysis.analysis import Analysis
from longshort.analysis.figures import (
    forest,
    misalignment_curve,
    misalignment_matrix,
    nll_by_position,
    perplexity_by_length,
    scatter,
)
from longshort.analysis.floors import with_floors
from longshort.analysis.paper import latex, markdown
from longshort.analysis.selection import main_outcomes, main_predictors
from longshort.results import remove_left_over, write_atomically

PRECISIONS = "precisions.csv"  # where a checkpoint was measured in float32 and in half precision
POSITIONS = "positions.csv"  # where per-token values were saved
Drawing = Callable[[], list[Path]]  # draws one figure, and returns its files


def write_analysis(analysis: Analysis, folder: str | Path, pool: Executor | None = None) -> list[Path]:
    """Write tables, figures and ``report.html``; equal analyses give equal files.

    Scatter plots are drawn of the main predictors and outcomes that have a coefficient; the report has all pairs.

    Args:
        analysis: what was found.
        folder: where to.
        pool: draws figures next to this process; None: this process draws all.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written to.
    """
    from longshort.analysis.report import write_report

    folder = Path(folder)
    for place in (folder, folder / "figures"):
        remove_left_over(place)
    content = {
        "correlations.csv": analysis.correlations.to_csv(index=False),
        "correlations.md": markdown(analysis),
        "correlations.tex": latex(analysis),
        "comparisons.csv": analysis.comparisons.to_csv(index=False),
        "measurements.csv": with_floors(analysis.tidy).to_csv(index=False),
        "checkpoints.csv": analysis.wide.to_csv(index=False),
    }
    if len(analysis.precisions):
        content[PRECISIONS] = analysis.precisions.to_csv(index=False)
    else:
        (folder / PRECISIONS).unlink(missing_ok=True)  # of an earlier analysis
    if len(analysis.positions):
        content[POSITIONS] = analysis.positions.to_csv(index=False)
    else:
        (folder / POSITIONS).unlink(missing_ok=True)  # of an earlier analysis
    for name, text in content.items():
        write_atomically(folder / name, text)
    drawings = list(_drawings(analysis, folder / "figures"))
    figures = _draw_in(pool, drawings) if pool else [file for drawing in drawings for file in drawing()]
    for pattern in ("scatter_*", "nll_by_position.*"):
        for file in (folder / "figures").glob(pattern):
            if file not in figures:  # of an earlier analysis with other predictors, outcomes or token files
                file.unlink()
    return [*(folder / name for name in content), *figures, write_report(analysis, folder / "report.html", figures)]


def main_pairs(analysis: Analysis) -> list[tuple[str, str]]:
    """Predictor and outcome of the pairs to show where there is room for few, those that have a coefficient."""
    found = analysis.correlations[analysis.correlations["pearson"].notna()]
    given = set(zip(found["predictor"], found["outcome"], strict=True))
    outcomes = main_outcomes(analysis.settings["outcomes"], analysis.wide)
    return [
        (predictor, outcome)
        for outcome, predictor in product(outcomes, main_predictors(analysis.settings["predictors"]))
        if (predictor, outcome) in given
    ]


def _drawings(analysis: Analysis, folder: Path) -> Iterator[Drawing]:
    """Every figure for which there is something to draw."""
    tidy, metrics = analysis.tidy, set(analysis.tidy["metric"])
    if "ppl" in metrics:
        yield partial(perplexity_by_length, tidy, folder / "perplexity_by_length")
    for metric in ("sce", "jeffreys"):
        if metric in metrics:
            yield partial(misalignment_curve, tidy, folder / f"misalignment_curve_{metric}", metric=metric)
        if any(name.startswith(f"{metric}_between@") for name in metrics):
            path = folder / f"misalignment_matrix_{metric}"
            yield partial(misalignment_matrix, tidy, path, metric=f"{metric}_between")
    if len(analysis.positions):
        yield partial(nll_by_position, analysis.positions, folder / "nll_by_position")
    if analysis.correlations["pearson"].notna().any():
        yield partial(forest, analysis.correlations, folder / "forest")
    for predictor, outcome in main_pairs(analysis):
        name = re.sub(r"[^\w.+@-]+", "-", f"scatter_{predictor}_{outcome}")
        yield partial(scatter, analysis.wide, predictor, outcome, folder / name)


def _draw_in(pool: Executor, drawings: list[Drawing]) -> list[Path]:
    """Draw in this process, from the last, and in those of a pool, from the first.

    These read what to draw from a file: a pool that has to end while a large argument is on its way to a process would
    wait for ever (Python before 3.12).
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "drawings"
        file.write_bytes(pickle.dumps(drawings))
        there = [pool.submit(_draw, file, index) for index in range(len(drawings))]
        here = {index: drawings[index]() for index in reversed(range(len(drawings))) if there[index].cancel()}
        drawn = [here[index] if index in here else future.result() for index, future in enumerate(there)]
    return [path for paths in drawn for path in paths]


def _draw(file: Path, index: int) -> list[Path]:
    return _read_drawings(file)[index]()


@lru_cache(maxsize=1)
def _read_drawings(file: Path) -> list[Drawing]:
    drawings: list[Drawing] = pickle.loads(file.read_bytes())
    return drawings


def warm_up() -> None:
    """Do nothing, in a process that has imported what figures need."""
