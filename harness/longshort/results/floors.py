"""The numerical floor of a divergence in half precision, and the values that are too close to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import pandas as pd

Numbers = TypeVar("Numbers", float, "pd.Series[float]")

FLOOR_METRICS = {"jeffreys_floor": "jeffreys", "js_floor": "js"}  # floor: the metric that it belongs to
FLOORS = 3  # a value below this many times its floor is flagged
MARK = "‡"  # of a flagged value


def floor_of(name: str) -> str:
    """Return the name of a metric's floor: ``jeffreys@1024`` → ``jeffreys_floor@1024``."""
    metric, at, length = name.partition("@")
    return f"{metric}_floor{at}{length}"


def limit(floor: Numbers) -> Numbers:
    """Return the value below which a divergence is flagged: three times its floor.

    The floor is the divergence between two forward passes that are mathematically equal and differ only in rounding,
    so rounding alone may explain a divergence of this size.
    """
    return FLOORS * floor
