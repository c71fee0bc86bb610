"""Metrics by context length of any task: their names, the tidy table's rows, notes on malformed ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from longshort.results import read
from longshort.results.lengths import per_length
from tests.errors import assert_one
from tests.results.files import results_json, save


@pytest.mark.parametrize(
    ("task", "name", "metric", "length"),
    [
        ("niah_single_1", "4096", "score", 4096),
        ("niah_single_1", "131072", "score", 131072),
        ("any_task", "acc@8192", "acc", 8192),
        ("any_task", "exact_match@64", "exact_match", 64),
        ("any_task", "acc@32", "acc", 32),
        ("any_task", "f1@en@8192", "f1@en", 8192),
        ("longshort_perplexity", "ppl@16", "ppl", 16),
        ("longshort_retrieval", "recall@64", "recall", 64),  # not recall at 64 answers
        # buckets of words, by where they begin
        ("longshort_longbench_e", "score@0-4k", "score@0-4k", 0),
        ("longshort_longbench_e", "score@4-8k", "score@4-8k", 4000),
        ("longshort_longbench_e", "score@8k+", "score@8k+", 8000),
        # not lengths
        ("humaneval", "pass@1", "pass@1", None),
        ("humaneval", "pass@64", "pass@64", None),
        ("retriever", "recall@100", "recall@100", None),
        ("retriever", "filtered_hits@100", "filtered_hits@100", None),
        ("any_task", "acc@5", "acc@5", None),
        ("any_task", "acc@31", "acc@31", None),
        ("any_task", "acc@top", "acc@top", None),
        ("any_task", "acc@1024-2048", "acc@1024-2048", None),
        ("any_task", "0", "0", None),  # the name of a class
        ("any_task", "1", "1", None),
        ("any_task", "2gram", "2gram", None),
        ("any_task", "acc", "acc", None),
        ("longshort_misalignment", "sce_between@16-32", "sce_between@16-32", None),
    ],
)
def test_names(task: str, name: str, metric: str, length: int | None) -> None:
    found = per_length(name, task, {}, is_ours=task.startswith("longshort_"))
    assert found == (metric, length, "")


MALFORMED = ["4096k", "4k", "-4096", "+4096", "04096", "4096.5", "00", "9" * 16, "nan", "-inf"]
NAMES = [*MALFORMED, "@", "acc@", "@4096", *(f"acc@{length}" for length in MALFORMED), "acc@1e4"]


@pytest.mark.parametrize("name", NAMES)
def test_malformed_names(name: str) -> None:
    found = per_length(name, "any_task", {}, is_ours=False)
    assert found.length is None
    assert found.problem


@pytest.mark.parametrize(
    ("given", "length"), [("4k", 4096), ("0k", 0), ("128k", 131072), ("1M", 1048576), (None, None)]
)
def test_babilong_has_one_length_per_run(given: str | None, length: int | None) -> None:
    metadata = {} if given is None else {"max_seq_lengths": given}
    assert per_length("acc", "babilong_qa1", metadata, is_ours=False) == ("acc", length, "")
    assert per_length("acc", "hellaswag", metadata, is_ours=False) == ("acc", None, "")  # of the same run


def test_a_length_of_babilong_that_it_does_not_have() -> None:
    assert "4096" in per_length("acc", "babilong_qa1", {"max_seq_lengths": [4096]}, is_ours=False).problem


# ---- of a file


def others(folder: Path, metrics: dict[str, Any], task: str = "other", **data: Any) -> tuple[list[Any], list[str]]:
    """The rows of a task, and the notes."""
    content = results_json()
    content["results"][task] = {"alias": task} | metrics
    content["n-samples"][task] = {"original": 9, "effective": 6}
    save(folder, content | data)
    reading = read(folder, every_task=True)
    table = reading.table[reading.table["task"] == task].astype(object)
    columns = ["metric", "length", "value", "stderr", "n"]
    rows = table[columns].where(table[columns].notna(), None).to_numpy().tolist()
    return rows, reading.notes


def test_metrics_that_are_named_by_their_length_alone(tmp_path: Path) -> None:
    metrics = {"4096,none": 0.75, "4096_stderr,none": "N/A", "8192,none": 0.5, "8192_stderr,none": 0.125}
    rows, notes = others(tmp_path, metrics | {"16384,none": -1, "16384_stderr,none": "N/A"})
    # lm-eval counts the documents of all lengths together, so their number is not known for each.
    assert rows == [["score", 4096, 0.75, None, None], ["score", 8192, 0.5, 0.125, None]]
    assert notes == []


def test_one_length_has_all_documents(tmp_path: Path) -> None:
    rows, _ = others(tmp_path, {"4096,none": -1, "8192,none": 0.5})
    assert rows == [["score", 8192, 0.5, None, 6]]


def test_filters_stay_with_the_metric(tmp_path: Path) -> None:
    rows, _ = others(tmp_path, {"acc@4096,strict": 0.5, "acc@4096,loose": 0.75, "8192,strict": 0.25})
    assert [row[:3] for row in rows] == [
        ["acc,loose", 4096, 0.75],
        ["acc,strict", 4096, 0.5],
        ["score,strict", 8192, 0.25],
    ]


def test_each_malformed_metric_has_one_note_and_the_rest_counts(tmp_path: Path) -> None:
    bad = {"4096k": 0.1, "@": 0.2, "acc@": 0.3, "@64": 0.4, "-8192": 0.5, "acc@-64": 0.6, "acc@nan": 0.7, "nan": 0.8}
    metrics = {f"{name},none": value for name, value in bad.items()} | {f"{name}_stderr,none": 0.01 for name in bad}
    metrics |= {"16384,none": math.nan, "32768,none": True, "65536,none": "high"}  # values that are not numbers
    rows, notes = others(tmp_path, metrics | {"4096,none": 0.75, "acc,none": 0.5})
    assert [row[:3] for row in rows] == [["acc", None, 0.5], ["score", 4096, 0.75]]
    assert len(notes) == len(bad) + 3
    for name in bad:
        assert_one(notes, f"'{name},none'", "other")
    for name in ("16384", "32768", "65536"):
        assert_one(notes, f"{name},none", "other")


def test_two_metrics_at_one_length_count_neither(tmp_path: Path) -> None:
    rows, notes = others(tmp_path, {"4096,none": 0.75, "score@4096,none": 0.5, "8192,none": 0.25})
    assert [row[:3] for row in rows] == [["score", 8192, 0.25]]
    assert_one(notes, "'4096,none'", 0.75, "'score@4096,none'", 0.5, "other")


def test_a_key_that_is_given_twice_counts_not_at_all(tmp_path: Path) -> None:
    content = results_json()
    content["results"]["other"] = {"4096,none": 0.75, "twice": 1, "8192,none": 0.25}
    file = save(tmp_path, content)
    file.write_text(file.read_text().replace('"twice": 1', '"4096,none": 0.5'))
    reading = read(tmp_path, every_task=True)
    table = reading.table[reading.table["task"] == "other"]
    assert table[["length", "value"]].to_numpy().tolist() == [[8192, 0.25]]
    assert_one(reading.notes, "4096,none", 0.75, 0.5, "other")


# ---- of a group


def group(folder: Path, own: dict[str, Any], *parts: dict[str, Any], **data: Any) -> tuple[list[Any], list[str]]:
    """The rows of a group whose tasks have these metrics."""
    names = [f"part_{index}" for index in range(len(parts))]
    content = results_json()
    content["results"] |= {"ruler": {"alias": "ruler"} | own} | dict(zip(names, parts, strict=True))
    content["group_subtasks"] |= {"ruler": names}
    content["n-samples"] |= {name: {"original": 9, "effective": 2} for name in names}
    save(folder, content | data)
    reading = read(folder, every_task=True)
    table = reading.table[reading.table["task"] == "ruler"].astype(object)
    columns = ["metric", "length", "value", "stderr", "n"]
    return table[columns].where(table[columns].notna(), None).to_numpy().tolist(), reading.notes


def test_a_group_has_the_mean_of_its_tasks_at_the_lengths_that_it_lacks(tmp_path: Path) -> None:
    parts = [
        {"4096,none": 1.0, "8192,none": 0.75, "8192_stderr,none": 0.3},
        {"4096,none": 0.5, "8192,none": 0.25, "8192_stderr,none": 0.4},
    ]
    rows, notes = group(
        tmp_path, {"4096,none": 0.75, "4096_stderr,none": "N/A", "sample_count": {"4096,none": 4}}, *parts
    )
    # √(0.3² + 0.4²) / 2
    assert rows == [["score", 4096, 0.75, None, None], ["score", 8192, 0.5, pytest.approx(0.25), None]]
    assert notes == []


def test_a_group_at_one_length_that_is_not_its_own(tmp_path: Path) -> None:
    parts = [{"4096,none": -1.0, "8192,none": value} for value in (1.0, 0.5, 0.0)]
    rows, _ = group(tmp_path, {"4096,none": -1.0}, *parts)
    assert rows == [["score", 8192, 0.5, None, 6]]


def test_a_group_s_score_is_of_all_its_tasks(tmp_path: Path) -> None:
    """lm-eval's mean at 4096 would include the -1 of a task that was not evaluated there."""
    rows, notes = group(
        tmp_path, {"4096,none": -0.25}, {"4096,none": -1.0, "8192,none": 0.5}, {"4096,none": 0.5, "16384,none": 0.5}
    )
    assert rows == []
    for length in (4096, 8192, 16384):
        assert_one(notes, f"{length},none", "ruler", "1 of its 2 tasks")


def test_groups_inside_groups_and_rings(tmp_path: Path) -> None:
    content = results_json()
    content["results"] |= {
        "outer": {"4096,none": 0.5},
        "inner": {"4096,none": 0.25},
        "a": {"4096,none": 1.0, "8192,none": 0.9},
        "b": {"4096,none": 0.5, "8192,none": 0.6},
        "c": {"4096,none": 0.0, "8192,none": 0.0},
    }
    content["group_subtasks"] |= {"outer": ["a", "inner"], "inner": ["b", "c", "outer"]}
    save(tmp_path, content)
    table = read(tmp_path, every_task=True).table
    found = table[table["length"] == 8192].set_index("task")["value"]
    assert found["outer"] == pytest.approx((0.9 + 0.6 + 0.0) / 3)


def test_other_groups_get_no_mean(tmp_path: Path) -> None:
    rows, notes = group(tmp_path, {"acc,none": 0.5}, {"acc,none": 0.25, "8192,none": 0.5}, {"acc,none": 0.75})
    assert [row[:3] for row in rows] == [["acc", None, 0.5]]
    assert notes == []


# ---- of which less is better


def test_what_files_record_about_the_direction_of_metrics(tmp_path: Path) -> None:
    content = results_json()
    content["results"]["other"] = {"4096,none": 0.75, "loss@4096,none": 2.0, "loss@8192,none": 3.0}
    content["higher_is_better"] = {"other": {"4096": True, "loss@4096": False, "loss@8192": False}, "hellaswag": None}
    save(tmp_path, content)
    assert read(tmp_path, every_task=True).lower_is_better == {("other", "loss")}
