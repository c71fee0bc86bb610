"""Tables of results on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from longshort.lmeval import table
from longshort.lmeval.table import GroupLabels, label_group, results_table


def shown(results: dict[str, dict[str, object]], groups: dict[str, list[str]] | None = None, width: int = 80) -> str:
    screen = io.StringIO()
    results_table({"results": results, "group_subtasks": groups or {}}, Console(file=screen, width=width))
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


LENGTHS = (512, 1024, 2048, 4096)


def half_precision(jeffreys: tuple[float, ...], floors: tuple[float, ...]) -> dict[str, object]:
    """Values of the misalignment task as a run in half precision has them, floors last."""
    values: dict[str, object] = {"alias": "longshort_misalignment"}
    for name, row in (("sce", (3.512345,) * 4), ("jeffreys", jeffreys), ("js", (0.001,) * 4)):
        values |= {f"{name}@{length},none": value for length, value in zip(LENGTHS, row, strict=True)}
        values |= {f"{name}@{length}_stderr,none": value / 12.3 for length, value in zip(LENGTHS, row, strict=True)}
    for name, row in (("jeffreys_floor", floors), ("js_floor", (0.0001,) * 4)):
        values |= {f"{name}@{length},none": value for length, value in zip(LENGTHS, row, strict=True)}
        values |= {f"{name}@{length}_stderr,none": value / 12.3 for length, value in zip(LENGTHS, row, strict=True)}
    return values


def cells_of(text: str, row: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"│{row} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_divergences_below_three_floors_are_marked_and_explained() -> None:
    """0.0026 / 0.001 is 2.6 floors, 0.0031 / 0.001 is 3.1."""
    values = half_precision((0.0726, 0.0026, 0.0031, 0.003), (0.02, 0.001, 0.001, 0.001))
    text = shown({"longshort_misalignment": values}, width=100)
    assert cells_of(text, "jeffreys") == ["0.0726 ±0.0059", "0.0026‡ ±0.00021", "0.0031 ±0.00025", "0.003 ±0.00024"]
    assert cells_of(text, "jeffreys_floor") == ["0.02", "0.001", "0.001", "0.001"]  # compact: two digits, no error
    assert not any("‡" in cell for row in ("sce", "js") for cell in cells_of(text, row))
    rows = [line[1:].split()[0] for line in text.splitlines() if line.startswith("│")]
    assert rows == ["sce", "jeffreys", "jeffreys_floor", "js", "js_floor"]
    narrow = shown({"longshort_misalignment": values}).splitlines()
    (explanation,) = [line for line in narrow if line.startswith("‡")]
    assert "3 times" in explanation
    assert max(map(len, narrow)) <= 80


def test_without_a_value_below_three_floors_nothing_is_explained() -> None:
    text = shown({"longshort_misalignment": half_precision((0.0726,) * 4, (0.02,) * 4)})
    assert "‡" not in text


@pytest.mark.parametrize("floor", ["N/A", None, float("nan"), 0.0])
def test_a_floor_that_was_not_measured_flags_nothing(floor: object) -> None:
    values = half_precision((0.0,) * 4, (1.0,) * 4) | {f"jeffreys_floor@{length},none": floor for length in LENGTHS}
    assert "‡" not in shown({"longshort_misalignment": values})


def test_metrics_that_are_named_by_their_length_alone_are_a_row() -> None:
    values = {"alias": "niah", "4096,none": 0.5, "4096_stderr,none": "N/A", "8192,none": 0.25, "16384,none": -1}
    text = shown({"niah": values})
    assert cells_of(text, "score") == ["0.5", "0.25"]  # 16384 was not asked for
