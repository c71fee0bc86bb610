"""What a statistic takes from the wide table: numbers of columns, and the family of each checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.errors import UserError

Array = NDArray[np.float64]
Names = NDArray[Any]


def numbers(wide: pd.DataFrame, name: str) -> Array:
    """A column as floats, NaN where a value is missing.

    Raises:
        UserError: there is no such column, or it does not hold numbers.
    """
    _check(wide, name)
    try:
        return wide[name].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise UserError(f"column '{name}' does not hold numbers. Choose one that does.") from error


def standard_errors(wide: pd.DataFrame, name: str) -> Array:
    """The column ``NAME_stderr``; NaN where there is none."""
    stderr = f"{name}_stderr"
    return numbers(wide, stderr) if stderr in wide else np.full(len(wide), np.nan)


def families_of(wide: pd.DataFrame, group: str) -> Names:
    """The name of each checkpoint's family; those without one are one family, which errs on the safe side.

    Raises:
        UserError: there is no such column.
    """
    _check(wide, group)
    return wide[group].astype(str).to_numpy(dtype=object)


def numbered(families: Names) -> tuple[NDArray[np.intp], int]:
    """Families numbered from 0 in the order of their names, and how many there are."""
    names, codes = np.unique(families.astype(str), return_inverse=True)
    return codes, len(names)


def is_constant(values: Array) -> bool:
    """Whether all values are one, but for rounding."""
    return len(values) == 0 or bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _check(wide: pd.DataFrame, name: str) -> None:
    if name not in wide:
        raise UserError(f"there is no column '{name}'. Columns: {', '.join(map(str, wide.columns))}.")
