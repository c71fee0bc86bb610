"""Do the intervals of `longshort correlate` cover, and its p-values reject as often as they say?

    python scripts/simulate_correlations.py -o results/simulation
    python scripts/simulate_correlations.py --quick -o /tmp/simulation

Made-up checkpoints in families: x, y and z are normal, 80 % of their variance is between families. The truth is the
coefficient that endless many families would give. Writes simulation.csv and simulation.md; the same options make
the same files.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from longshort.analysis import coefficients
from longshort.analysis.intervals import CONFIDENCE, delete_one, jackknife, jackknife_of_correlation, naive
from longshort.results import write_atomically

BETWEEN = 0.8  # share of the variance that is between families
CHUNK = 50  # repetitions worked on at once; their number is a multiple of two of these
ALPHA = 0.05
COEFFICIENTS = ("pearson", "spearman", "kendall", "partial")
EQUAL, UNEQUAL = (5,), (1, 3, 5, 7, 9)  # checkpoints per family, taken in turn


@dataclass(frozen=True)
class Design:
    """Correlations xy, xz, yz between families, and whether they hold within families too."""

    about: str
    xy: float = 0.0
    xz: float = 0.0
    yz: float = 0.0
    within: bool = False
    sizes: tuple[int, ...] = EQUAL

    @property
    def between(self) -> np.ndarray:
        """Correlation matrix of the family effects, [3, 3]."""
        return np.array([[1, self.xy, self.xz], [self.xy, 1, self.yz], [self.xz, self.yz, 1]])

    @property
    def total(self) -> np.ndarray:
        """Correlation matrix of checkpoints, [3, 3]."""
        return BETWEEN * self.between + (1 - BETWEEN) * (self.between if self.within else np.eye(3))

    def truth(self, coefficient: str) -> float:
        """The coefficient of a normal distribution with these correlations."""
        if coefficient == "partial":
            precision = np.linalg.inv(self.total)
            partial = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
            return float(np.round(partial, 12)) + 0.0  # rounding leaves something of 0, or makes it −0
        return population(coefficient, self.total[0, 1])


# The control z is the loss, x the misalignment, y the outcome.
DESIGNS = {
    "no effect": Design("x, y and z have nothing to do with one another"),
    "effect": Design("correlation 0.5 between the family effects of x and y, 0.3 with z; none within", 0.5, 0.3, 0.3),
    "unequal": Design("the same; families of 1, 3, 5, 7 and 9 checkpoints", 0.5, 0.3, 0.3, sizes=UNEQUAL),
    "spurious": Design("x and y both follow z (0.8) and nothing else: no partial effect", 0.64, 0.8, 0.8, within=True),
    "planted": Design("x and y follow z (0.5), and a partial correlation of 0.6 is left", 0.7, 0.5, 0.5, within=True),
}
MAIN = ("no effect", "effect")  # with twice the repetitions, and the bootstrap
# Here x and z are two predictors of y.
COMPARISONS = {
    "unlike": Design("|r| with y of 0.85 and 0.62 between families", xy=0.85, yz=0.62, xz=0.5),
    "alike": Design("|r| with y of 0.6 each", xy=0.6, yz=0.6, xz=0.5),
    "one only": Design("|r| with y of 0.6 and 0", xy=0.6, yz=0.0, xz=0.3),
}


def population(coefficient: str, r: float) -> float:
    """A coefficient of two normal variables with Pearson correlation r."""
    known = {"pearson": r, "spearman": 6 / np.pi * np.arcsin(r / 2), "kendall": 2 / np.pi * np.arcsin(r)}
    return float(known[coefficient])


def draw(design: Design, families: int, generator: np.random.Generator) -> pd.DataFrame:
    """One made-up table of checkpoints."""
    family = np.repeat(np.arange(families), np.resize(design.sizes, families))
    root = np.linalg.cholesky(design.between)
    effects = generator.normal(size=(families, 3)) @ root.T
    own = generator.normal(size=(len(family), 3)) @ (root.T if design.within else np.eye(3))
    values = np.sqrt(BETWEEN) * effects[family] + np.sqrt(1 - BETWEEN) * own
    return pd.DataFrame(values, columns=list("xyz")).assign(family=family, everything="one")


def with_replacement(families: int, resamples: int, seed: int) -> np.ndarray:
    """Weights [R, F]: how often each family is in a draw of F families with replacement."""
    draws = np.random.default_rng(seed).integers(families, size=(resamples, families))
    flat = (draws + families * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * families).reshape(resamples, families).astype(np.float64)


def percentile(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of a statistic over resamples [R], of those where it is defined."""
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def of_correlations(design: Design, wide: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Whether each method covers the truth of each coefficient, and rejects 0; what `correlations` does, at once."""
    x, y, z = wide[["x", "y", "z"]].to_numpy().T
    families = wide["family"].to_numpy()
    count = families[-1] + 1
    weights = np.vstack([np.ones(count), delete_one(count), with_replacement(count, resamples, seed)])
    found = []
    for name in COEFFICIENTS:
        sides = (x, y, z[:, None]) if name == "partial" else (x, y)
        values = getattr(coefficients, name)(*sides, families, weights)
        ends = {
            "jackknife": jackknife_of_correlation(values[0], values[1 : 1 + count]),
            "naive": naive(name, values[0], len(x), int(name == "partial")),
        }
        if resamples:
            low, high = percentile(values[1 + count :])
            ends["bootstrap"] = low, high, float(low <= 0 <= high)  # rejects where its interval leaves out 0
        found += [outcome(name, method, design.truth(name), *ends[method]) for method in ends]
    return found


def of_comparisons(design: Design, wide: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Whether both intervals of the difference of |r| cover it, and reject 0; the jackknife is that of `compare`."""
    x, y, z = wide[["x", "y", "z"]].to_numpy().T
    families = wide["family"].to_numpy()
    count = families[-1] + 1
    weights = np.vstack([np.ones(count), delete_one(count), with_replacement(count, resamples, seed)])
    found = []
    for name in ("pearson", "spearman"):
        truth = abs(population(name, design.total[0, 1])) - abs(population(name, design.total[2, 1]))
        coefficient = getattr(coefficients, name)
        differences = np.abs(coefficient(x, y, families, weights)) - np.abs(coefficient(z, y, families, weights))
        low, high = percentile(differences[1 + count :])
        ends = {
            "jackknife": jackknife(differences[0], differences[1 : 1 + count]),
            "bootstrap": (low, high, float(low <= 0 <= high)),
        }
        found += [outcome(f"difference of |{name}|", method, truth, *ends[method]) for method in ends]
    return found


def outcome(name: str, method: str, truth: float, low: float, high: float, p: float) -> dict[str, Any]:
    """One interval held against the truth."""
    return {
        "coefficient": name,
        "method": method,
        "truth": truth,
        "defined": low == low,
        "covered": low <= truth <= high,
        "rejected": p < ALPHA,
        "width": high - low,
    }


def run_chunk(task: tuple[str, int, int], resamples: int, seed: int) -> pd.DataFrame:
    """Some repetitions of one design, with draws of their own."""
    name, families, chunk = task
    design = (DESIGNS | COMPARISONS)[name]
    evaluate = of_correlations if name in DESIGNS else of_comparisons
    if name in DESIGNS and name not in MAIN:
        resamples = 0
    place = [*DESIGNS, *COMPARISONS].index(name)
    generator = np.random.default_rng([seed, place, families, chunk])
    found = []
    for _ in range(CHUNK):
        wide = draw(design, families, generator)
        found += evaluate(design, wide, resamples, int(generator.integers(2**31)))
    return pd.DataFrame(found).assign(design=name, families=families)


def summarize(found: pd.DataFrame) -> pd.DataFrame:
    """Shares with their Monte-Carlo standard errors; intervals that are not defined do not count."""
    keys = ["design", "families", "coefficient", "method"]
    every = found.groupby(keys, sort=False).size().rename("repetitions")
    groups = found[found["defined"]].groupby(keys, sort=False)
    table = pd.DataFrame({"truth": groups["truth"].first(), "repetitions": every, "defined": groups.size()})
    for share, flag in (("coverage", "covered"), ("rejected", "rejected")):
        table[share] = groups[flag].mean()
        table[f"{share}_error"] = np.sqrt(table[share] * (1 - table[share]) / table["defined"])
    table["mean_width"] = groups["width"].mean()
    return table.reset_index()


def band(families: int) -> tuple[float, float]:
    """The coverage wanted of the default interval."""
    return (0.93, 0.97) if families > 6 else (0.92, 0.98)


def markdown(table: pd.DataFrame, settings: str) -> str:
    """What was found, as tables a reader can check."""
    parts = [
        "# Do the intervals cover?",
        f"Made by `scripts/simulate_correlations.py`: {settings}. Nominal: intervals 0.95, tests 0.05. In brackets "
        f"the greatest Monte-Carlo standard error of a table. Families of 5 checkpoints where nothing else is said; "
        f"{BETWEEN:.0%} of the variance is between families. `jackknife` is the interval of `longshort correlate`, "
        "`bootstrap` has percentiles over families, `naive` treats checkpoints as independent. The truth is the "
        "coefficient that endless many families would give.",
        verdict(table),
    ]
    for name, design in DESIGNS.items():
        rows = table[table["design"] == name]
        parts += [f"## {name}: {design.about}", *shares(rows, "coverage"), *shares(rows, "rejected")]
    for name, design in COMPARISONS.items():
        rows = table[table["design"] == name]
        parts += [f"## Comparison, {name}: {design.about}", *shares(rows, "coverage"), *shares(rows, "rejected")]
    return "\n\n".join(parts) + "\n"


def verdict(table: pd.DataFrame) -> str:
    """What of the default is outside the bands wanted."""
    default = table[table["method"] == "jackknife"]
    outside = [
        f"coverage of {row.coefficient}, {row.design}, {row.families} families: {row.coverage:.3f}"
        for row in default[default["design"].isin(MAIN)].itertuples()
        if not band(row.families)[0] <= row.coverage <= band(row.families)[1]
    ]
    no_effect = (default["design"] == "no effect") | (default["design"] == "spurious") & (
        default["coefficient"] == "partial"
    )
    outside += [
        f"false positives of {row.coefficient}, {row.design}, {row.families} families: {row.rejected:.3f}"
        for row in default[no_effect].itertuples()
        if not 0.03 <= row.rejected <= 0.07
    ]
    wanted = "Wanted of the default: coverage 0.93–0.97 (0.92–0.98 at 6 families), false positives 0.03–0.07"
    where = f"designs {' and '.join(MAIN)}, and false positives of the partial correlation where it is spurious"
    return f"{wanted} ({where}). Outside: {'; '.join(outside) or 'nothing'}."


def shares(rows: pd.DataFrame, share: str) -> list[str]:
    """One table: a row per coefficient and method, a column per number of families."""
    title = {"coverage": "Coverage", "rejected": "Share that rejects 0"}[share]
    families = list(dict.fromkeys(rows["families"]))
    lines = [
        f"| coefficient | truth | method | {' | '.join(f'{count} families' for count in families)} |",
        f"| --- | --- | --- | {' | '.join('---' for _ in families)} |",
    ]
    for (coefficient, method), group in rows.groupby(["coefficient", "method"], sort=False):
        values = group.set_index("families")[share]
        cells = " | ".join(f"{values[count]:.3f}" for count in families)
        lines.append(
            f"| {coefficient.replace('|', chr(92) + '|')} | {group['truth'].iloc[0]:.3f} | {method} | {cells} |"
        )
    return [f"{title} (± {rows[f'{share}_error'].max():.3f})", "\n".join(lines)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all designs, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/simulation"), help="folder of the files")
    parser.add_argument("--repetitions", type=int, default=3000, help="of no effect and effect; the others have half")
    parser.add_argument("--resamples", type=int, default=300, help="of each bootstrap")
    parser.add_argument("--families", type=int, nargs="+", default=[6, 10, 20, 40], help="numbers of families")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--quick", action="store_true", help="some seconds: 200 repetitions, 10 families")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repetitions, options.resamples, options.families = 200, 60, [10]

    tasks = [
        (name, families, chunk)
        for name, families in product([*DESIGNS, *COMPARISONS], options.families)
        for chunk in range(options.repetitions // CHUNK // (1 if name in MAIN else 2))
    ]
    run = functools.partial(run_chunk, resamples=options.resamples, seed=options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes below, whose matrices are small
    if options.workers == 1:
        found = [run(task) for task in tqdm(tasks)]
    else:
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            found = list(tqdm(pool.imap(run, tasks), total=len(tasks)))
    table = summarize(pd.concat(found))
    settings = (
        f"{options.repetitions} repetitions, {options.repetitions // 2} in all designs but {' and '.join(MAIN)}; "
        f"{options.resamples} resamples; seed {options.seed}"
    )
    write_atomically(options.output / "simulation.csv", table.to_csv(index=False, float_format="%.6g"))
    write_atomically(options.output / "simulation.md", markdown(table, settings))
    print(verdict(table))


if __name__ == "__main__":
    main()
