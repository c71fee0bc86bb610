"""How strongly a predictor goes with an outcome over checkpoints, and how sure one can be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.analysis import coefficients
from longshort.analysis.adjustment import benjamini_hochberg, holm
from longshort.analysis.attenuation import corrected, reliability
from longshort.analysis.controls import usable_controls
from longshort.analysis.intervals import delete_one, jackknife_of_correlation, naive
from longshort.analysis.points import Mask, Points, is_constant, note_on_floors, numbered, points_of
from longshort.errors import UserError

Array = NDArray[np.float64]
Adjust = Literal["holm", "bh"]

COLUMNS = [
    "predictor", "outcome", "n", "n_families",
    "pearson", "pearson_lo", "pearson_hi", "pearson_p",
    "spearman", "spearman_lo", "spearman_hi", "spearman_p",
    "kendall", "kendall_p",
    "partial", "partial_p", "controls", "p_adjusted",
    "kendall_lo", "kendall_hi", "partial_lo", "partial_hi",
    "pearson_loo_lo", "pearson_loo_hi", "spearman_loo_lo", "spearman_loo_hi",
    "kendall_loo_lo", "kendall_loo_hi", "partial_loo_lo", "partial_loo_hi",
    "reliability_predictor", "reliability_outcome", "pearson_corrected",
    "interval", "note",
]  # fmt: skip

BELOW_FLOOR = "n_below_floor"  # a further column, where there are numerical floors

MIN_POINTS = 5
MIN_FAMILIES = 4
ADJUST = {"holm": holm, "bh": benjamini_hochberg}


def correlations(
    wide: pd.DataFrame,
    predictors: Sequence[str],
    outcomes: Sequence[str],
    controls: Sequence[str] = ("nll",),
    *,
    group: str = "family",
    adjust: Adjust = "holm",
) -> pd.DataFrame:
    """Correlate every predictor with every outcome, one row each.

    A row uses the checkpoints that have both values, finite ones. Below 5 of them, or where one side is constant,
    no coefficient is given. ``note`` says why, and whatever else was done to the data of this row.

    Columns next to the coefficients:
        …_lo, …_hi, …_p: 95 % interval and two-sided p-value. ``interval`` says which: from 4 families on,
            ``jackknife`` deletes one family at a time (`longshort.analysis.intervals.jackknife`, on Fisher's z).
            With fewer families, ``naive`` treats checkpoints as independent, which those of one family are not: its
            intervals are too narrow and its p-values too small.
        kendall: τ-b, which allows for ties. For Spearman's coefficient ties share their mean rank.
        partial: Pearson's r, controlling for `controls` (`longshort.analysis.coefficients.partial`), over the
            checkpoints that have these too. ``controls`` names those that were used: not one that is the
            predictor or outcome or a linear function of it, nor one that does not vary.
        p_adjusted: ``pearson_p`` adjusted over all rows that have one.
        …_loo_lo, …_loo_hi: the coefficient's range when one family is deleted.
        reliability_predictor, reliability_outcome, pearson_corrected: from the columns ``NAME_stderr``, the
            share of variance that is no measurement error, and r corrected for it (`longshort.analysis.
            attenuation`, with what to beware of). NaN where a standard error is missing or errors are as great
            as the differences. The corrected r is no correlation of the data, and may be greater than 1.
        n_below_floor: how many of the n checkpoints have a value below three times its numerical floor (half
            precision); every coefficient includes them. Only where `wide` has floors of one of the columns.

    Args:
        wide: one row per checkpoint, as from `longshort.analysis.wide_table`.
        predictors, outcomes, controls: columns of it.
        group: the column that says which checkpoints belong together.
        adjust: Holm's method (``holm``, family-wise error) or Benjamini and Hochberg's (``bh``, false discoveries).

    Returns:
        A table with the columns `COLUMNS`, in the order of predictors and outcomes.

    Raises:
        UserError: a column is missing or holds no numbers, or there is no such adjustment (kind ``setting``).

    Example:
        >>> import pandas as pd
        >>> from longshort.analysis import correlations
        >>> wide = pd.DataFrame({"family": list("aabbccddee")})
        >>> wide["sce"] = [4.1, 4.2, 4.6, 4.5, 5.0, 5.3, 5.1, 5.2, 5.9, 5.6]
        >>> wide["nll"] = [2.9, 2.7, 3.1, 2.8, 3.0, 3.3, 2.9, 3.2, 3.1, 3.4]
        >>> wide["log_ppl@8192"] = [3.0, 3.1, 3.2, 3.4, 3.3, 3.9, 3.8, 3.6, 4.1, 4.2]
        >>> table = correlations(wide, ["sce", "nll"], ["log_ppl@8192"]).round(3)
        >>> print(table[["predictor", "n", "n_families", "pearson", "pearson_lo", "pearson_hi", "pearson_p"]])
          predictor   n  n_families  pearson  pearson_lo  pearson_hi  pearson_p
        0       sce  10           5    0.929       0.463       0.993      0.016
        1       nll  10           5    0.690      -0.105       0.947      0.069
        >>> print(table.loc[[0], ["predictor", "partial", "partial_lo", "partial_hi", "partial_p", "controls"]])
          predictor  partial  partial_lo  partial_hi  partial_p controls
        0       sce     0.86       0.381       0.975      0.016      nll
        >>> print(table["note"][1])
        ties in nll: mean ranks (Spearman), τ-b (Kendall); control nll skipped: it is the predictor
    """
    if adjust not in ADJUST:
        raise UserError(f"Unknown adjustment '{adjust}'. Choose {' or '.join(ADJUST)}.", "setting", "adjust")
    points = points_of(wide, [*predictors, *outcomes, *controls], group)
    rows = [_row(points, predictor, outcome, controls) for predictor, outcome in product(predictors, outcomes)]
    table: pd.DataFrame = pd.DataFrame(rows, columns=[*COLUMNS, *([BELOW_FLOOR] if points.below_floor else [])])
    table["p_adjusted"] = ADJUST[adjust](table["pearson_p"].to_numpy(np.float64))
    return table


def _row(points: Points, predictor: str, outcome: str, controls: Sequence[str]) -> dict[str, Any]:
    sides = {name: points.columns[name] for name in (predictor, outcome)}
    x, y = sides[predictor], sides[outcome]
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    families, count = numbered(points.families[both])
    row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
    row |= {"predictor": predictor, "outcome": outcome, "n": len(x), "n_families": count}
    row |= {"controls": "", "interval": "", "note": ""}
    flags = [points.below_floor[name] for name in sides if name in points.below_floor]
    row[BELOW_FLOOR] = int(np.logical_or.reduce([np.zeros_like(both), *flags])[both].sum())
    notes = [*_skipped(sides, both), *note_on_floors(points, sides, both)]
    if len(x) < MIN_POINTS:
        return row | {"note": "; ".join([f"no coefficient: fewer than {MIN_POINTS} checkpoints have both", *notes])}
    constant = [name for name, values in sides.items() if is_constant(values[both])]
    if constant:
        return row | {"note": "; ".join([f"no coefficient: {' and '.join(constant)} does not vary", *notes])}

    row["interval"] = "jackknife" if count >= MIN_FAMILIES else "naive"
    if row["interval"] == "naive":
        notes.append(f"fewer than {MIN_FAMILIES} families: checkpoints taken as independent")
    tied = [name for name, values in sides.items() if len(np.unique(values[both])) < len(x)]
    if tied:
        notes.append(f"ties in {' and '.join(tied)}: mean ranks (Spearman), τ-b (Kendall)")
    for name in ("pearson", "spearman", "kendall"):
        coefficient = functools.partial(getattr(coefficients, name), x, y, families)
        notes += _put(row, name, coefficient, families, 0)
    if row["interval"] == "naive":
        from scipy import stats  # half a second, which most analyses need not wait

        row["kendall_p"] = float(stats.kendalltau(x, y).pvalue)

    notes += _put_partial(row, points, controls, both)
    notes += _put_correction(row, points, both)
    return row | {"note": "; ".join(notes)}


def _skipped(sides: dict[str, Array], both: Mask) -> list[str]:
    infinite = int(np.logical_or.reduce([np.isinf(values) for values in sides.values()]).sum())
    missing = int((~both).sum()) - infinite
    notes = [f"{missing} of {len(both)} checkpoints skipped: no value"] if missing else []
    return notes + ([f"{infinite} of {len(both)} checkpoints skipped: infinite value"] if infinite else [])


def _put(
    row: dict[str, Any],
    name: str,
    coefficient: Callable[[Array], Array],
    families: NDArray[np.intp],
    n_controls: int,
) -> list[str]:
    """Put a coefficient with its interval, p-value and range into the row; return what is to be noted about it."""
    n, count = len(families), int(families.max()) + 1
    deleted = delete_one(count) if count > 1 else np.empty((0, count))
    whole, *without = coefficient(np.vstack([np.ones(count), deleted])).tolist()
    row[name] = whole
    ranged = [value for value in without if value == value]
    row[f"{name}_loo_lo"], row[f"{name}_loo_hi"] = min(ranged, default=np.nan), max(ranged, default=np.nan)
    ends = [f"{name}_lo", f"{name}_hi", f"{name}_p"]
    if row["interval"] == "naive":
        row |= zip(ends, naive(name, whole, n, n_controls), strict=True)
        return [] if row[ends[0]] == row[ends[0]] else [f"no interval for {name}: ±1, or too few checkpoints"]
    if count < MIN_FAMILIES:
        return [f"no interval for {name}: its checkpoints are of fewer than {MIN_FAMILIES} families"]
    row |= zip(ends, jackknife_of_correlation(whole, np.array(without)), strict=True)
    if np.isnan(row[ends[2]]):
        return [
            f"no interval or p-value for {name}: ±1, not defined, or all the same, at the latest without one family"
        ]
    return []


def _put_partial(row: dict[str, Any], points: Points, controls: Sequence[str], both: Mask) -> list[str]:
    """Put the partial correlation into the row; return which controls were skipped, and why."""
    used, known, notes = usable_controls(points.columns, controls, row["predictor"], row["outcome"], both)
    if not used:
        return notes
    if known.sum() < MIN_POINTS:
        return [*notes, f"no partial correlation: fewer than {MIN_POINTS} checkpoints have the controls"]
    if known.sum() < both.sum():
        notes.append(f"partial over the {known.sum()} checkpoints that have the controls")
    row["controls"] = ", ".join(used)
    x, y, *z = (points.columns[name][known] for name in (row["predictor"], row["outcome"], *used))
    if is_constant(x) or is_constant(y):
        return [*notes, "no partial correlation: one side does not vary where the controls are known"]
    families, _ = numbered(points.families[known])
    coefficient = functools.partial(coefficients.partial, x, y, np.column_stack(z), families)
    about_interval = _put(row, "partial", coefficient, families, len(used))
    if np.isnan(row["partial"]):
        return [*notes, "no partial correlation: the controls explain all, or are too many"]
    return notes + about_interval


def _put_correction(row: dict[str, Any], points: Points, both: Mask) -> list[str]:
    """Put reliabilities and the corrected r into the row; return what is to be noted about them."""
    notes = []
    for side in ("predictor", "outcome"):
        values, stderrs = (points.columns[name][both] for name in (row[side], f"{row[side]}_stderr"))
        row[f"reliability_{side}"] = reliability(values, stderrs)
        if row[f"reliability_{side}"] <= 0:
            notes.append(f"{row[side]} varies no more than its standard errors: r not corrected")
    row["pearson_corrected"] = corrected(row["pearson"], row["reliability_predictor"], row["reliability_outcome"])
    if abs(row["pearson_corrected"]) > 1:
        notes.append("corrected r is greater than 1: standard errors overstated, or chance")
    return notes
