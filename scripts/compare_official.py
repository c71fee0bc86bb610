"""Compare `longshort.training` with the code that the methods' authors published.

    pip install --target PACKAGES --no-deps torchdiffeq einops
    PYTHONPATH=PACKAGES python scripts/compare_official.py --clex CLEX --entropy-abf Entropy-ABF ...

Each option is the folder of a checkout (`git clone https://github.com/REPOSITORY`); a row whose checkout or library is
missing is reported as not compared. Official functions run from their files, on the weights and inputs that ours get.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from official import adapters, clex, eabf, longlora, regularizer, rope, settings
from official.source import REPOSITORIES, Checkout
from official.table import Comparison, csv, markdown, measured

from longshort.errors import one_line_for_user_errors
from longshort.results import write_atomically

METHODS = (clex, eabf, longlora, adapters, regularizer, rope, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, repository in REPOSITORIES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"checkout of {repository}")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/official_methods"))
    options = vars(parser.parse_args(arguments))
    folders = {name: options[name.replace("-", "_")] for name in REPOSITORIES}
    checkouts = {name: Checkout(name, folder.expanduser()) for name, folder in folders.items() if folder}
    rows = [measured(comparison, checkouts) for comparison in all_comparisons()]
    text = markdown(rows)
    write_atomically(options["output"] / "table.csv", csv(rows))
    write_atomically(options["output"] / "table.md", text)
    print(text)


def all_comparisons() -> list[Comparison]:
    """Every row, method by method."""
    return [comparison for method in METHODS for comparison in method.comparisons()]


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
