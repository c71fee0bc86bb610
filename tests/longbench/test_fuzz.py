"""Prediction files and LongBench rows that were spoiled: each is read, or refused in one line that names the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshort.longbench.data import read_rows
from longshort.longbench.official import score_folder
from longshort.longbench.scores import DATASETS
from tests.longbench.rows import make_row
from tests.mutations import mutated, outcome

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
datasets = st.sampled_from(sorted(DATASETS))


def prediction(dataset: str) -> dict[str, Any]:
    row = make_row(dataset, 1, words=3)
    return {"pred": "an answer"} | {name: row[name] for name in ("answers", "all_classes", "length")}


@EXAMPLES
@given(data=st.data(), dataset=datasets, sample=st.booleans())
def test_predictions_are_scored_or_refused(tmp_path: Path, data: st.DataObject, dataset: str, sample: bool) -> None:
    good = prediction(dataset)
    name = dataset
    if sample:
        good = {"doc": good, "filtered_resps": ["an answer"]}
        name = f"samples_longshort-longbench-e-{dataset}_2025-01-01T00-00-00.000000"
    for old in tmp_path.glob("*.jsonl"):
        old.unlink()
    file = tmp_path / f"{name}.jsonl"
    file.write_bytes(data.draw(mutated(good)))
    summary, message = outcome(score_folder, tmp_path, tmp_path / "out")
    if summary is None:  # the only line has no `length`
        assert "`length`" in message
        return
    for problem in summary.problems:
        assert str(file) in problem or f"{dataset} has 1 of" in problem
        assert "\n" not in problem
    scored = [score for columns in summary.datasets.values() for score in columns.values()]
    assert all(0 <= score.value <= 100 and math.isfinite(score.value) for score in scored)
    assert scored or summary.problems


@EXAMPLES
@given(data=st.data(), dataset=datasets)
def test_rows_are_read_or_refused(tmp_path: Path, data: st.DataObject, dataset: str) -> None:
    file = tmp_path / f"{dataset}_e.jsonl"
    file.write_bytes(data.draw(mutated(make_row(dataset, 1, words=3))))
    rows, message = outcome(read_rows.__wrapped__, dataset, str(tmp_path))
    if rows is None:
        assert str(file) in message
    else:
        assert all(isinstance(row["context"], str) and row["answers"] for row in rows.rows)
