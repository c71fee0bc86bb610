"""Time and memory of longshort against what users would run instead: same model, same text, one run.

    python scripts/benchmark.py perplexity --help
    python scripts/benchmark.py perplexity --tokens 4096,32768 --vocabulary 128256 --runs 3
    python scripts/benchmark.py train

Each measurement is a process of its own; the sides take turns, so that a drift of the machine hits all.
Memory is the peak above what the process held with the model loaded and warm. Tables go to the terminal, numbers
with machine, versions and commit to results/benchmarks/.
"""

from __future__ import annotations

import argparse
from importlib import import_module

BENCHMARKS = (
    "perplexity",
    "lengths",
    "misalignment",
    "longppl",
    "evaluate",
    "head",
    "startup",
    "longbench",
    "train",
    "memory",
    "sweep",
    "overhead",
    "correlate",
    "growth",
)


def main() -> None:
    """Run the benchmark that is named; the rest of the command line is its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    import_module(f"benchmarks.{options.name}").main(options.options)


if __name__ == "__main__":
    main()
