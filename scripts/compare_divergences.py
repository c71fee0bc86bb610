"""What the regularizer does to a tiny model: sce, its two parts and perplexity on held-out text, by α and divergence.

    python scripts/compare_divergences.py -o results/divergences

Each run is `longshort train --preset tiny` (200 steps from scratch on `builtin` text) and goes on where it was
stopped. Intervals are 95 %, over seeds; differences are from the run of the same seed with α = 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from longshort.errors import one_line_for_user_errors
from longshort.results import write_atomically
from longshort.training import train
from longshort.training.presets import preset

ALPHAS = {"sce": (0.0, 0.1, 0.3, 1.0), "jeffreys": (0.3, 1.0, 3.0, 10.0)}
MEASURED = ("sce", "entropy", "jeffreys", "log ppl@128", "log ppl@512")


def main() -> None:
    """Train what is missing, then write the runs and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/divergences"))
    parser.add_argument("--work", type=Path, default=Path("longshort-divergences"), help="folder for checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    runs = [
        measured(options.work, divergence, alpha, seed, options.steps)
        for seed in range(options.seeds)
        for divergence, alphas in ALPHAS.items()
        for alpha in alphas
    ]
    frame = pd.DataFrame(runs)
    text = table(frame)
    write_atomically(options.output / "runs.csv", frame.to_csv(index=False))
    write_atomically(options.output / "table.md", text)
    print(text)


def measured(work: Path, divergence: str, alpha: float, seed: int, steps: int) -> dict[str, float | str]:
    """One run and what it reached on held-out text."""
    config = preset(
        "tiny",
        output=str(work / f"{divergence}-a{alpha:g}-s{seed}"),
        divergence=divergence,
        alpha=alpha,
        seed=seed,
        steps=steps,
        eval_every=steps,
        eval_docs=24,
        resume_every=0,
    )
    record = json.loads((train(config) / "longshort.json").read_text("utf-8"))
    values = record["evaluation"]
    logs = {f"log {name}": float(np.log(value)) for name, value in values.items() if name.startswith("ppl@")}
    return {"divergence": divergence if alpha else "none", "alpha": alpha, "seed": seed} | values | logs


def table(frame: pd.DataFrame) -> str:
    """Markdown: α = 0 as it is, the others as differences from it."""
    lines = [
        f"Held-out text after {int(frame['step'].max())} steps, {frame['seed'].nunique()} seeds; nats. The first row "
        "is the mean, the others the mean difference from α = 0 of the same seed, with 95 % intervals (t).",
        "",
        f"| divergence | α | {' | '.join(MEASURED)} |",
        "|---" * (len(MEASURED) + 2) + "|",
    ]
    plain = frame[frame["alpha"] == 0].set_index("seed")
    for (divergence, alpha), group in frame.groupby(["divergence", "alpha"], sort=False):
        values = group.set_index("seed")[list(MEASURED)]
        if alpha:
            values = values - plain.loc[values.index, list(MEASURED)]
        lines.append(f"| {divergence} | {alpha:g} | {' | '.join(cell(values[name]) for name in MEASURED)} |")
    return "\n".join(lines) + "\n"


def cell(values: pd.Series) -> str:
    """Mean and its interval."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return f"{mean:.3f}"
    margin = float(values.std() / np.sqrt(count) * stats.t.ppf(0.975, count - 1))
    return f"{mean:.3f} [{mean - margin:.3f}, {mean + margin:.3f}]"


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
