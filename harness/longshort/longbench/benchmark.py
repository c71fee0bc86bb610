"""Whether predictions are of LongBench, whose prediction files have the same names as those of LongBench-E."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from longshort.longbench.runs import Row, rows_by_bucket
from longshort.longbench.scores import DATASETS

LONGBENCH_ONLY = (
    *("narrativeqa", "multifieldqa_zh", "musique", "dureader", "qmsum", "vcsum", "lsht", "passage_retrieval_zh"),
)
LONGBENCH_ROWS = dict.fromkeys(DATASETS, 200) | {"multifieldqa_en": 150, "lcc": 500, "repobench-p": 500}
SAME_ROWS = "multifieldqa_en"  # of both benchmarks


def signs_of_longbench(
    rows: Mapping[str, Sequence[Row]], other_names: Iterable[str], without_length: Sequence[str] = ()
) -> list[str]:
    """Return what shows that the files of a folder are of LongBench; nothing if a dataset is complete as LongBench-E.

    Args:
        rows: by dataset of LongBench-E, from the files `DATASET.jsonl`.
        other_names: names of the other files, without their suffix.
        without_length: datasets whose rows have no `length`.
    """
    counts = {name: rows_by_bucket(found) for name, found in rows.items()}
    if any(_is_complete(name, counts[name]) for name in counts if name != SAME_ROWS):
        return []
    signs = []
    only = [name for name in other_names if name in LONGBENCH_ONLY]
    if only:
        signs.append(f"LongBench-E has no {', '.join(only)}")
    sizes = [
        f"{name} has {len(rows[name])} rows as in LongBench, not {DATASETS[name].num_rows}"
        for name in counts
        if name != SAME_ROWS and len(rows[name]) == LONGBENCH_ROWS[name] and not _is_beginning(name, counts[name])
    ]
    signs += sizes[:1]
    if without_length and not any(rows.values()):
        signs.append(f"rows have no `length` ({', '.join(without_length)})")
    return signs


def _is_complete(dataset: str, counts: Mapping[str, int]) -> bool:
    """Whether these are the rows of one or several complete runs."""
    runs = sum(counts.values()) // DATASETS[dataset].num_rows
    return runs > 0 and counts == {name: runs * n for name, n in DATASETS[dataset].rows_by_bucket.items()}


def _is_beginning(dataset: str, counts: Mapping[str, int]) -> bool:
    """Whether it can be the beginning of the official data, which are in the order of the buckets."""
    left = sum(counts.values())
    for name, official in DATASETS[dataset].rows_by_bucket.items():
        if counts[name] != min(left, official):
            return False
        left -= counts[name]
    return left == 0
