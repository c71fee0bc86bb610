"""Scores folders of LongBench-E predictions as the official scorer does, with means by category and overall.

Source: `THUDM/LongBench`, `LongBench/eval.py --e`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from longshort.longbench.predictions import read_predictions
from longshort.longbench.runs import Row
from longshort.longbench.scores import BUCKETS, CATEGORIES, DATASETS, CodeRatio, bucket, score_row
from longshort.results import write_atomically

COLUMNS = ("all", *BUCKETS)
FEW_ROWS = 30


@dataclass(frozen=True)
class Score:
    """A mean in percent, its standard error (None below two rows), its number of rows, and the missing datasets."""

    value: float
    stderr: float | None
    n: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """Scores of one folder.

    Every table maps a name, then "all" or a bucket, to a score, which is absent without rows.
    """

    official: dict[str, dict[str, float]]  # content of the official ``result.json``
    datasets: dict[str, dict[str, Score]]  # scores of each dataset
    categories: dict[str, dict[str, Score]]  # means over the datasets of each category
    overall: dict[str, Score]  # mean over the categories
    plain: dict[str, Score]  # mean over the datasets
    missing: list[str]  # datasets without any row
    notes: list[str]  # what a reader of the numbers should know
    problems: list[str]  # what was skipped or is missing and has to be corrected
    code_ratio: CodeRatio = "difflib"  # ratio of lcc and repobench-p


def score_folder(folder: Path, output: Path | None = None, code_ratio: CodeRatio = "difflib") -> Summary:
    """Score a folder of predictions; write ``result.json``, the official content, and ``summary.json``.

    Args:
        folder: has official prediction files, or lm-eval's samples of LongBench-E.
        output: folder for the two files; by default `folder`, as the official scorer does.
        code_ratio: ratio of lcc and repobench-p; see `longshort.longbench.scores.code_similarity`.

    Raises:
        UserError: the folder has no dataset of LongBench-E, or the files cannot be written.
    """
    predictions = read_predictions(folder)
    scores = row_scores(predictions.rows, code_ratio)
    summary = summarize(scores, predictions.problems, predictions.notes, code_ratio)
    output = output or folder
    write_atomically(output / "result.json", json.dumps(summary.official, ensure_ascii=False, indent=4))
    tables = {name: table for name, table in asdict(summary).items() if name != "official"}
    write_atomically(output / "summary.json", json.dumps(tables, indent=2) + "\n")
    return summary


def row_scores(
    rows: Mapping[str, Sequence[Row]], code_ratio: CodeRatio = "difflib"
) -> dict[str, dict[str, list[float]]]:
    """Return the score of every row, in [0, 1], by dataset and bucket. A bucket without rows is absent."""
    scores: dict[str, dict[str, list[float]]] = {}
    for dataset, rows_of_dataset in rows.items():
        buckets: dict[str, list[float]] = {name: [] for name in BUCKETS}
        for row in rows_of_dataset:
            score = score_row(dataset, row.prediction, row.answers, row.all_classes, code_ratio)
            buckets[bucket(row.length)].append(score)
        scores[dataset] = {name: values for name, values in buckets.items() if values}
    return scores


def official_scores(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """Return what the official scorer writes: percent by dataset and bucket, rounded to two decimals.

    numpy takes the mean and rounds, as it does there: Python's own rounding differs for values half-way.
    """
    import numpy as np

    return {
        dataset: {name: float(round(100 * np.mean(values), 2)) for name, values in buckets.items()}
        for dataset, buckets in scores.items()
    }


def summarize(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    problems: Iterable[str] = (),
    notes: Iterable[str] = (),
    code_ratio: CodeRatio = "difflib",
) -> Summary:
    """Return means and standard errors by dataset, category and overall, from the scores of `row_scores`.

    To the problems and notes of the predictions it adds the datasets with missing rows and the buckets with few.
    """
    datasets: dict[str, dict[str, Score]] = {}
    for name, buckets in scores.items():
        values = {"all": [value for column in buckets.values() for value in column], **buckets}
        datasets[name] = {column: _mean_of_rows(values[column]) for column in COLUMNS if values.get(column)}
    members = {
        category: {name: datasets.get(name, {}) for name in DATASETS if DATASETS[name].category == category}
        for category in CATEGORIES
    }
    categories = {category: means(tables) for category, tables in members.items() if any(tables.values())}
    plain = means({name: datasets.get(name, {}) for name in DATASETS})
    # A category without rows misses all its datasets, which only the plain mean knows.
    overall = {
        column: Score(score.value, score.stderr, score.n, plain[column].missing)
        for column, score in means(categories).items()
    }
    missing = [name for name in DATASETS if name not in datasets]
    return Summary(
        official=official_scores(scores),
        datasets=datasets,
        categories=categories,
        overall=overall,
        plain=plain,
        missing=missing,
        notes=[*notes, *_few_rows(datasets)],
        problems=[*problems, *_missing_rows(datasets)],
        code_ratio=code_ratio,
    )


def _mean_of_rows(values: Sequence[float]) -> Score:
    n = len(values)
    mean = math.fsum(values) / n
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Score(100 * mean, 100 * math.sqrt(squares / (n - 1) / n) if n > 1 else None, n)


def means(tables: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """Return per column the mean over the tables that have it, and the names of those that do not as missing."""
    by_column = {}
    for column in COLUMNS:
        parts = [table[column] for table in tables.values() if column in table]
        if not parts:
            continue
        errors = [part.stderr for part in parts if part.stderr is not None]
        by_column[column] = Score(
            value=math.fsum(part.value for part in parts) / len(parts),
            stderr=math.hypot(*errors) / len(parts) if len(errors) == len(parts) else None,
            n=sum(part.n for part in parts),
            missing=tuple(name for name, table in tables.items() if column not in table),
        )
    return by_column


def _missing_rows(datasets: Mapping[str, Mapping[str, Score]]) -> list[str]:
    short = [
        f"{name} has {columns['all'].n} of {DATASETS[name].num_rows}"
        for name, columns in datasets.items()
        if columns["all"].n < DATASETS[name].num_rows
    ]
    if not short:
        return []
    return [f"Rows are missing: {', '.join(short)}. Scores are over the others; generate predictions of all rows."]


def _few_rows(datasets: Mapping[str, Mapping[str, Score]]) -> list[str]:
    few = [
        f"{name} {column} ({columns[column].n})"
        for name, columns in datasets.items()
        for column in BUCKETS
        if column in columns and columns[column].n < FEW_ROWS
    ]
    return [f"Fewer than {FEW_ROWS} rows: {', '.join(few)}."] if few else []


def table_rows(summary: Summary) -> dict[str, list[tuple[str, ...]]]:
    """Return the summary as text, by section: name, all rows, and each bucket.

    A star marks fewer than 30 rows, a dagger a score or mean with missing rows or datasets, a dash no rows.
    """
    members = {category: [name for name in DATASETS if DATASETS[name].category == category] for category in CATEGORIES}
    sections = {
        "dataset": [(name, [name], columns) for name, columns in summary.datasets.items()],
        "category": [(name, members[name], columns) for name, columns in summary.categories.items()],
        "overall": [
            ("mean of categories", list(DATASETS), summary.overall),
            ("mean of datasets", list(DATASETS), summary.plain),
        ],
    }
    return {
        section: [
            (name, *(_cell(columns.get(column), _official_rows(names, column)) for column in COLUMNS))
            for name, names, columns in table
        ]
        for section, table in sections.items()
    }


def _official_rows(datasets: Iterable[str], column: str) -> int:
    rows = [{"all": DATASETS[name].num_rows, **DATASETS[name].rows_by_bucket} for name in datasets]
    return sum(counts[column] for counts in rows)


def _cell(score: Score | None, official: int) -> str:
    if score is None:
        return "–"
    stderr = "" if score.stderr is None else f" ±{score.stderr:.1f}"
    return f"{score.value:.2f}{stderr}{'*' * (score.n < FEW_ROWS)}{'†' * (score.n < official)}"
