"""What drawing t per sequence and clipping the frequencies apart do to CLEX: held-out NLL of a tiny model, by length.

    git worktree add ../longshort-before 77252e6    # draws one t per step and clips all weights by one norm
    OMP_NUM_THREADS=1 python scripts/compare_clex.py --before ../longshort-before -o results/clex_training

Each run is `longshort train --preset tiny --extension clex` (200 steps from scratch on `builtin` text) with the code of
one of the two checkouts; finished runs are kept. Both read the same tokens in the same order and start from the same
weights. Intervals are 95 %, over seeds, of the differences between runs of the same seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from compare_divergences import cell

from longshort.errors import one_line_for_user_errors
from longshort.results import write_atomically

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (128, 256, 512, 1024, 2048)


def main() -> None:
    """Train what is missing, then write the runs and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/clex_training"))
    parser.add_argument("--work", type=Path, default=Path("longshort-clex"), help="folder for checkpoints")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    runs = [
        {"code": code, "seed": seed} | measured(checkout, options.work / f"{code}-s{seed}", seed, options.steps)
        for seed in range(options.seeds)
        for code, checkout in (("before", options.before), ("after", ROOT))
    ]
    frame = pd.DataFrame(runs)
    text = table(frame, options.steps)
    write_atomically(options.output / "table.csv", frame.to_csv(index=False))
    write_atomically(options.output / "table.md", text)
    print(text)


def measured(checkout: Path, output: Path, seed: int, steps: int) -> dict[str, float]:
    """Train one model with the code of a checkout; return its NLL on held-out text by length, nats per token."""
    if not output.exists():
        command = [sys.executable, "-m", "longshort", "train", "--preset", "tiny", "--extension", "clex"]
        # Written out, so that a change of the defaults is not part of the comparison.
        command += ["--factor", "16", "--extension-options", '{"activation": "silu", "learning_rate": 2e-5}']
        command += ["--alpha", "0.1", "--scheduler", "cosine", "--seed", str(seed), "--steps", str(steps)]
        command += ["--eval-every", str(steps), "--eval-docs", "24", "--eval-lengths", ",".join(map(str, LENGTHS))]
        command += ["--resume-every", "0", "-o", str(output)]
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "harness")}
        subprocess.run(command, env=environment, check=True)
    values = json.loads((output / "longshort.json").read_text("utf-8"))["evaluation"]
    return {f"nll@{length}": math.log(values[f"ppl@{length}"]) for length in LENGTHS}


def table(frame: pd.DataFrame, steps: int) -> str:
    """Markdown: a row per length, before, after, and the difference."""
    before, after = (frame[frame["code"] == code].set_index("seed") for code in ("before", "after"))
    lines = [
        f"NLL on held-out text, nats per token, of the tiny preset with CLEX after {steps} steps; means over "
        f"{len(after)} seeds. Before: one t per step, all weights clipped by one norm. After: one t per sequence, the "
        "frequencies clipped by a norm of their own. The difference is paired by seed, with its 95 % interval (t); "
        "below 0 is better. Made by `scripts/compare_clex.py`.",
        "",
        "| length | before | after | difference |",
        "|---|---|---|---|",
    ]
    for name in (f"nll@{length}" for length in LENGTHS):
        means = (f"{values[name].mean():.3f}" for values in (before, after))
        lines.append(f"| {name.removeprefix('nll@')} | {' | '.join(means)} | {cell(after[name] - before[name])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
