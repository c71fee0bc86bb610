"""Whether one predictor correlates more strongly with an outcome than another does, on the same checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from longshort.analysis import coefficients
from longshort.analysis.adjustment import holm
from longshort.analysis.correlation import MIN_FAMILIES, MIN_POINTS
from longshort.analysis.intervals import delete_one, jackknife
from longshort.analysis.points import Array, Integers, Points, is_constant, note_on_floors, numbered, points_of

STATISTICS = ["jackknife_lo", "jackknife_hi", "p"]
COLUMNS = [
    "predictor", "other", "outcome", "n", "n_families",
    "abs_pearson", "abs_pearson_other", "difference",
    *(f"difference_{name}" for name in STATISTICS), "difference_p_adjusted",
    "abs_spearman", "abs_spearman_other", "spearman_difference",
    *(f"spearman_difference_{name}" for name in STATISTICS), "spearman_difference_p_adjusted",
    "interval", "note",
]  # fmt: skip

# |coefficient| with all families and without each, by coefficient, predictor, outcome and checkpoints used
Known = dict[tuple[str, str, str, bytes], Array]


def compare(
    wide: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    outcomes: Sequence[str],
    *,
    group: str = "family",
) -> pd.DataFrame:
    """Compare |r| of two predictors with one outcome, a row for each pair and outcome.

    A row uses the checkpoints that have all three values, finite ones: at least 5.

    Columns, for Pearson's r; those for Spearman's are named with ``spearman``:
        abs_pearson, abs_pearson_other, difference: |r| of the predictor, of the other, and the first less the second.
        difference_jackknife_lo, …_hi, difference_p: 95 % interval and two-sided p-value by deleting one family at a
            time (`longshort.analysis.intervals.jackknife`). In simulations (``results/simulation``) it covers
            somewhat less than 95 % where one of the correlations is near 0, and is too wide where both are.
        difference_p_adjusted: the same p by Holm's method over the pairs of this outcome; empty where the interval is
            ``naive``, because those p-values are too small.
        interval: ``families``; or ``naive`` with fewer than 4, where checkpoints are deleted instead, which treats
            them as independent: the intervals are too narrow.

    Args:
        wide: one row per checkpoint, as from `longshort.analysis.wide_table`.
        pairs: predictor and the other one, columns of it.
        outcomes: columns of it.
        group: the column that says which checkpoints belong together.

    Returns:
        A table with the columns `COLUMNS`, in the order of pairs and outcomes.

    Raises:
        UserError: a column is missing or holds no numbers (kind ``setting``).

    Example:
        >>> import pandas as pd
        >>> from longshort.analysis import compare
        >>> wide = pd.DataFrame({"family": list("aabbccddee")})
        >>> wide["sce"] = [4.1, 4.2, 4.6, 4.5, 5.0, 5.3, 5.1, 5.2, 5.9, 5.6]
        >>> wide["nll"] = [2.9, 2.7, 3.1, 2.8, 3.0, 3.3, 2.9, 3.2, 3.1, 3.4]
        >>> wide["log_ppl@8192"] = [3.0, 3.1, 3.2, 3.4, 3.3, 3.9, 3.8, 3.6, 4.1, 4.2]
        >>> table = compare(wide, [("sce", "nll")], ["log_ppl@8192"]).round(2)
        >>> print(table[["abs_pearson", "abs_pearson_other", "difference"]])
           abs_pearson  abs_pearson_other  difference
        0         0.93               0.69        0.24
        >>> print(table[["difference_jackknife_lo", "difference_jackknife_hi", "difference_p"]])
           difference_jackknife_lo  difference_jackknife_hi  difference_p
        0                    -0.16                     0.63          0.17
    """
    points = points_of(wide, [*(name for pair in pairs for name in pair), *outcomes], group)
    known: Known = {}  # every predictor is part of many pairs, mostly on the same checkpoints
    rows = [_row(points, predictor, other, outcome, known) for (predictor, other), outcome in product(pairs, outcomes)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=COLUMNS)
    for p in ("difference_p", "spearman_difference_p"):
        valid = table[p].where(table["interval"] == "families").astype(np.float64)
        table[f"{p}_adjusted"] = valid.groupby(table["outcome"]).transform(lambda values: holm(values.to_numpy()))
    return table


def _row(points: Points, predictor: str, other: str, outcome: str, known: Known) -> dict[str, Any]:
    columns = [points.columns[name] for name in (predictor, other, outcome)]
    all_three = np.isfinite(columns).all(axis=0)
    x, z, y = (values[all_three] for values in columns)
    families, count = numbered(points.families[all_three])
    row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
    row |= {"predictor": predictor, "other": other, "outcome": outcome, "n": len(x), "n_families": count}
    row |= {"interval": "", "note": ""}
    if len(x) < MIN_POINTS:
        return row | {"note": f"no coefficient: fewer than {MIN_POINTS} checkpoints have all three"}
    constant = [name for name, values in ((predictor, x), (other, z), (outcome, y)) if is_constant(values)]
    if constant:
        return row | {"note": f"no coefficient: {' and '.join(constant)} does not vary"}

    notes = note_on_floors(points, (predictor, other, outcome), np.asarray(all_three))
    row["interval"] = "families"
    if count < MIN_FAMILIES:
        row["interval"], families, count = "naive", np.arange(len(x)), len(x)
        notes.append(f"fewer than {MIN_FAMILIES} families: checkpoints taken as independent")
    for name, prefix in (("pearson", ""), ("spearman", "spearman_")):
        one, two = (
            _absolute(name, side, y, families, known, (name, column, outcome, all_three.tobytes()))
            for column, side in ((predictor, x), (other, z))
        )
        differences = one - two
        row[f"abs_{name}"], row[f"abs_{name}_other"] = float(one[0]), float(two[0])
        row[f"{prefix}difference"] = float(differences[0])
        ends = jackknife(differences[0], differences[1:])
        row |= zip((f"{prefix}difference_{end}" for end in STATISTICS), ends, strict=True)
        if np.isnan(row[f"{prefix}difference_p"]):
            notes.append(f"no jackknife for {name}: not defined, or all the same, at the latest without one family")
    return row | {"note": "; ".join(notes)}


def _absolute(
    name: str, x: Array, y: Array, families: Integers, known: Known, key: tuple[str, str, str, bytes]
) -> Array:
    """|coefficient| with all families and without each of them, [1 + F]."""
    if key not in known:
        count = int(families.max()) + 1
        weights = np.vstack([np.ones(count), delete_one(count)])
        known[key] = np.abs(getattr(coefficients, name)(x, y, families, weights))
    return known[key]
