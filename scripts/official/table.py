"""Rows of the table: what was compared, and by how much official code and longshort differ."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from textwrap import wrap
from typing import Any

import pandas as pd
from torch import Tensor

from official.source import REPOSITORIES, Checkout

LIBRARIES = ("torch", "transformers", "peft", "torchdiffeq", "einops")
NOT_COMPARED = "not compared"


@dataclass(frozen=True)
class Difference:
    """Of n numbers or names: the largest |official - ours|, and that over the largest |official| of its tensor."""

    n: int
    absolute: float
    relative: float
    which: str = ""  # names that differ


@dataclass(frozen=True)
class Comparison:
    """One row before it is measured."""

    method: str
    quantity: str
    compared: str  # on which inputs, official and ours
    name: str  # of the checkout, in `REPOSITORIES`; empty for an independent computation, which needs none
    file: str  # of the checkout; or which computation
    measure: Callable[[Any], Difference] | None  # takes the checkout; None: there is nothing that could be run
    deliberate: str = ""  # what is deliberately different, and why


@dataclass(frozen=True)
class Row:
    """One row of the table; without a difference, `largest_absolute` says why."""

    method: str
    quantity: str
    compared: str
    source: str
    n: int
    largest_absolute: float | str
    largest_relative: float | str
    which: str
    deliberate: str


def of_tensors(pairs: Iterable[tuple[Tensor, Tensor]]) -> Difference:
    """Compare official tensors with ours, pair by pair, in float64; NaN in either gives NaN.

    Raises:
        ValueError: no pairs, an empty tensor, or two shapes.
    """
    n, absolute, relative = 0, [], []
    for official, ours in pairs:
        if official.shape != ours.shape or not official.numel():
            raise ValueError(f"cannot compare tensors of shapes {tuple(official.shape)} and {tuple(ours.shape)}")
        official, ours = official.detach().double(), ours.detach().double()
        largest = (official - ours).abs().max()
        n += official.numel()
        absolute.append(float(largest))
        relative.append(float(largest / official.abs().max()) if largest else 0.0)
    if not n:
        raise ValueError("nothing was compared")
    return Difference(n, _max(absolute), _max(relative))


def of_names(official: set[str], ours: set[str]) -> Difference:
    """Compare two sets of names: how many are in one of them only, and that over the number of official ones."""
    different = sorted(official ^ ours)
    return Difference(len(official | ours), float(len(different)), len(different) / len(official), ", ".join(different))


def measured(comparison: Comparison, checkouts: Mapping[str, Checkout]) -> Row:
    """Measure one row; what cannot be run here is reported as not compared, with the reason."""
    checkout = checkouts.get(comparison.name)
    difference: Difference | str
    if comparison.measure is None:
        difference = f"{NOT_COMPARED}: the repository could not be obtained"
    elif comparison.name and checkout is None:
        difference = f"{NOT_COMPARED}: no checkout was given"
    else:
        try:
            difference = comparison.measure(checkout)
        except ImportError as error:
            difference = f"{NOT_COMPARED}: {error}"
    source = [REPOSITORIES.get(comparison.name, ""), checkout.commit if checkout else "", comparison.file]
    described = (comparison.method, comparison.quantity, comparison.compared, " ".join(filter(None, source)))
    if isinstance(difference, str):
        return Row(*described, 0, difference, NOT_COMPARED, "", comparison.deliberate)
    return Row(*described, *astuple(difference), comparison.deliberate)


def markdown(rows: Iterable[Row]) -> str:
    """A table per method and official file, and the versions that all were measured with."""
    lines = [
        "# Official code and ours",
        "",
        "Both run on the same weights and inputs, on a CPU in float32 unless a row says otherwise. The difference is",
        "|official - ours|; `relative` divides it by the largest |official| of the same tensor; n counts the numbers",
        "or names compared. The notes below a table say what is deliberately different, and why.",
        "",
        f"{versions()}.",
        "",
        "`python scripts/compare_official.py --help` says how to run it.",
    ]
    for (method, source), group in groupby(rows, key=lambda row: (row.method, row.source)):
        titles = ("quantity", "what was compared", "n", "largest difference", "relative", "note")
        lines += ["", f"## {method}: {source}", "", _cells(titles), "|---" * len(titles) + "|"]
        notes: dict[str, int] = {}
        for row in group:
            note = notes.setdefault(row.deliberate, len(notes) + 1) if row.deliberate else ""
            named = f"{_shown(row.largest_absolute)} ({row.which})" if row.which else _shown(row.largest_absolute)
            relative = "–" if isinstance(row.largest_relative, str) else _shown(row.largest_relative)
            lines.append(_cells((row.quantity, row.compared, f"{row.n:,}", named, relative, str(note))))
        for text, number in notes.items():
            lines += ["", *wrap(f"{number}. {text}", 120, subsequent_indent="   ", break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def csv(rows: Iterable[Row]) -> str:
    """The same rows with all digits."""
    return pd.DataFrame([asdict(row) for row in rows]).to_csv(index=False)


def versions() -> str:
    """Python and the libraries that the comparisons use."""
    found = [f"Python {platform.python_version()}"]
    for library in LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            found.append(f"{library} not installed")
    return ", ".join(found)


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value.is_integer() else f"{value:.1e}"


def _max(values: list[float]) -> float:
    return max(values, key=lambda value: (value != value, value))  # NaN is the largest
