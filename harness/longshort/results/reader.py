"""Reads the numbers of a results file, and notes what is not a number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

END_OF_INTEGERS = 2**63  # of the table's columns
NO_NUMBER = ("N/A", "")  # lm-eval's standard error where it cannot compute one


@dataclass
class Reader:
    """Reads the numbers of one file, and notes those that are not numbers."""

    file: Path  # where they are
    notes: list[str]  # receives one line for each field
    noted: set[str] = field(default_factory=set)

    def number(self, value: Any, name: str, *, is_value: bool = False) -> int | float | None:
        """Return a finite number; None, with a note, for anything else but a missing one."""
        if is_number(value):
            return value  # type: ignore[no-any-return]  # mypy does not follow `is_number`
        is_missing = value is None or value in NO_NUMBER
        if (is_missing and not is_value) or name in self.noted:
            return None
        self.noted.add(name)
        if isinstance(value, str) and value not in NO_NUMBER:
            self.notes.append(f"{self.file}: {name} is the text {value!r}, not a number. Skipped.")
        elif is_value or not isinstance(value, float):  # a standard error that is not finite is missing
            self.notes.append(f"{self.file}: {name} is {value!r}, not a finite number. Skipped.")
        return None

    def whole(self, value: Any, name: str) -> int | None:
        """As `number`, for an integer."""
        number = self.number(value, name)
        if number is not None and abs(number) >= END_OF_INTEGERS:
            raise OverflowError(f"{number} does not fit into a column of integers")
        return None if number is None else int(number)


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
