"""The table of the floors: each candidate against the true excess, with standard errors over documents."""

from __future__ import annotations

import numpy as np
import pandas as pd

GROUP = ["model", "dtype", "length"]
DIVERGENCES = ("jeffreys", "js")
VALUES = ("float32", "rounded", "half", "excess")
COST = """
## Cost per document and length

| candidate | forwards | memory |
|---|---|---|
| aligned | 1 in half precision, of the shorter context | its hidden states |
| shift | 1 in half precision, of the longer context | its hidden states |
| masked | 1 in half precision, of the longer context | its hidden states; a mask [T, T] where attention builds one |
| reread | 2 in float32, of both contexts | the weights in float32: twice those in half precision, on top of them |
"""


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, dtype, length, divergence and candidate.

    `ratio` is the mean floor over the mean excess, its standard error a jackknife over documents; `lowest` and
    `highest` are of single documents. For `reread` the ratio is the excess of the other documents over that of each.
    """
    rows = []
    cells = frame[frame["products"] == "float32"]
    for key, group in cells[~_overflows(cells)].groupby(GROUP, sort=False):
        for divergence in DIVERGENCES:
            values = group.pivot_table(index="document", columns="quantity", values=divergence)
            excess = (values["half"] - values["rounded"]).to_numpy()
            common = dict(zip(GROUP, key, strict=True)) | {"divergence": divergence, "n": len(values)}
            common["positions"] = int(group.groupby("document")["positions"].first().sum())
            for name in ("float32", "rounded", "half"):
                common |= dict(zip((name, f"{name}_stderr"), mean_and_error(values[name].to_numpy()), strict=True))
            common |= dict(zip(("excess", "excess_stderr"), mean_and_error(excess), strict=True))
            common["excess_over_float32"] = float((values["half"] - values["float32"]).mean())
            for candidate in candidates(values):
                if candidate == "reread" and len(values) == 1:  # no others to predict from
                    continue
                floor = values[candidate].to_numpy() if candidate in values else others(excess)
                mean, error = mean_and_error(floor)
                ratio, ratio_error = ratio_and_error(floor, excess)
                by_document = floor / excess
                rows.append(
                    common
                    | {"candidate": candidate, "floor": mean, "floor_stderr": error}
                    | {"ratio": ratio, "ratio_stderr": ratio_error}
                    | {"lowest": by_document.min(), "highest": by_document.max()}
                )
    return pd.DataFrame(rows)


def not_finite(frame: pd.DataFrame) -> list[str]:
    """What could not be measured because half precision overflows, as `gemma3 in float16`."""
    lost = frame[_overflows(frame)][GROUP[:2]].drop_duplicates()
    return [f"{row.model} in {row.dtype}" for row in lost.itertuples()]


def _overflows(frame: pd.DataFrame) -> pd.Series:
    """Whether the divergence in half precision is not finite, for a row's model, dtype and length."""
    is_lost = (frame["quantity"] == "half") & ~np.isfinite(frame["jeffreys"])
    return is_lost.groupby([frame[name] for name in GROUP]).transform("any")


def candidates(values: pd.DataFrame) -> list[str]:
    """The candidates that were measured, those with a constant by its size."""
    shifts = [name for name in values if name.startswith("shift") and values[name].notna().all()]
    return ["aligned", *sorted(shifts, key=lambda name: int(name.split()[1])), "masked", "reread"]


def others(excess: np.ndarray) -> np.ndarray:
    """For each document the mean excess of all others.  [n] → [n]; NaN for one document."""
    return np.array([np.delete(excess, index).mean() if len(excess) > 1 else np.nan for index in range(len(excess))])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean, and its standard error (NaN for one value)."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def ratio_and_error(floor: np.ndarray, excess: np.ndarray) -> tuple[float, float]:
    """Ratio of the means, and its delete-one jackknife standard error."""
    count = len(floor)
    ratio = float(floor.mean() / excess.mean())
    if count < 2:
        return ratio, float("nan")
    without = np.array([np.delete(floor, i).mean() / np.delete(excess, i).mean() for i in range(count)])
    return ratio, float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))


def markdown(table: pd.DataFrame, command: str, lost: list[str]) -> str:
    """The table for reading, Jeffreys first; `lost` could not be measured, see `not_finite`."""
    lines = [
        "Numerical floor of the divergences in half precision, nats, means over n documents ± standard errors; "
        "positions: of all documents together.",
        "float32: the checkpoint as it is; rounded: float32 with weights rounded to the dtype; excess: half precision "
        "minus rounded; floor / excess: ratio of the means ± jackknife standard error over documents, in brackets the "
        "lowest and highest of single documents. For `reread` the floor of a document is the mean excess of the "
        "others, so its ratio is 1 and only the spread is informative.",
        "",
        f"    {command}",
    ]
    if lost:
        lines += ["", f"Not measured: {', '.join(lost)}, whose hidden states overflow."]
    for divergence, name in zip(DIVERGENCES, ("Jeffreys", "Jensen-Shannon"), strict=True):
        lines += [
            "",
            f"## {name}",
            "",
            f"| model | dtype | length | n | positions | {' | '.join(VALUES)} | candidate | floor | floor / excess |",
            "|---" * 12 + "|",
        ]
        for row in table[table["divergence"] == divergence].itertuples():
            measured = [plus_minus(getattr(row, name), getattr(row, f"{name}_stderr")) for name in VALUES]
            floor = plus_minus(row.floor, row.floor_stderr)
            spread = f" ± {row.ratio_stderr:.2f} [{row.lowest:.2f}, {row.highest:.2f}]" if row.n > 1 else ""
            cells = [row.model, row.dtype, row.length, row.n, row.positions, *measured, row.candidate, floor]
            cells.append(f"{row.ratio:.2f}{spread}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n" + COST


def plus_minus(value: float, error: float) -> str:
    """A divergence and its standard error, with digits for the smaller one."""
    return f"{value:.3g}" if np.isnan(error) else f"{value:.3g} ± {error:.1g}"
