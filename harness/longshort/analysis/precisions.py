"""Checkpoints that were measured in several dtypes: one point for each, and half precision next to float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import pandas as pd

from longshort.analysis.floors import floors_of
from longshort.errors import listed
from longshort.results.floors import FLOOR_METRICS, limit
from longshort.results.variants import Variant

Variants = Mapping[tuple[str, str], Variant]  # by checkpoint and revision


def one_point_each(wide: pd.DataFrame, variants: Variants, names: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Keep one row of each checkpoint that was measured in several dtypes, and note which were skipped.

    Two dtypes of one checkpoint are not independent points. The variant with the most values is kept, or the one in
    float32 if several have equally many.

    Args:
        wide: one row per checkpoint.
        variants: the checkpoints that have several dtypes.
        names: the columns whose values are counted, usually predictors and outcomes.
    """
    rows: dict[tuple[str, str], list[tuple[bool, int, str]]] = defaultdict(list)
    for index, (checkpoint, revision) in enumerate(zip(wide["checkpoint"], wide["revision"], strict=True)):
        if variant := variants.get((checkpoint, revision)):
            rows[variant.base, revision].append((variant.dtype != "float32", index, checkpoint))
    counts = wide[list(names)].notna().sum(axis=1).tolist() if rows else []
    left_out: dict[int, str] = {}
    for members in rows.values():
        best, *others = sorted(members, key=lambda member: (-counts[member[1]], member))
        left_out |= {index: f"{checkpoint} ({best[2]} is used)" for _, index, checkpoint in others}
    if not left_out:
        return wide, []
    note = (
        "The correlations use one dtype of each checkpoint: the one with the most values, or float32 if several have "
        f"equally many. Skipped: {listed(list(left_out.values()))}. Choose another with --where."
    )
    kept: pd.DataFrame = wide.drop(index=wide.index[list(left_out)]).reset_index(drop=True)
    return kept, [note]


def precision_table(pairs: pd.DataFrame | None, tidy: pd.DataFrame) -> pd.DataFrame:
    """Half precision next to float32, a row for each checkpoint, metric and length.

    Columns:
        checkpoint: without its dtype. dtype: of the half precision.
        value_float32, value_half: in the metric's unit. difference: half precision minus float32.
        floor: the numerical floor of the value in half precision, where there is one.
        within_floor: whether the absolute difference is at most the floor; missing without a floor.
        below_floor: whether the value in half precision is below three times its floor; False without a floor.
        n: documents.

    Args:
        pairs: `precisions` of `longshort.results.read`; None where no checkpoint has several dtypes.
        tidy: the measurements of the chosen checkpoints; pairs of others are skipped.
    """
    if pairs is None:
        nothing: pd.DataFrame = pd.DataFrame()
        return nothing
    keys = ["checkpoint", "revision", "task", "corpus", "metric", "length"]
    measured = tidy.assign(floor=floors_of(tidy))[[*keys, "floor"]]
    half = measured.rename(columns={"checkpoint": "half_checkpoint"})
    is_pair = ~pairs["metric"].isin(list(FLOOR_METRICS)) & pairs["float32_checkpoint"].isin(tidy["checkpoint"])
    table: pd.DataFrame = pairs[is_pair].merge(half, on=["half_checkpoint", *keys[1:]])
    difference = table["value_half"] - table["value_float32"]
    within = (difference.abs() <= table["floor"]).astype("boolean").mask(table["floor"].isna())
    below = table["value_half"] < limit(table["floor"])
    table = table.assign(difference=difference, within_floor=within, below_floor=below)
    values = ["value_float32", "value_half", "difference", "floor", "within_floor", "below_floor", "n"]
    shown: pd.DataFrame = table[["checkpoint", "dtype", "metric", "length", *values, "revision", "task", "corpus"]]
    return shown


def summary(table: pd.DataFrame) -> str:
    """One sentence on a `precision_table` that has rows."""
    of_floor = table["within_floor"].dropna()
    checkpoints = len(table[["checkpoint", "revision"]].drop_duplicates())
    measured = (
        f"{len(table)} values of {checkpoints} {'checkpoint' if checkpoints == 1 else 'checkpoints'} were measured "
        f"both in float32 and in {' or '.join(sorted(set(table['dtype'])))}."
    )
    if of_floor.empty:
        return f"{measured} None of them has a numerical floor."
    within = int(of_floor.sum())
    return f"{measured} Of the n = {len(of_floor)} with a numerical floor, {within} differ by at most that floor."
