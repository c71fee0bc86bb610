"""The study of results/study: train, sweep and correlate some 170 tiny checkpoints of twelve families.

    python scripts/study.py -o results/study                    # all of it; run again, it goes on
    python scripts/study.py -o results/study --only train --family rope    # one family, on another core say

Checkpoints go to --work and are not kept; results, tables, figures and the report go to --output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from studies.checkpoints import FAMILIES, Scale, manifest, training_plan, write_config

from longshort.results import write_atomically
from longshort.training import train

STAGES = ("train", "sweep", "correlate", "questions")


def main() -> None:
    """Run the stages that are asked for, in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/study"))
    parser.add_argument("--work", type=Path, default=Path("longshort-study"), help="folder for checkpoints")
    parser.add_argument("--only", choices=STAGES, help="one stage alone")
    parser.add_argument("--family", choices=FAMILIES, action="append", help="train these alone; repeatable")
    options = parser.parse_args()
    scale, families = Scale(), options.family or list(FAMILIES)
    stages = [options.only] if options.only else STAGES
    if "train" in stages:
        train_families(options.work, families, scale)
    listed = options.output / "manifest.yaml"
    if "sweep" in stages:
        write_atomically(listed, manifest(options.work, families, scale))
        run("sweep", str(listed), "-o", str(options.output / "sweep"))
    if "correlate" in stages:
        run("correlate", str(options.output / "sweep"), "-o", str(options.output / "analysis"))
    if "questions" in stages:
        from studies.questions import write_answers

        write_answers(options.output)


def train_families(work: Path, families: list[str], scale: Scale) -> None:
    """Train what is missing, one run after the other, and say how far it is."""
    plan = [(family, config) for family in families for config in training_plan(work, family, scale)]
    start = time.monotonic()
    for index, (family, config) in enumerate(plan):
        left = f", about {(time.monotonic() - start) / index * (len(plan) - index) / 60:.0f} min left" if index else ""
        print(f"[{index + 1}/{len(plan)}] train {Path(config.output).name}{left}", flush=True)
        write_config(work, family)
        train(config)


def run(*arguments: str) -> None:
    """A longshort command, which must succeed."""
    subprocess.run([sys.executable, "-m", "longshort", *arguments], check=True)


if __name__ == "__main__":
    main()
