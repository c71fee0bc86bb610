"""Whether the rows of a prediction file are those of one run over the official data.

The official script appends to an existing file, so a second run leaves every row twice, and an interrupted one some.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any

from longshort.longbench.scores import BUCKETS, DATASETS, bucket

# Official predictions have no id. Fewer different rows than this, or no more than this share of rows with an equal
# one, may have the same answers and length by chance: in the official data that is at most one row of a dataset.
FEW_ROWS = 20
SHARE_BY_CHANCE = 0.02


@dataclass(frozen=True)
class Row:
    """One prediction with its right answers; `length` in words, `all_classes` only if the dataset has classes.

    `identity` is what the file says about which row of the data it is, None if it does not say it.
    """

    prediction: str
    answers: list[str]
    all_classes: list[str] | None
    length: float
    identity: str | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """The row of the data, as far as the file identifies it."""
        return self.identity or json.dumps([self.answers, self.all_classes, self.length])


def identity_of(fields: Mapping[str, Any], number: object = None) -> str | None:
    """Return the row's identity from its fields and, for samples of lm-eval, the document's number."""
    identity = [value for value in (fields.get("_id"), number) if isinstance(value, str | int)]
    return json.dumps(identity) if identity else None


def rows_by_bucket(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of rows in each bucket of length, 0 included."""
    counts = Counter(bucket(row.length) for row in rows)
    return {name: counts[name] for name in BUCKETS}


def one_run(rows: Sequence[Row], dataset: str) -> list[Row]:
    """Return the rows of one run, in the file's order: exact repeats of a whole run are counted once.

    Raises:
        ValueError: the rows are of several runs and not exact repeats, or there are more than in the official data;
            the message says it in a few words.
    """
    official = DATASETS[dataset].num_rows
    kept = _without_repeats(rows, official)
    if len(kept) > official:
        raise ValueError(f"{len(kept)} rows, where the official data has {official}")
    surplus = [f"{n} in {name} (official: {most})" for name, n, most in _lengths(kept, dataset) if n > most]
    if surplus and len(kept) < official:
        raise ValueError(f"{len(kept)} rows that cannot be the official ones: {', '.join(surplus)}")
    return kept


def other_lengths(rows: Sequence[Row], dataset: str) -> str:
    """Say where a dataset with the official number of rows has other lengths than the official data, or nothing."""
    if len(rows) != DATASETS[dataset].num_rows:
        return ""
    return ", ".join(f"{n} in {name} (official: {right})" for name, n, right in _lengths(rows, dataset) if n != right)


def _lengths(rows: Sequence[Row], dataset: str) -> list[tuple[str, int, int]]:
    """For each bucket its name, its number of rows, and that of the official data."""
    official = DATASETS[dataset].rows_by_bucket
    return [(name, n, official[name]) for name, n in rows_by_bucket(rows).items()]


def _without_repeats(rows: Sequence[Row], official: int) -> list[Row]:
    distinct = Counter(row.key for row in rows)
    predictions = Counter((row.key, row.prediction) for row in rows)
    more_than_one_run = f"{len(rows)} predictions of {len(distinct)} different rows, so of more than one run"
    if all(row.identity for row in rows):
        if len(predictions) > len(distinct):
            raise ValueError(more_than_one_run)
        return list({row.key: row for row in rows}.values())
    divisor = gcd(*predictions.values())
    runs, rest = divmod(len(rows), official)
    for times in (runs, divisor) if runs and not rest else (divisor,):
        if divisor % times == 0:
            kept = _every(rows, times)
            keys = len({row.key for row in kept})
            if keys < FEW_ROWS or len(kept) - keys <= SHARE_BY_CHANCE * len(kept):
                return kept
    raise ValueError(more_than_one_run)


def _every(rows: Sequence[Row], times: int) -> list[Row]:
    """Every `times`-th of equal rows: those of one run."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        record = (row.key, row.prediction)
        if seen[record] % times == 0:
            kept.append(row)
        seen[record] += 1
    return kept
