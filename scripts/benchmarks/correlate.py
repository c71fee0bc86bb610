"""Correlations over many checkpoints with intervals: ours against the same statistics in a loop over SciPy.

The loop is what a careful analyst writes: for every predictor and outcome pearsonr, spearmanr, kendalltau and
pearsonr of what lstsq leaves, once over all checkpoints, once without each family; from these the jackknife's interval
and p on Fisher's z, the range without one family, Holm's adjusted p, reliabilities and the corrected r. Both sides get
the same table and must give the same numbers: the greatest difference is recorded, and one above 1e-9 is an error. The
clock runs over the statistics alone, imports done. Then, without a loop to compare with: the whole command on the
committed study, and statistics, figures and report of 1,000 checkpoints, 12 predictors and 8 outcomes, with the seconds
until that report is open in Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import whole_analysis
from benchmarks.common import parser, ratio, run_child, spread, take_turns, write

if TYPE_CHECKING:
    import pandas as pd

LOOP, OURS = SIDES = ["SciPy loop", "longshort"]
TOLERANCE = 1e-9
SIZES = ((50, 10), (200, 20), (1000, 50))  # checkpoints and families
PAIRS = (15, 4)  # predictors and outcomes
OUTCOMES = ("log_ppl@8192", "log_ppl_increase@8192", "log_ppl@16384", "longshort_longbench_e:score")
CONTROLS = ("nll", "log_params")


def main(arguments: list[str]) -> None:
    """Measure both sides at every size, print the table, write the JSON."""
    command = parser("correlate", __doc__, [*SIDES, *whole_analysis.SIDES], of="processes per side and size")
    sizes = ",".join(f"{checkpoints}:{families}" for checkpoints, families in SIZES)
    command.add_argument("--sizes", default=sizes, help="CHECKPOINTS:FAMILIES, comma-separated")
    command.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True, help="the whole command too")
    options = command.parse_args(arguments)
    if options.side:
        whole = options.side in whole_analysis.SIDES
        print(json.dumps(whole_analysis.measure(options.side) if whole else measure(options)))
        return

    rows = []
    for size in filter(None, options.sizes.split(",")):
        sides = take_turns(SIDES, options.runs, partial(run_child, "correlate", {"sizes": size}))
        rows.append(summary(size, sides))
    show(rows)
    wholes = []
    if options.whole:
        runs = take_turns(whole_analysis.SIDES, options.runs, partial(run_child, "correlate", {}))
        wholes = [whole_analysis.summary(side, runs[side]) for side in whole_analysis.SIDES]
        whole_analysis.show(wholes)
    write([*rows, *wholes], options, ("runs",))
    if any(row["greatest_difference"] > TOLERANCE for row in rows):
        sys.exit(f"benchmark.py correlate: the two sides differ by more than {TOLERANCE}.")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side, one size: seconds of the clock and of the processor, and every number found."""
    import scipy.stats  # noqa: F401  # the loop's, before the clock starts

    from longshort.analysis.correlation import correlations

    checkpoints, families = map(int, options.sizes.split(":"))
    wide, predictors, outcomes = checkpoint_table(checkpoints, families, *PAIRS)
    statistics = {LOOP: scipy_loop, OURS: correlations}[options.side]
    start = time.perf_counter(), time.process_time()
    table = statistics(wide, predictors, outcomes, CONTROLS)
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return {"seconds": seconds[0], "cpu_seconds": seconds[1], "values": table.to_dict("list")}


def checkpoint_table(
    checkpoints: int, families: int, num_predictors: int, num_outcomes: int
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """A made-up wide table: columns share a cause and their family's shift, some values are tied or missing."""
    import pandas as pd

    from longshort.analysis.tables import PREDICTORS

    generator = np.random.default_rng(0)
    family = np.arange(checkpoints) % families
    cause = generator.normal(size=checkpoints) + generator.normal(size=families)[family]
    columns: dict[str, Any] = {"family": [f"family{number:02d}" for number in family]}
    columns["log_params"] = np.log(generator.choice([1e9, 3e9, 7e9, 13e9], size=checkpoints))
    for name in (*PREDICTORS, *OUTCOMES):
        columns[name] = 5 + 0.5 * cause + generator.normal(size=checkpoints)
        columns[f"{name}_stderr"] = generator.uniform(0.05, 0.2, size=checkpoints)
    wide = pd.DataFrame(columns)
    wide["agreement"] = wide["agreement"].round(1)  # ties
    wide.loc[wide.index % 7 == 3, OUTCOMES[-1]] = np.nan  # not every checkpoint is scored on LongBench-E
    return wide, list(PREDICTORS[-num_predictors:]), list(OUTCOMES[-num_outcomes:])


def scipy_loop(wide: pd.DataFrame, predictors: list[str], outcomes: list[str], controls: Any) -> pd.DataFrame:
    """The columns of `longshort.analysis.correlations` that hold numbers, one SciPy call after the other."""
    import pandas as pd

    table = pd.DataFrame(
        _loop_row(wide, predictor, outcome, controls) for predictor, outcome in product(predictors, outcomes)
    )
    order = np.argsort(table["pearson_p"].to_numpy())
    adjusted, highest = np.empty(len(table)), 0.0
    for rank, index in enumerate(order):  # Holm
        highest = max(highest, table["pearson_p"][index] * (len(table) - rank))
        adjusted[index] = min(highest, 1)
    return table.assign(p_adjusted=adjusted)


def _loop_row(wide: pd.DataFrame, predictor: str, outcome: str, controls: Any) -> dict[str, Any]:
    from scipy import stats

    used = [name for name in controls if name not in (predictor, outcome)]
    data = wide[["family", predictor, outcome, *used]].dropna()
    names = sorted(data["family"].unique())
    columns = [data[name].to_numpy() for name in (predictor, outcome, *used)]
    family = data["family"].to_numpy()

    def coefficients(taken: Any) -> dict[str, float]:
        x, y, *given = (column[taken] for column in columns)
        design = np.column_stack([np.ones(len(x)), *given])
        left = [side - design @ np.linalg.lstsq(design, side, rcond=None)[0] for side in (x, y)]
        return {
            "pearson": stats.pearsonr(x, y).statistic,
            "spearman": stats.spearmanr(x, y).statistic,
            "kendall": stats.kendalltau(x, y).statistic,
            "partial": stats.pearsonr(*left).statistic,
        }

    whole = coefficients(slice(None))
    without = [coefficients(family != name) for name in names]

    row: dict[str, Any] = {"predictor": predictor, "outcome": outcome, "n": len(data), "n_families": len(names)}
    for name, value in whole.items():
        left_out = np.array([found[name] for found in without])
        z, z_without = np.arctanh(value), np.arctanh(left_out)
        count = len(names)
        stderr = np.sqrt((count - 1) / count * np.sum((z_without - z_without.mean()) ** 2))
        margin = stderr * stats.t.ppf(0.975, count - 1)
        low, high = np.tanh(z - margin), np.tanh(z + margin)
        row |= {name: value, f"{name}_lo": low, f"{name}_hi": high}
        row[f"{name}_p"] = 2 * stats.t.sf(abs(z / stderr), count - 1)
        row |= {f"{name}_loo_lo": left_out.min(), f"{name}_loo_hi": left_out.max()}
    for side, name in (("predictor", predictor), ("outcome", outcome)):
        errors = wide.loc[data.index, f"{name}_stderr"].to_numpy()
        row[f"reliability_{side}"] = 1 - np.mean(errors**2) / data[name].var()
    row["pearson_corrected"] = row["pearson"] / np.sqrt(row["reliability_predictor"] * row["reliability_outcome"])
    return row


def summary(size: str, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and spread of each side, ours over the loop's, and by how much their numbers differ at most."""
    checkpoints, families = map(int, size.split(":"))
    row: dict[str, Any] = {"checkpoints": checkpoints, "families": families}
    row["scipy"] = version("scipy")
    for side, runs in sides.items():
        if "error" in runs[-1]:
            sys.exit(f"benchmark.py correlate: {side} {runs[-1]['error']}")
        row[side] = spread(runs, "seconds") | spread(runs, "cpu_seconds")
    loop, ours = (sides[side][-1]["values"] for side in SIDES)
    row["pairs"] = len(ours["pearson"])
    row["numbers_compared"], row["greatest_difference"] = compared(loop, ours)
    for key in ("seconds", "cpu_seconds"):
        row[f"{key}_ratio"] = ratio(sides[OURS], sides[LOOP], key)
    return row


def compared(loop: dict[str, list[Any]], ours: dict[str, list[Any]]) -> tuple[int, float]:
    """How many numbers of the loop's table were compared with ours, and the greatest difference.

    One that only one side has counts as infinite.
    """
    names = [name for name in loop if name not in ("predictor", "outcome")]
    if any(loop[name] != ours[name] for name in ("predictor", "outcome")):
        return 0, float("inf")
    one, other = (np.array([side[name] for name in names], dtype=float) for side in (loop, ours))
    differences = np.where(np.isnan(one) & np.isnan(other), 0, np.abs(one - other))
    return one.size, float(np.nan_to_num(differences, nan=np.inf).max())


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="correlations with 95 % jackknife intervals")
    for column in ("points", "families", "pairs", *SIDES, "time ×", "CPU ×", "differ"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in ("checkpoints", "families", "pairs")),
            *(f"{row[side]['seconds_median']:.3g} s" for side in SIDES),
            *(f"{row[f'{key}_ratio']:.3f}" for key in ("seconds", "cpu_seconds")),
            f"{row['greatest_difference']:.0e}",
        )
    Console().print(table)
