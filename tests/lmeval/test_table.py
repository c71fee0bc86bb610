"""Tables of results on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from longshort.lmeval import table
from longshort.lmeval.table import GroupLabels, label_group, results_table


def shown(results: dict[str, dict[str, object]], groups: dict[str, list[str]] | None = None) -> str:
    screen = io.StringIO()
    results_table({"results": results, "group_subtasks": groups or {}}, Console(file=screen, width=80))
    return screen.getvalue()


def test_lengths_are_columns_in_order_and_gaps_are_dashes() -> None:
    values = {f"ppl@{length},none": 10.0 + length / 1000 for length in (2048, 128, 16384)}
    values |= {
        "ppl_stderr@128,none": 1.0,
        "ppl@128_stderr,none": 0.123,
        "bpb@128,none": 2.5,
        "bpb@128_stderr,none": "N/A",
    }
    text = shown({"longshort_perplexity": {"name": "x", "alias": "x", "sample_len": 3, **values}})
    header = next(line for line in text.splitlines() if "16384" in line)
    assert header.index("128 ") < header.index("2048") < header.index("16384")
    assert "10.13 ±0.12" in text
    assert next(line for line in text.splitlines() if line.startswith("│bpb")).count("–") == 2


ROW = {"score,none": 50.0, "score_stderr,none": 5.0, "score@0-4k,none": 40.0, "score@8k+,none": 60.0}


def test_members_of_a_group_share_a_table() -> None:
    text = shown(
        {
            "of-qasper": {"alias": "qasper", **ROW},
            "of-few-shot": {"alias": "few-shot", **ROW},
            "whole": {"alias": "whole", **ROW, "score_datasets,none": 30.0},
            "alone": {"alias": "alone", "acc,none": 0.5},
        },
        {"whole": ["of-few-shot"], "of-few-shot": ["of-qasper"]},
    )
    lines = text.splitlines()
    titles = [line for line in lines if "value ±standard error" in line]
    assert [title.split(",")[0] for title in titles] == ["alone", "whole"]
    header = next(line for line in lines if "0-4k" in line)
    assert header.index("all") < header.index("0-4k") < header.index("8k+")
    for name, value in (
        ("qasper", "50 ±5"),
        ("few-shot", "50 ±5"),
        ("whole score ", "50 ±5"),
        ("whole score_datasets", "30"),
    ):
        assert any(name in line and value in line for line in lines), name


def test_a_member_with_several_metrics_has_a_row_for_each() -> None:
    text = shown({"sum": {"acc,none": 0.25, "acc_norm,none": 0.75}, "all": {"acc,none": 0.25}}, {"all": ["sum"]})
    assert all(name in text for name in ("sum acc ", "sum acc_norm", "all acc"))


def test_a_group_is_shown_under_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_labels", {})
    label_group("whole", GroupLabels("The whole", {"score": "mean of members"}, "of-"))
    text = shown({"of-qasper": {"alias": "of-qasper", **ROW}, "whole": ROW}, {"whole": ["of-qasper"]})
    assert text.startswith("The whole, value ±standard error")
    assert "mean of members" in text
    assert "of-qasper" not in text


def test_a_group_without_values_has_no_table() -> None:
    assert shown({"whole": {"alias": "whole"}}, {"whole": []}) == ""
