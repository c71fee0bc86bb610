"""Values of a checkpoint in half precision next to those in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longshort.results.metrics import is_ours
from longshort.results.rows import Row
from longshort.results.variants import IDENTITY, Variant

if TYPE_CHECKING:
    import pandas as pd

HALF = ("bfloat16", "float16")
# float32_checkpoint, half_checkpoint: the names of both variants; checkpoint: the name without the dtype
COLUMNS = (
    "checkpoint", "revision", "dtype", "task", "corpus", "metric", "length", "value_float32", "value_half", "n",
    "float32_checkpoint", "half_checkpoint",
)  # fmt: skip
OF_FIXED_TARGETS = ("_tail", "_between@")


def precision_pairs(rows: Sequence[Row], variants: Mapping[tuple[str, str], Variant]) -> tuple[pd.DataFrame, list[str]]:
    """Return the values that were measured in float32 and in half precision, one row each.

    Two values are a pair if they belong to one checkpoint and were measured on the same documents, with the same draws
    and by the same version of the task; those of fixed targets also on the same targets. Others may differ for other
    reasons than rounding.

    Args:
        rows: all measurements; of several for one value the newest is used, as in the tidy table.
        variants: as returned by `name_precisions`.

    Returns:
        A table with the columns `COLUMNS`, and one note for each checkpoint that has values which are not a pair.
    """
    import pandas as pd

    values: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.date):
        variant = variants.get((row.columns["checkpoint"], row.columns["revision"]))
        if variant and is_ours(row.columns["task"]):
            place = (variant.base, *(row.columns[name] for name in IDENTITY[1:]))
            values[place][variant.dtype] = row
    pairs = []
    unlike: dict[tuple[str, str], list[set[str]]] = defaultdict(list)
    for (base, *_), by_dtype in values.items():
        for dtype in HALF:
            if "float32" in by_dtype and dtype in by_dtype:
                single, half = by_dtype["float32"], by_dtype[dtype]
                if differing := _differing(single, half):
                    unlike[base, dtype].append(differing)
                else:
                    pairs.append(
                        half.columns
                        | {"checkpoint": base, "dtype": dtype}
                        | {"float32_checkpoint": single.columns["checkpoint"]}
                        | {"half_checkpoint": half.columns["checkpoint"]}
                        | {"value_float32": single.columns["value"], "value_half": half.columns["value"]}
                    )
    notes = [
        f"{base}: {len(of)} values in float32 and {dtype} were measured with different "
        f"{', '.join(sorted(set.union(*of)))}, so they are not compared. Evaluate both with the same settings."
        for (base, dtype), of in unlike.items()
    ]
    kinds = dict.fromkeys(COLUMNS, "string") | dict.fromkeys(("value_float32", "value_half"), "float64")
    kinds |= dict.fromkeys(("length", "n"), "Int64")
    table: pd.DataFrame = pd.DataFrame(pairs, columns=list(COLUMNS)).astype(kinds)
    return table.sort_values(list(COLUMNS[:7]), ignore_index=True), notes


def _differing(one: Row, other: Row) -> set[str]:
    """Names of what may make two values differ besides the dtype."""
    is_of_fixed_targets = any(part in one.columns["metric"] for part in OF_FIXED_TARGETS)
    names = ("seed", *(("lengths", "tail_tokens") if is_of_fixed_targets else ()))
    differing = {name for name in names if one.settings.get(name) != other.settings.get(name)}
    differing |= {name for name in one.origin if one.origin[name] != other.origin[name]}
    differing |= {"draws"} if one.settings.get("draws", "1") != other.settings.get("draws", "1") else set()
    return differing | ({"numbers of documents"} if one.columns["n"] != other.columns["n"] else set())
