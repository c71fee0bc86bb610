"""Values that are so small that rounding in half precision may explain them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from longshort.errors import listed
from longshort.results.floors import FLOOR_METRICS, FLOORS, limit

PREDICTORS = [f"{metric}{where}" for metric in FLOOR_METRICS.values() for where in ("", "_beyond")]
SHOWN = 12  # names in a note
FLOOR_COLUMNS = frozenset(f"{name}_{kind}" for name in PREDICTORS for kind in ("floor", "below_floor"))
BETWEEN = re.compile(r"jeffreys_between@(\d+)-(\d+)")


def floors_of(tidy: pd.DataFrame) -> pd.Series[float]:
    """The numerical floor of each value of the tidy table; NaN where there is none.

    ``jeffreys_between@L1-L2`` has no floor of its own and takes the larger floor of both lengths: its two contexts are
    rounded like those of ``jeffreys@L1`` and ``jeffreys@L2``, at other positions.

    Args:
        tidy: the table of `longshort.results.read_results`.
    """
    floors = np.full(len(tidy), np.nan)
    about = ["checkpoint", "revision", "corpus", "metric", "length"]
    is_floor = tidy["metric"].isin(list(FLOOR_METRICS))
    if is_floor.any():
        known = {
            (*rest, FLOOR_METRICS[metric], length): value
            for *rest, metric, length, value in tidy.loc[is_floor, [*about, "value"]].itertuples(index=False)
        }
        has_floor = tidy["metric"].isin(list(FLOOR_METRICS.values())) | tidy["metric"].str.match(BETWEEN)
        for row, (*rest, metric, length) in zip(
            np.flatnonzero(has_floor), tidy.loc[has_floor, about].itertuples(index=False), strict=True
        ):
            match = BETWEEN.fullmatch(metric)
            ends = [("jeffreys", int(end)) for end in match.groups()] if match else [(metric, length)]
            floors[row] = np.max([known.get((*rest, *end), np.nan) for end in ends])  # NaN if one is not known
    found: pd.Series[float] = pd.Series(floors, index=tidy.index)
    return found


def below_floors(tidy: pd.DataFrame) -> pd.Series[bool]:
    """Whether each value of the tidy table is below three times its numerical floor."""
    flagged: pd.Series[bool] = tidy["value"] < limit(floors_of(tidy))
    return flagged


def with_floors(tidy: pd.DataFrame) -> pd.DataFrame:
    """The tidy table with the columns ``floor`` and ``below_floor``; as it is where no floor was measured."""
    floors = floors_of(tidy)
    if floors.isna().all():
        return tidy
    marked: pd.DataFrame = tidy.assign(floor=floors, below_floor=tidy["value"] < limit(floors))
    return marked


def flag_columns(wide: pd.DataFrame) -> None:
    """Insert NAME_below_floor after each NAME_floor of a wide table; False where no floor was measured."""
    for name in PREDICTORS:
        floor = f"{name}_floor"
        if floor in wide:
            place = list(wide).index(floor) + 1
            wide.insert(place, f"{name}_below_floor", wide[name] < limit(wide[floor]))


def notes_on_floors(wide: pd.DataFrame, tidy: pd.DataFrame, predictors: Iterable[str]) -> list[str]:
    """Count the values below three times their numerical floor, and name the checkpoints for each predictor."""
    floors = floors_of(tidy)
    number = int((tidy["value"] < limit(floors)).sum())
    if not number:
        return []
    notes = [
        f"{number} of the {int(floors.notna().sum())} divergences with a numerical floor are below {FLOORS} times that "
        "floor, so rounding in half precision may explain them (below_floor in measurements.csv)."
    ]
    for name in predictors:
        flagged = wide[wide[f"{name}_below_floor"]] if f"{name}_below_floor" in wide else wide[:0]
        if len(flagged):
            names = [
                checkpoint if revision == "main" else f"{checkpoint}@{revision}"
                for checkpoint, revision in zip(flagged["checkpoint"], flagged["revision"], strict=True)
            ]
            notes.append(
                f"{name}: {len(flagged)} of {int(wide[name].notna().sum())} checkpoints are below {FLOORS} times "
                f"their numerical floor ({listed(names, SHOWN)}). The correlations include them; --where 'not "
                f"{name}_below_floor' excludes them."
            )
    return notes
