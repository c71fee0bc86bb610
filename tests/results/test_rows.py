"""Numbers that are not numbers are named with their file and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.results import read
from tests.errors import assert_one
from tests.results.files import results_json, save

METRICS = {"ppl@64,none": 2.0, "ppl@64_stderr,none": 0.5}


@pytest.mark.parametrize(
    ("change", "facts", "column"),
    [
        ({"metrics": METRICS | {"ppl@128,none": "0.5"}}, ("ppl@128,none", "'0.5'", "text"), None),
        ({"metrics": METRICS | {"ppl@128,none": True}}, ("ppl@128,none", "True"), None),
        ({"metrics": METRICS | {"ppl@128,none": None}}, ("ppl@128,none", "None"), None),
        ({"metrics": METRICS | {"ppl@128,none": float("inf")}}, ("ppl@128,none", "inf"), None),
        ({"metrics": METRICS | {"ppl@64_stderr,none": "0.5"}}, ("ppl@64_stderr,none", "'0.5'", "text"), "stderr"),
        ({"metrics": METRICS | {"ppl@64_stderr,none": "N/A"}}, (), "stderr"),
        ({"metadata": {"train_length": "4096"}}, ("train_length", "'4096'", "text"), "train_length"),
        ({"metadata": {"train_tokens": "3e11"}}, ("train_tokens", "'3e11'", "text"), "train_tokens"),
        ({"metadata": {"scored": {"documents": {"ppl@64": "3"}}}}, ("ppl@64,none", "'3'", "text"), "n"),
        ({"date": "2025-01-01"}, ("date", "'2025-01-01'", "text"), None),
    ],
)
def test_a_number_given_as_text_is_named(
    tmp_path: Path, change: dict[str, Any], facts: tuple[str, ...], column: str | None
) -> None:
    file = save(tmp_path, results_json(**({"metrics": METRICS} | change)))
    reading = read(tmp_path)
    assert reading.table["value"].tolist() == [2.0]
    if column:
        assert pd.isna(reading.table[column].iloc[0])
    assert len(reading.notes) == bool(facts)
    if facts:
        assert_one(reading.notes, str(file), *facts)


def test_a_model_behind_an_api_goes_by_its_argument(tmp_path: Path) -> None:
    data = results_json(model_args="model=my/run,base_url=http://localhost:8000,tokenizer=other")
    del data["model_name"]
    save(tmp_path, data)
    assert set(read(tmp_path).table["checkpoint"]) == {"my/run"}


def test_a_file_that_names_no_model_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, results_json())
    data = results_json()
    data["config"]["model_args"] = None
    del data["model_name"]
    file = save(tmp_path / "other", data)
    reading = read(tmp_path)
    assert set(reading.table["checkpoint"]) == {"org/model-1b"}
    assert_one(reading.notes, str(file))
