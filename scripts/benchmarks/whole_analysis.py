"""The whole of an analysis: ``longshort correlate`` on the committed study, and a large report until it is open."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from itertools import combinations, product
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common import spread

if TYPE_CHECKING:
    import pandas as pd

    from longshort.analysis import Analysis

COMMAND, REPORT = SIDES = ["command", "report"]
NAMES = {
    "seconds": "elapsed",
    "cpu_seconds": "CPU time",
    "statistics_cpu_seconds": "statistics, CPU time",
    "figures_cpu_seconds": "figures, CPU time",
    "report_cpu_seconds": "report, CPU time",
    "seconds_to_open": "report until it is open, elapsed",
}
STUDY = Path("results/study/sweep")
CHECKPOINTS, FAMILIES, PREDICTORS, OUTCOMES = 1000, 50, 12, 8
LENGTHS = (2048, 4096, 8192, 16384, 32768)


def measure(side: str, folder: Path = STUDY, checkpoints: int = CHECKPOINTS) -> dict[str, Any]:
    """One measurement: seconds of the clock and of the processor; of the report its bytes and seconds to open too."""
    with TemporaryDirectory() as output:
        return measure_command(folder, output) if side == COMMAND else measure_report(checkpoints, Path(output))


def summary(side: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spreads of one side, and what was measured."""
    if "error" in runs[-1]:
        sys.exit(f"benchmark.py correlate: {side} {runs[-1]['error']}")
    numbers = [name for name, value in runs[-1].items() if isinstance(value, float)]
    row: dict[str, Any] = {name: value for name, value in runs[-1].items() if not isinstance(value, float)}
    for name in numbers:
        row |= spread(runs, name)
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Two tables: the command, and the parts of the large report."""
    for row in rows:
        counts = "".join(f", {row[name]:,} {name}" for name in ("checkpoints", "predictors", "outcomes") if name in row)
        table = Table(title=f"{row['what']}{counts}", title_justify="left")
        names = [name.removesuffix("_median") for name in row if name.endswith("_median")]
        table.add_column("what")
        for column in ("median", "least", "greatest"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in names:
            values = (row[f"{name}_{kind}"] for kind in ("median", "min", "max"))
            table.add_row(NAMES[name], *(f"{value:.3g} s" for value in values))
        if "bytes" in row:
            table.add_row("size of the report", f"{row['bytes'] / 1e6:.2f} MB", "", "")
        Console().print(table)


def measure_command(folder: Path, output: str) -> dict[str, Any]:
    """``longshort correlate`` in a process of its own, from its start to its end."""
    start, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "longshort", "correlate", str(folder), "-o", output], check=True, capture_output=True
    )
    after = getrusage(RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "what": f"longshort correlate {folder}",
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds,
    }


def measure_report(checkpoints: int, folder: Path) -> dict[str, Any]:
    """Statistics, figures and report of a large analysis; then the report in Chromium, if it is installed."""
    from longshort.analysis import write_report
    from longshort.analysis.figures import draw_figures

    start = time.process_time()
    analysis = large_analysis(checkpoints)
    statistics = time.process_time()
    figures = draw_figures(analysis, folder)
    drawn = time.process_time()
    report = write_report(analysis, folder / "report.html", figures)
    return {
        "what": "report",
        "checkpoints": checkpoints,
        "predictors": PREDICTORS,
        "outcomes": OUTCOMES,
        "bytes": report.stat().st_size,
        "statistics_cpu_seconds": statistics - start,
        "figures_cpu_seconds": drawn - statistics,
        "report_cpu_seconds": time.process_time() - drawn,
    } | seconds_to_open(report)


def large_analysis(checkpoints: int) -> Analysis:
    """A made-up analysis of 12 predictors and 8 outcomes that share a cause and their family's shift."""
    import pandas as pd

    from longshort.analysis import Analysis, compare, correlations, tables
    from longshort.analysis.leaderboard import leaderboard

    predictors = [*tables.PREDICTORS[: PREDICTORS - 1], "nll"]
    outcomes = [f"{name}@{length}" for name, length in product(("log_ppl", "log_ppl_increase"), LENGTHS[2:])]
    outcomes += ["effective_length", tables.LONGBENCH_OUTCOMES[0]]
    generator = np.random.default_rng(0)
    family = np.arange(checkpoints) % FAMILIES
    cause = generator.normal(size=checkpoints) + generator.normal(size=FAMILIES)[family]
    columns: dict[str, Any] = {
        "checkpoint": [f"organisation/model-name-{number:04d}" for number in range(checkpoints)],
        "revision": "main",
        "family": [f"family{number:02d}" for number in family],
        "params": generator.choice([1e9, 7e9], size=checkpoints),
        "train_length": LENGTHS[1],
    }
    for name in (*predictors, *outcomes):
        columns[name] = 5 + 0.5 * cause + generator.normal(size=checkpoints)
        columns[f"{name}_stderr"] = generator.uniform(0.05, 0.2, size=checkpoints)
    wide = pd.DataFrame(columns)
    table = correlations(wide, predictors, outcomes, ["nll"])
    differences = compare(wide, list(combinations(predictors, 2)), outcomes)
    settings = {
        "predictors": predictors,
        "outcomes": outcomes,
        "controls": ["nll"],
        "group_by": "family",
        "adjust": "holm",
        "results files, SHA-256": {f"results/{name}/results.json": "0" * 64 for name in wide["checkpoint"]},
    }
    ranking = leaderboard(table, differences)
    return Analysis(tidy_table(wide, generator), wide, table, differences, settings, [], ranking)


def tidy_table(wide: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Perplexity and misalignment of the checkpoints at every length, for the curves."""
    import pandas as pd

    from longshort.results import COLUMNS

    parts = []
    for (metric, task), length in product(
        {"ppl": "perplexity", "sce": "misalignment", "jeffreys": "misalignment"}.items(), LENGTHS
    ):
        about = {"task": f"longshort_{task}", "corpus": "pg19", "metric": metric, "length": length}
        values = generator.uniform(1, 2, size=len(wide))
        part = wide[["checkpoint", "revision", "family", "params", "train_length"]]
        parts.append(part.assign(**about, train_tokens=pd.NA, value=values, stderr=0.1, n=32))
    return pd.concat(parts)[list(COLUMNS)].astype(COLUMNS)


def seconds_to_open(report: Path) -> dict[str, float]:
    """From navigation to the end of the load event, with the leaderboard and the plot drawn; empty without Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        return {}
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = instance.new_page(viewport={"width": 1440, "height": 900})
        page.goto(report.as_uri())
        page.locator("#leaderboard tbody tr").first.wait_for()
        page.locator("#scatter .point").first.wait_for()
        opened = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
        instance.close()
    return {"seconds_to_open": opened}
