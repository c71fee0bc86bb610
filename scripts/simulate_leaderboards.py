"""How often does a leaderboard of predictors claim what is not true, and find what is?

    python scripts/simulate_leaderboards.py -o results/simulation
    python scripts/simulate_leaderboards.py --quick -o /tmp/simulation

Made-up checkpoints in families of 5: six predictors and an outcome are normal, 80 % of their variance is between
families. Each world goes through `correlations`, `compare` and `leaderboard`, as in ``longshort correlate``. Writes
leaderboards.csv and leaderboards.md; the same options make the same files.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from longshort.analysis import compare, correlations
from longshort.analysis.leaderboard import leaderboard
from longshort.analysis.paper import SIGNIFICANT
from longshort.results import write_atomically

BETWEEN = 0.8  # share of the variance that is between families
MEMBERS = 5
CHUNK = 25  # worlds per task of a process
PREDICTORS = [f"x{index}" for index in range(6)]
# Pearson correlations of the predictors with the outcome, between and within families.
WORLDS = {
    "nothing": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "all alike": (0.6, 0.6, 0.6, 0.6, 0.6, 0.6),
    "two alike": (0.85, 0.85, 0.0, 0.0, 0.0, 0.0),
    "one ahead": (0.9, 0.5, 0.5, 0.5, 0.5, 0.5),
}
ABOUT = {
    "wrong predictor": "a predictor with ρ = 0 is shown to order the checkpoints",
    "wrong difference": "a predictor is shown to be better than one whose |ρ| is at least as large",
    "wrong lead": "the same, by the predictor with the largest |ρ| measured",
    "best first": "the first predictor has the largest true |ρ|",
    "best shown": "the first predictor is shown to order the checkpoints",
    "lead shown": "the first predictor is shown to be better than all whose true |ρ| is smaller",
    "interval of the first": "the 95 % interval of the first predictor, chosen after the fact, contains its true ρ",
    "interval of a difference": "the 95 % interval of Δ|ρ| of x0 and x2 contains the true value",
}


def draw(loadings: Sequence[float], families: int, generator: np.random.Generator) -> pd.DataFrame:
    """One world: y, and predictors that correlate with it as said."""
    family = np.repeat(np.arange(families), MEMBERS)

    def normal() -> np.ndarray:
        between = generator.normal(size=families)[family]
        return np.sqrt(BETWEEN) * between + np.sqrt(1 - BETWEEN) * generator.normal(size=len(family))

    wide = pd.DataFrame({"family": [f"{index:03}" for index in family], "y": normal()})
    for name, loading in zip(PREDICTORS, loadings, strict=True):
        wide[name] = loading * wide["y"] + np.sqrt(1 - loading**2) * normal()
    return wide


def truth(loading: float) -> float:
    """Spearman's ρ of two normal variables with this Pearson correlation."""
    return float(6 / np.pi * np.arcsin(loading / 2))


def claims(loadings: Sequence[float], wide: pd.DataFrame) -> dict[str, float]:
    """Which of `ABOUT` is the case in one world; NaN where it cannot be."""
    true = {name: truth(loading) for name, loading in zip(PREDICTORS, loadings, strict=True)}
    compared = compare(wide, list(combinations(PREDICTORS, 2)), ["y"])
    board = leaderboard(correlations(wide, PREDICTORS, ["y"], []), compared).set_index("predictor")
    better = [(one, other) for one in board.index for other in filter(None, board["better_than"][one].split("; "))]
    wrong = [pair for pair in better if true[pair[0]] <= true[pair[1]]]
    first, weaker = board.index[0], [name for name in PREDICTORS if true[name] < max(true.values())]
    shown = board["spearman_p_adjusted"] < SIGNIFICANT
    nulls = [name for name in PREDICTORS if true[name] == 0]
    pair = compared[(compared["predictor"] == "x0") & (compared["other"] == "x2")].iloc[0]
    low, high = (pair[f"spearman_difference_jackknife_{end}"] for end in ("lo", "hi"))
    row = board.iloc[0]
    return {
        "wrong predictor": bool(shown[nulls].any()) if nulls else np.nan,
        "wrong difference": bool(wrong),
        "wrong lead": any(one == first for one, _ in wrong),
        "best first": first not in weaker if weaker else np.nan,
        "best shown": bool(shown[first]),
        "lead shown": all((first, name) in better for name in weaker) and first not in weaker if weaker else np.nan,
        "interval of the first": row["spearman_lo"] <= true[first] <= row["spearman_hi"],
        "interval of a difference": low <= true["x0"] - true["x2"] <= high,
    }


def run_chunk(task: tuple[str, int, int], seed: int) -> pd.DataFrame:
    """Some worlds of one kind, with draws of their own."""
    name, families, chunk = task
    generator = np.random.default_rng([seed, list(WORLDS).index(name), families, chunk])
    found = [claims(WORLDS[name], draw(WORLDS[name], families, generator)) for _ in range(CHUNK)]
    return pd.DataFrame(found, dtype=float).assign(world=name, families=families)


def summarize(found: pd.DataFrame) -> pd.DataFrame:
    """The share of worlds of each claim with its Monte-Carlo standard error."""
    long = found.melt(["world", "families"], list(ABOUT), "claim").dropna()
    groups = long.groupby(["world", "families", "claim"], sort=False)["value"]
    table: pd.DataFrame = groups.agg(share="mean", worlds="size").reset_index()
    table["error"] = np.sqrt(table["share"] * (1 - table["share"]) / table["worlds"])
    return table


def markdown(table: pd.DataFrame, settings: str) -> str:
    """A table per claim: a row per world, a column per number of families."""
    parts = [
        "# What does a leaderboard claim?",
        f"Made by `scripts/simulate_leaderboards.py`: {settings}. Six predictors, families of {MEMBERS} checkpoints, "
        f"{BETWEEN:.0%} of the variance between families. Claims are made at {SIGNIFICANT} after Holm's adjustment, "
        "over the 6 predictors or the 15 pairs of predictors. In brackets the largest Monte-Carlo standard error of a "
        "table.",
        "\n".join(f"- {name}: Pearson's r of {', '.join(map(str, WORLDS[name]))}" for name in WORLDS),
    ]
    sizes: list[Any] = list(dict.fromkeys(table["families"]))
    for claim, about in ABOUT.items():
        rows: Any = table[table["claim"] == claim]
        lines = [f"| world | {' | '.join(f'{size} families' for size in sizes)} |", f"|---|{'--:|' * len(sizes)}"]
        for name, of_world in rows.groupby("world", sort=False):
            shares = of_world.set_index("families")["share"]
            lines.append(f"| {name} | {' | '.join(f'{shares[size]:.3f}' for size in sizes)} |")
        parts += [f"## Share of worlds: {about} (± {rows['error'].max():.3f})", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all worlds, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/simulation"), help="folder of the files")
    parser.add_argument("--repetitions", type=int, default=500, help="worlds of each kind and number of families")
    parser.add_argument("--families", type=int, nargs="+", default=[6, 12, 24, 48], help="numbers of families")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--quick", action="store_true", help="some seconds: 50 worlds of 12 families")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repetitions, options.families = 50, [12]

    chunks = range(max(1, options.repetitions // CHUNK))
    tasks = list(product(WORLDS, options.families, chunks))
    run = functools.partial(run_chunk, seed=options.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes below, whose matrices are small
    if options.workers == 1:
        found = [run(task) for task in tqdm(tasks)]
    else:
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            found = list(tqdm(pool.imap(run, tasks), total=len(tasks)))
    table = summarize(pd.concat(found))
    settings = f"{len(chunks) * CHUNK} worlds of each kind and number of families, seed {options.seed}"
    write_atomically(options.output / "leaderboards.csv", table.to_csv(index=False, float_format="%.6g"))
    write_atomically(options.output / "leaderboards.md", markdown(table, settings))


if __name__ == "__main__":
    main()
