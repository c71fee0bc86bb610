"""What statistics take from the wide table: columns as arrays, and the family of each checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.errors import UserError
from longshort.results.floors import FLOORS

Array = NDArray[np.float64]
Integers = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """Checkpoints as arrays. Each column is taken from the table once, not for every pair that it is part of."""

    # [n] floats by name, NaN where a value is missing; ``NAME_stderr`` is NaN where there is none
    columns: dict[str, Array]
    below_floor: dict[str, Mask]  # [n] by name: whether a value is below three times its numerical floor
    families: Integers  # [n] the family of each, numbered in the order of their names


def points_of(wide: pd.DataFrame, names: Iterable[str], group: str) -> Points:
    """The columns of these names with their standard errors; families as the column `group` has them.

    Checkpoints without a family are one family, which errs on the safe side.

    Raises:
        UserError: there is no such column, or one of `names` does not hold numbers (kind ``setting``).
    """
    columns, below_floor = {}, {}
    for name in dict.fromkeys(names):
        columns[name] = _numbers(wide, name)
        stderr = f"{name}_stderr"
        columns[stderr] = _numbers(wide, stderr) if stderr in wide else np.full(len(wide), np.nan)
        if f"{name}_below_floor" in wide:
            below_floor[name] = wide[f"{name}_below_floor"].to_numpy(bool)
    _check(wide, group)
    return Points(columns, below_floor, numbered(np.array(wide[group].astype(str), dtype=str))[0])


def numbered(families: NDArray[np.str_] | Integers) -> tuple[Integers, int]:
    """Families [n] numbered from 0 in their order, [n], and how many there are."""
    names, codes = np.unique(families, return_inverse=True)
    return codes, len(names)


def is_constant(values: Array) -> bool:
    """Whether all values [n] are one, but for rounding."""
    return len(values) == 0 or bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def note_on_floors(points: Points, names: Iterable[str], used: Mask) -> list[str]:
    """A line for each column with values below three times their numerical floor among the checkpoints used, [n]."""
    counts = {name: int(points.below_floor[name][used].sum()) for name in names if name in points.below_floor}
    return [
        f"{count} of {used.sum()} checkpoints have {name} below {FLOORS} times its numerical floor (half precision)"
        for name, count in counts.items()
        if count
    ]


def _numbers(wide: pd.DataFrame, name: str) -> Array:
    _check(wide, name)
    try:
        return wide[name].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise UserError(f"Column '{name}' does not hold numbers. Choose one that does.", "setting") from error


def _check(wide: pd.DataFrame, name: str) -> None:
    if name not in wide:
        raise UserError(f"There is no column '{name}'. Columns: {', '.join(map(str, wide.columns))}.", "setting")
